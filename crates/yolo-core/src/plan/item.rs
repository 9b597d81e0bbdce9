//! What a plan is made of before memory is laid out: items, each one step of the program that comes of it.

use dyconv_kernels::cpu::channels_last::{Act, Algorithm, Pool};

use crate::graph::{ConvGeometry, NodeId};

/// One step. Values are called by the node of the graph whose result they are.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) kind: Kind,
    /// Values that are read.
    pub(super) inputs: Vec<NodeId>,
    /// Values that are written: of a convolution one after the other in its channels.
    pub(super) outputs: Vec<NodeId>,
    /// A value that is added at the end.
    pub(super) residual: Option<NodeId>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    /// The picture comes in.
    Input,
    /// Convolution with all that follows it.
    Conv(Conv),
    /// Batch normalisation, if any, and an elementwise function.
    Pointwise { norm: Option<NodeId>, act: Act },
    /// Values of one concatenation or enlargement copied next to each other.
    Copy,
    /// Max-pools in a row, each of the result of the one before.
    Pools(Vec<Pool>),
    /// A level of the detection head: its convolution and the decoding of its boxes.
    Head { conv: Conv, level: usize },
    /// An operation without a kernel, run on its plain twin.
    Twin,
}

/// A convolution, or several of one input and one geometry as one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Conv {
    /// Of the first; output channels are those of all.
    pub(super) geometry: ConvGeometry,
    pub(super) sources: Vec<Source>,
    /// Node of the routing weights.
    pub(super) routing: Option<NodeId>,
    pub(super) act: Act,
    pub(super) algorithm: Algorithm,
}

/// Where kernels come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Source {
    /// The node of the convolution.
    pub(super) node: NodeId,
    /// The node of the batch normalisation behind it.
    pub(super) norm: Option<NodeId>,
}

/// Some channels of a value, enlarged by `1 << shift`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) value: NodeId,
    pub(super) first: usize,
    pub(super) channels: usize,
    pub(super) shift: u32,
}
