//! Dynamic convolution's own part: averages of a map, routing weights, and kernels mixed from experts in the layout in which
//! the convolution reads them.

use super::super::isa::Isa;
use super::finish::{load_part, load_rounded, store_part};
use super::memory::{Arena, Lines, Part};
use super::team::Member;
use super::winograd::{point_len, transform_packed};
use crate::Routing;

/// Averages of all channels of a map.
#[derive(Debug, Clone)]
pub(super) struct Average {
    /// Channels one after the other.
    pub(super) inputs: Vec<Part>,
    /// Where the averages go, [`Average::row`] values a sample.
    pub(super) output: usize,
    pub(super) channels: usize,
}

impl Average {
    /// Values from a sample's averages to the next's.
    pub(super) fn row(&self) -> usize {
        self.channels.next_multiple_of(16)
    }

    /// Runs it for `batch` samples on the team.
    pub(super) fn run<I: Isa>(&self, isa: I, arena: &Arena, batch: usize, member: &Member<'_>) {
        /// Sums that run beside each other, so that none waits for another.
        const SUMS: usize = 4;
        let mut first = 0;
        for part in &self.inputs {
            let view = &part.view;
            let pixels = view.height * view.width;
            // A cache line of channels a task, so that sums do not depend on the number of threads.
            let step = 16.max(I::LANES);
            let parts = view.channels.div_ceil(step);
            member.share(batch * parts, |task| {
                let (sample, start) = (task / parts, task % parts * step);
                isa.run(
                    #[inline(always)]
                    || {
                        for channel in (start..(start + step).min(view.channels)).step_by(I::LANES) {
                            let from = arena.at(view.offset + sample * view.sample()).cast_const();
                            let count = view.channels - channel;
                            let mut sums = [isa.splat(0.0); SUMS];
                            for pixel in (0..pixels).step_by(SUMS) {
                                for (i, sum) in sums.iter_mut().enumerate().take(pixels - pixel) {
                                    let at = (pixel + i) * view.pixel + channel;
                                    // SAFETY: the pixel has `count` more channels.
                                    let value = unsafe {
                                        if view.bf16 {
                                            load_rounded(isa, from.cast::<u16>().add(at), count)
                                        } else {
                                            load_part(isa, from.add(at), count)
                                        }
                                    };
                                    *sum = isa.add(*sum, value);
                                }
                            }
                            let sum = isa.add(isa.add(sums[0], sums[1]), isa.add(sums[2], sums[3]));
                            let average = isa.mul(sum, isa.splat(1.0 / pixels as f32));
                            let out = arena.at(self.output + sample * self.row() + first + channel);
                            // SAFETY: there is a place for each channel's average.
                            unsafe { store_part(isa, out, average, count) };
                        }
                    },
                );
            });
            first += view.channels;
        }
    }
}

/// From averages to routing weights.
#[derive(Debug, Clone)]
pub struct Router {
    /// Linear layer with ReLU before the last one, `[hidden, channels]`; none in CondConv.
    pub squeeze: Option<Vec<f32>>,
    /// Last linear layer, `[K, channels or hidden]`.
    pub weight: Vec<f32>,
    /// `[K]`
    pub bias: Vec<f32>,
    /// What turns logits into weights.
    pub routing: Routing,
}

impl Router {
    /// Values of scratch that it takes beside its result.
    pub(super) fn hidden(&self) -> usize {
        if self.squeeze.is_some() { self.weight.len() / self.bias.len() } else { 0 }
    }

    /// Checks that it goes from averages of so many channels to weights.
    pub(super) fn check(&self, channels: usize) {
        let features = match &self.squeeze {
            Some(squeeze) => {
                assert!(channels > 0 && squeeze.len().is_multiple_of(channels), "a squeeze for other channels");
                squeeze.len() / channels
            }
            None => channels,
        };
        assert!(features > 0 && !self.bias.is_empty(), "a router without features or experts");
        assert_eq!(self.weight.len(), self.bias.len() * features, "a router for other features");
    }

