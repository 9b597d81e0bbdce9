//! `yolo predict` below its flags: pictures are read ahead of the network, results written in their order.

pub(crate) mod console;
pub(crate) mod record;
pub(crate) mod run_folder;
pub(crate) mod sources;
pub(crate) mod text;
pub(crate) mod writer;

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use image::RgbImage;
use rayon::prelude::*;
use yolo_core::{Batch, Detection, Detector, Error, Speed};

use console::Console;
use record::{Record, Wanted};
use sources::Source;
use writer::{FileNames, Writer};

/// One picture to look at.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) source: Source,
    pub(crate) files: FileNames,
}

impl Job {
    /// Says where a picture's files are, if not under its own name because an earlier picture has that.
    pub(crate) fn tell_renamed(&self, wanted: &Wanted, console: &Console) {
        let own = Path::new(self.source.file_name()).file_stem();
        let mut files = Vec::new();
        for (file, wanted) in [(&self.files.picture, wanted.picture), (&self.files.labels, wanted.txt)] {
            if wanted && file.file_stem() != own {
                files.push(file.display().to_string());
            }
        }
        if !files.is_empty() {
            let source = &self.source;
            console.problem(&format!(
                "warning: {source}: saved as {}, for an earlier picture has its name",
                files.join(", ")
            ));
        }
    }
}

/// Gives every picture's files their names. Where two pictures of a run would share one, the later one's is numbered.
pub(crate) fn jobs(sources: Vec<Source>) -> Vec<Job> {
    let stem = |source: &Source| Path::new(source.file_name()).file_stem().unwrap_or_default().to_os_string();
    let ending = |source: &Source| OsString::from(record::picture_ending(Path::new(source.file_name())));
    let with_ending = |stem: &OsString, ending: &OsString| {
        let mut name = stem.clone();
        name.push(".");
        name.push(ending);
        name.into()
    };
    let pictures: Vec<_> = sources.iter().map(|source| (stem(source), ending(source))).collect();
    let labels: Vec<_> = sources.iter().map(|source| (stem(source), OsString::from("txt"))).collect();
    let (picture_stems, label_stems) = (run_folder::distinct(&pictures), run_folder::distinct(&labels));
    sources
        .into_iter()
        .zip(picture_stems.iter().zip(&label_stems).zip(pictures))
        .map(|(source, ((picture, label), (stem, ending)))| {
            let files = FileNames {
                picture: with_ending(picture, &ending),
                labels: with_ending(label, &"txt".into()),
                crops: with_ending(&stem, &"jpg".into()),
            };
            Job { source, files }
        })
        .collect()
}

/// How a run went.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Pictures that were looked at.
    pub(crate) done: usize,
    /// Pictures that could not be used.
    pub(crate) failed: usize,
    /// Time spent on all of them.
    pub(crate) speed: Speed,
}

/// Everything that a run needs.
pub(crate) struct Run<'a> {
    pub(crate) jobs: &'a [Job],
    pub(crate) detector: &'a Detector,
    /// Pictures that go through the network at once, at least 1.
    pub(crate) batch: usize,
    pub(crate) wanted: &'a Wanted,
    pub(crate) console: &'a Console,
    /// Set from outside: finish what is begun and read no more.
    pub(crate) stop: &'a AtomicBool,
}

/// A batch as it is read: the pictures' numbers and what reading gave.
type Loaded = Vec<(usize, anyhow::Result<RgbImage>)>;

/// A picture's number, what is to be written of it, and the end of its line.
type Looked = (usize, anyhow::Result<(Record, String)>);

