//! `GhostConv` (GhostNet, arXiv 1911.11907): half of the channels by a convolution, half by a cheap depthwise one on them.

use super::args::ActArg;
use super::conv::Conv;
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Traced, Tracer};

/// `GhostConv(c1, c2, k=1, s=1, g=1, act=True)`
#[derive(Debug)]
pub(super) struct GhostConv {
    primary: Conv,
    cheap: Conv,
}

impl GhostConv {
    pub(super) fn new(c1: usize, c2: usize, kernel: usize, stride: usize, groups: usize, act: ActArg) -> Self {
        let half = c2 / 2;
        Self {
            primary: Conv::new(c1, half, kernel, stride).grouped(groups).act(act),
            cheap: Conv::depthwise(half, half, 5, 1).act(act),
        }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.size("k", 1)?);
        let (stride, groups) = (args.size("s", 1)?, args.groups()?);
        Ok(Box::new(Self::new(c1, c2, kernel, stride, groups, args.activation()?)))
    }
}

impl Block for GhostConv {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let y = t.child("cv1", &self.primary, one(inputs)?)?;
        let z = t.child("cv2", &self.cheap, y)?;
        t.concat(&[y, z])
    }
}
