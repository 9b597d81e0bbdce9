//! `labels/NAME.txt`, a line a detection.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use yolo_core::files::write_whole;
use yolo_train::data::{Batch, Labels};
use yolo_train::validate::Found;
use yolo_train::{Error, Result};

use crate::predict::run_folder;
use crate::predict::text::general;

/// Where the label files of a run go.
pub(super) struct LabelFiles {
    folder: PathBuf,
    /// A name of its own for every picture.
    names: HashMap<PathBuf, OsString>,
    confidence: bool,
    written: usize,
}

impl LabelFiles {
    /// Makes the folder `labels` of a run.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub(super) fn new(run: &Path, pictures: &[Labels], confidence: bool) -> anyhow::Result<Self> {
        let folder = run.join("labels");
        fs::create_dir_all(&folder).with_context(|| run_folder::cannot_make(&folder))?;
        let stem = |labels: &Labels| labels.picture.file_stem().unwrap_or_default().to_os_string();
        let stems: Vec<_> = pictures.iter().map(|labels| (stem(labels), OsString::from("txt"))).collect();
        let names = pictures.iter().map(|labels| labels.picture.clone()).zip(run_folder::distinct(&stems)).collect();
        Ok(Self { folder, names, confidence, written: 0 })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Files written.
    pub(super) fn count(&self) -> usize {
        self.written
    }

    /// Writes the files of a batch; a picture in which nothing was found has none, as in YOLOv5.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub(super) fn write(&mut self, batch: &Batch, found: &[Found]) -> Result<()> {
        for (origin, found) in batch.origins.iter().zip(found) {
            let Some(name) = self.names.get(&origin.path) else { continue };
            let mut file = self.folder.join(name).into_os_string();
            file.push(".txt");
            let file = PathBuf::from(file);
            if found.boxes.is_empty() {
                // Of an earlier run into the same folder.
                match fs::remove_file(&file) {
                    Err(cause) if cause.kind() != ErrorKind::NotFound => return Err(Error::io(&file, cause)),
                    _ => continue,
                }
            }
            let lines = self.lines(found, origin.size);
            write_whole(&file, |out| {
                out.write_all(lines.as_bytes()).map_err(|cause| yolo_core::Error::io(&file, cause))
            })?;
            self.written += 1;
        }
        Ok(())
    }

    fn lines(&self, found: &Found, (height, width): (usize, usize)) -> String {
        let (height, width) = (height as f32, width as f32);
        let mut lines = String::new();
        for (candidate, [x1, y1, x2, y2]) in found.candidates.iter().zip(&found.boxes) {
            let place = [(x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height, (x2 - x1) / width, (y2 - y1) / height];
            lines.push_str(&candidate.class.to_string());
            for value in place.into_iter().chain(self.confidence.then_some(candidate.confidence)) {
                lines.push(' ');
                lines.push_str(&general(f64::from(value)));
            }
            lines.push('\n');
        }
        lines
    }
}
