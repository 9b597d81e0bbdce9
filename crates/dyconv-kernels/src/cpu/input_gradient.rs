//! The gradient of a convolution for its input: convolutions of the result's gradient with the kernels turned round.
//!
//! With a stride, pixels fall into phases, one for each remainder by the stride, and each phase sees some of the taps only: one
//! convolution a phase, with stride 1 and those taps, instead of one over a gradient that is spread out with zeros.

use rayon::prelude::*;

use super::{ConvShape, Epilogue, Kernels, conv2d_new};
use crate::ConvConfig;

/// The gradient for `x`; `kernels` are [`ConvShape::kernel_len`] values, or as many for each sample.
///
/// # Panics
/// Where a slice is not as long as `shape` says.
pub fn conv2d_input_gradient(dy: &[f32], kernels: &[f32], shape: &ConvShape) -> Vec<f32> {
    assert_eq!(dy.len(), shape.batch * shape.out_channels * shape.output.0 * shape.output.1);
    assert!([shape.kernel_len(), shape.batch * shape.kernel_len()].contains(&kernels.len()));
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
    let mut dx = vec![0.0; planes * height * width];
    dx.par_chunks_exact_mut(height * width).enumerate().for_each(|(plane, dx)| {
        for ((rows, columns), part) in pairs.iter().zip(&parts) {
            let part_len = part.size.0 * part.size.1;
            let values = &part.values[plane * part_len..][..part_len];
            for i in 0..rows.count {
                let from = &values[(rows.skipped + i) * part.size.1 + columns.skipped..][..columns.count];
                let to = &mut dx[(rows.first + i * rows.stride) * width..][..width];
                scatter(from, &mut to[columns.first..], columns.stride);
            }
        }
    });
    dx
}

/// `to[i * step] = from[i]`
fn scatter(from: &[f32], to: &mut [f32], step: usize) {
    match step {
        1 => to[..from.len()].copy_from_slice(from),
        // With a step that the compiler knows.
        2 => to.iter_mut().step_by(2).zip(from).for_each(|(to, from)| *to = *from),
        step => to.iter_mut().step_by(step).zip(from).for_each(|(to, from)| *to = *from),
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
