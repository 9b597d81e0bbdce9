//! Dynamic convolution in which the batch is a real dimension.
//!
//! A dynamic convolution holds K expert kernels. Each sample is pooled to a vector, a small network turns the vector into
//! K weights ([`route`]), the experts are mixed by these weights ([`mix_experts`]), and the sample is convolved with its
//! own mixture ([`conv2d_per_sample`]). Folding the batch into groups, the way of PyTorch code, would run a loop over
//! `batch * groups` convolutions here; batched matrix products do not.

mod activation;
mod channel;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod gpu;
mod op;
pub mod reference;

pub use activation::{sigmoid, silu};
pub use channel::scale_shift;
pub use op::{conv_transpose2d, conv2d, conv2d_per_sample, dynamic_conv2d};
pub use reference::{ConvConfig, Routing, mix_experts, route};
