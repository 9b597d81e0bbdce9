//! Data sets: labels, augmentation, batches.

pub mod batch;

pub use batch::{Batch, Masks, Target};
