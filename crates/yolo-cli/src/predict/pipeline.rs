//! Pictures on their way: read and fitted ahead of the network, drawn and written behind it, in threads of their own.
//!
//! ```text
//! read and fit (threads, a picture each) ─▶ network (lanes, a batch each) ─▶ finish (threads, a picture each) ─▶ write
//! ```
//!
//! Where batches are of several pictures, a thread of its own between the first two gathers and fits them.
//!
//! Every arrow is a bounded channel that keeps the order of the pictures. A stage that ends drops its ends of them, and that
//! ends the others: the ones before it have nobody to work for, the ones after it do what is still on its way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use image::RgbImage;
use yolo_core::{Batch, Detector, Error, Prepared, Raw, Speed};

use super::console::Console;
use super::in_order::in_order;
use super::record::{self, Record, Wanted};
use super::writer::Writer;
use super::{Job, Outcome, text};

/// Threads that read, and as many that finish: at least, so that two of them can use what the network leaves, ...
const LEAST_THREADS: usize = 2;
/// ... and at most. On a machine of few cores the network needs them all.
const MOST_THREADS: usize = 4;

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

/// A picture's number, and the picture or why it cannot be used.
type Numbered<T> = (usize, anyhow::Result<T>);

/// Pictures that go through the network at once.
struct Group {
    numbers: Vec<usize>,
    images: Vec<RgbImage>,
    prepared: Prepared,
}

/// What becomes of a batch as it was read: groups of pictures, mostly one, and those that cannot be used.
#[derive(Default)]
struct Gathered {
    groups: Vec<Group>,
    refused: Vec<(usize, anyhow::Error)>,
}

/// The pictures of a batch in their order, or the failure of the network.
fn each(batch: anyhow::Result<Vec<Numbered<Seen>>>) -> Vec<anyhow::Result<Numbered<Seen>>> {
    match batch {
        Ok(mut pictures) => {
            pictures.sort_by_key(|(number, _)| *number);
            pictures.into_iter().map(Ok).collect()
        }
        Err(error) => vec![Err(error)],
    }
}

/// A picture that the network has seen.
struct Seen {
    image: RgbImage,
    raw: Raw,
}

/// Whether a file cannot be written because of its name, such as one that is too long.
fn is_about_name(error: &anyhow::Error) -> bool {
    let kind = error.chain().find_map(|cause| match cause.downcast_ref::<Error>() {
        Some(Error::Io { cause, .. }) => Some(cause.kind()),
        _ => cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
    });
    kind == Some(std::io::ErrorKind::InvalidFilename)
}

/// What is to be written of a picture, the end of its line, and the time it took.
struct Finished {
    record: Record,
    line: String,
    speed: Speed,
}

