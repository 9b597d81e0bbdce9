//! The convolution of a level of a detection head, whose map never reaches memory.

use super::super::super::isa::Isa;
use super::super::super::shared::Shared;
use super::super::convert::Decode;
use super::super::memory::Arena;
use super::super::team::Member;
use super::{Direct, Job, Table, Weights};

/// A level of a detection head: its convolution, and boxes decoded from its map while that is in the nearest cache.
#[derive(Debug, Clone)]
pub(in super::super) struct HeadConv {
    /// Its output has no place in memory.
    pub(in super::super) conv: Direct,
    pub(in super::super) decode: Decode,
}

impl HeadConv {
    /// Pixels of a block: their map shall stay in a level-1 cache.
    fn block<I: Isa>(&self) -> usize {
        const VALUES: usize = 6 * 1024;
        let tiles = (VALUES / self.conv.output.channels / I::TILE_ROWS).max(1);
        (tiles * I::TILE_ROWS).min(self.conv.block::<I>())
    }

    /// Values of scratch that a thread takes.
    pub(in super::super) fn scratch<I: Isa>(&self) -> usize {
        self.block::<I>() * self.conv.output.pixel
    }

    /// Runs it for `batch` samples on the team; `scratch` is the thread's own.
    pub(in super::super) fn run<I: Isa>(
        &self,
        isa: I,
        (arena, batch): (&Arena, usize),
        (weights, bias): (Weights<'_>, Weights<'_>),
        zeros: *const f32,
        (threshold, outside): (Option<f32>, &Shared<'_>),
        (member, table, scratch): (&Member<'_>, &mut Table, *mut f32),
    ) {
        let conv = &self.conv;
        let pixels = conv.output.height * conv.output.width;
        let block = self.block::<I>();
        let blocks = pixels.div_ceil(block);
        table.laid_out = None;
        member.share(batch * blocks, |task| {
            let (sample, first) = (task / blocks, task % blocks * block);
            let count = block.min(pixels - first);
            let job = Job {
                conv,
                arena,
                sample,
                group: 0,
                first,
                count,
                panels: (0, conv.packing.panels()),
                weights: weights.of(arena, sample),
                bias: bias.of(arena, sample),
                zeros,
                out: scratch.wrapping_sub(first * conv.output.pixel),
            };
            isa.run(
                #[inline(always)]
                || {
                    job.run(isa, table);
                    // SAFETY: the job has written the map of these pixels; each task has its own.
                    unsafe { self.decode.pixels(isa, scratch, (sample, first, count), threshold, outside) };
                },
            );
        });
    }
}
