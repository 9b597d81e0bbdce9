//! The whole network as one operation of Candle on the CPU: its argument is the parameters, one after the other, its result the
//! maps of the head.
//!
//! Candle's own record keeps every map until the end, and begins each gradient with zeros. Here it is known which maps a
//! backward pass reads: the input of a batch normalisation, of a convolution, of a pool. A gradient becomes its operation's
//! argument's in the same memory where shapes allow it, and maps are dropped as the pass comes by.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor, Var, bail};
use dyconv_kernels::cpu::Statistics;

use super::super::Model;
use super::{Notes, fuse};
use crate::Result;
use crate::config::Activation;
use crate::graph::{NodeId, Op, ParamId, ParamKind};

/// Runs the network and gives the results of the `wanted` nodes, which are maps.
pub(super) fn run(model: &Model, x: &Tensor, wanted: &[NodeId]) -> Result<(Vec<Tensor>, Notes)> {
    let params = model.graph.params().iter().zip(&model.params);
    let trained = params.filter(|(param, _)| param.kind != ParamKind::Buffer);
    let flat = trained.map(|(_, tensor)| tensor.flatten_all()).collect::<candle_core::Result<Vec<_>>>()?;
    let theta = Tensor::cat(&flat, 0)?;
    let state = Arc::new(Mutex::new(State::default()));
    let network = Network { step: Step::new(model, x, wanted), state: Arc::clone(&state) };
    let results = theta.apply_op1(network)?;
    let mut state = lock(&state);
    let mut start = 0;
    let mut maps = Vec::with_capacity(wanted.len());
    for dims in &state.results {
        let count = dims.iter().product();
        maps.push(results.narrow(0, start, count)?.reshape(dims.as_slice())?);
        start += count;
    }
    Ok((maps, std::mem::take(&mut state.notes)))
}

/// A value of the network: a map, tokens or routing weights.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) values: Vec<f32>,
    pub(super) dims: Vec<usize>,
}

impl Value {
    /// Batch, channels, height and width.
    pub(super) fn map(&self) -> candle_core::Result<[usize; 4]> {
        match *self.dims {
            [batch, channels, height, width] => Ok([batch, channels, height, width]),
            ref dims => bail!("expected a map, got {dims:?}"),
        }
    }

    pub(super) fn tensor(&self) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.values, self.dims.as_slice(), &candle_core::Device::Cpu)
    }

    pub(super) fn of(tensor: &Tensor) -> candle_core::Result<Self> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(Self { values, dims: tensor.dims().to_vec() })
    }
}

/// What an operation leaves for its backward pass beside its inputs.
#[derive(Debug)]
pub(super) enum Saved {
    Nothing,
    Norm(Statistics),
    /// An operation that Candle recorded on copies of its inputs.
    Recorded {
        inputs: Vec<Var>,
        params: Vec<(ParamId, Var)>,
        output: Tensor,
    },
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug)]
pub(super) struct Tape {
    /// The results that a backward pass reads.
    pub(super) values: Vec<Option<Arc<Value>>>,
    pub(super) saved: Vec<Saved>,
    /// Sizes of all results.
    pub(super) dims: Vec<Vec<usize>>,
}

/// One step of training: the network, its batch, and what is known before it runs.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) model: Model,
    pub(super) x: Tensor,
    pub(super) wanted: Vec<NodeId>,
    /// Where each parameter lies among all, none for buffers.
    pub(super) places: Vec<Option<Range<usize>>>,
    /// Whether the parameter's gradient is wanted.
    pub(super) trained: Vec<bool>,
    /// Nodes that the wanted ones depend on.
    pub(super) needed: Vec<bool>,
    /// Nodes whose gradient is wanted: a trained parameter lies at or before them.
    pub(super) moved: Vec<bool>,
    /// Batch normalisations that apply the SiLU behind them.
    pub(super) with_silu: Vec<bool>,
    /// Nodes whose result a backward pass reads.
    pub(super) kept: Vec<bool>,
    /// For each node, the last one that reads it.
    pub(super) last_use: Vec<NodeId>,
    /// For each node, the first one that reads it.
    pub(super) first_use: Vec<NodeId>,
}

