//! `DynamicConv`: CondConv (arXiv 1904.04971) with batch normalisation and activation.

use super::args::ActArg;
use super::conv::{ConvOptions, activate, geometry};
use super::{Args, Block, Built, Context, one};
use crate::config::Activation;
use crate::graph::{ConvGeometry, Init, NodeId, ParamKind, RouteActivation, Traced, Tracer};

/// `DynamicConv(c1, c2, k=1, s=1, p=None, g=1, d=1, act=True, num_experts=4)`
#[derive(Debug, Clone, Copy)]
pub(super) struct DynamicConv {
    geometry: ConvGeometry,
    routing: Routing,
    act: ActArg,
}

/// How the experts are weighed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routing {
    pub(super) num_experts: usize,
    pub(super) activation: RouteActivation,
}

impl Routing {
    /// What the network's `dynamic:` map says, or the default.
    pub(super) fn of(context: &Context<'_>) -> Self {
        Self { num_experts: context.num_experts(), activation: context.route_activation() }
    }
}

impl DynamicConv {
    pub(super) fn new(c1: usize, c2: usize, kernel: usize, stride: usize, groups: usize, routing: Routing) -> Self {
        let options = ConvOptions { stride: (stride, stride), groups, ..Default::default() };
        Self { geometry: geometry(c1, c2, (kernel, kernel), options), routing, act: ActArg::Default }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let mut routing = Routing::of(args.context);
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.pair("k", 1)?);
        let options = ConvOptions::read(args)?;
        let act = args.activation()?;
        routing.num_experts = args.experts(routing.num_experts)?;
        Ok(Box::new(Self { geometry: geometry(c1, c2, kernel, options), routing, act }))
    }
}

impl Block for DynamicConv {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        t.module("conv", |t| {
            let x = t.module("0", |t| {
                let routing = t.route_linear("routing", x, self.routing.num_experts, self.routing.activation)?;
                t.module("cond_conv", |t| {
                    let shape = [self.routing.num_experts, self.geometry.weight_len()];
                    let bound = 1.0 / (self.geometry.fan_in().max(1) as f64).sqrt();
                    let experts = t.param("weight", &shape, ParamKind::Weight, Init::Uniform(bound))?;
                    t.dynamic_conv2d(x, routing, self.geometry, experts, None)
                })
            })?;
            let x = t.batch_norm("1", x)?;
            Ok(activate(t, "DynamicConv", Some(Activation::SiLU), self.act, x))
        })
    }
}
