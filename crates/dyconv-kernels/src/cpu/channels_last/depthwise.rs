//! Convolution with one kernel a channel: vectors of channels, a few neighbouring pixels at a time so that a weight is read
//! once for all of them.

use super::super::isa::Isa;
use super::direct::{Weights, Window};
use super::finish::{Act, load_part, put};
use super::memory::{Arena, View};
use super::team::Member;

/// Pixels at a time: with their input and a weight they fill the registers of the smallest set.
const PIXELS: usize = 6;
/// Values of a task, about: worth its start.
const TASK_VALUES: usize = 16 * 1024;

/// A depthwise convolution; kernels are packed `[kh * kw, channels]`.
#[derive(Debug, Clone)]
pub(super) struct Depthwise {
    pub(super) window: Window,
    pub(super) input: View,
    pub(super) output: View,
    pub(super) residual: Option<View>,
    pub(super) act: Act,
}

/// Packs kernels `[channels, kh * kw]`, each tap padded to whole vectors.
pub(super) fn pack(kernels: &[f32], channels: usize, row: usize, packed: &mut [f32]) {
    let window = kernels.len() / channels;
    for (channel, kernel) in kernels.chunks_exact(window).enumerate() {
        for (tap, value) in kernel.iter().enumerate() {
            packed[tap * row + channel] = *value;
        }
    }
}

impl Depthwise {
    /// Values from a tap's weights to the next's.
    pub(super) fn row<I: Isa>(&self) -> usize {
        self.output.channels.next_multiple_of(I::LANES)
    }

    /// Runs it for `batch` samples on the team.
    pub(super) fn run<I: Isa>(
        &self,
        isa: I,
        arena: &Arena,
        batch: usize,
        (weights, bias): (Weights<'_>, Weights<'_>),
        member: &Member<'_>,
    ) {
        let height = self.output.height;
        let most = (TASK_VALUES / (self.output.width * self.output.channels)).max(1);
        let fair = (batch * height).div_ceil(4 * member.count());
        let rows = most.min(fair).min(height);
        let parts = height.div_ceil(rows);
        member.share(batch * parts, |task| {
            let (sample, first) = (task / parts, task % parts * rows);
            let (weights, bias) = (weights.of(arena, sample), bias.of(arena, sample));
            isa.run(
                #[inline(always)]
                || (first..(first + rows).min(height)).for_each(|y| self.row_of(isa, arena, sample, y, weights, bias)),
            );
        });
    }

    #[inline(always)]
    fn row_of<I: Isa>(&self, isa: I, arena: &Arena, sample: usize, y: usize, weights: *const f32, bias: *const f32) {
        let Window { kernel, stride, padding, dilation } = self.window;
        let (input, output) = (&self.input, &self.output);
        // Taps of the window whose rows the map has.
        let row = |ky: usize| (y * stride.0 + ky * dilation.0).checked_sub(padding.0).filter(|row| *row < input.height);
        let rows = (0..kernel.0).filter_map(|ky| row(ky).map(|row| (ky, row)));
        let start = arena.at(input.offset + sample * input.sample()).cast_const();
        let out = arena.at(output.offset + sample * output.sample() + y * output.width * output.pixel);
        let residual = self.residual.map(|view| {
            let start = arena.at(view.offset + sample * view.sample() + y * view.width * view.pixel);
            (start.cast_const(), view.pixel)
        });
        let span = (kernel.1 - 1) * dilation.1;
        // The first output whose window begins inside, and the first whose window ends outside.
        let inside = padding.1.div_ceil(stride.1).min(output.width);
        let beyond = match (input.width + padding.1).checked_sub(span) {
            Some(last) => last.div_ceil(stride.1).clamp(inside, output.width),
            None => inside,
        };
        let weight_row = self.row::<I>();
        let channels = output.channels;
        let mut x = 0;
        while x < output.width {
            let whole = x >= inside && x + PIXELS <= beyond;
            let count = if whole { PIXELS } else { 1 };
            for channel in (0..channels).step_by(I::LANES) {
                let lanes = channels - channel;
                // SAFETY: the bias has room for whole vectors.
                let bias = unsafe { isa.load_at(bias.add(channel)) };
                let mut sums = [bias; PIXELS];
                for (ky, row) in rows.clone() {
                    let line = start.wrapping_add(row * input.width * input.pixel + channel);
                    for kx in 0..kernel.1 {
                        // SAFETY: weights have a row of whole vectors for each tap.
                        let weight = unsafe { isa.load_at(weights.add((ky * kernel.1 + kx) * weight_row + channel)) };
                        let column = x * stride.1 + kx * dilation.1;
                        if whole && lanes >= I::LANES {
                            let first = line.wrapping_add((column - padding.1) * input.pixel);
                            for (i, sum) in sums.iter_mut().enumerate() {
                                // SAFETY: the windows of these pixels lie inside the map.
                                let value = unsafe { isa.load_at(first.add(i * stride.1 * input.pixel)) };
                                *sum = isa.fma(value, weight, *sum);
                            }
                        } else {
                            for (i, sum) in sums[..count].iter_mut().enumerate() {
                                let column = (column + i * stride.1).checked_sub(padding.1);
                                let Some(column) = column.filter(|column| *column < input.width) else { continue };
                                // SAFETY: the pixel lies in the map and has `lanes` more channels.
                                let value = unsafe { load_part(isa, line.add(column * input.pixel), lanes) };
                                *sum = isa.fma(value, weight, *sum);
                            }
                        }
                    }
                }
                let mut tile = [sums];
                self.act.apply_all(isa, &mut tile);
                for (i, sum) in tile[0][..count].iter().enumerate() {
                    let residual = residual.map_or(std::ptr::null(), |(start, pixel)| {
                        start.wrapping_add((x + i) * pixel + channel)
                    });
                    let out = out.wrapping_add((x + i) * output.pixel + channel);
                    // SAFETY: the output and the residual have a place for each pixel.
                    unsafe { put(isa, *sum, residual, out, lanes) };
                }
            }
            x += count;
        }
    }
}
