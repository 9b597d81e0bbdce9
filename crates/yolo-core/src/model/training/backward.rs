//! The tape's backward pass: gradients from the head's maps to the parameters.

use std::sync::Arc;

use candle_core::{Tensor, bail};
use dyconv_kernels::Routing;
use dyconv_kernels::cpu;

use super::forward::{conv_shape, norm_shape, pool_shape, routing_of};
use super::tape::{Saved, Step, Tape, Value, missing};
use crate::config::Activation;
use crate::graph::{NodeId, Op, ParamId, RouteOp};

/// Gradients on their way.
struct Gradients {
    /// Of each node's result, as far as its readers have come.
    nodes: Vec<Option<Vec<f32>>>,
    /// Of all parameters, one after the other.
    theta: Vec<f32>,
}

impl Gradients {
    /// Adds what a reader of a node says.
    fn add(&mut self, node: NodeId, gradient: Vec<f32>) {
        match &mut self.nodes[node] {
            Some(sum) => cpu::add_to(sum, &gradient),
            empty => *empty = Some(gradient),
        }
    }
}

impl Step {
    /// The gradient for `theta` from that for the wanted results, which is theirs one after the other.
    pub(super) fn backward(&self, mut tape: Tape, theta: &[f32], gradient: &[f32]) -> candle_core::Result<Vec<f32>> {
        let nodes = self.model.graph.nodes();
        let mut gradients = Gradients { nodes: vec![None; nodes.len()], theta: vec![0.0; theta.len()] };
        let mut start = 0;
        for &node in &self.wanted {
            let count: usize = tape.dims[node].iter().product();
            gradients.add(node, gradient[start..start + count].to_vec());
            start += count;
        }
        for (id, node) in nodes.iter().enumerate().rev() {
            if let Some(gradient) = gradients.nodes[id].take()
                && self.moved[id]
            {
                let saved = std::mem::replace(&mut tape.saved[id], Saved::Nothing);
                let done = self.step_back(id, &tape, saved, gradient, theta, &mut gradients);
                done.map_err(|error| self.layer_error(id, &error))?;
            }
            tape.values[id] = None;
            for &input in &node.inputs {
                if self.first_use[input] == id && !self.reads_own(input) {
                    tape.values[input] = None;
                }
            }
        }
        Ok(gradients.theta)
    }

    /// Whether an operation's backward pass reads its own result.
    fn reads_own(&self, id: NodeId) -> bool {
        matches!(self.model.graph.nodes()[id].op, Op::Route { .. })
    }

