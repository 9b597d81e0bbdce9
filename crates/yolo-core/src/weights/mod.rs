//! Named tensors: read from safetensors and PyTorch checkpoints, checked against a network, written back.
//!
//! One naming everywhere: the names of PyTorch's `state_dict()`. A `.safetensors` file that this crate writes describes
//! itself (the network's YAML, class names, input size, stride) in its metadata, see [`NetworkMetadata`].
//!
//! * [`Weights`] reads `.safetensors`, memory-mapped, and hands tensors to Candle;
//! * [`Weights::check`] compares them with what a network expects;
//! * [`save`] writes `.safetensors`.

mod check;
mod file;
mod metadata;
mod write;

pub use check::Expected;
pub use file::Weights;
pub use metadata::NetworkMetadata;
pub use safetensors::Dtype as StoredType;
pub use write::{TensorSource, save};
