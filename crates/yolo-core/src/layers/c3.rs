//! `C3`: two 1x1 branches, one of them through a chain of blocks, joined by a third 1x1 convolution.

use super::bottleneck::Bottleneck;
use super::conv::Conv;
use super::{Args, Block, Built, hidden, one};
use crate::graph::{NodeId, Traced, Tracer};

/// The frame that all C3 modules share; only what stands in the middle differs.
pub(super) struct C3 {
    c1: usize,
    c2: usize,
    middle_channels: usize,
    middle: Middle,
}

/// The blocks of a C3's first branch, all of `middle_channels` channels.
pub(super) enum Middle {
    /// A `Sequential` of blocks.
    Chain(Vec<Box<dyn Block>>),
    /// One block in its place.
    Single(Box<dyn Block>),
}

/// What most C3 modules take besides their channels.
pub(super) struct C3Args {
    pub(super) n: usize,
    pub(super) shortcut: bool,
    pub(super) groups: usize,
    /// Channels of the middle.
    pub(super) channels: usize,
}

impl C3 {
    /// Reads `(c1, c2, n=1, shortcut, g=1, e=0.5)`; `middle` makes what stands between the branches.
    pub(super) fn read_with(args: &mut Args<'_>, shortcut: bool, middle: impl FnOnce(C3Args) -> Middle) -> Built {
        let (c1, c2, n) = (args.channels("c1")?, args.channels("c2")?, args.count("n", 1)?);
        let (shortcut, groups, expansion) = (args.flag("shortcut", shortcut)?, args.groups()?, args.factor("e", 0.5)?);
        let channels = hidden(c2, expansion);
        Ok(Box::new(Self::new(c1, c2, channels, middle(C3Args { n, shortcut, groups, channels }))))
    }

    pub(super) fn new(c1: usize, c2: usize, middle_channels: usize, middle: Middle) -> Self {
        Self { c1, c2, middle_channels, middle }
    }
}

impl Middle {
    /// `n` blocks in a row.
    pub(super) fn chain<B: Block + 'static>(n: usize, block: impl Fn() -> B) -> Self {
        Self::Chain((0..n).map(|_| Box::new(block()) as Box<dyn Block>).collect())
    }
}

/// `C3(c1, c2, n=1, shortcut=True, g=1, e=0.5)`
pub(super) fn read(args: &mut Args<'_>) -> Built {
    C3::read_with(args, true, |C3Args { n, shortcut, groups, channels }| {
        Middle::chain(n, || Bottleneck::new(channels, channels, shortcut, groups, 1.0))
    })
}

impl Block for C3 {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let middle = self.middle_channels;
        let y = t.child("cv1", &Conv::new(self.c1, middle, 1, 1), x)?;
        let y = match &self.middle {
            Middle::Chain(blocks) => t.sequential("m", blocks.iter().map(|block| &**block), y)?,
            Middle::Single(block) => t.child("m", &**block, y)?,
        };
        let z = t.child("cv2", &Conv::new(self.c1, middle, 1, 1), x)?;
        let joined = t.concat(&[y, z])?;
        t.child("cv3", &Conv::new(2 * middle, self.c2, 1, 1), joined)
    }
}
