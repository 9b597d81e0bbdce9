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
                || {
                    // Not a closure a row, which might not be compiled for the instruction set.
                    for y in first..(first + rows).min(height) {
                        self.row_of(isa, arena, sample, y, weights, bias);
                    }
                },
            );
        });
    }

    #[inline(always)]
    fn row_of<I: Isa>(&self, isa: I, arena: &Arena, sample: usize, y: usize, weights: *const f32, bias: *const f32) {
        let Window { kernel, stride, padding, dilation } = self.window;
        let (input, output) = (&self.input, &self.output);
        let top = y * stride.0;
        let row = Row {
            start: arena.at(input.offset + sample * input.sample()).cast_const(),
            out: arena.at(output.offset + sample * output.sample() + y * output.width * output.pixel),
            residual: self.residual.map_or(std::ptr::null(), |view| {
                arena.at(view.offset + sample * view.sample() + y * view.width * view.pixel).cast_const()
            }),
            residual_pixel: self.residual.map_or(0, |view| view.pixel),
            weights,
            bias,
            top,
            first: padding.0.saturating_sub(top).div_ceil(dilation.0).min(kernel.0),
            last: (input.height + padding.0).saturating_sub(top).div_ceil(dilation.0).min(kernel.0),
        };
        let span = (kernel.1 - 1) * dilation.1;
        // The first output whose window begins inside, and the first whose window ends outside.
        let inside = padding.1.div_ceil(stride.1).min(output.width);
        let beyond = match (input.width + padding.1).checked_sub(span) {
            Some(last) => last.div_ceil(stride.1).clamp(inside, output.width),
            None => inside,
        };
        let mut x = 0;
        while x < output.width {
            let whole = x >= inside && x + PIXELS <= beyond;
            let channels = output.channels;
            let vectors = if whole { channels / I::LANES } else { 0 };
            for vector in 0..vectors {
                self.pixels(isa, &row, x, vector * I::LANES);
            }
            let count = if whole { PIXELS } else { 1 };
            for channel in (vectors * I::LANES..channels).step_by(I::LANES) {
                for i in 0..count {
                    self.pixel(isa, &row, x + i, channel);
                }
            }
            x += count;
        }
    }

    /// A vector of channels of neighbouring pixels whose windows lie inside the map.
    #[inline(always)]
    fn pixels<I: Isa>(&self, isa: I, row: &Row, x: usize, channel: usize) {
        let Window { kernel, stride, padding, dilation } = self.window;
        let (input, output) = (&self.input, &self.output);
        let step = stride.1 * input.pixel;
        let weight_row = self.row::<I>();
        // SAFETY: the bias has room for whole vectors.
        let mut sums = [[unsafe { isa.load_at(row.bias.add(channel)) }; PIXELS]];
        for ky in row.first..row.last {
            let line = (row.top + ky * dilation.0 - padding.0) * input.width;
            let line = row.start.wrapping_add((line + x * stride.1 - padding.1) * input.pixel + channel);
            let weights = row.weights.wrapping_add(ky * kernel.1 * weight_row + channel);
            for kx in 0..kernel.1 {
                // SAFETY: weights have a row of whole vectors for each tap; the windows of these pixels lie inside the map.
                unsafe {
                    let weight = isa.load_at(weights.add(kx * weight_row));
                    let first = line.add(kx * dilation.1 * input.pixel);
                    for i in 0..PIXELS {
                        sums[0][i] = isa.fma(isa.load_at(first.add(i * step)), weight, sums[0][i]);
                    }
                }
            }
        }
        self.act.apply_all(isa, &mut sums);
        for i in 0..PIXELS {
            row.put(isa, sums[0][i], x + i, channel, I::LANES, output.pixel);
        }
    }

    /// A vector of channels, or fewer, of one pixel whose window may reach over the edge.
    #[inline(always)]
    fn pixel<I: Isa>(&self, isa: I, row: &Row, x: usize, channel: usize) {
        let Window { kernel, stride, padding, dilation } = self.window;
        let (input, output) = (&self.input, &self.output);
        let lanes = output.channels - channel;
        // SAFETY: the bias has room for whole vectors.
        let mut sum = unsafe { isa.load_at(row.bias.add(channel)) };
        for ky in row.first..row.last {
            let line = (row.top + ky * dilation.0 - padding.0) * input.width;
            for kx in 0..kernel.1 {
                let column = (x * stride.1 + kx * dilation.1).checked_sub(padding.1);
                let Some(column) = column.filter(|column| *column < input.width) else { continue };
                let from = row.start.wrapping_add((line + column) * input.pixel + channel);
                let weight = row.weights.wrapping_add((ky * kernel.1 + kx) * self.row::<I>() + channel);
                // SAFETY: the pixel lies in the map and has `lanes` more channels; weights have whole vectors.
                sum = unsafe { isa.fma(load_part(isa, from, lanes), isa.load_at(weight), sum) };
            }
        }
        let sum = self.act.apply(isa, sum);
        row.put(isa, sum, x, channel, lanes, output.pixel);
    }
}

/// A row of outputs of one sample.
struct Row {
    /// The sample's map, and where the row's first pixel goes.
    start: *const f32,
    out: *mut f32,
    /// The row of the residual, or null.
    residual: *const f32,
    residual_pixel: usize,
    weights: *const f32,
    bias: *const f32,
    /// The row's first input row, and the padding before it.
    top: usize,
    /// Rows of the window that the map has, first and one past the last.
    first: usize,
    last: usize,
}

impl Row {
    #[inline(always)]
    fn put<I: Isa>(&self, isa: I, v: I::F32, x: usize, channel: usize, lanes: usize, pixel: usize) {
        let residual = if self.residual.is_null() {
            self.residual
        } else {
            self.residual.wrapping_add(x * self.residual_pixel + channel)
        };
        // SAFETY: the output and the residual have a place for each pixel of the row.
        unsafe { put(isa, v, residual, self.out.wrapping_add(x * pixel + channel), lanes) };
    }
}
