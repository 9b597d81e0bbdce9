//! The network as a list of primitive operations with named parameters: no tensors, no picture size.
//!
//! Every module of the zoo records itself here once ([`crate::layers`]); parameters, shapes, cost, the summary and the
//! running network all follow from that one record.

mod build;
mod init;
mod op;
mod summary;
#[cfg(test)]
mod tests;
mod trace;

pub use op::{ConvGeometry, Cost, Op, ParamId, RouteActivation, RouteOp, Shape};
pub use summary::Summary;
pub(crate) use trace::{Traced, Tracer};

use serde::Serialize;

use crate::config::{Arg, From, NetworkConfig};
use crate::{Error, Result};

/// Index of a node in [`Graph::nodes`].
pub type NodeId = usize;

/// A network, built from its description and checked.
#[derive(Debug, Clone)]
pub struct Graph {
    config: NetworkConfig,
    nodes: Vec<Node>,
    params: Vec<Param>,
    layers: Vec<Layer>,
    output: Output,
    strides: Vec<f64>,
    modules: usize,
}

/// One primitive operation; a node reads only nodes before it.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// The nodes that it reads.
    pub inputs: Vec<NodeId>,
    /// Channels, features or columns of its result.
    pub channels: usize,
    /// Layer of the YAML that it belongs to; none for the input.
    pub layer: Option<usize>,
}

/// A named tensor of the network.
#[derive(Debug, Clone, Serialize)]
pub struct Param {
    /// PyTorch's state-dict name: `model.8.cv1.conv.weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What training does with it.
    pub kind: ParamKind,
    /// How it starts in a new network.
    pub init: Init,
    /// Layer of the YAML that it belongs to.
    pub layer: usize,
}

/// What training does with a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ParamKind {
    /// Trained, with weight decay.
    Weight,
    /// A bias: trained, without weight decay.
    Bias,
    /// Scale of a batch normalisation: trained, without weight decay.
    NormWeight,
    /// Not trained: running statistics and anchors.
    Buffer,
}

/// How a parameter starts in a new network (PyTorch's defaults).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform between plus and minus this.
    Uniform(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// A detection bias: uniform, and shifted so that few objects are expected at first.
    DetectBias {
        /// Bound of the uniform part.
        bound: f64,
        /// Stride of the level.
        stride: f64,
        /// Classes of the network.
        classes: usize,
        /// Outputs of one anchor.
        outputs: usize,
    },
    /// These values.
    Values(Vec<f32>),
}

/// One row of the YAML, built.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The layers that it reads.
    pub from: From,
    /// Repeats after `depth_multiple`.
    pub repeats: usize,
    /// Name of the module without prefix: `Conv`, `Upsample`.
    pub module: &'static str,
    /// Name of the Python class that YOLOv5 prints.
    pub class: &'static str,
    /// Arguments as YOLOv5 prints them: channels resolved.
    pub args: Vec<Arg>,
    /// Trained values.
    pub params: usize,
    /// The node with its result.
    pub node: NodeId,
}

/// What a network gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Output {
    /// The map of its last layer.
    Features(NodeId),
    /// Decoded boxes.
    Detect {
        /// The node of the rows.
        rows: NodeId,
    },
    /// Decoded boxes with mask coefficients, and the prototypes of the masks.
    Segment {
        /// The node of the rows.
        rows: NodeId,
        /// The node of the prototypes.
        prototypes: NodeId,
    },
}

impl Output {
    /// The node of `output0`.
    pub fn main(self) -> NodeId {
        match self {
            Self::Features(node) | Self::Detect { rows: node } | Self::Segment { rows: node, .. } => node,
        }
    }
}

impl Graph {
    /// Builds the network that `config` describes.
    ///
    /// # Errors
    /// [`Error::Layer`] with the layer that cannot be built and why.
    pub fn new(config: &NetworkConfig) -> Result<Self> {
        build::graph(config)
    }

    /// The description that it was built from.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Its operations, in an order in which they can run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Its parameters and buffers, in the order in which the network uses them.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The layers of the YAML.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// What it gives.
    pub fn output(&self) -> Output {
        self.output
    }

    /// Pixels of the input a pixel of each level of the head; empty for a feature extractor.
    pub fn strides(&self) -> &[f64] {
        &self.strides
    }

    /// The picture's sides must be multiples of this: the largest stride, at least 32.
    pub fn stride(&self) -> usize {
        self.strides.iter().fold(32.0_f64, |max, stride| max.max(*stride)) as usize
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        self.layers.iter().map(|layer| layer.params).sum()
    }

    /// Number of PyTorch modules, the "layers" that YOLOv5 prints.
    pub fn num_modules(&self) -> usize {
        self.modules
    }

    /// Classes that a box's scores are of: `nc`, but where the head names another number (0 where there is no head).
    pub fn num_classes(&self) -> usize {
        match self.nodes.get(self.output.main()).map(|node| &node.op) {
            Some(Op::Detect { classes, .. }) => *classes,
            _ => 0,
        }
    }

    /// Mask coefficients of a box (0 where the network does not segment).
    pub fn num_masks(&self) -> usize {
        match self.nodes.get(self.output.main()).map(|node| &node.op) {
            Some(Op::Detect { masks, .. }) => *masks,
            _ => 0,
        }
    }

    /// The shape of every node's result for a picture of `height` x `width`.
    ///
    /// # Errors
    /// Where a map becomes too small, or maps that meet differ in size.
    pub fn shapes(&self, height: usize, width: usize) -> Result<Vec<Shape>> {
        build::infer(&self.config.name, &self.nodes, &self.layer_names(), height, width)
    }

    /// Operations of each layer for one picture of `height` x `width`.
    ///
    /// # Errors
    /// As [`Graph::shapes`].
    pub fn cost(&self, height: usize, width: usize) -> Result<Vec<Cost>> {
        let shapes = self.shapes(height, width)?;
        let mut costs = vec![Cost::default(); self.layers.len()];
        for (node, shape) in self.nodes.iter().zip(&shapes) {
            let inputs: Vec<_> = node.inputs.iter().map(|&i| shapes[i]).collect();
            if let Some(layer) = node.layer {
                costs[layer] += node.op.cost(&inputs, *shape);
            }
        }
        Ok(costs)
    }

    /// YOLOv5's table of layers with parameters and operations.
    ///
    /// # Errors
    /// Where the network cannot take a picture of `size` x `size`.
    pub fn summary(&self, size: usize) -> Result<Summary> {
        Summary::new(self, size)
    }

    /// Gives every softmax routing this temperature.
    pub(crate) fn set_temperature(&mut self, value: f64) {
        for node in &mut self.nodes {
            if let Op::Route { route, .. } = &mut node.op {
                match route {
                    RouteOp::Linear { activation: RouteActivation::Softmax { temperature }, .. }
                    | RouteOp::Attention { temperature, .. } => *temperature = value,
                    RouteOp::Linear { activation: RouteActivation::Sigmoid, .. } => {}
                }
            }
        }
    }

    fn layer_names(&self) -> Vec<&'static str> {
        self.layers.iter().map(|layer| layer.module).collect()
    }

    pub(crate) fn layer_error(&self, layer: Option<usize>, problem: String) -> Error {
        match layer.and_then(|i| Some((i, self.layers.get(i)?))) {
            Some((i, layer)) => {
                Error::Layer { file: self.config.name.clone(), layer: i, module: layer.module.to_owned(), problem }
            }
            None => Error::Config { file: self.config.name.clone(), problem },
        }
    }
}
