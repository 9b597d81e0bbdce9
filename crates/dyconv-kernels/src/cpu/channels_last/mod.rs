//! Networks as programs: lists of kernels over maps whose channels lie next to each other, run by a team of threads.
//!
//! A [`Program`] is built once: kernels packed, places given, checked. A [`Session`] is the memory and the threads of one run at
//! a time; many sessions may run one program. Running allocates nothing and locks nothing, but for
//! twins: what has no kernel runs on tensors of its own.

mod ahead;
#[cfg(test)]
mod bf16_tests;
mod build;
mod convert;
mod depthwise;
mod direct;
mod experts;
mod finish;
mod memory;
mod mixing;
mod packer;
mod panels;
mod peak;
pub(super) mod planar;
mod pointwise;
mod pool;
mod product;
mod program;
mod strips;
pub(super) mod team;
#[cfg(test)]
mod tests;
mod tile;
mod transforms;
mod turn;
mod winograd;

pub use build::{Algorithm, Builder, Convolution, Head, Kernels, Twin, multiplies_bf16, multiplies_on_tiles};
pub use convert::Input;
pub use direct::Window;
pub use finish::Act;
pub use memory::{LINE, Part, View};
pub use mixing::Router;
pub use peak::{peak_on_tiles, peak_operations_per_second};
pub use pool::Pool;
pub use program::{MAX_OUTPUTS, Program, RunOptions, Session, Step};
