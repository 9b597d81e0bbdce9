//! Each primitive operation in Candle's terms.

use candle_core::{D, DType, Result, Tensor, bail};
use candle_nn::ops::softmax;
use dyconv_kernels::{
    BatchNorm, ConvConfig, Mixing, Routing, conv_transpose2d, dynamic_conv2d, max_pool2d, reference, route,
    scale_shift, sigmoid, silu, upsample_nearest2d,
};

use super::{Model, decode};
use crate::config::Activation;
use crate::graph::{ConvGeometry, NodeId, Op, ParamId, RouteActivation, RouteOp};

/// YOLOv5 sets this on every batch normalisation.
pub(crate) const BATCH_NORM_EPS: f64 = 1e-3;

/// Runs one operation; `inputs` are those of its node.
pub(super) fn run(model: &Model, id: NodeId, inputs: &[&Tensor]) -> Result<Tensor> {
    let op = &model.graph.nodes()[id].op;
    let Some(&x) = inputs.first() else { bail!("an operation without input") };
    let second =
        || inputs.get(1).copied().ok_or_else(|| candle_core::Error::msg("an operation lacks its second input"));
    let param = |id: ParamId| &model.params[id];
    match op {
        Op::Input => Ok(x.clone()),
        Op::Conv2d { weight, bias, geometry } => {
            let (experts, bias) = (param(*weight).unsqueeze(0)?, bias.map(|id| param(id).unsqueeze(0)).transpose()?);
            Ok(dynamic_conv2d(x, Mixing::Single, &experts, bias.as_ref(), &model.epilogue(id), &config(geometry))?)
        }
        Op::ConvTranspose2d { weight, bias, geometry, output_padding } => {
            add_bias(conv_transpose2d(x, param(*weight), &config(geometry), *output_padding)?, bias.map(param))
        }
        Op::Route { route, .. } => run_route(x, route, param),
        Op::DynamicConv2d { experts, bias, geometry, .. } => {
            let (mixing, bias) = (Mixing::Weights(second()?), bias.map(param));
            Ok(dynamic_conv2d(x, mixing, param(*experts), bias, &model.epilogue(id), &config(geometry))?)
        }
        Op::BatchNorm { .. } if model.folded.contains(&id) => Ok(x.clone()),
        Op::BatchNorm { weight, bias, mean, var } => {
            batch_norm(x, param(*weight), param(*bias), param(*mean), param(*var))
        }
        Op::Activation(activation) => activate(x, *activation),
        Op::MaxPool2d { kernel, stride, padding } => {
            Ok(max_pool2d(x, (*kernel, *kernel), (*stride, *stride), (*padding, *padding))?)
        }
        Op::ZeroPad2d(sides) => pad(x, *sides),
        Op::Upsample { scale } => Ok(upsample_nearest2d(x, (*scale, *scale))?),
        Op::Add => x + second()?,
        Op::Concat => Tensor::cat(inputs, 1),
        Op::Narrow { channels } => x.narrow(1, 0, *channels),
        Op::Focus => blocks(x, 2, [0, 5, 3, 1, 2, 4]),
        Op::Contract { gain } => blocks(x, *gain, [0, 3, 5, 1, 2, 4]),
        Op::Expand { gain } => {
            let (b, c, h, w) = x.dims4()?;
            let x = x.reshape([b, *gain, *gain, c / (gain * gain), h, w].as_slice())?;
            x.permute([0, 3, 4, 1, 5, 2])?.reshape((b, c / (gain * gain), h * gain, w * gain))
        }
        Op::ToTokens => x.flatten_from(2)?.transpose(1, 2)?.contiguous(),
        Op::FromTokens => x.transpose(1, 2)?.reshape(second()?.shape()),
        Op::Linear { weight, bias, .. } => linear(x, param(*weight), bias.map(param)),
        Op::Attention { heads, in_weight, in_bias, out_weight, out_bias, .. } => {
            let [q, k, v] = inputs else { bail!("attention takes queries, keys and values") };
            let parts = [param(*in_weight), param(*in_bias), param(*out_weight), param(*out_bias)];
            attention([q, k, v], parts, *heads)
        }
        Op::Detect { anchors, classes, per_level, .. } => {
            let strides = model.graph.strides();
            decode::rows(inputs, param(*anchors), strides, *classes, *per_level)
        }
    }
}

