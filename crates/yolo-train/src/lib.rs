//! Training and validation of YOLOv5 networks with dynamic convolution.
//!
//! From a data set's YAML to weights: labels and augmentation ([`data`]), losses ([`loss`]), optimisers ([`optim`]), the loop
//! that ties them together ([`trainer`]), metrics ([`validate`]) and plots ([`plots`]).
#![forbid(unsafe_code)]

pub mod data;
pub mod error;
pub mod hyp;
pub mod loss;
pub mod optim;
pub mod plots;
pub mod trainer;
pub mod validate;
mod yaml;

pub use error::{Error, Result};
pub use hyp::Hyp;
