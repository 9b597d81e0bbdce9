//! Changes of pictures that make more of a data set, one a file; labels follow the pixels.
//!
//! Strengths come from [`Hyp`](crate::Hyp), chance from an [`Rng`](super::rng::Rng): the same numbers give the same picture.

pub mod copy_paste;
pub mod flip;
pub mod hsv;
pub mod mixup;
pub mod mosaic;
pub mod perspective;
pub mod warp;

pub use super::sample::{Object, Sample};
