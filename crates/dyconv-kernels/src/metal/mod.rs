//! Apple's GPUs: runs the launches of [`crate::gpu`] on Candle's Metal device.
//!
//! A file of kernels is compiled from its text when one of its kernels is first launched; what was compiled is kept as long as the
//! program runs.

#[cfg(feature = "metal")]
mod device;
#[cfg(feature = "metal")]
mod pipelines;
mod source;

#[cfg(feature = "metal")]
pub use device::{Buffer, Metal};
