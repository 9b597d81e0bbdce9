//! The gradient of a convolution for its input: convolutions of the result's gradient with the kernels turned round.
//!
//! With a stride, pixels fall into phases, one for each remainder by the stride, and each phase sees some of the taps only: one
//! convolution a phase, with stride 1 and those taps, instead of one over a gradient that is spread out with zeros.

use super::isa::Isa;
use super::phases::share;
use super::shared::Shared;
use super::strided::weave;
use super::{ConvShape, Epilogue, Job, Kernels, chosen, conv2d_new, with};
use crate::ConvConfig;

/// The gradient for `x`; `kernels` are [`ConvShape::kernel_len`] values, or as many for each sample.
///
/// # Panics
/// Where a slice is not as long as `shape` says, or its groups do not divide its channels.
pub fn conv2d_input_gradient(dy: &[f32], kernels: &[f32], shape: &ConvShape) -> Vec<f32> {
    assert_eq!(dy.len(), shape.batch * shape.out_channels * shape.output.0 * shape.output.1);
    assert!([shape.kernel_len(), shape.batch * shape.kernel_len()].contains(&kernels.len()));
    shape.check();
    let (height, width) = shape.input;
    let phases = |pick: fn((usize, usize)) -> usize, size: usize, outputs: usize| -> Vec<Phase> {
        let ConvConfig { kernel, stride, padding, dilation, .. } = shape.config;
        let axis =
            Axis { kernel: pick(kernel), stride: pick(stride), padding: pick(padding), dilation: pick(dilation) };
        (0..axis.stride).filter_map(|phase| axis.phase(phase, size, outputs)).collect()
    };
    let vertical = phases(|pair| pair.0, height, shape.output.0);
    let horizontal = phases(|pair| pair.1, width, shape.output.1);
    let planes = shape.batch * shape.in_channels;
    if planes * height * width == 0 {
        return Vec::new();
    }
    if let ([rows], [columns]) = (vertical.as_slice(), horizontal.as_slice()) {
        let part = convolve(dy, kernels, shape, rows, columns);
        if rows.covers(height, part.size.0) && columns.covers(width, part.size.1) {
            return part.values;
        }
    }
    let pairs: Vec<_> =
        vertical.iter().flat_map(|rows| horizontal.iter().map(move |columns| (rows, columns))).collect();
    let parts: Vec<_> = pairs.iter().map(|(rows, columns)| convolve(dy, kernels, shape, rows, columns)).collect();
    let job = Join { parts: &parts, vertical: &vertical, horizontal: &horizontal, planes, size: (height, width) };
    let Some(dx) = with(chosen(), job) else {
        unreachable!("the chosen instruction set was not found on this CPU");
    };
    dx
}

/// Brings the phases' gradients together.
struct Join<'a> {
    /// Of each phase of rows those of all phases of columns.
    parts: &'a [Part],
    vertical: &'a [Phase],
    horizontal: &'a [Phase],
    planes: usize,
    size: (usize, usize),
}

impl Job for Join<'_> {
    type Output = Vec<f32>;
    fn run<I: Isa>(self, isa: I) -> Vec<f32> {
        let (height, width) = self.size;
        let len = self.planes * height * width;
        let covered = |phases: &[Phase], pixels| phases.iter().map(|phase| phase.count).sum::<usize>() == pixels;
        let covered = covered(self.vertical, height) && covered(self.horizontal, width);
        let mut dx = Vec::with_capacity(len);
        let out = Shared::new(&mut dx.spare_capacity_mut()[..len]);
        share(self.planes, |plane| {
            isa.run(
                #[inline(always)]
                || {
                    if !covered {
                        // SAFETY: each task has its own plane, here as below.
                        unsafe { out.part(plane * height * width, height * width) }.fill(0.0);
                    }
                    for (index, rows) in self.vertical.iter().enumerate() {
                        let parts = &self.parts[index * self.horizontal.len()..][..self.horizontal.len()];
                        for i in 0..rows.count {
                            let first = (plane * height + rows.first + i * rows.stride) * width;
                            // SAFETY: as above; where the phases have all pixels, each is written, and none is read.
                            let row = unsafe { out.part(first, width) };
                            self.row(isa, parts, (plane, rows.skipped + i), row);
                        }
                    }
                },
            );
        });
        // SAFETY: there is room for `len` values, and all have been written: by the phases, or with zeros before.
        unsafe { dx.set_len(len) };
        dx
    }
}

impl Join<'_> {
    /// One row of pixels, from one row of each phase of columns.
    #[inline(always)]
    fn row<I: Isa>(&self, isa: I, parts: &[Part], (plane, row): (usize, usize), to: &mut [f32]) {
        let values = |part: usize| {
            let Part { values, size } = &parts[part];
            let columns = &self.horizontal[part];
            &values[(plane * size.0 + row) * size.1 + columns.skipped..][..columns.count]
        };
        if let [first, second] = self.horizontal
            && first.stride == 2
            && first.count + second.count == to.len()
        {
            let (even, odd) = if first.first == 0 { (0, 1) } else { (1, 0) };
            return weave(isa, values(even), values(odd), to);
        }
        for (part, columns) in self.horizontal.iter().enumerate() {
            let from = values(part);
            for i in 0..columns.count {
                to[columns.first + i * columns.stride] = from[i];
            }
        }
    }
}

