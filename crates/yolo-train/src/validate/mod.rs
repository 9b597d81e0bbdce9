//! Metrics and validation, as YOLOv5's `val.py` and `segment/val.py` compute them.
//!
//! A [`Validator`] is fed batches with what a network gave for them and ends in a [`Report`]. Below it, one idea a file:
//! [`matching`] says which detections are right, [`average_precision`] makes precision, recall and average precision of that,
//! [`confusion`] counts which classes are taken for which, [`masks`] compares masks. [`coco`] writes results in COCO's form and
//! computes mAP by COCO's own rule. [`table`] has the lines of the terminal; this crate prints nothing itself.

pub mod average_precision;
pub mod coco;
pub mod confusion;
pub mod figures;
pub mod masks;
pub mod matching;
pub mod network;
pub mod report;
pub mod table;
pub mod validator;

pub use average_precision::{Curves, PerClass, Statistics, ap_per_class};
pub use confusion::ConfusionMatrix;
pub use network::Network;
pub use report::{ClassMetrics, Metrics, Report, Summary, Times};
pub use validator::{Found, Options, Validator, validate};
