//! Dynamic convolution in which the batch is a real dimension.
//!
//! A dynamic convolution holds K expert kernels. Each sample is pooled to a vector, a small network turns the vector into
//! K weights ([`route`]), the experts are mixed by these weights ([`mix_experts`]), and the sample is convolved with its
//! own mixture ([`conv2d_per_sample`]). Folding the batch into groups, the way of PyTorch code, would run a loop over
//! `batch * groups` convolutions here; batched matrix products do not.
//!
//! Tensors are those of [`candle_core`]; the version that fits is exported from here.

mod activation;
mod batch_norm;
mod channel;
mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dynamic;
mod error;
mod fold;
pub mod gpu;
#[cfg(feature = "metal")]
pub mod metal;
#[cfg(all(test, not(feature = "metal")))]
mod metal;
mod mixing;
mod op;
mod pool;
pub mod reference;
mod routing;
mod schedule;
mod upsample;

pub use candle_core;

pub use activation::{sigmoid, silu};
pub use batch_norm::{Normalised, batch_norm_training};
pub use channel::scale_shift;
pub use config::{ConvConfig, Routing};
pub use dynamic::{Epilogue, Mixing, dynamic_conv2d};
pub use error::{Error, Result};
pub use fold::{BatchNorm, Folded, fold_batch_norm};
pub use mixing::mix_experts;
pub use op::{conv_transpose2d, conv2d, conv2d_per_sample};
pub use pool::max_pool2d;
pub use routing::route;
pub use schedule::TemperatureSchedule;
pub use upsample::upsample_nearest2d;
