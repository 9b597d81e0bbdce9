//! From gradients to new weights: optimisers with YOLOv5's groups of parameters, schedules, the running average of the weights,
//! and when to stop.

mod elementwise;
mod ema;
mod optimizer;
mod schedule;
mod stopping;

pub use ema::Ema;
pub use optimizer::{Group, Optimizer, OptimizerKind, Parameter};
pub use schedule::{NOMINAL_BATCH, Rates, Schedule};
pub use stopping::EarlyStopping;

pub(crate) use elementwise::blend;
