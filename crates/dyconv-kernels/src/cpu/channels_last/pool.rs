//! Max-pooling: several in a row, each of the last one's result, without waiting between them.

use super::super::isa::Isa;
use super::finish::{load_part, store_part};
use super::memory::{Arena, View};
use super::team::Member;

/// Max-pools in a row: each reads what the one before it gave. A task has some channels of all of them.
#[derive(Debug, Clone)]
pub(super) struct Pools {
    pub(super) input: View,
    /// Window, step and padding on each side, and the result, of each pool.
    pub(super) pools: Vec<(Pool, View)>,
}

/// A max-pool; padding counts as minus infinity, and NaN is above all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Window.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Padding on each side.
    pub padding: usize,
}

impl Pools {
    /// Runs them for `batch` samples on the team.
    pub(super) fn run<I: Isa>(&self, isa: I, arena: &Arena, batch: usize, member: &Member<'_>) {
        let channels = self.input.channels;
        // A cache line of channels a task.
        let step = 16.max(I::LANES);
        let parts = channels.div_ceil(step);
        member.share(batch * parts, |task| {
            let (sample, first) = (task / parts, task % parts * step);
            let end = (first + step).min(channels);
            isa.run(
                #[inline(always)]
                || {
                    let mut input = &self.input;
                    for (pool, output) in &self.pools {
                        for channel in (first..end).step_by(I::LANES) {
                            pool.channels(isa, arena, sample, (channel, end - channel), (input, output));
                        }
                        input = output;
                    }
                },
            );
        });
    }
}

impl Pool {
    #[inline(always)]
    fn channels<I: Isa>(
        &self,
        isa: I,
        arena: &Arena,
        sample: usize,
        (channel, count): (usize, usize),
        (input, output): (&View, &View),
    ) {
        let start = arena.at(input.offset + sample * input.sample() + channel).cast_const();
        let out = arena.at(output.offset + sample * output.sample() + channel);
        // First and one past the last index of a window that the map has.
        let span = |at: usize, size: usize| {
            let first = at * self.stride;
            (first.saturating_sub(self.padding), (first + self.kernel).saturating_sub(self.padding).min(size))
        };
        for y in 0..output.height {
            let (top, bottom) = span(y, input.height);
            for x in 0..output.width {
                let (left, right) = span(x, input.width);
                let mut most = isa.splat(f32::NEG_INFINITY);
                for row in top..bottom {
                    for column in left..right {
                        let place = (row * input.width + column) * input.pixel;
                        // SAFETY: the pixel lies in the map and has `count` more channels.
                        let value = unsafe { load_part(isa, start.wrapping_add(place), count) };
                        most = isa.largest(most, value);
                    }
                }
                // SAFETY: the output has a place for each pixel.
                unsafe {
                    let out = out.wrapping_add((y * output.width + x) * output.pixel);
                    store_part(isa, out, most, count);
                }
            }
        }
    }
}