/// A convolution along one axis.
#[derive(Debug, Clone, Copy)]
struct Axis {
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
}

/// The pixels of one remainder along an axis, and the convolution that gives their gradient.
#[derive(Debug)]
struct Phase {
    /// The taps that reach these pixels: first, step, number.
    taps: (usize, usize, usize),
    /// Step between taps in the gradient.
    dilation: usize,
    /// Zeros around the gradient.
    padding: usize,
    /// Results before the first pixel's.
    skipped: usize,
    /// First pixel, their step and their number.
    first: usize,
    stride: usize,
    count: usize,
}

impl Phase {
    /// Whether the results are all pixels.
    fn covers(&self, pixels: usize, results: usize) -> bool {
        (self.stride, self.first, self.skipped, self.count) == (1, 0, 0, pixels) && results == pixels
    }
}

impl Axis {
    /// Pixels `i` with `(i + padding) % stride == phase`, none where there are none or no tap reaches them.
    ///
    /// With `i + padding = q * stride + phase`, tap `t` takes output `q - m` where `t * dilation = m * stride + phase`. Such taps
    /// are `step` apart, and their `m` too, by a whole number.
    fn phase(&self, phase: usize, pixels: usize, outputs: usize) -> Option<Phase> {
        let Self { kernel, stride, padding, dilation } = *self;
        let common = greatest_common_divisor(stride, dilation);
        let tap = (0..kernel.min(stride)).find(|tap| tap * dilation % stride == phase)?;
        let (step, gap) = (stride / common, dilation / common);
        let count = (kernel - tap).div_ceil(step);
        let start = tap * dilation / stride;
        let reach = (count - 1) * gap;
        let first = padding.saturating_sub(phase).div_ceil(stride);
        // One past the last.
        let end = (pixels + padding).saturating_sub(phase).div_ceil(stride);
        if end <= first {
            return None;
        }
        // Result `u` of a convolution with padding `p` belongs to `q = u - p + reach + start`.
        let padded = (reach + start).saturating_sub(first).max((end - 1).saturating_sub(start + outputs - 1));
        Some(Phase {
            taps: (tap, step, count),
            dilation: gap,
            padding: padded,
            skipped: first + padded - reach - start,
            first: first * stride + phase - padding,
            stride,
            count: end - first,
        })
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Maps of some height and width.
struct Part {
    values: Vec<f32>,
    size: (usize, usize),
}

/// The convolution of a phase, over all samples.
fn convolve(dy: &[f32], kernels: &[f32], shape: &ConvShape, rows: &Phase, columns: &Phase) -> Part {
    let size = |outputs: usize, phase: &Phase| outputs + 2 * phase.padding - (phase.taps.2 - 1) * phase.dilation;
    let size = (size(shape.output.0, rows), size(shape.output.1, columns));
    let config = ConvConfig {
        kernel: (rows.taps.2, columns.taps.2),
        stride: (1, 1),
        padding: (rows.padding, columns.padding),
        dilation: (rows.dilation, columns.dilation),
        groups: shape.config.groups,
    };
    let transposed = ConvShape {
        batch: shape.batch,
        in_channels: shape.out_channels,
        out_channels: shape.in_channels,
        input: shape.output,
        output: size,
        config,
    };
    let turned = turn(kernels, shape, rows, columns);
    let shared = turned.len() == transposed.kernel_len();
    let kernels = if shared { Kernels::Shared(&turned) } else { Kernels::PerSample(&turned) };
    Part { values: conv2d_new(dy, &kernels, &Epilogue::default(), &transposed), size }
}

/// The taps of a phase, the last one first, with the channels exchanged.
fn turn(kernels: &[f32], shape: &ConvShape, rows: &Phase, columns: &Phase) -> Vec<f32> {
    let ConvConfig { kernel: (height, width), groups, .. } = shape.config;
    let (inputs, outputs) = (shape.in_channels / groups, shape.out_channels / groups);
    let window = height * width;
    let taps = |phase: &Phase| {
        let (first, step, count) = phase.taps;
        (0..count).rev().map(move |i| first + i * step)
    };
    let places: Vec<usize> = taps(rows).flat_map(|row| taps(columns).map(move |column| row * width + column)).collect();
    let mut turned = Vec::with_capacity(kernels.len() / window * places.len());
    for group in kernels.chunks_exact(outputs * inputs * window) {
        for input in 0..inputs {
            for output in 0..outputs {
                let kernel = &group[(output * inputs + input) * window..][..window];
                turned.extend(places.iter().map(|place| kernel[*place]));
            }
        }
    }
    turned
}
