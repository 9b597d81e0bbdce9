//! `Bottleneck`: 1x1 and 3x3 convolution with a shortcut.

use super::conv::Conv;
use super::{Args, Block, Built, hidden, one};
use crate::graph::{NodeId, Traced, Tracer};

/// `Bottleneck(c1, c2, shortcut=True, g=1, e=0.5)`; `second` is the 3x3 convolution, which a subclass may replace.
#[derive(Debug)]
pub(crate) struct Bottleneck<C = Conv> {
    first: Conv,
    second: C,
    shortcut: bool,
}

impl Bottleneck {
    pub(crate) fn new(c1: usize, c2: usize, shortcut: bool, groups: usize, expansion: f64) -> Self {
        let middle = hidden(c2, expansion);
        Self {
            first: Conv::new(c1, middle, 1, 1),
            second: Conv::new(middle, c2, 3, 1).grouped(groups),
            shortcut: shortcut && c1 == c2,
        }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2) = (args.channels("c1")?, args.channels("c2")?);
        let (shortcut, groups) = (args.flag("shortcut", true)?, args.groups()?);
        Ok(Box::new(Self::new(c1, c2, shortcut, groups, args.factor("e", 0.5)?)))
    }
}

impl<C: Block> Bottleneck<C> {
    /// With another second convolution.
    pub(crate) fn of(first: Conv, second: C, shortcut: bool) -> Self {
        Self { first, second, shortcut }
    }
}

impl<C: Block> Block for Bottleneck<C> {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let y = t.child("cv1", &self.first, x)?;
        let y = t.child("cv2", &self.second, y)?;
        if self.shortcut { t.add(x, y) } else { Ok(y) }
    }
}
