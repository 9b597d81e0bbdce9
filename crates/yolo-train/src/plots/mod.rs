//! Plots of data, curves and results: from numbers to pictures, without files between.
//!
//! They show what YOLOv5's plots of the same names show. Every function gives a picture, which [`save`] writes.

mod axes;
mod canvas;
mod colours;
mod confusion;
mod curves;
mod labels;
mod mosaic;
mod results;

use std::path::Path;

use image::RgbImage;

pub use confusion::confusion_matrix;
pub use curves::{MetricCurves, f1_curve, p_curve, pr_curve, r_curve};
pub use labels::labels;
pub use mosaic::{Tile, label_mosaic, mosaic, prediction_mosaic};
pub use results::{results, results_file};

use crate::{Error, Result};

/// Quality of JPEG files.
const QUALITY: u8 = 92;

/// A named row of points.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curve {
    /// What it is called in the title or legend.
    pub name: String,
    /// Abscissas.
    pub x: Vec<f64>,
    /// Ordinates; where one is not finite, the curve has a gap.
    pub y: Vec<f64>,
}

/// Writes a picture as PNG or JPEG, as the file's ending says, whole or not at all.
///
/// # Errors
/// [`Error::Argument`] for another ending, or a file that cannot be written.
pub fn save(path: impl AsRef<Path>, picture: &RgbImage) -> Result<()> {
    let path = path.as_ref();
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    match ending.as_deref() {
        Some("png") => Ok(yolo_core::picture::save_png(path, picture)?),
        Some("jpg" | "jpeg") => Ok(yolo_core::picture::save_jpeg(path, picture, QUALITY)?),
        _ => {
            let problem = format!("expected a name that ends in .png or .jpg, got {}", path.display());
            Err(Error::Argument { argument: "path", problem })
        }
    }
}

#[cfg(test)]
mod tests;
