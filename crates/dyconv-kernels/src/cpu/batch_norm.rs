//! Batch normalisation by the batch's own statistics, forward and backward, with SiLU where wanted.
//!
//! A task has a channel, which it reads from memory once: later passes over it find it in a cache. What the activation needs is
//! computed again in the backward pass, which is cheaper than a map that is written and read.

use super::activation::{sigmoid_of, silu_of};
use super::isa::Isa;
use super::phases::share_chunks;
use super::shared::Shared;
use super::{Job, chosen, with};

/// Values that are added up side by side.
const LANES: usize = 32;
/// Values that several loops go over one after the other, in a level-1 cache.
const CHUNK: usize = 1024;
/// Values of a task, about: worth its start.
const TASK_VALUES: usize = 8192;

/// Sizes of a map `[batch, channels, pixels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormShape {
    /// Samples.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Pixels of a channel of a sample.
    pub pixels: usize,
}

impl NormShape {
    fn len(&self) -> usize {
        self.batch * self.channels * self.pixels
    }

    /// Channels of a task, at least.
    fn least(&self) -> usize {
        (TASK_VALUES / (self.batch * self.pixels).max(1)).max(1)
    }

    /// The samples' planes of a channel: where each begins.
    fn planes(self, channel: usize) -> impl Iterator<Item = usize> {
        (0..self.batch).map(move |sample| (sample * self.channels + channel) * self.pixels)
    }
}

/// What a batch was normalised by, a value a channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    /// Mean.
    pub mean: Vec<f32>,
    /// Variance with the number of values for the divisor.
    pub var: Vec<f32>,
    /// `1 / sqrt(var + eps)`
    pub inverse: Vec<f32>,
}

/// `weight * (x - mean) / sqrt(var + eps) + bias` and SiLU of that with `silu`; and the statistics.
///
/// # Panics
/// Where a slice is not as long as `shape` says.
pub fn batch_norm_training(
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    eps: f32,
    silu: bool,
    shape: &NormShape,
) -> (Vec<f32>, Statistics) {
    let mut y = Vec::with_capacity(x.len());
    let mut values = vec![[0.0; 3]; shape.channels];
    assert!(x.len() == shape.len() && [weight.len(), bias.len()] == [shape.channels; 2]);
    let job = Forward {
        x,
        weight,
        bias,
        eps,
        silu,
        shape,
        y: Shared::new(&mut y.spare_capacity_mut()[..x.len()]),
        statistics: &mut values,
    };
    if with(chosen(), job).is_none() {
        unreachable!("the chosen instruction set was not found on this CPU")
    }
    // SAFETY: there is room for as many values, and each channel's task has written all planes of its channel.
    unsafe { y.set_len(x.len()) };
    let column = |i: usize| values.iter().map(|row| row[i]).collect();
    (y, Statistics { mean: column(0), var: column(1), inverse: column(2) })
}

/// Turns the gradient for the result of [`batch_norm_training`] into that for `x`, in place, and gives those for `weight` and
/// `bias`.
///
/// # Panics
/// Where a slice is not as long as `shape` says.
pub fn batch_norm_backward(
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    gradient: &mut [f32],
    statistics: &Statistics,
    silu: bool,
    shape: &NormShape,
) -> (Vec<f32>, Vec<f32>) {
    let mut sums = vec![[0.0; 2]; shape.channels];
    assert!([x.len(), gradient.len()] == [shape.len(); 2] && [weight.len(), bias.len()] == [shape.channels; 2]);
    let Statistics { mean, inverse, .. } = statistics;
    assert!([mean.len(), inverse.len()] == [shape.channels; 2]);
    let gradient = Shared::filled(gradient);
    let job = Backward { x, weight, bias, mean, inverse, silu, shape, gradient, sums: &mut sums };
    if with(chosen(), job).is_none() {
        unreachable!("the chosen instruction set was not found on this CPU")
    }
    let column = |i: usize| sums.iter().map(|row| row[i]).collect();
    (column(0), column(1))
}

struct Forward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    silu: bool,
    shape: &'a NormShape,
    y: Shared<'a>,
    /// Mean, variance and the inverse of the deviation.
    statistics: &'a mut [[f32; 3]],
}

