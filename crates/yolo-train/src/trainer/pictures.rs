//! The plots of a run.

use std::path::Path;

use yolo_core::Detection;

use super::TrainOptions;
use crate::Result;
use crate::data::{Batch, Labels};
use crate::plots::{self, MetricCurves, save};
use crate::validate::{Found, Report, Summary};

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
        let detections: Vec<Vec<Detection>> = found.iter().map(detections).collect();
        let file = |what: &str| self.options.save_dir.join(format!("val_batch{index}_{what}.jpg"));
        save(file("labels"), &plots::label_mosaic(batch, self.names)?)?;
        save(file("pred"), &plots::prediction_mosaic(batch, &detections, self.names)?)
    }
}

/// What was found in a picture, in pixels of the network's input.
fn detections(found: &Found) -> Vec<Detection> {
    let detection = |(index, candidate): (usize, &yolo_core::post::Candidate)| Detection {
        bbox: candidate.bbox,
        class: candidate.class,
        confidence: candidate.confidence,
        mask: found.masks.get(index).cloned(),
        polygon: None,
    };
    found.candidates.iter().enumerate().map(detection).collect()
}

/// The curves, the confusion matrix and `results.png`.
pub(super) fn of_results(folder: &Path, report: &Report, names: &[String]) -> Result<()> {
    match &report.masks {
        None => curves(folder, "", &report.boxes, names)?,
        Some(masks) => {
            curves(folder, "Box", &report.boxes, names)?;
            curves(folder, "Mask", masks, names)?;
        }
    }
    let confusion = &report.confusion;
    let row = |found: usize| (0..=confusion.classes()).map(|label| confusion.count(found, label) as f64).collect();
    let matrix: Vec<Vec<f64>> = (0..=confusion.classes()).map(row).collect();
    save(folder.join("confusion_matrix.png"), &plots::confusion_matrix(&matrix, names))?;
    save(folder.join("results.png"), &plots::results_file(folder.join("results.csv"))?)
}

fn curves(folder: &Path, kind: &str, summary: &Summary, names: &[String]) -> Result<()> {
    let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
    let names: Vec<String> = summary.classes.iter().map(|class| name(class.class)).collect();
    let of = |classes| MetricCurves { names: &names, x: &summary.curves.x, classes };
    let precisions: Vec<f64> = summary.classes.iter().map(|class| class.metrics.map50).collect();
    let file = |name: &str| folder.join(format!("{kind}{name}_curve.png"));
    save(file("PR"), &plots::pr_curve(of(&summary.curves.precision_at_recall), &precisions))?;
    save(file("F1"), &plots::f1_curve(of(&summary.curves.f1)))?;
    save(file("P"), &plots::p_curve(of(&summary.curves.precision)))?;
    save(file("R"), &plots::r_curve(of(&summary.curves.recall)))
}