pub(super) fn config(geometry: &ConvGeometry) -> ConvConfig {
    let ConvGeometry { kernel, stride, padding, dilation, groups, .. } = *geometry;
    ConvConfig { kernel, stride, padding, dilation, groups }
}

fn add_bias(y: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?),
        None => Ok(y),
    }
}

fn run_route<'a>(x: &Tensor, op: &RouteOp, param: impl Fn(ParamId) -> &'a Tensor) -> Result<Tensor> {
    match *op {
        RouteOp::Linear { weight, bias, activation } => {
            let routing = match activation {
                RouteActivation::Sigmoid => Routing::Sigmoid,
                RouteActivation::Softmax { temperature } => Routing::Softmax { temperature },
            };
            Ok(route(x, param(weight), param(bias), routing)?)
        }
        RouteOp::Attention { squeeze, weight, bias, temperature } => {
            let pooled = reference::average(x)?;
            let hidden = pooled.matmul(&param(squeeze).flatten_from(1)?.t()?)?.relu()?;
            let logits = hidden.matmul(&param(weight).flatten_from(1)?.t()?)?.broadcast_add(param(bias))?;
            Ok(Routing::Softmax { temperature }.activate(&logits)?)
        }
    }
}

/// Batch normalisation by running statistics, as one scale and one shift a channel.
fn batch_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, mean: &Tensor, var: &Tensor) -> Result<Tensor> {
    let [weight, bias, mean, var] = [weight, bias, mean, var].map(|t| t.to_dtype(DType::F32));
    let (weight, bias, mean, var) = (weight?, bias?, mean?, var?);
    let norm = BatchNorm { weight: &weight, bias: &bias, mean: &mean, var: &var, eps: BATCH_NORM_EPS };
    let (scale, shift) = norm.scale_shift()?;
    Ok(scale_shift(x, &scale, &shift)?)
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Identity => Ok(x.clone()),
        Activation::SiLU => Ok(silu(x)?),
        Activation::ReLU => x.relu(),
        Activation::ReLU6 => x.clamp(0.0, 6.0),
        Activation::LeakyReLU(slope) => x.relu()? - (x.neg()?.relu()? * slope)?,
        Activation::Hardswish => x * ((x + 3.0)?.clamp(0.0, 6.0)? / 6.0)?,
        // ln(1 + exp(x)), kept from overflowing.
        Activation::Mish => x * (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?.tanh()?,
        Activation::GELU => x.gelu_erf(),
        Activation::Sigmoid => Ok(sigmoid(x)?),
        Activation::Tanh => x.tanh(),
    }
}

/// Zeros around a map: left, right, top, bottom.
fn pad(x: &Tensor, [left, right, top, bottom]: [usize; 4]) -> Result<Tensor> {
    x.pad_with_zeros(3, left, right)?.pad_with_zeros(2, top, bottom)
}

/// Blocks of `side * side` pixels to channels, `order` permuting `[b, c, h, row, w, column]`.
fn blocks(x: &Tensor, side: usize, order: [usize; 6]) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape([b, c, h / side, side, w / side, side].as_slice())?;
    x.permute(order)?.reshape((b, c * side * side, h / side, w / side))
}

/// `x` is `[B, N, features]`.
fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (b, n, features) = x.dims3()?;
    let y = x.reshape((b * n, features))?.matmul(&weight.t()?)?.reshape((b, n, ()))?;
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

fn attention(qkv: [&Tensor; 3], parts: [&Tensor; 4], heads: usize) -> Result<Tensor> {
    let [in_weight, in_bias, out_weight, out_bias] = parts;
    let (b, n, features) = qkv[0].dims3()?;
    let width = features / heads;
    let project = |i: usize| {
        let weight = in_weight.narrow(0, i * features, features)?;
        let y = linear(qkv[i], &weight, Some(&in_bias.narrow(0, i * features, features)?))?;
        y.reshape((b, n, heads, width))?.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = ((project(0)? / (width as f64).sqrt())?, project(1)?, project(2)?);
    let weights = softmax(&q.matmul(&k.transpose(2, 3)?.contiguous()?)?, D::Minus1)?;
    let y = weights.matmul(&v)?.transpose(1, 2)?.reshape((b, n, features))?;
    linear(&y, out_weight, Some(out_bias))
}