impl Run<'_> {
    /// Looks at every picture.
    ///
    /// In memory are at most two batches for each lane of the network, one that is gathered, and two pictures for each thread that
    /// reads or finishes.
    ///
    /// # Errors
    /// A network that fails, a result that cannot be written, standard output that is closed. A picture that cannot be
    /// used is told and counted instead.
    pub(crate) fn go(&self, writer: Option<&mut Writer>) -> anyhow::Result<Outcome> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (cores / 2).clamp(LEAST_THREADS, MOST_THREADS);
        thread::scope(|scope| {
            let jobs = self.jobs.iter().enumerate().take_while(|_| !self.stop.load(Ordering::Relaxed));
            let read = |(number, job): (usize, &Job)| (number, job.source.read());
            let batches: Box<dyn Iterator<Item = Gathered> + Send> = if self.batch <= 1 {
                // Whoever has just decoded a picture has it in a near cache.
                Box::new(in_order(scope, threads, jobs, move |job| self.fit([read(job)])))
            } else {
                let pictures = in_order(scope, threads, jobs, read);
                let (gathered, batches) = sync_channel(0);
                scope.spawn(move || self.gather(pictures, &gathered));
                Box::new(batches.into_iter())
            };

            let lanes = self.detector.lanes();
            let seen = in_order(scope, lanes, batches, |gathered| self.look_at(gathered));
            let finished = in_order(scope, threads, seen.flat_map(each), |seen| self.finish(seen?));
            self.write(finished, writer)
        })
    }

    /// Makes batches of pictures, ready for the network.
    fn gather(&self, mut pictures: impl Iterator<Item = Numbered<RgbImage>>, batches: &SyncSender<Gathered>) {
        loop {
            let batch: Vec<_> = pictures.by_ref().take(self.batch).collect();
            if batch.is_empty() || batches.send(self.fit(batch)).is_err() {
                return;
            }
        }
    }

    /// Makes a batch of pictures as they were read.
    fn fit(&self, pictures: impl IntoIterator<Item = Numbered<RgbImage>>) -> Gathered {
        let (mut numbers, mut images, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (number, read) in pictures {
            match read {
                Ok(image) => {
                    numbers.push(number);
                    images.push(image);
                }
                Err(error) => refused.push((number, error)),
            }
        }
        let mut gathered = self.prepare(numbers, images);
        gathered.refused.append(&mut refused);
        gathered
    }

    /// Fits pictures into the network's input. One that does not fit spoils its batch: then each goes on its own.
    fn prepare(&self, numbers: Vec<usize>, images: Vec<RgbImage>) -> Gathered {
        if images.is_empty() {
            return Gathered::default();
        }
        match self.detector.prepare(&images) {
            Ok(prepared) => Gathered { groups: vec![Group { numbers, images, prepared }], refused: Vec::new() },
            Err(error) if numbers.len() == 1 => {
                Gathered { groups: Vec::new(), refused: vec![(numbers[0], self.named(numbers[0], error))] }
            }
            Err(_) => self.prepare_each(numbers, images),
        }
    }

    fn prepare_each(&self, numbers: Vec<usize>, images: Vec<RgbImage>) -> Gathered {
        let mut gathered = Gathered::default();
        for (number, image) in numbers.into_iter().zip(images) {
            let Gathered { groups, refused } = self.prepare(vec![number], vec![image]);
            gathered.groups.extend(groups);
            gathered.refused.extend(refused);
        }
        gathered
    }

    /// Takes a batch through the network. A picture that the network cannot take is an error of that picture; a device that
    /// fails is one of the run.
    fn look_at(&self, gathered: Gathered) -> anyhow::Result<Vec<Numbered<Seen>>> {
        let mut pictures: Vec<Numbered<Seen>> =
            gathered.refused.into_iter().map(|(number, error)| (number, Err(error))).collect();
        for Group { numbers, images, prepared } in gathered.groups {
            match self.detector.infer(&prepared) {
                Ok(raw) => {
                    let each = numbers.into_iter().zip(images).zip(raw.split()?);
                    pictures.extend(each.map(|((number, image), raw)| (number, Ok(Seen { image, raw }))));
                }
                Err(error @ (Error::Candle(_) | Error::Device(_))) => return Err(error.into()),
                Err(error) if numbers.len() == 1 => pictures.push((numbers[0], Err(self.named(numbers[0], error)))),
                // It may be one of them, or all of them together: each on its own.
                Err(_) => pictures.extend(self.look_at(self.prepare_each(numbers, images))?),
            }
        }
        Ok(pictures)
    }

    /// Makes what is to be written of a picture. What goes wrong with the picture is its own error; a device that fails is
    /// one of the run.
    fn finish(&self, (number, seen): Numbered<Seen>) -> anyhow::Result<Numbered<Finished>> {
        let Seen { image, raw } = match seen {
            Ok(seen) => seen,
            Err(error) => return Ok((number, Err(error))),
        };
        let batch = match self.detector.finish(&raw) {
            Ok(batch) => batch,
            Err(error @ (Error::Candle(_) | Error::Device(_))) => return Err(error.into()),
            Err(error) => return Ok((number, Err(self.named(number, error)))),
        };
        Ok((number, self.record(number, image, &batch)))
    }

    fn record(&self, number: usize, image: RgbImage, batch: &Batch) -> anyhow::Result<Finished> {
        let (job, names) = (&self.jobs[number], self.detector.names());
        let found = batch.pictures.first().map_or(&[][..], Vec::as_slice);
        let record = record::make(image, found, names, &job.source, &job.files.picture, self.wanted)?;
        // As pictures of a batch do, those of lanes share the time that they take beside each other.
        let speed = Speed { inference: batch.speed.inference / self.detector.lanes() as u32, ..batch.speed };
        let ([height, width], milliseconds) = (batch.network_shape, speed.inference.as_secs_f64() * 1e3);
        let line = format!("{height}x{width} {}{milliseconds:.1}ms", text::tally(found, names));
        Ok(Finished { record, line, speed })
    }

    /// Writes what comes of the pictures, in their order.
    fn write(
        &self,
        finished: impl Iterator<Item = anyhow::Result<Numbered<Finished>>>,
        mut writer: Option<&mut Writer>,
    ) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        for picture in finished {
            let (number, finished) = picture?;
            let kept = match finished {
                Ok(finished) => match self.keep(number, &finished, writer.as_deref_mut()) {
                    // A name is its own fault: the other pictures have others.
                    Err(error) if !is_about_name(&error) => return Err(error),
                    kept => kept.map(|()| finished.speed),
                },
                Err(error) => Err(error),
            };
            match kept {
                Ok(speed) => {
                    outcome.speed.pre_process += speed.pre_process;
                    outcome.speed.inference += speed.inference;
                    outcome.speed.nms += speed.nms;
                    outcome.done += 1;
                }
                Err(error) => {
                    self.refuse(number, &error)?;
                    outcome.failed += 1;
                }
            }
            self.console.step();
        }
        Ok(outcome)
    }

    fn keep(&self, number: usize, finished: &Finished, writer: Option<&mut Writer>) -> anyhow::Result<()> {
        let Finished { record, line, .. } = finished;
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

    /// An error with the picture that it is about.
    fn named(&self, number: usize, error: Error) -> anyhow::Error {
        anyhow::Error::new(error).context(self.jobs[number].source.to_string())
    }
}
