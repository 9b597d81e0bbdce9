//! Data sets: labels, augmentation, batches.

pub mod batch;
pub mod coco;
pub mod shapes;
mod yaml;

pub use batch::{Batch, Masks, Target};
