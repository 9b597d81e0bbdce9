//! `DyConv2d`: dynamic convolution with attention over kernels (DY-CNN, arXiv 1912.03458).

use super::conv::{ConvOptions, geometry};
use super::{Args, Block, Built, hidden, one};
use crate::config::Temperature;
use crate::graph::{ConvGeometry, Init, NodeId, ParamKind, Traced, Tracer};

/// `DyConv2d(c1, c2, k=3, s=1, p=None, g=1, d=1, experts=4, ratio=0.25, temperature=34, bias=True)`
#[derive(Debug)]
struct DyConv2d {
    geometry: ConvGeometry,
    num_experts: usize,
    hidden: usize,
    temperature: f64,
    bias: bool,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    let dynamic = args.context.dynamic;
    let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.pair("k", 3)?);
    let options = ConvOptions::read(args)?;
    let num_experts = args.experts(args.context.num_experts())?;
    let ratio = args.factor("ratio", 0.25)?;
    let temperature = args.factor("temperature", dynamic.temperature.map_or(34.0, Temperature::at_inference))?;
    // A network's first layer has too few channels to squeeze.
    let hidden = if c1 == 3 { num_experts } else { hidden(c1, ratio) + 1 };
    let bias = args.flag("bias", true)?;
    Ok(Box::new(DyConv2d { geometry: geometry(c1, c2, kernel, options), num_experts, hidden, temperature, bias }))
}

impl Block for DyConv2d {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let routing = t.route_attention("attention", x, self.num_experts, self.hidden, self.temperature)?;
        let mut shape = vec![self.num_experts];
        shape.extend(self.geometry.weight_shape());
        let kaiming = Init::Uniform((6.0 / self.geometry.fan_in().max(1) as f64).sqrt());
        let experts = t.param("weight", &shape, ParamKind::Weight, kaiming)?;
        let bias_shape = [self.num_experts, self.geometry.out_channels];
        let bias = self.bias.then(|| t.param("bias", &bias_shape, ParamKind::Bias, Init::Zeros)).transpose()?;
        t.dynamic_conv2d(x, routing, self.geometry, experts, bias)
    }
}