    /// Routing weights of one sample.
    pub(super) fn weights(&self, averages: &[f32], hidden: &mut [f32], weights: &mut [f32]) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let features = match &self.squeeze {
            Some(squeeze) => {
                for (hidden, row) in hidden.iter_mut().zip(squeeze.chunks_exact(averages.len())) {
                    let value = dot(row, averages);
                    *hidden = if value < 0.0 { 0.0 } else { value };
                }
                &*hidden
            }
            None => averages,
        };
        for ((weight, row), bias) in weights.iter_mut().zip(self.weight.chunks_exact(features.len())).zip(&self.bias) {
            *weight = bias + dot(row, features);
        }
        super::super::route::activate(weights, self.routing);
    }
}

/// Kernels of each sample from experts that are packed as the convolution reads them.
#[derive(Debug)]
pub(super) struct Mix {
    pub(super) router: Router,
    /// Averages of the map, as many values a sample.
    pub(super) averages: (usize, usize),
    pub(super) channels: usize,
    /// `[K, len]`, packed.
    pub(super) experts: Lines,
    /// Values of a packed expert.
    pub(super) len: usize,
    /// `[K + 1, bias_len]`, padded to whole vectors; the last row is what is added to all mixtures.
    pub(super) bias: Lines,
    pub(super) bias_len: usize,
    /// Where kernels and biases go, and values of a sample's.
    pub(super) kernels: (usize, usize),
    pub(super) biases: (usize, usize),
    /// For Winograd's algorithm: input channels of a 3x3 kernel, to be transformed.
    pub(super) transform: Option<super::direct::Packing>,
    /// Whether mixtures are rounded to bf16.
    pub(super) bf16: bool,
}

/// Values of a task, about: worth its start, and in a level-1 cache with some experts beside them.
const TASK_VALUES: usize = 2048;
/// Vectors that are mixed at a time.
const VECTORS: usize = 4;
/// Samples that are mixed at a time, so that experts are read once for all of them.
const SAMPLES: usize = 2;

impl Mix {
    /// Runs it for `batch` samples on the team; `scratch` is the thread's own.
    pub(super) fn run<I: Isa>(&self, isa: I, arena: &Arena, batch: usize, scratch: &mut [f32], member: &Member<'_>) {
        let experts = self.router.bias.len();
        // Every thread computes all routing weights, for they are few: nobody has to wait.
        let (weights, hidden) = scratch.split_at_mut(batch * experts);
        for (sample, weights) in weights.chunks_exact_mut(experts).enumerate() {
            let averages = arena.at(self.averages.0 + sample * self.averages.1);
            // SAFETY: an earlier step has written them.
            let averages = unsafe { std::slice::from_raw_parts(averages, self.channels) };
            self.router.weights(averages, &mut hidden[..self.router.hidden()], weights);
        }
        let weights = &*weights;
        let (units, step) = match &self.transform {
            // Rows of a panel.
            Some(packing) => (packing.panels() * packing.taps, 64),
            None => (self.len.div_ceil(TASK_VALUES), 1),
        };
        let parts = units.div_ceil(step);
        let samples = batch.div_ceil(SAMPLES);
        member.share(samples * (parts + 1), |task| {
            let (part, first) = (task / samples, task % samples * SAMPLES);
            let last = (first + SAMPLES).min(batch);
            isa.run(
                #[inline(always)]
                || {
                    if part == parts {
                        for sample in first..last {
                            let to = arena.at(self.biases.0 + sample * self.biases.1);
                            self.bias_of(isa, &weights[sample * experts..][..experts], to);
                        }
                    } else if let Some(packing) = &self.transform {
                        for sample in first..last {
                            let to = arena.at(self.kernels.0 + sample * self.kernels.1);
                            let rows = (part * step, ((part + 1) * step).min(units));
                            self.transformed(isa, packing, &weights[sample * experts..][..experts], rows, to);
                        }
                    } else {
                        let range = (part * TASK_VALUES, ((part + 1) * TASK_VALUES).min(self.len));
                        let to = arena.at(self.kernels.0 + first * self.kernels.1);
                        let weights = &weights[first * experts..last * experts];
                        match isa.bf16() {
                            Some(isa) if self.bf16 => isa.run(
                                #[inline(always)]
                                || self.mixed(isa, weights, range, to),
                            ),
                            _ => self.mixed(isa, weights, range, to),
                        }
                    }
                },
            );
        });
    }