impl Job for Forward<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { x, weight, bias, eps, silu, shape, y, statistics } = self;
        let n = (shape.batch * shape.pixels) as f64;
        let one = |channel: usize, statistics: &mut [f32; 3]| {
            isa.run(
                #[inline(always)]
                || {
                    let plane = |start: usize| &x[start..start + shape.pixels];
                    let mean = shape.planes(channel).map(|start| sum(plane(start), |x| x)).sum::<f64>() / n;
                    let mean = mean as f32;
                    let squares = shape.planes(channel).map(|start| sum(plane(start), |x| (x - mean) * (x - mean)));
                    let var = (squares.sum::<f64>() / n) as f32;
                    let inverse = (1.0 / (f64::from(var) + f64::from(eps)).sqrt()) as f32;
                    *statistics = [mean, var, inverse];
                    let (scale, shift) = (weight[channel] * inverse, bias[channel]);
                    for start in shape.planes(channel) {
                        // SAFETY: each channel has one task, which borrows one plane at a time and writes all of it.
                        let y = unsafe { y.part(start, shape.pixels) };
                        let pairs = y.iter_mut().zip(plane(start));
                        if silu {
                            pairs.for_each(|(y, x)| *y = silu_of((x - mean) * scale + shift));
                        } else {
                            pairs.for_each(|(y, x)| *y = (x - mean) * scale + shift);
                        }
                    }
                },
            );
        };
        share_chunks(statistics, shape.least(), |number, statistics| {
            for (index, statistics) in statistics.iter_mut().enumerate() {
                one(number * shape.least() + index, statistics);
            }
        });
    }
}

struct Backward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    mean: &'a [f32],
    inverse: &'a [f32],
    silu: bool,
    shape: &'a NormShape,
    gradient: Shared<'a>,
    /// The gradients for weight and bias.
    sums: &'a mut [[f32; 2]],
}

impl Job for Backward<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { x, weight, bias, mean, inverse, silu, shape, gradient, sums } = self;
        let n = (shape.batch * shape.pixels) as f64;
        let one = |channel: usize, sums: &mut [f32; 2]| {
            isa.run(
                #[inline(always)]
                || {
                    let (mean, inverse) = (mean[channel], inverse[channel]);
                    let (weight, bias) = (weight[channel], bias[channel]);
                    // The gradient before the activation waits in the same place.
                    let (mut by_value, mut plain) = (0.0f64, 0.0f64);
                    for start in shape.planes(channel) {
                        let x = &x[start..start + shape.pixels];
                        // SAFETY: each channel has one task, which borrows one plane at a time; all values are there.
                        let dz = unsafe { gradient.part(start, shape.pixels) };
                        for (dz, x) in dz.chunks_mut(CHUNK).zip(x.chunks(CHUNK)) {
                            if silu {
                                for (dz, x) in dz.iter_mut().zip(x) {
                                    let z = (x - mean) * inverse * weight + bias;
                                    let s = sigmoid_of(z);
                                    *dz *= s + z * s * (1.0 - s);
                                }
                            }
                            by_value += product_sum(dz, x, mean);
                            plain += sum(dz, |dz| dz);
                        }
                    }
                    by_value *= f64::from(inverse);
                    *sums = [by_value as f32, plain as f32];
                    let factor = weight * inverse;
                    let (slope, shift) = ((by_value / n) as f32 * inverse, (plain / n) as f32);
                    for start in shape.planes(channel) {
                        let x = &x[start..start + shape.pixels];
                        // SAFETY: as above.
                        let dx = unsafe { gradient.part(start, shape.pixels) };
                        dx.iter_mut().zip(x).for_each(|(dx, x)| *dx = (*dx - shift - (x - mean) * slope) * factor);
                    }
                },
            );
        };
        share_chunks(sums, shape.least(), |number, sums| {
            for (index, sums) in sums.iter_mut().enumerate() {
                one(number * shape.least() + index, sums);
            }
        });
    }
}

/// The sum of `f` of all values: side by side in f32 over a plane at most, then in f64.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for j in 0..LANES {
            sums[j] += f(chunk[j]);
        }
    }
    let rest = chunks.remainder().iter().map(|x| f64::from(f(*x))).sum::<f64>();
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest
}

/// The sum of `dz * (x - mean)`.
#[inline(always)]
fn product_sum(dz: &[f32], x: &[f32], mean: f32) -> f64 {
    let mut sums = [0.0f32; LANES];
    let (mut left, mut right) = (dz.chunks_exact(LANES), x.chunks_exact(LANES));
    for (dz, x) in left.by_ref().zip(right.by_ref()) {
        for j in 0..LANES {
            sums[j] += dz[j] * (x[j] - mean);
        }
    }
    let rest = left.remainder().iter().zip(right.remainder());
    let rest = rest.map(|(dz, x)| f64::from(dz * (x - mean))).sum::<f64>();
    sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest
}
