//! Convolution with one kernel a channel: rows of the output as sums of shifted rows of the input.

use rayon::prelude::*;

use super::ConvShape;
use super::conv::Span;
use super::isa::Isa;

/// Runs the convolution on all threads of the pool.
pub(super) fn conv2d<I: Isa>(isa: I, x: &[f32], kernels: &[f32], y: &mut [f32], shape: &ConvShape) {
    let (height, width) = shape.input;
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let sets = kernels.len() / window;
    let plane = shape.output.0 * shape.output.1;
    // Some maps at a time, so that a task is worth its start.
    let maps = (4096 / plane.max(1)).max(1);
    y.par_chunks_mut(plane * maps).enumerate().for_each(|(chunk, outputs)| {
        isa.run(
            #[inline(always)]
            || {
                for (i, output) in outputs.chunks_exact_mut(plane).enumerate() {
                    let map = chunk * maps + i;
                    let kernel = &kernels[map % sets * window..][..window];
                    channel(isa, &x[map * height * width..][..height * width], kernel, output, shape);
                }
            },
        );
    });
}

/// One channel of one sample.
#[inline(always)]
fn channel<I: Isa>(isa: I, x: &[f32], kernel: &[f32], y: &mut [f32], shape: &ConvShape) {
    let ConvShape { input: (height, width), output: (_, out_width), config, .. } = *shape;
    for (row, sums) in y.chunks_exact_mut(out_width).enumerate() {
        sums.fill(0.0);
        for ky in 0..config.kernel.0 {
            let source = (row * config.stride.0 + ky * config.dilation.0).wrapping_sub(config.padding.0);
            if source >= height {
                continue;
            }
            let source = &x[source * width..][..width];
            for kx in 0..config.kernel.1 {
                let weight = kernel[ky * config.kernel.1 + kx];
                let span = Span::new(kx * config.dilation.1, config.padding.1, config.stride.1, width);
                let (first, last) = (span.first.min(out_width), span.last.min(out_width));
                if first < last {
                    add_scaled(isa, weight, &source[span.start..], config.stride.1, &mut sums[first..last]);
                }
            }
        }
    }
}

/// `sums[i] += weight * source[i * stride]`
#[inline(always)]
fn add_scaled<I: Isa>(isa: I, weight: f32, source: &[f32], stride: usize, sums: &mut [f32]) {
    if stride != 1 {
        sums.iter_mut().zip(source.iter().step_by(stride)).for_each(|(sum, value)| *sum += weight * value);
        return;
    }
    let factor = isa.splat(weight);
    let source = &source[..sums.len()];
    let mut targets = sums.chunks_exact_mut(I::LANES);
    let mut sources = source.chunks_exact(I::LANES);
    for (target, source) in targets.by_ref().zip(sources.by_ref()) {
        let sum = isa.fma(factor, isa.load(source), isa.load(target));
        isa.store(target, sum);
    }
    let rest = targets.into_remainder().iter_mut().zip(sources.remainder());
    rest.for_each(|(sum, value)| *sum += weight * value);
}
