//! The plots of a run.

use std::path::Path;

use super::TrainOptions;
use crate::Result;
use crate::data::{Batch, Labels};
use crate::plots::{self, save};
use crate::validate::{Found, Report, figures};

/// Batches that are drawn of training and of validation.
const BATCHES: usize = 3;

/// `labels.jpg`.
pub(super) fn of_labels(folder: &Path, labels: &[Labels], names: &[String]) -> Result<()> {
    let objects = labels.iter().flat_map(|picture| picture.classes.iter().copied().zip(picture.boxes.iter().copied()));
    save(folder.join("labels.jpg"), &plots::labels(&objects.collect::<Vec<_>>(), names))
}

/// `train_batch0.jpg` and its next, as batches come.
pub(super) fn of_batch(options: &TrainOptions, index: usize, batch: &Batch, names: &[String]) -> Result<()> {
    if options.noplots || index >= BATCHES {
        return Ok(());
    }
    save(options.save_dir.join(format!("train_batch{index}.jpg")), &plots::label_mosaic(batch, names)?)
}

/// `val_batch0_labels.jpg`, `val_batch0_pred.jpg` and their next.
pub(super) struct Predicted<'a> {
    options: &'a TrainOptions,
    names: &'a [String],
    seen: usize,
}

impl<'a> Predicted<'a> {
    pub(super) fn new(options: &'a TrainOptions, names: &'a [String]) -> Self {
        Self { options, names, seen: 0 }
    }

    /// Draws a batch, if it is one of the first.
    pub(super) fn take(&mut self, batch: &Batch, found: &[Found]) -> Result<()> {
        let index = self.seen;
        self.seen += 1;
        if self.options.noplots || index >= BATCHES {
            return Ok(());
        }
        figures::save_batch(index, batch, found, self.names, &self.options.save_dir)
    }
}

/// The curves, the confusion matrix and `results.png`.
pub(super) fn of_results(folder: &Path, report: &Report, names: &[String]) -> Result<()> {
    figures::save_curves(report, names, folder)?;
    save(folder.join("results.png"), &plots::results_file(folder.join("results.csv"))?)
}