    /// One operation: `gradient` is that for its result.
    fn step_back(
        &self,
        id: NodeId,
        tape: &Tape,
        saved: Saved,
        mut gradient: Vec<f32>,
        theta: &[f32],
        gradients: &mut Gradients,
    ) -> candle_core::Result<()> {
        let node = &self.model.graph.nodes()[id];
        let inputs = node.inputs.as_slice();
        let value = |index: usize| -> candle_core::Result<&Arc<Value>> {
            inputs.get(index).and_then(|&input| tape.values[input].as_ref()).ok_or_else(missing)
        };
        let moved = |index: usize| inputs.get(index).is_some_and(|&input| self.moved[input]);
        match (&node.op, saved) {
            (Op::Input, _) => {}
            (Op::Conv2d { weight, bias, geometry }, _) => {
                let x = value(0)?;
                let shape = conv_shape(x, geometry)?;
                self.bias(*bias, &gradient, shape.out_channels, shape.output.0 * shape.output.1, gradients);
                if self.trained[*weight] {
                    let dk = cpu::conv2d_kernel_gradient(&x.values, &gradient, false, &shape);
                    self.trained(*weight, &dk, gradients);
                }
                if moved(0) {
                    let dx = cpu::conv2d_input_gradient(&gradient, self.param(theta, *weight)?, &shape);
                    gradients.add(inputs[0], dx);
                }
            }
            (Op::DynamicConv2d { experts, bias, geometry, num_experts }, _) => {
                let (x, routing) = (value(0)?, &value(1)?.values);
                let shape = conv_shape(x, geometry)?;
                let (len, pixels) = (shape.kernel_len(), shape.output.0 * shape.output.1);
                let values = self.param(theta, *experts)?;
                let dk = cpu::conv2d_kernel_gradient(&x.values, &gradient, true, &shape);
                let mut routed = mixture_backward(routing, values, &dk, *num_experts, |dexperts| {
                    self.trained(*experts, dexperts, gradients);
                });
                if let Some(bias) = bias {
                    let sums = cpu::plane_sums(&gradient, pixels);
                    let values = self.param(theta, *bias)?;
                    let more = mixture_backward(routing, values, &sums, *num_experts, |dbias| {
                        self.trained(*bias, dbias, gradients);
                    });
                    routed.iter_mut().zip(more).for_each(|(sum, value)| *sum += value);
                }
                if moved(1) {
                    gradients.add(inputs[1], routed);
                }
                if moved(0) {
                    let mut mixed = vec![0.0; shape.batch * len];
                    cpu::mix_experts(routing, values, &mut mixed, len);
                    gradients.add(inputs[0], cpu::conv2d_input_gradient(&gradient, &mixed, &shape));
                }
            }
            (Op::Route { channels, route: RouteOp::Linear { weight, bias, activation }, .. }, Saved::Nothing) => {
                let x = value(0)?;
                let [batch, _, height, width] = x.map()?;
                let pixels = height * width;
                let weights = tape.values[id].as_ref().ok_or_else(missing)?;
                let experts = weights.values.len() / batch.max(1);
                logits_backward(routing_of(*activation), &weights.values, &mut gradient, experts);
                let pooled: Vec<f32> =
                    cpu::plane_sums(&x.values, pixels).into_iter().map(|sum| sum / pixels as f32).collect();
                let matrix = self.param(theta, *weight)?;
                let mut dweight = vec![0.0; matrix.len()];
                let mut dbias = vec![0.0; experts];
                let mut dpooled = vec![0.0; pooled.len()];
                let rows = gradient.chunks_exact(experts).zip(pooled.chunks_exact(*channels));
                for ((logits, pooled), dpooled) in rows.zip(dpooled.chunks_exact_mut(*channels)) {
                    for (expert, logit) in logits.iter().enumerate() {
                        dbias[expert] += logit;
                        let range = expert * channels..(expert + 1) * channels;
                        let to = dweight[range.clone()].iter_mut().zip(&matrix[range]).zip(pooled).zip(&mut *dpooled);
                        for (((dweight, weight), pooled), dpooled) in to {
                            *dweight += logit * pooled;
                            *dpooled += logit * weight / pixels as f32;
                        }
                    }
                }
                self.trained(*weight, &dweight, gradients);
                self.trained(*bias, &dbias, gradients);
                if moved(0) {
                    let sum = gradients.nodes[inputs[0]].get_or_insert_with(|| vec![0.0; x.values.len()]);
                    cpu::add_to_planes(sum, &dpooled, pixels);
                }
            }
            (Op::BatchNorm { weight, bias, .. }, Saved::Norm(statistics)) => {
                let x = value(0)?;
                let values = (self.param(theta, *weight)?, self.param(theta, *bias)?);
                let silu = self.with_silu[id];
                let (dweight, dbias) =
                    cpu::batch_norm_backward(&x.values, values, &mut gradient, &statistics, silu, &norm_shape(x)?);
                self.trained(*weight, &dweight, gradients);
                self.trained(*bias, &dbias, gradients);
                if moved(0) {
                    gradients.add(inputs[0], gradient);
                }
            }
            (Op::Activation(_), Saved::Nothing) if inputs.iter().all(|input| self.with_silu[*input]) => {
                gradients.add(inputs[0], gradient);
            }
            (Op::Activation(Activation::SiLU), Saved::Nothing) => {
                let mut dx = vec![0.0; gradient.len()];
                cpu::silu_backward(&value(0)?.values, &gradient, &mut dx);
                gradients.add(inputs[0], dx);
            }
            (Op::MaxPool2d { kernel, stride, padding }, _) => {
                let x = value(0)?;
                let mut dx = vec![0.0; x.values.len()];
                let shape = pool_shape(x, (*kernel, *stride, *padding))?;
                cpu::max_pool2d_backward(&x.values, &gradient, &mut dx, &shape);
                gradients.add(inputs[0], dx);
            }
            (Op::Upsample { scale }, _) => {
                let dims = &tape.dims[inputs[0]];
                let mut dx = vec![0.0; dims.iter().product()];
                cpu::upsample_nearest2d_backward(&gradient, &mut dx, dims[3], (*scale, *scale));
                gradients.add(inputs[0], dx);
            }
            (Op::Add, _) => {
                if moved(0) && moved(1) {
                    match &mut gradients.nodes[inputs[0]] {
                        Some(sum) => cpu::add_to(sum, &gradient),
                        empty => *empty = Some(gradient.clone()),
                    }
                    gradients.add(inputs[1], gradient);
                } else {
                    gradients.add(inputs[usize::from(!moved(0))], gradient);
                }
            }
            (Op::Concat, _) => {
                let sizes: Vec<usize> = inputs.iter().map(|&i| tape.dims[i].iter().skip(1).product()).collect();
                let sample = sizes.iter().sum();
                let mut first = 0;
                for (index, (&input, len)) in inputs.iter().zip(sizes).enumerate() {
                    if moved(index) {
                        gradients.add(input, cpu::cut_channels(&gradient, sample, first, len));
                    }
                    first += len;
                }
            }
            (_, Saved::Recorded { inputs: variables, params, output }) => {
                let gradient = Tensor::from_vec(gradient, output.dims(), output.device())?;
                let store = (&output * gradient)?.sum_all()?.backward()?;
                for (index, variable) in variables.iter().enumerate().filter(|(index, _)| moved(*index)) {
                    // An operation may read only the sizes of an input.
                    if let Some(gradient) = store.get(variable) {
                        gradients.add(inputs[index], gradient.flatten_all()?.to_vec1()?);
                    }
                }
                for (param, variable) in params {
                    if let Some(gradient) = store.get(&variable) {
                        self.trained(param, &gradient.flatten_all()?.to_vec1::<f32>()?, gradients);
                    }
                }
            }
            (op, _) => bail!("{op:?} left nothing for its backward pass"),
        }
        Ok(())
    }

