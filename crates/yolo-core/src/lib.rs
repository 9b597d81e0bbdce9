//! YOLOv5 networks with dynamic convolution, built from YOLOv5's YAML and run on Candle: from weights to detections.

pub mod detection;
pub mod error;
pub mod files;
pub mod weights;
pub mod picture;
pub mod post;

pub use detection::{Detection, Mask};
pub use error::{Error, Result};
