//! The modules of the zoo: each reads its arguments as its PyTorch original does and records itself as primitive operations.
//!
//! A new module is one file here and one line in [`registry`].

mod args;
mod bottleneck;
mod bottleneck_csp;
mod c3;
mod c3_dynamic_conv;
mod c3_ghost;
mod c3_ghost_dynamic_conv;
mod c3spp;
mod c3tr;
mod c3x;
mod contract;
mod conv;
mod cross_conv;
mod detect;
mod dw_conv_transpose;
mod dy_conv;
mod dynamic_conv;
mod focus;
mod ghost_bottleneck;
mod ghost_conv;
mod ghost_module;
mod mix_conv;
mod primitive;
pub mod registry;
mod segment;
mod spp;
mod sppf;

pub(crate) use args::{Args, Context};
pub(crate) use detect::level_anchors;

use crate::graph::{NodeId, Traced, Tracer};

/// A module with its arguments read.
pub(crate) trait Block {
    /// Records the module's operations on `inputs` and gives the node of its result.
    fn trace(&self, tracer: &mut Tracer, inputs: &[NodeId]) -> Traced;
}

/// What a registry entry's reader gives.
pub(crate) type Built = Result<Box<dyn Block>, String>;

/// The input of a module that takes one.
fn one(inputs: &[NodeId]) -> Traced {
    match inputs {
        [input] => Ok(*input),
        _ => Err(format!("it reads one layer, `from` names {}", inputs.len())),
    }
}

/// Padding that keeps the size of a map at stride 1.
fn autopad(kernel: usize, dilation: usize) -> usize {
    let extent = dilation * (kernel - 1) + 1;
    extent / 2
}

/// `int(channels * expansion)` of the originals.
fn hidden(channels: usize, expansion: f64) -> usize {
    (channels as f64 * expansion) as usize
}

/// Greatest common divisor: the groups of the depthwise convolutions.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
