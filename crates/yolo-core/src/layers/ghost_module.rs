//! `GhostModule`: the ghost convolution of ParameterNet (arXiv 2306.14525), both of its parts dynamic.

use super::dynamic_conv::{DynamicConv, Routing};
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

/// `GhostModule(c1, c2, k=1, ratio=2, dw=3, s=1)`
#[derive(Debug)]
pub(super) struct GhostModule {
    primary: DynamicConv,
    cheap: DynamicConv,
    c2: usize,
}

impl GhostModule {
    pub(super) fn new(
        c1: usize,
        c2: usize,
        kernel: usize,
        ratio: usize,
        depthwise: usize,
        stride: usize,
        routing: Routing,
    ) -> Self {
        let initial = c2.div_ceil(ratio);
        Self {
            primary: DynamicConv::new(c1, initial, kernel, stride, 1, routing),
            cheap: DynamicConv::new(initial, initial * (ratio - 1), depthwise, 1, initial, routing),
            c2,
        }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.size("k", 1)?);
        let ratio = args.size("ratio", 2)?;
        if ratio < 2 {
            return Err("`ratio` must be at least 2, so that there are channels for the cheap operation".into());
        }
        let (depthwise, stride) = (args.size("dw", 3)?, args.size("s", 1)?);
        Ok(Box::new(Self::new(c1, c2, kernel, ratio, depthwise, stride, Routing::of(args.context))))
    }
}

impl Block for GhostModule {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = t.child("primary_conv", &self.primary, one(inputs)?)?;
        let y = t.child("cheap_operation", &self.cheap, x)?;
        let joined = t.concat(&[x, y])?;
        if t.channels(joined) == self.c2 {
            return Ok(joined);
        }
        t.push(Op::Narrow { channels: self.c2 }, vec![joined], self.c2)
    }
}
