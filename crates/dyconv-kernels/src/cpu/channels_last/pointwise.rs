//! What happens to each value on its own, and copies: batch normalisation, activations, sums, joined and enlarged maps.

use super::super::isa::Isa;
use super::finish::{Act, load_part, put};
use super::memory::{Arena, Lines, Part, View};
use super::team::Member;

/// `y = act(scale * x + shift) + residual` over all channels of all parts.
#[derive(Debug, Clone)]
pub(super) struct Pointwise {
    /// Channels one after the other.
    pub(super) inputs: Vec<Part>,
    pub(super) output: View,
    /// One factor and one summand a channel.
    pub(super) affine: Option<(Lines, Lines)>,
    pub(super) act: Act,
    pub(super) residual: Option<View>,
}

/// Values of a task, about: worth its start.
const TASK_VALUES: usize = 16 * 1024;

impl Pointwise {
    /// Runs it for `batch` samples on the team.
    pub(super) fn run<I: Isa>(&self, isa: I, arena: &Arena, batch: usize, member: &Member<'_>) {
        let output = &self.output;
        let rows = (TASK_VALUES / (output.width * output.channels).max(1)).clamp(1, output.height.max(1));
        let parts = output.height.div_ceil(rows);
        member.share(batch * parts, |task| {
            let (sample, first) = (task / parts, task % parts * rows);
            isa.run(
                #[inline(always)]
                || {
                    for y in first..(first + rows).min(output.height) {
                        self.row(isa, arena, sample, y);
                    }
                },
            );
        });
    }

    #[inline(always)]
    fn row<I: Isa>(&self, isa: I, arena: &Arena, sample: usize, y: usize) {
        let output = &self.output;
        let mut first = 0;
        for part in &self.inputs {
            let view = &part.view;
            let start = view.offset + sample * view.sample() + (y >> part.shift) * view.width * view.pixel;
            for x in 0..output.width {
                let from = arena.at(start + (x >> part.shift) * view.pixel).cast_const();
                let pixel = y * output.width + x;
                let out = arena.at(output.offset + sample * output.sample() + pixel * output.pixel + first);
                let residual = self.residual.map_or(std::ptr::null(), |view| {
                    arena.at(view.offset + sample * view.sample() + pixel * view.pixel + first).cast_const()
                });
                for channel in (0..view.channels).step_by(I::LANES) {
                    let count = view.channels - channel;
                    // SAFETY: the pixel has `count` more channels; factors and summands have room for whole vectors.
                    unsafe {
                        let mut v = load_part(isa, from.add(channel), count);
                        if let Some((scale, shift)) = &self.affine {
                            let scale = isa.load_at(scale.as_ptr().add(first + channel));
                            v = isa.fma(v, scale, isa.load_at(shift.as_ptr().add(first + channel)));
                        }
                        let residual = if residual.is_null() { residual } else { residual.add(channel) };
                        put(isa, self.act.apply(isa, v), residual, out.add(channel), count);
                    }
                }
            }
            first += view.channels;
        }
    }
}
