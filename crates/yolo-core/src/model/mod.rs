//! A network running on Candle: any device, differentiable, the plain twin of every faster form.

mod decode;
mod exec;
mod fold;
mod training;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Init as CandleInit, Module, VarBuilder};

use crate::graph::{Graph, Init, NodeId, Op, Output};
use crate::weights::{Expected, Weights};

use crate::{Error, Result};
pub(crate) use exec::BATCH_NORM_EPS;
pub use training::{BatchStatistics, TrainingOutputs};

/// A network with its weights.
#[derive(Debug, Clone)]
pub struct Model {
    graph: Arc<Graph>,
    /// In the order of [`Graph::params`].
    params: Vec<Tensor>,
    /// For each node, the last node that reads it.
    last_use: Vec<NodeId>,
    /// Batch normalisations that the convolution before them does.
    folded: BTreeSet<NodeId>,
    /// What such a convolution adds to its channels.
    shifts: BTreeMap<NodeId, Tensor>,
}

/// What one forward pass gives.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// Decoded boxes `[B, anchors, 5 + classes (+ masks)]` in pixels of the network's input (centre, width, height,
    /// objectness, class probabilities, raw mask coefficients); or the last layer's map of a feature extractor.
    pub main: Tensor,
    /// Mask prototypes `[B, masks, H / 4, W / 4]` of a segmentation network.
    pub prototypes: Option<Tensor>,
    /// The results of the layers that were asked for, in that order.
    pub features: Vec<Tensor>,
}

impl Model {
    /// Takes the network's parameters from `vb`, by their state-dict names.
    ///
    /// The data type and device are those of `vb`. From a `VarMap` that lacks a parameter, that parameter starts at random;
    /// [`Graph::init`] gives starting values that are the same for the same seed.
    ///
    /// # Errors
    /// Where a parameter is missing or has another shape.
    pub fn load(graph: Graph, vb: VarBuilder<'_>) -> Result<Self> {
        let load = |param: &crate::graph::Param| {
            let init = match &param.init {
                Init::Zeros | Init::DetectBias { .. } | Init::Values(_) => CandleInit::Const(0.0),
                Init::Ones => CandleInit::Const(1.0),
                Init::Uniform(bound) => CandleInit::Uniform { lo: -bound, up: *bound },
                Init::Normal(deviation) => CandleInit::Randn { mean: 0.0, stdev: *deviation },
            };
            let tensor = vb.get_with_hints(param.shape.as_slice(), &param.name, init)?;
            if let (Init::Values(values), true) = (&param.init, is_new(&tensor)?) {
                return Ok(Tensor::from_slice(values, param.shape.as_slice(), vb.device())?.to_dtype(vb.dtype())?);
            }
            Ok(tensor)
        };
        let params = graph.params().iter().map(load).collect::<Result<Vec<_>>>()?;
        let mut last_use: Vec<NodeId> = (0..graph.nodes().len()).collect();
        for (i, node) in graph.nodes().iter().enumerate() {
            node.inputs.iter().for_each(|&input| last_use[input] = i);
        }
        Ok(Self { graph: Arc::new(graph), params, last_use, folded: BTreeSet::new(), shifts: BTreeMap::new() })
    }

    /// Takes the network's parameters from a weights file, which must hold exactly these.
    ///
    /// # Errors
    /// [`Error::Weights`] that names the keys which are missing, left over or of another shape.
    pub fn from_weights(graph: Graph, weights: &Weights, device: &Device, dtype: DType) -> Result<Self> {
        let expected: Vec<Expected> = graph
            .params()
            .iter()
            .map(|param| Expected { name: param.name.clone(), shape: param.shape.clone(), optional: false })
            .collect();
        weights.check(&expected, graph.config().stem())?;
        Self::load(graph, weights.var_builder(dtype, device))
    }

    /// As much of a network as one operation takes: its parameters, nothing for all others.
    pub(crate) fn for_node(graph: &Graph, weights: &Weights, id: NodeId) -> Result<Self> {
        let mut params = vec![Tensor::zeros(0, DType::F32, &Device::Cpu)?; graph.params().len()];
        for param in graph.nodes()[id].op.params() {
            params[param] = weights.tensor(&graph.params()[param].name, DType::F32, &Device::Cpu)?;
        }
        Ok(Self {
            graph: Arc::new(graph.clone()),
            params,
            last_use: Vec::new(),
            folded: BTreeSet::new(),
            shifts: BTreeMap::new(),
        })
    }

    /// Runs one operation on its inputs.
    pub(crate) fn run_node(&self, id: NodeId, inputs: &[&Tensor]) -> candle_core::Result<Tensor> {
        exec::run(self, id, inputs)
    }

    /// The network's structure.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The parameter called `name`.
    pub fn param(&self, name: &str) -> Option<&Tensor> {
        let index = self.graph.params().iter().position(|param| param.name == name)?;
        self.params.get(index)
    }