impl Step {
    fn new(model: &Model, x: &Tensor, wanted: &[NodeId]) -> Self {
        let nodes = model.graph.nodes();
        let mut end = 0;
        let place = |param: &crate::graph::Param| {
            (param.kind != ParamKind::Buffer).then(|| {
                let start = end;
                end += param.shape.iter().product::<usize>();
                start..end
            })
        };
        let places: Vec<_> = model.graph.params().iter().map(place).collect();
        let trained: Vec<_> =
            model.params.iter().zip(&places).map(|(t, place)| place.is_some() && t.track_op()).collect();
        let mut needed = vec![false; nodes.len()];
        wanted.iter().for_each(|&node| needed[node] = true);
        for i in (0..nodes.len()).rev() {
            if needed[i] {
                nodes[i].inputs.iter().for_each(|&input| needed[input] = true);
            }
        }
        let with_silu = fuse::with_silu(&model.graph, wanted);
        let (mut moved, mut kept) = (vec![false; nodes.len()], vec![false; nodes.len()]);
        let (mut last_use, mut first_use): (Vec<_>, Vec<_>) = (0..nodes.len()).map(|i| (i, i)).unzip();
        for (i, node) in nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
            let own = node.op.params().iter().any(|&param| trained[param]);
            moved[i] = own || node.inputs.iter().any(|&input| moved[input]);
            for &input in &node.inputs {
                last_use[input] = i;
                if first_use[input] == input {
                    first_use[input] = i;
                }
            }
            match node.op {
                Op::Conv2d { .. } | Op::DynamicConv2d { .. } | Op::BatchNorm { .. } | Op::MaxPool2d { .. } => {
                    node.inputs.iter().for_each(|&input| kept[input] |= moved[i]);
                }
                Op::Activation(Activation::SiLU) if !with_silu[node.inputs[0]] => kept[node.inputs[0]] |= moved[i],
                Op::Route { .. } => {
                    node.inputs.iter().for_each(|&input| kept[input] |= moved[i]);
                    kept[i] |= moved[i];
                }
                _ => {}
            }
        }
        Self {
            model: model.clone(),
            x: x.clone(),
            wanted: wanted.to_vec(),
            places,
            trained,
            needed,
            moved,
            with_silu,
            kept,
            last_use,
            first_use,
        }
    }

    /// A parameter's values.
    pub(super) fn param<'a>(&self, theta: &'a [f32], id: ParamId) -> candle_core::Result<&'a [f32]> {
        match &self.places[id] {
            Some(place) => Ok(&theta[place.clone()]),
            None => bail!("{} is a buffer", self.model.graph.params()[id].name),
        }
    }

    /// The error of an operation with its layer.
    pub(super) fn layer_error(&self, id: NodeId, error: &candle_core::Error) -> candle_core::Error {
        let graph = &self.model.graph;
        candle_core::Error::wrap(graph.layer_error(graph.nodes()[id].layer, error.to_string()))
    }
}

/// What the forward pass of [`Network`] gives beside its result.
#[derive(Debug, Default)]
struct State {
    tape: Option<Tape>,
    notes: Notes,
    /// Sizes of the results.
    results: Vec<Vec<usize>>,
}

/// What a thread that failed left is not read: its error ends the step.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Network {
    step: Step,
    state: Arc<Mutex<State>>,
}

impl CustomOp1 for Network {
    fn name(&self) -> &'static str {
        "network-in-training"
    }

    fn cpu_fwd(&self, theta: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected contiguous parameters") };
        let theta = &theta.as_slice::<f32>()?[start..end];
        let (results, tape, notes) = self.step.forward(theta)?;
        let mut state = lock(&self.state);
        state.results = results.iter().map(|result| result.dims.clone()).collect();
        let joined: Vec<f32> = results.iter().flat_map(|result| result.values.iter().copied()).collect();
        (state.tape, state.notes) = (Some(tape), notes);
        let count = joined.len();
        Ok((CpuStorage::F32(joined), count.into()))
    }

    fn bwd(&self, theta: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let Some(tape) = lock(&self.state).tape.take() else {
            bail!("the maps of this step are gone: a step has one backward pass")
        };
        let values: Vec<f32> = theta.to_vec1()?;
        let gradient: Vec<f32> = gradient.to_vec1()?;
        let gradient = self.step.backward(tape, &values, &gradient)?;
        Tensor::from_vec(gradient, theta.dims(), theta.device()).map(Some)
    }
}

/// The error of a value that must be there and is not.
pub(super) fn missing() -> candle_core::Error {
    candle_core::Error::msg("a value was dropped too early")
}