    /// Adds to a parameter's gradient, where it is wanted.
    fn trained(&self, param: ParamId, gradient: &[f32], gradients: &mut Gradients) {
        if let (Some(place), true) = (&self.places[param], self.trained[param]) {
            gradients.theta[place.clone()].iter_mut().zip(gradient).for_each(|(sum, value)| *sum += value);
        }
    }

    /// The gradient for a bias that all samples share.
    fn bias(&self, bias: Option<ParamId>, gradient: &[f32], channels: usize, pixels: usize, gradients: &mut Gradients) {
        let Some(bias) = bias.filter(|&bias| self.trained[bias]) else { return };
        let mut sums = vec![0.0; channels];
        for sample in cpu::plane_sums(gradient, pixels).chunks_exact(channels) {
            sums.iter_mut().zip(sample).for_each(|(sum, value)| *sum += value);
        }
        self.trained(bias, &sums, gradients);
    }
}

/// The gradients of `mixed[b] = sum over k of weights[b][k] * experts[k]`: hands that for the experts to `of_experts`, and gives
/// that for the weights.
fn mixture_backward(
    weights: &[f32],
    experts: &[f32],
    gradient: &[f32],
    count: usize,
    of_experts: impl FnOnce(&[f32]),
) -> Vec<f32> {
    let (batch, len) = (weights.len() / count, experts.len() / count);
    let turned: Vec<f32> = (0..count).flat_map(|k| (0..batch).map(move |b| weights[b * count + k])).collect();
    let mut dexperts = vec![0.0; experts.len()];
    cpu::mix_experts(&turned, gradient, &mut dexperts, len);
    of_experts(&dexperts);
    let products = |row: &[f32], expert: &[f32]| {
        let product = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        row.chunks(64).zip(expert.chunks(64)).map(|pair| f64::from(product(pair))).sum::<f64>() as f32
    };
    let rows = gradient.chunks_exact(len);
    rows.flat_map(|row| experts.chunks_exact(len).map(move |expert| products(row, expert))).collect()
}

/// Turns the gradient for routing weights into that for their logits.
fn logits_backward(routing: Routing, weights: &[f32], gradient: &mut [f32], experts: usize) {
    for (gradient, weights) in gradient.chunks_exact_mut(experts).zip(weights.chunks_exact(experts)) {
        match routing {
            Routing::Sigmoid => gradient.iter_mut().zip(weights).for_each(|(d, r)| *d *= r * (1.0 - r)),
            Routing::Softmax { temperature } => {
                let mean: f32 = gradient.iter().zip(weights).map(|(d, r)| d * r).sum();
                // As in the forward pass, no temperature below the one at which the softmax is a choice of one.
                let factor = (1.0 / temperature.max(2e-5)) as f32;
                gradient.iter_mut().zip(weights).for_each(|(d, r)| *d = (*d - mean) * r * factor);
            }
        }
    }
}
