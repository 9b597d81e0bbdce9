//! Data sets: labels, augmentation, batches.
//!
//! [`DatasetConfig`] reads the YAML, [`Dataset`] the labels of one of its splits, and a [`Loader`] makes batches of them.
//! [`shapes`] draws a data set that needs no download, and [`coco`] converts COCO's files.

pub mod augment;
pub mod batch;
mod cache;
pub mod coco;
pub mod dataset;
mod document;
pub mod fill;
pub mod labels;
pub mod loader;
mod make;
mod masks;
mod order;
mod pictures;
pub mod resize;
pub mod rng;
mod sample;
pub mod set;
pub mod shapes;
mod yaml;

pub use batch::{Batch, Masks, Origin, Target};
pub use dataset::{DatasetConfig, Split, label_path};
pub use labels::Labels;
pub use loader::{Epoch, Loader, LoaderOptions, MaskOptions, PictureCache};
pub use set::{Dataset, LabelCounts};

#[cfg(test)]
mod opencv_tests;
