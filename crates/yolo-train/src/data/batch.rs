//! What a loader gives, and losses and metrics take.

use std::path::PathBuf;

use candle_core::Tensor;

/// An object in a picture of a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Index of the picture in the batch.
    pub image: usize,
    /// Index of the class.
    pub class: usize,
    /// Centre, width and height in shares of the network's input.
    pub xywh: [f32; 4],
}

/// Masks of a batch's objects, at the network's input size over the mask ratio.
#[derive(Debug, Clone)]
pub enum Masks {
    /// `[B, H, W]`: 0 for background, else 1 + the object's place among its picture's, which are sorted by falling area.
    Overlap(Tensor),
    /// `[objects, H, W]`, 0 or 1, in the order of [`Batch::targets`].
    Separate(Tensor),
}

/// How a picture came into the batch, for boxes to find their way back.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file.
    pub path: PathBuf,
    /// Height and width of the file's picture.
    pub size: (usize, usize),
    /// Vertical and horizontal gain of the resize.
    pub ratio: (f32, f32),
    /// Horizontal and vertical border, in pixels of the network's input.
    pub pad: (f32, f32),
}

/// Pictures and what is on them.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[B, 3, H, W]` on the CPU, RGB, f32, 0..=1.
    pub images: Tensor,
    /// All objects, ordered by picture.
    pub targets: Vec<Target>,
    /// Masks, where the task is segmentation.
    pub masks: Option<Masks>,
    /// One a picture.
    pub origins: Vec<Origin>,
}
