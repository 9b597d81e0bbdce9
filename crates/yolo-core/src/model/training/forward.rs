//! The tape's forward pass: each operation on slices.

use std::sync::Arc;

use candle_core::{Tensor, Var, bail};
use dyconv_kernels::cpu::{self, ConvShape, Kernels, NormShape, PoolShape, Unary};
use dyconv_kernels::{ConvConfig, Routing};

use super::super::{BATCH_NORM_EPS, exec};
use super::Notes;
use super::tape::{Saved, Step, Tape, Value, missing};
use crate::config::Activation;
use crate::graph::{ConvGeometry, NodeId, Op, RouteActivation, RouteOp};

impl Step {
    /// Runs the network with its parameters `theta`; gives the wanted results in their order.
    pub(super) fn forward(&self, theta: &[f32]) -> candle_core::Result<(Vec<Arc<Value>>, Tape, Notes)> {
        let nodes = self.model.graph.nodes();
        let mut notes = Notes::default();
        let mut tape = Tape { values: vec![None; nodes.len()], saved: Vec::new(), dims: vec![Vec::new(); nodes.len()] };
        for (id, node) in nodes.iter().enumerate() {
            if !self.needed[id] {
                tape.saved.push(Saved::Nothing);
                continue;
            }
            let inputs = node.inputs.iter().map(|&input| tape.values[input].clone().ok_or_else(missing));
            let inputs = inputs.collect::<candle_core::Result<Vec<_>>>()?;
            let result = self.run(id, &inputs, theta, &mut notes);
            let (value, saved) = result.map_err(|error| self.layer_error(id, &error))?;
            tape.dims[id] = value.dims.clone();
            tape.values[id] = Some(value);
            tape.saved.push(saved);
            for &input in &node.inputs {
                if self.last_use[input] == id && !self.kept[input] && !self.wanted.contains(&input) {
                    tape.values[input] = None;
                }
            }
        }
        let results = self.wanted.iter().map(|&node| tape.values[node].clone().ok_or_else(missing)).collect();
        let results: candle_core::Result<Vec<_>> = results;
        self.wanted.iter().filter(|node| !self.kept[**node]).for_each(|&node| tape.values[node] = None);
        Ok((results?, tape, notes))
    }

    fn run(
        &self,
        id: NodeId,
        inputs: &[Arc<Value>],
        theta: &[f32],
        notes: &mut Notes,
    ) -> candle_core::Result<(Arc<Value>, Saved)> {
        let node = &self.model.graph.nodes()[id];
        let param = |id| self.param(theta, id);
        let plain =
            |values: Vec<f32>, dims: &[usize]| Ok((Arc::new(Value { values, dims: dims.to_vec() }), Saved::Nothing));
        match (&node.op, inputs) {
            (Op::Input, _) => Ok((Arc::new(Value::of(&self.x)?), Saved::Nothing)),
            (Op::Conv2d { weight, bias, geometry }, [x]) => {
                let shape = conv_shape(x, geometry)?;
                let shift = bias.map_or(Ok([].as_slice()), param)?;
                let epilogue = cpu::Epilogue { shift, ..cpu::Epilogue::default() };
                let y = cpu::conv2d_new(&x.values, &Kernels::Shared(param(*weight)?), &epilogue, &shape);
                plain(y, &output_dims(&shape))
            }
            (Op::DynamicConv2d { experts, bias, geometry, .. }, [x, routing]) => {
                let shape = conv_shape(x, geometry)?;
                let mut shift = Vec::new();
                if let Some(bias) = bias {
                    shift.resize(shape.batch * shape.out_channels, 0.0);
                    cpu::mix_experts(&routing.values, param(*bias)?, &mut shift, shape.out_channels);
                }
                let epilogue = cpu::Epilogue { shift: &shift, ..cpu::Epilogue::default() };
                let kernels = Kernels::Mixed { weights: &routing.values, experts: param(*experts)? };
                plain(cpu::conv2d_new(&x.values, &kernels, &epilogue, &shape), &output_dims(&shape))
            }
            (
                Op::Route {
                    num_experts, channels, route: route @ RouteOp::Linear { weight, bias, activation }, ..
                },
                [x],
            ) => {
                let [batch, ..] = x.map()?;
                let mut weights = vec![0.0; batch * num_experts];
                let routing = routing_of(*activation);
                cpu::route(&x.values, param(*weight)?, param(*bias)?, routing, &mut weights, *channels);
                let value = Value { values: weights, dims: vec![batch, *num_experts] };
                notes.routing(&self.model, route, value.tensor()?);
                Ok((Arc::new(value), Saved::Nothing))
            }
            (Op::BatchNorm { weight, bias, mean, var }, [x]) => {
                let shape = norm_shape(x)?;
                let n = (shape.batch * shape.pixels) as f32;
                if n < 2.0 {
                    bail!(
                        "batch normalisation needs at least two values a channel, for there is no variance of one: a \
                         larger batch or picture than {:?}",
                        x.dims
                    );
                }
                let (weight, bias) = (param(*weight)?, param(*bias)?);
                let silu = self.with_silu[id];
                let (y, statistics) =
                    cpu::batch_norm_training(&x.values, (weight, bias), BATCH_NORM_EPS as f32, silu, &shape);
                let unbiased: Vec<f32> = statistics.var.iter().map(|var| var * (n / (n - 1.0))).collect();
                let vector = |values: &[f32]| Tensor::from_slice(values, values.len(), self.x.device());
                notes.statistics(&self.model, (*mean, *var), vector(&statistics.mean)?, vector(&unbiased)?);
                Ok((Arc::new(Value { values: y, dims: x.dims.clone() }), Saved::Norm(statistics)))
            }
            (Op::Activation(_), [x]) if node.inputs.iter().all(|input| self.with_silu[*input]) => {
                Ok((Arc::clone(x), Saved::Nothing))
            }
            (Op::Activation(Activation::SiLU), [x]) => {
                let mut y = vec![0.0; x.values.len()];
                cpu::unary(Unary::Silu, &x.values, &mut y);
                plain(y, &x.dims)
            }
            (Op::MaxPool2d { kernel, stride, padding }, [x]) => {
                let [batch, channels, ..] = x.map()?;
                let shape = pool_shape(x, (*kernel, *stride, *padding))?;
                let mut y = vec![0.0; batch * channels * shape.output.0 * shape.output.1];
                cpu::max_pool2d(&x.values, &mut y, &shape);
                plain(y, &[batch, channels, shape.output.0, shape.output.1])
            }
            (Op::Upsample { scale }, [x]) => {
                let [batch, channels, height, width] = x.map()?;
                let mut y = vec![0.0; x.values.len() * scale * scale];
                cpu::upsample_nearest2d(&x.values, &mut y, width, (*scale, *scale));
                plain(y, &[batch, channels, height * scale, width * scale])
            }
            (Op::Add, [a, b]) => {
                let mut y = a.values.clone();
                cpu::add_to(&mut y, &b.values);
                plain(y, &a.dims)
            }
            (Op::Concat, [first, ..]) => {
                let [batch, _, height, width] = first.map()?;
                let parts: Vec<_> = inputs.iter().map(|x| (x.values.as_slice(), x.values.len() / batch)).collect();
                let y = cpu::join_channels(&parts, batch);
                let channels = y.len() / (batch * height * width);
                plain(y, &[batch, channels, height, width])
            }
            _ => self.record(id, inputs, notes),
        }
    }

