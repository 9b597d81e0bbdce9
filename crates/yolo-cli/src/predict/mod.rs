//! `yolo predict` below its flags: pictures are read ahead of the network, results made behind it and written in their order.

pub(crate) mod console;
mod in_order;
mod pipeline;
pub(crate) mod record;
pub(crate) mod run_folder;
pub(crate) mod sources;
pub(crate) mod text;
pub(crate) mod writer;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use yolo_core::Speed;

use console::Console;
use record::Wanted;
use sources::Source;
use writer::FileNames;

pub(crate) use pipeline::Run;

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