    /// Runs the network in evaluation mode.
    ///
    /// # Shapes
    /// `x` is `[B, channels, H, W]` with values 0..=1, of the weights' type and on their device; H and W multiples of
    /// [`Graph::stride`].
    ///
    /// # Errors
    /// Where shape, type or device do not fit the network, or the device fails.
    pub fn run(&self, x: &Tensor) -> Result<Outputs> {
        self.run_with_features(x, &[])
    }

    /// As [`Model::run`], and keeps what the given layers of the YAML give.
    ///
    /// # Errors
    /// As [`Model::run`]; and where there is no such layer.
    pub fn run_with_features(&self, x: &Tensor, layers: &[usize]) -> Result<Outputs> {
        let wanted = self.layer_nodes(layers)?;
        self.check_input(x)?;
        let (main, prototypes) = match self.graph.output() {
            Output::Segment { rows, prototypes } => (rows, Some(prototypes)),
            other => (other.main(), None),
        };
        let wanted: Vec<NodeId> = [main].into_iter().chain(prototypes).chain(wanted).collect();
        let mut results = self.walk(x, &wanted, |id, inputs| exec::run(self, id, inputs))?.into_iter();
        let mut next =
            || results.next().ok_or_else(|| Error::Candle(candle_core::Error::msg("an output was dropped too early")));
        let main = next()?;
        let prototypes = prototypes.map(|_| next()).transpose()?;
        Ok(Outputs { main, prototypes, features: results.collect() })
    }

    /// Runs the operations that the `wanted` nodes depend on, each by `run`, and gives the results of the wanted ones.
    fn walk(
        &self,
        x: &Tensor,
        wanted: &[NodeId],
        mut run: impl FnMut(NodeId, &[&Tensor]) -> candle_core::Result<Tensor>,
    ) -> Result<Vec<Tensor>> {
        let nodes = self.graph.nodes();
        let mut needed = vec![false; nodes.len()];
        wanted.iter().for_each(|&node| needed[node] = true);
        for i in (0..nodes.len()).rev() {
            if needed[i] {
                nodes[i].inputs.iter().for_each(|&input| needed[input] = true);
            }
        }
        let mut values: Vec<Option<Tensor>> = vec![None; nodes.len()];
        for (i, node) in nodes.iter().enumerate() {
            if needed[i] {
                let value = match node.op {
                    Op::Input => x.clone(),
                    _ => {
                        let inputs: Option<Vec<&Tensor>> =
                            node.inputs.iter().map(|&input| values[input].as_ref()).collect();
                        let inputs = inputs
                            .ok_or_else(|| Error::Candle(candle_core::Error::msg("a value was dropped too early")))?;
                        run(i, &inputs).map_err(|e| self.graph.layer_error(node.layer, e.to_string()))?
                    }
                };
                values[i] = Some(value);
            }
            for &input in &node.inputs {
                if self.last_use[input] == i && !wanted.contains(&input) {
                    values[input] = None;
                }
            }
        }
        let get = |&node: &NodeId| {
            values[node]
                .clone()
                .ok_or_else(|| Error::Candle(candle_core::Error::msg("an output was dropped too early")))
        };
        wanted.iter().map(get).collect()
    }

    /// That an input is one that the network can take.
    fn check_input(&self, x: &Tensor) -> Result<()> {
        let channels = self.graph.config().channels;
        let (batch, height, width) = match *x.dims() {
            [b, c, h, w] if c == channels && h > 0 && w > 0 => (b, h, w),
            ref got => {
                return Err(Error::Shape {
                    what: "the network's input".into(),
                    expected: format!("[batch, {channels}, height, width]"),
                    got: format!("{got:?}"),
                });
            }
        };
        if batch == 0 {
            return Err(Error::Argument { argument: "x", problem: "the batch is empty".into() });
        }
        if let Some(param) =
            self.params.first().filter(|p| p.dtype() != x.dtype() || !p.device().same_device(x.device()))
        {
            let told = |t: &Tensor| format!("{} on {:?}", t.dtype().as_str(), t.device().location());
            return Err(Error::Shape {
                what: "the network's input".into(),
                expected: format!("{}, as its weights", told(param)),
                got: told(x),
            });
        }
        self.graph.shapes(height, width).map(|_| ())
    }

    fn layer_nodes(&self, layers: &[usize]) -> Result<Vec<NodeId>> {
        let node = |&layer: &usize| {
            self.graph.layers().get(layer).map(|layer| layer.node).ok_or_else(|| Error::Argument {
                argument: "features",
                problem: format!(
                    "there is no layer {layer}, the last one is {}",
                    self.graph.layers().len().saturating_sub(1)
                ),
            })
        };
        layers.iter().map(node).collect()
    }
}

impl Module for Model {
    /// The main output of [`Model::run`].
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.run(x).map(|outputs| outputs.main).map_err(candle_core::Error::wrap)
    }
}

/// Whether a tensor holds only zeros: what a `VarMap` gives for anchors that it does not know.
fn is_new(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.to_dtype(DType::F32)?.abs()?.sum_all()?.to_scalar::<f32>()? == 0.0)
}