    /// Has Candle record an operation on copies of its inputs.
    fn record(&self, id: NodeId, inputs: &[Arc<Value>], notes: &mut Notes) -> candle_core::Result<(Arc<Value>, Saved)> {
        let node = &self.model.graph.nodes()[id];
        let inputs: Vec<_> = inputs.iter().map(|input| Var::from_tensor(&input.tensor()?)).collect::<Result<_, _>>()?;
        let mut model = self.model.clone();
        let mut params = Vec::new();
        for param in node.op.params() {
            let variable = Var::from_tensor(&model.params[param].detach().copy()?)?;
            model.params[param] = variable.as_tensor().clone();
            params.push((param, variable));
        }
        let operands: Vec<&Tensor> = inputs.iter().map(Var::as_tensor).collect();
        let output = exec::run(&model, id, &operands)?;
        if let Op::Route { route, .. } = &node.op {
            notes.routing(&self.model, route, output.detach());
        }
        Ok((Arc::new(Value::of(&output)?), Saved::Recorded { inputs, params, output }))
    }
}

pub(super) fn routing_of(activation: RouteActivation) -> Routing {
    match activation {
        RouteActivation::Sigmoid => Routing::Sigmoid,
        RouteActivation::Softmax { temperature } => Routing::Softmax { temperature },
    }
}

pub(super) fn conv_shape(x: &Value, geometry: &ConvGeometry) -> candle_core::Result<ConvShape> {
    let [batch, in_channels, height, width] = x.map()?;
    let config: ConvConfig = exec::config(geometry);
    let Some(output) = geometry.output_size(height, width) else { bail!("the window does not fit into the map") };
    Ok(ConvShape { batch, in_channels, out_channels: geometry.out_channels, input: (height, width), output, config })
}

fn output_dims(shape: &ConvShape) -> [usize; 4] {
    [shape.batch, shape.out_channels, shape.output.0, shape.output.1]
}

pub(super) fn norm_shape(x: &Value) -> candle_core::Result<NormShape> {
    let [batch, channels, height, width] = x.map()?;
    Ok(NormShape { batch, channels, pixels: height * width })
}

pub(super) fn pool_shape(
    x: &Value,
    (kernel, stride, padding): (usize, usize, usize),
) -> candle_core::Result<PoolShape> {
    let [_, _, height, width] = x.map()?;
    let axis = |size: usize| Some((size + 2 * padding).checked_sub(kernel)? / stride + 1);
    let (Some(rows), Some(columns)) = (axis(height), axis(width)) else {
        bail!("the window does not fit into the map")
    };
    if padding >= kernel {
        bail!("the padding {padding} is not less than the window {kernel}");
    }
    Ok(PoolShape {
        input: (height, width),
        output: (rows, columns),
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (padding, padding),
    })
}
