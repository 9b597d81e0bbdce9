//! Named tensors: read from safetensors and PyTorch checkpoints, checked against a network, written back.
//!
//! One naming everywhere: the names of PyTorch's `state_dict()`. A `.safetensors` file that this crate writes describes
//! itself (the network's YAML, class names, input size, stride) in its metadata, see [`NetworkMetadata`].
//!
//! * [`Weights`] reads `.safetensors`, memory-mapped, and hands tensors to Candle;
//! * [`Weights::check`] compares them with what a network expects;
//! * [`save`] writes `.safetensors`, [`save_npz`] NumPy's `.npz`;
//! * [`checkpoint`] reads `.pt` without running any of it;
//! * [`convert`] goes from one file form to another.

mod check;
pub mod checkpoint;
mod convert;
mod file;
mod metadata;
mod npz;
mod write;

pub use check::Expected;
pub use convert::{Report, convert};
pub use file::Weights;
pub use metadata::NetworkMetadata;
pub use npz::save_npz;
pub use safetensors::Dtype as StoredType;
pub use write::{TensorSource, save};