impl Run<'_> {
    /// Looks at every picture. At most two batches are in memory: the one in the network and the next one, read meanwhile.
    ///
    /// # Errors
    /// A network that fails, a result that cannot be written, standard output that is closed. A picture that cannot be
    /// used is told and counted instead.
    pub(crate) fn go(&self, mut writer: Option<&mut Writer>) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(0);
            scope.spawn(move || self.read_ahead(&send));
            // Leaving this loop early drops the receiver, which ends the reader.
            for loaded in receive {
                self.look_at(loaded, writer.as_deref_mut(), &mut outcome)?;
            }
            Ok(outcome)
        })
    }

    fn read_ahead(&self, send: &SyncSender<Loaded>) {
        let numbered: Vec<(usize, &Job)> = self.jobs.iter().enumerate().collect();
        for batch in numbered.chunks(self.batch.max(1)) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let loaded = batch.par_iter().map(|(number, job)| (*number, job.source.read())).collect();
            if send.send(loaded).is_err() {
                return;
            }
        }
    }

    /// Takes one batch through the network and writes what comes of it, picture by picture in their order.
    fn look_at(&self, loaded: Loaded, mut writer: Option<&mut Writer>, outcome: &mut Outcome) -> anyhow::Result<()> {
        let (mut numbers, mut images, mut results) = (Vec::new(), Vec::new(), Vec::new());
        for (number, read) in loaded {
            match read {
                Ok(image) => {
                    numbers.push(number);
                    images.push(image);
                }
                Err(error) => results.push((number, Err(error))),
            }
        }
        if !images.is_empty() {
            results.extend(self.detect(&numbers, images, &mut outcome.speed)?);
        }
        results.sort_by_key(|(number, _)| *number);
        for (number, result) in results {
            match result {
                Ok((record, line)) => {
                    self.keep(number, &record, &line, writer.as_deref_mut())?;
                    outcome.done += 1;
                }
                Err(error) => {
                    self.refuse(number, &error)?;
                    outcome.failed += 1;
                }
            }
            self.console.step();
        }
        Ok(())
    }

    /// Runs the network on pictures and makes what is to be written of each. A picture that the network cannot take is an
    /// error of that picture; a device that fails is one of the run.
    fn detect(&self, numbers: &[usize], images: Vec<RgbImage>, speed: &mut Speed) -> anyhow::Result<Vec<Looked>> {
        let batch = match self.detector.detect_batch(&images) {
            Ok(batch) => batch,
            Err(error @ (Error::Candle(_) | Error::Device(_))) => return Err(error.into()),
            Err(error) if images.len() == 1 => {
                let source = self.jobs[numbers[0]].source.to_string();
                return Ok(vec![(numbers[0], Err(anyhow::Error::new(error).context(source)))]);
            }
            // One of them spoils the batch: each on its own.
            Err(_) => {
                let each = numbers.iter().zip(images);
                let each = each.map(|(number, image)| self.detect(&[*number], vec![image], speed));
                return Ok(each.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect());
            }
        };
        let Batch { pictures, network_shape, speed: spent } = batch;
        speed.pre_process += spent.pre_process;
        speed.inference += spent.inference;
        speed.nms += spent.nms;
        let each = spent.inference.as_secs_f64() * 1e3 / images.len() as f64;
        let pictures = images.into_par_iter().zip(pictures).zip(numbers);
        Ok(pictures
            .map(|((image, found), number)| (*number, self.record(*number, image, &found, network_shape, each)))
            .collect())
    }

    fn record(
        &self,
        number: usize,
        image: RgbImage,
        found: &[Detection],
        [height, width]: [usize; 2],
        milliseconds: f64,
    ) -> anyhow::Result<(Record, String)> {
        let (job, names) = (&self.jobs[number], self.detector.names());
        let record = record::make(image, found, names, &job.source, &job.files.picture, self.wanted)?;
        Ok((record, format!("{height}x{width} {}{milliseconds:.1}ms", text::tally(found, names))))
    }

    fn keep(&self, number: usize, record: &Record, line: &str, writer: Option<&mut Writer>) -> anyhow::Result<()> {
        let job = &self.jobs[number];
        if let Some(writer) = writer {
            writer.write(&job.files, record, self.wanted)?;
        }
        self.console.line(&format!("image {}/{} {}: {line}", number + 1, self.jobs.len(), job.source))?;
        if let Some(json) = &record.json {
            self.console.output(json)?;
        }
        Ok(())
    }

    fn refuse(&self, number: usize, error: &anyhow::Error) -> anyhow::Result<()> {
        let error = format!("{error:#}");
        self.console.problem(&format!("error: image {}/{}: {error}", number + 1, self.jobs.len()));
        if self.wanted.json {
            self.console.output(&record::json_problem(&self.jobs[number].source.to_string(), &error)?)?;
        }
        Ok(())
    }
}

/// YOLOv5's line of times, a picture's share each.
pub(crate) fn speed_line(outcome: &Outcome, batch: usize, [height, width]: [usize; 2]) -> String {
    let share = |time: Duration| time.as_secs_f64() * 1e3 / outcome.done.max(1) as f64;
    let Speed { pre_process, inference, nms } = outcome.speed;
    let (pre_process, inference, nms) = (share(pre_process), share(inference), share(nms));
    format!(
        "Speed: {pre_process:.1}ms pre-process, {inference:.1}ms inference, {nms:.1}ms NMS per image at shape ({batch}, 3, {height}, {width})"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_of_one_name_keep_their_files_apart() {
        let sources = ["/x/a.jpg", "/x/a.png", "/y/a.jpg", "/x/upload"].map(|path| Source::File(path.into()));
        let jobs = jobs(sources.into());
        let names: Vec<_> = jobs
            .iter()
            .map(|job| [&job.files.picture, &job.files.labels, &job.files.crops].map(|p| p.to_str().unwrap()))
            .collect();
        assert_eq!(
            names,
            [
                ["a.jpg", "a.txt", "a.jpg"],
                ["a.png", "a2.txt", "a.jpg"],
                ["a2.jpg", "a3.txt", "a.jpg"],
                ["upload.jpg", "upload.txt", "upload.jpg"],
            ]
        );
    }

    #[test]
    fn the_line_of_times_is_yolov5s() {
        let ms = Duration::from_millis;
        let speed = Speed { pre_process: ms(3), inference: ms(100), nms: ms(5) };
        let outcome = Outcome { done: 2, failed: 1, speed };
        assert_eq!(
            speed_line(&outcome, 1, [640, 480]),
            "Speed: 1.5ms pre-process, 50.0ms inference, 2.5ms NMS per image at shape (1, 3, 640, 480)"
        );
    }
}
