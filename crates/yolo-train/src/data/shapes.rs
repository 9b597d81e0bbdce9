//! A data set that needs no download: pictures of shapes that lie over each other.

mod background;
mod canvas;
mod outline;
mod random;
mod raster;
mod scene;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use yolo_core::picture::save_jpeg;

pub use outline::NAMES;
pub use scene::{Scene, Shape};

use super::yaml::{data_yaml, write_text};
use crate::{Error, Result};

/// Sides of pictures that can be asked for, pixels.
const SIZES: std::ops::RangeInclusive<u32> = 32..=4096;
/// The most pictures that can be asked for.
const MAX_IMAGES: usize = 10_000_000;

/// What data set to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Number of pictures, training and validation together.
    pub images: usize,
    /// The same seed gives the same pictures, bit for bit.
    pub seed: u64,
    /// Side of the square pictures in pixels, 32 to 4096.
    pub size: u32,
    /// The share of the pictures that is for validation, 0 up to and without 1.
    pub val_fraction: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self { images: 1000, seed: 0, size: 320, val_fraction: 0.2 }
    }
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Pictures for training.
    pub train: usize,
    /// Pictures for validation.
    pub val: usize,
    /// Labelled shapes of every class.
    pub shapes: [usize; NAMES.len()],
    /// Shapes without a label, as others hide them.
    pub hidden: usize,
    /// Pictures without a label.
    pub empty: usize,
}

impl Report {
    fn add(mut self, other: &Self) -> Self {
        self.shapes.iter_mut().zip(other.shapes).for_each(|(mine, others)| *mine += others);
        self.hidden += other.hidden;
        self.empty += other.empty;
        self
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        let refuse = |argument, problem| Err(Error::Argument { argument, problem });
        if !(1..=MAX_IMAGES).contains(&self.images) {
            return refuse("images", format!("expected 1 to {MAX_IMAGES} pictures, got {}", self.images));
        }
        if !SIZES.contains(&self.size) {
            let (least, most) = (SIZES.start(), SIZES.end());
            return refuse("size", format!("expected a side of {least} to {most} pixels, got {}", self.size));
        }
        if !(0.0..1.0).contains(&self.val_fraction) {
            let problem = format!("expected a share of at least 0 and less than 1, got {}", self.val_fraction);
            return refuse("val-fraction", problem);
        }
        Ok(())
    }

    /// How many of the pictures are for validation: one at least where a share is wanted, and never all.
    fn val(&self) -> usize {
        let wanted = (self.images as f64 * self.val_fraction).round() as usize;
        let least = usize::from(self.val_fraction > 0.0);
        wanted.max(least).min(self.images - 1)
    }
}

/// Writes a data set into the folder `out`: `images/train`, `images/val`, `labels/train`, `labels/val` (a polygon a row, in
/// YOLO's form for segments, which serves training with boxes as well) and, when all else is there, `data.yaml`.
///
/// Pictures are numbered; those with the highest numbers are for validation. Files of the same names are overwritten, other
/// files stay. `progress` is called after every picture, from several threads.
///
/// # Errors
/// [`Error::Argument`] for options out of their ranges, or the file that cannot be written.
pub fn generate(out: &Path, options: &Options, progress: &(dyn Fn() + Sync)) -> Result<Report> {
    options.check()?;
    let val = options.val();
    let train = options.images - val;
    let splits: &[&str] = if val > 0 { &["train", "val"] } else { &["train"] };
    for folder in splits.iter().flat_map(|split| [out.join("images").join(split), out.join("labels").join(split)]) {
        fs::create_dir_all(&folder).map_err(|cause| Error::io(&folder, cause))?;
    }
    let digits = (options.images - 1).to_string().len().max(4);
    let one = |number: usize| -> Result<Report> {
        let scene = Scene::new(options.seed, number as u64, options.size);
        let split = if number < train { "train" } else { "val" };
        let name = format!("{number:0digits$}");
        let labels = out.join("labels").join(split).join(format!("{name}.txt"));
        write_text(&labels, &scene.rows())?;
        save_jpeg(out.join("images").join(split).join(format!("{name}.jpg")), &scene.image, scene.quality)?;
        progress();
        Ok(scene.report())
    };
    let report =
        (0..options.images).into_par_iter().map(one).try_reduce(Report::default, |sum, part| Ok(sum.add(&part)))?;
    let about = format!(
        "Shapes: {} pictures of {size}x{size} pixels, seed {}.",
        options.images,
        options.seed,
        size = options.size
    );
    let val_folder = if val > 0 { "images/val" } else { "images/train" };
    let roles = [("train", "images/train".to_string()), ("val", val_folder.to_string())];
    write_text(&out.join("data.yaml"), &data_yaml(&about, &roles, &NAMES))?;
    Ok(Report { train, val, ..report })
}

impl Scene {
    /// The label file: a row a shape, its class and its polygon in shares of the picture's sides.
    #[must_use]
    pub fn rows(&self) -> String {
        let side = self.image.width() as f32;
        let mut text = String::new();
        for shape in &self.shapes {
            let _ = write!(text, "{}", shape.class);
            for value in shape.polygon.as_flattened() {
                // Tenths of a pixel of the largest picture.
                let _ = write!(text, " {:.5}", value / side);
            }
            text.push('\n');
        }
        text
    }

    fn report(&self) -> Report {
        let mut report =
            Report { hidden: self.hidden, empty: usize::from(self.shapes.is_empty()), ..Report::default() };
        self.shapes.iter().for_each(|shape| report.shapes[shape.class] += 1);
        report
    }
}

#[cfg(test)]
mod tests;
