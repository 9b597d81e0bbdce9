//! The pictures that a validation leaves behind.

use std::path::Path;

use yolo_core::Detection;

use super::report::{Report, Summary};
use super::validator::Found;
use crate::Result;
use crate::data::Batch;
use crate::plots::{self, MetricCurves};

/// Detections of a picture that are drawn, the most confident ones.
const MOST_DRAWN: usize = 300;

/// Writes `confusion_matrix.png` and the curves `F1_curve.png`, `P_curve.png`, `R_curve.png`, `PR_curve.png` into a folder; where
/// masks were judged, the curves of both, `BoxF1_curve.png`, `MaskF1_curve.png` and so on. A class that `names` lacks goes by its
/// number. Curves of which nothing is known, as nothing was right, are left out.
///
/// # Errors
/// Where a file cannot be written.
pub fn save_curves(report: &Report, names: &[String], folder: &Path) -> Result<()> {
    let classes = report.confusion.classes();
    let name = |class: usize| names.get(class).cloned().unwrap_or_else(|| class.to_string());
    let all: Vec<String> = (0..classes).map(name).collect();
    let counts = report.confusion.counts().iter().map(|&count| count as f64).collect::<Vec<f64>>();
    let matrix: Vec<Vec<f64>> = counts.chunks(classes + 1).map(<[f64]>::to_vec).collect();
    plots::save(folder.join("confusion_matrix.png"), &plots::confusion_matrix(&matrix, &all))?;
    match &report.masks {
        None => curves(&report.boxes, &all, folder, ""),
        Some(masks) => {
            curves(&report.boxes, &all, folder, "Box")?;
            curves(masks, &all, folder, "Mask")
        }
    }
}

fn curves(summary: &Summary, all: &[String], folder: &Path, prefix: &str) -> Result<()> {
    if summary.classes.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = summary.classes.iter().map(|class| all[class.class].clone()).collect();
    let of = |classes| MetricCurves { names: &names, x: &summary.curves.x, classes };
    let ap50: Vec<f64> = summary.classes.iter().map(|class| class.metrics.map50).collect();
    let save = |name: &str, picture| plots::save(folder.join(format!("{prefix}{name}_curve.png")), &picture);
    save("F1", plots::f1_curve(of(&summary.curves.f1)))?;
    save("P", plots::p_curve(of(&summary.curves.precision)))?;
    save("R", plots::r_curve(of(&summary.curves.recall)))?;
    save("PR", plots::pr_curve(of(&summary.curves.precision_at_recall), &ap50))
}

/// Writes `val_batchN_labels.jpg` and `val_batchN_pred.jpg`: a batch with its labels, and with what was found.
///
/// # Errors
/// Where a file cannot be written, or the parts of the batch do not fit together.
pub fn save_batch(number: usize, batch: &Batch, found: &[Found], names: &[String], folder: &Path) -> Result<()> {
    let path = |what: &str| folder.join(format!("val_batch{number}_{what}.jpg"));
    plots::save(path("labels"), &plots::label_mosaic(batch, names)?)?;
    let detections: Vec<Vec<Detection>> = found.iter().map(drawn).collect();
    plots::save(path("pred"), &plots::prediction_mosaic(batch, &detections, names)?)
}

/// What was found in a picture, in the network's input.
fn drawn(found: &Found) -> Vec<Detection> {
    let detection = |(index, candidate): (usize, &yolo_core::post::Candidate)| Detection {
        bbox: candidate.bbox,
        class: candidate.class,
        confidence: candidate.confidence,
        mask: found.masks.get(index).cloned(),
        polygon: None,
    };
    found.candidates.iter().enumerate().take(MOST_DRAWN).map(detection).collect()
}
