//! YOLOv5 networks with dynamic convolution, built from YOLOv5's YAML and run on Candle: from weights to detections.
//!
//! Tensors are those of [`candle_core`], pictures those of [`image`]; the versions that fit are exported from here.

pub mod augment;
pub mod config;
pub mod detection;
pub mod detector;
pub mod error;
pub mod files;
pub mod graph;
pub mod layers;
pub mod model;
pub mod picture;
pub mod plan;
pub mod post;
mod text;
pub mod weights;
pub mod yaml;
pub mod zoo;

pub use {candle_core, candle_nn, image};

pub use config::NetworkConfig;
pub use detection::{Detection, Mask};
pub use detector::{Batch, DetectOptions, Detector, Prepared, Raw, Speed};
pub use error::{Error, Result};
pub use graph::Graph;
pub use model::{BatchStatistics, Model, Outputs, TrainingOutputs};
pub use plan::{Plan, PlanOptions, PlanSession, Precision};