    /// Values `range` of the kernels of as many samples as there are weights for.
    #[inline(always)]
    fn mixed<I: Isa>(&self, isa: I, weights: &[f32], range: (usize, usize), to: *mut f32) {
        if weights.len() == SAMPLES * self.router.bias.len() {
            self.mixed_of::<I, SAMPLES>(isa, weights, range, to);
        } else {
            self.mixed_of::<I, 1>(isa, weights, range, to);
        }
    }

    #[inline(always)]
    fn mixed_of<I: Isa, const N: usize>(&self, isa: I, weights: &[f32], range: (usize, usize), to: *mut f32) {
        let mut at = range.0;
        while at + VECTORS * I::LANES <= range.1 {
            self.vectors::<I, N, VECTORS>(isa, weights, at, to);
            at += VECTORS * I::LANES;
        }
        while at < range.1 {
            self.vectors::<I, N, 1>(isa, weights, at, to);
            at += I::LANES;
        }
    }

    /// `V` vectors of `N` samples.
    #[inline(always)]
    fn vectors<I: Isa, const N: usize, const V: usize>(&self, isa: I, weights: &[f32], at: usize, to: *mut f32) {
        let experts = self.router.bias.len();
        let mut sums = [[isa.splat(0.0); V]; N];
        for (expert, from) in self.experts.values().chunks_exact(self.len).enumerate() {
            let from = &from[at..][..V * I::LANES];
            for j in 0..V {
                let value = isa.load(&from[j * I::LANES..]);
                for n in 0..N {
                    sums[n][j] = isa.fma(isa.splat(weights[n * experts + expert]), value, sums[n][j]);
                }
            }
        }
        for n in 0..N {
            for j in 0..V {
                let to = to.wrapping_add(n * self.kernels.1);
                let at = at + j * I::LANES;
                // SAFETY: each sample has `len` values, whole vectors.
                unsafe {
                    if self.bf16 {
                        isa.store_bf16_at(to.cast::<u16>().add(at), sums[n][j]);
                    } else {
                        isa.store_at(to.add(at), sums[n][j]);
                    }
                }
            }
        }
    }

    /// Rows of a panel, mixed and transformed: row `r` of all panels is input channel `r % taps` of panel `r / taps`.
    #[inline(always)]
    fn transformed<I: Isa>(
        &self,
        isa: I,
        packing: &super::direct::Packing,
        weights: &[f32],
        rows: (usize, usize),
        to: *mut f32,
    ) {
        let inputs = packing.taps;
        let nine = super::direct::Packing { taps: 9 * inputs, ..*packing };
        let values = self.experts.values();
        for row in rows.0..rows.1 {
            let (panel, input) = (row / inputs, row % inputs);
            let width = packing.vectors(panel) * I::LANES;
            for vector in 0..packing.vectors(panel) {
                let mut mixed = [isa.splat(0.0); 9];
                for (expert, weight) in weights.iter().enumerate() {
                    let weight = isa.splat(*weight);
                    let from = &values[expert * self.len + nine.panel(panel) + vector * I::LANES..];
                    for tap in 0..9 {
                        let value = isa.load(&from[(tap * inputs + input) * width..]);
                        mixed[tap] = isa.fma(weight, value, mixed[tap]);
                    }
                }
                let to = to.wrapping_add(packing.panel(panel) + input * width + vector * I::LANES);
                // SAFETY: each of the points has a packed product of its own, one after the other.
                unsafe { transform_packed(isa, &mixed, to, point_len(packing)) };
            }
        }
    }

    #[inline(always)]
    fn bias_of<I: Isa>(&self, isa: I, weights: &[f32], to: *mut f32) {
        for at in (0..self.bias_len).step_by(I::LANES) {
            let (experts, shift) = self.bias.values().split_at(weights.len() * self.bias_len);
            let mut sum = isa.load(&shift[at..]);
            for (weight, bias) in weights.iter().zip(experts.chunks_exact(self.bias_len)) {
                sum = isa.fma(isa.splat(*weight), isa.load(&bias[at..]), sum);
            }
            // SAFETY: each sample has `bias_len` values, whole vectors.
            unsafe { isa.store_at(to.add(at), sum) };
        }
    }

    /// Values of scratch.
    pub(super) fn scratch(&self, batch: usize) -> usize {
        batch * self.router.bias.len() + self.router.hidden()
    }
}
