//! `GhostBottleneck` (GhostNet, arXiv 1911.11907): two ghost convolutions with a shortcut, striding in between.

use super::args::ActArg;
use super::conv::Conv;
use super::ghost_conv::GhostConv;
use super::{Args, Block, Built, one};
use crate::config::Activation;
use crate::graph::{NodeId, Traced, Tracer};

/// `GhostBottleneck(c1, c2, k=3, s=1)`
#[derive(Debug)]
pub(super) struct GhostBottleneck {
    first: GhostConv,
    /// At stride 2 only: the depthwise convolution in between, and the shortcut's two.
    strided: Option<[Conv; 3]>,
    second: GhostConv,
}

impl GhostBottleneck {
    pub(super) fn new(c1: usize, c2: usize, kernel: usize, stride: usize) -> Self {
        let half = c2 / 2;
        let linear = |conv: Conv| conv.act(ActArg::Identity);
        let strided = (stride == 2).then(|| {
            [
                linear(Conv::depthwise(half, half, kernel, stride)),
                linear(Conv::depthwise(c1, c1, kernel, stride)),
                linear(Conv::new(c1, c2, 1, 1)),
            ]
        });
        Self {
            first: GhostConv::new(c1, half, 1, 1, 1, ActArg::Default),
            strided,
            second: GhostConv::new(half, c2, 1, 1, 1, ActArg::Identity),
        }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2) = (args.channels("c1")?, args.channels("c2")?);
        Ok(Box::new(Self::new(c1, c2, args.size("k", 3)?, args.size("s", 1)?)))
    }
}

impl Block for GhostBottleneck {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let y = t.module("conv", |t| {
            let y = t.child("0", &self.first, x)?;
            let y = match &self.strided {
                Some([depthwise, ..]) => t.child("1", depthwise, y)?,
                None => t.own_activation(Activation::Identity, y),
            };
            t.child("2", &self.second, y)
        })?;
        let shortcut = match &self.strided {
            Some([_, depthwise, pointwise]) => t.sequential("shortcut", [depthwise as &dyn Block, pointwise], x)?,
            None => t.own_activation(Activation::Identity, x),
        };
        t.add(y, shortcut)
    }
}
