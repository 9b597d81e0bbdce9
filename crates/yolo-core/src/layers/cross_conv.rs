//! `CrossConv`: a 1xk and a kx1 convolution.

use super::conv::{Conv, ConvOptions};
use super::{Args, Block, Built, hidden, one};
use crate::graph::{NodeId, Traced, Tracer};

/// `CrossConv(c1, c2, k=3, s=1, g=1, e=1.0, shortcut=False)`
#[derive(Debug)]
pub(super) struct CrossConv {
    horizontal: Conv,
    vertical: Conv,
    shortcut: bool,
}

impl CrossConv {
    pub(super) fn new(
        c1: usize,
        c2: usize,
        kernel: usize,
        stride: usize,
        groups: usize,
        expansion: f64,
        shortcut: bool,
    ) -> Self {
        let middle = hidden(c2, expansion);
        let along = |stride| ConvOptions { stride, ..Default::default() };
        Self {
            horizontal: Conv::with(c1, middle, (1, kernel), along((1, stride))),
            vertical: Conv::with(middle, c2, (kernel, 1), along((stride, 1))).grouped(groups),
            shortcut: shortcut && c1 == c2,
        }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.size("k", 3)?);
        let (stride, groups, expansion) = (args.size("s", 1)?, args.groups()?, args.factor("e", 1.0)?);
        Ok(Box::new(Self::new(c1, c2, kernel, stride, groups, expansion, args.flag("shortcut", false)?)))
    }
}

impl Block for CrossConv {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let y = t.child("cv1", &self.horizontal, x)?;
        let y = t.child("cv2", &self.vertical, y)?;
        if self.shortcut { t.add(x, y) } else { Ok(y) }
    }
}
