//! Every kernel on every instruction set of this machine, on random shapes, against its definition in f64.
//!
//! `cargo test --workspace --lib conformance -- --nocapture` shows the table. The test fails where an instruction set that
//! the machine has did not run.

#![allow(clippy::print_stderr, reason = "the table is what the suite is for")]

use std::cell::Cell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::pool::{max_pool2d_backward_on, max_pool2d_on};
use super::upsample::{upsample_nearest2d_backward_on, upsample_nearest2d_on};
use super::{
    ConvShape, Epilogue, IsaName, Kernels, PoolShape, Unary, available, conv2d_on, mix_experts_on, route_on, unary_on,
};
use crate::{ConvConfig, Routing};

/// An interpreter takes a thousand times as long.
const SMALL: bool = cfg!(miri);
const CASES: u32 = if SMALL { 2 } else { 256 };
/// Terms that a case's definition is computed of there.
const SMALL_TERMS: usize = 50_000;
/// Threads, one number a case in turn: a loop that is right for two may leave the tenth nothing or too much.
const THREADS: &[usize] = if SMALL { &[2, 3] } else { &[2, 3, 1, 12, 5, 8] };

/// One kernel on one input.
struct Case {
    expected: Vec<f64>,
    /// What an error is measured by: for a sum, the sum of the sizes of what was added.
    sizes: Vec<f64>,
    run: Box<dyn Fn(IsaName) -> Vec<f32> + Sync>,
}

/// A line of the table.
struct Row {
    kernel: &'static str,
    isa: IsaName,
    cases: u32,
    worst: f64,
}

#[derive(Default)]
struct Suite {
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Suite {
    /// Holds a kernel to `tolerance` on random inputs.
    fn check<S: Strategy>(&mut self, kernel: &'static str, tolerance: f64, inputs: S, case: impl Fn(S::Value) -> Case) {
        let tally: Vec<_> = available().into_iter().map(|isa| (isa, Cell::new(0), Cell::new(0.0))).collect();
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let pool = |threads: &usize| ThreadPoolBuilder::new().num_threads(*threads).build().unwrap();
        let pools: Vec<ThreadPool> = THREADS.iter().map(pool).collect();
        let number = Cell::new(0);
        let outcome = TestRunner::new_with_rng(config, random).run(&inputs, |input| {
            let case = case(input);
            let pool = &pools[number.replace(number.get() + 1) % pools.len()];
            for (isa, cases, worst) in &tally {
                let error = pool.install(|| case.error(*isa));
                cases.set(cases.get() + 1);
                worst.set(f64::max(worst.get(), error));
                if error > tolerance {
                    let threads = pool.current_num_threads();
                    let problem = format!("{}, {threads} threads: an error of {error:.1e}", isa.name());
                    return Err(TestCaseError::fail(problem));
                }
            }
            Ok(())
        });
        self.failures.extend(outcome.err().map(|e| format!("{kernel}, allowed {tolerance:.0e}: {e}")));
        let rows = tally.into_iter().map(|(isa, cases, worst)| Row {
            kernel,
            isa,
            cases: cases.into_inner(),
            worst: worst.into_inner(),
        });
        self.rows.extend(rows);
    }
}

impl Case {
    /// The largest error on an instruction set; infinite where a value is missing or NaN that should not be.
    fn error(&self, isa: IsaName) -> f64 {
        let got = (self.run)(isa);
        if got.len() != self.expected.len() {
            return f64::INFINITY;
        }
        let errors = got.iter().zip(&self.expected).zip(&self.sizes).map(|((got, expected), size)| {
            let got = f64::from(*got);
            if got == *expected { 0.0 } else { (got - expected).abs() / size }
        });
        errors.fold(0.0, |worst, error| if error.is_nan() { f64::INFINITY } else { f64::max(worst, error) })
    }
}

/// Values from -1 to 1 that look random.
pub(super) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn pair(range: std::ops::Range<usize>) -> impl Strategy<Value = (usize, usize)> {
    (range.clone(), range)
}

/// Output size along one axis.
fn axis(size: usize, window: usize, stride: usize, padding: usize) -> Option<usize> {
    Some((size + 2 * padding).checked_sub(window)? / stride + 1)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Any,
    Pointwise,
    Depthwise,
    /// As many channels and pixels as Winograd's algorithm is taken for.
    Winograd,
}

/// Where the kernels come from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Shared,
    PerSample,
    /// Of so many experts.
    Mixed(usize),
    /// Of so many experts, whose weights depend on the sample.
    Routed(usize),
}

/// Which parts of an epilogue there are.
#[derive(Debug, Clone, Copy)]
struct Parts {
    scale: bool,
    /// Shifts: none, one a channel, one a sample and channel.
    shift: u8,
    silu: bool,
}

fn sources_of_kernels() -> impl Strategy<Value = (Source, Parts)> {
    let source = prop_oneof![
        Just(Source::Shared),
        Just(Source::PerSample),
        (1..6usize).prop_map(Source::Mixed),
        (1..6usize).prop_map(Source::Routed)
    ];
    let parts = (any::<bool>(), 0..3u8, any::<bool>()).prop_map(|(scale, shift, silu)| Parts { scale, shift, silu });
    (source, parts)
}

/// A shape, the kernels' source, an epilogue and a seed.
fn convolutions(form: Form) -> impl Strategy<Value = (ConvShape, (Source, Parts), u32)> {
    let (inputs, outputs, pixels) = match form {
        Form::Winograd if SMALL => (32..33, 32..33, 12..13),
        Form::Winograd => (32..41, 32..41, 12..34),
        _ if !SMALL => (1..41usize, 1..41usize, 1..34usize),
        // Fills a register tile of AVX-512, which takes 8 channels of 48 pixels.
        Form::Pointwise => (1..3, 1..30, 5..8),
        _ => (1..5, 1..5, 1..6),
    };
    let sizes = (1..if SMALL { 3 } else { 4usize }, inputs, outputs, pair(pixels), 1..9usize);
    let window = (pair(1..if SMALL { 4 } else { 6 }), pair(1..4), pair(0..5), pair(1..4));
    (sizes, window, sources_of_kernels(), any::<u32>()).prop_filter_map(
        "the window fits",
        move |((batch, inputs, outputs, input, groups), (kernel, stride, padding, dilation), source, seed)| {
            let one = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
            let (inputs, outputs, config) = match form {
                Form::Pointwise => (inputs, outputs, one),
                Form::Winograd => {
                    let padding = (1 + padding.0 % 2, 1 + padding.1 % 2);
                    (inputs, outputs, ConvConfig { kernel: (3, 3), padding, ..one })
                }
                Form::Depthwise => (inputs, inputs, ConvConfig { kernel, stride, padding, dilation, groups: inputs }),
                Form::Any => {
                    let groups = groups.min(inputs).min(outputs);
                    let whole = |channels: usize| channels / groups * groups;
                    (whole(inputs), whole(outputs), ConvConfig { kernel, stride, padding, dilation, groups })
                }
            };
            let ConvConfig { kernel, stride, padding, dilation, .. } = config;
            let output = (
                axis(input.0, dilation.0 * (kernel.0 - 1) + 1, stride.0, padding.0)?,
                axis(input.1, dilation.1 * (kernel.1 - 1) + 1, stride.1, padding.1)?,
            );
            Some((ConvShape { batch, in_channels: inputs, out_channels: outputs, input, output, config }, source, seed))
        },
    )
}

/// A term of a sum, and how large it is.
type Term = (f64, f64);

/// What is to be convolved with what.
struct Operands {
    source: Source,
    kernels: Vec<f32>,
    routing: Vec<f32>,
    /// Weight and bias.
    router: (Vec<f32>, Vec<f32>),
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Operands {
    fn new(x: &[f32], s: &ConvShape, source: Source, parts: Parts, seed: u32) -> Self {
        let (sets, experts) = match source {
            Source::Shared => (1, 0),
            Source::PerSample => (s.batch, 0),
            Source::Mixed(experts) | Source::Routed(experts) => (experts, experts),
        };
        let router = (noise(experts * s.in_channels, seed ^ 5), noise(experts, seed ^ 6));
        let mut routing = noise(s.batch * experts, seed ^ 2);
        if let Source::Routed(_) = source {
            let pixels = s.input.0 * s.input.1;
            let averages: Vec<f64> =
                x.chunks_exact(pixels).map(|m| m.iter().map(|v| f64::from(*v)).sum::<f64>() / pixels as f64).collect();
            for (index, r) in routing.iter_mut().enumerate() {
                let (sample, expert) = (index / experts, index % experts);
                let averages = &averages[sample * s.in_channels..][..s.in_channels];
                let weight = &router.0[expert * s.in_channels..][..s.in_channels];
                let sum: f64 = averages.iter().zip(weight).map(|(a, w)| a * f64::from(*w)).sum();
                *r = (1.0 / (1.0 + (-(sum + f64::from(router.1[expert]))).exp())) as f32;
            }
        }
        let shifts = [0, s.out_channels, s.batch * s.out_channels][usize::from(parts.shift)];
        Self {
            source,
            kernels: noise(sets * s.kernel_len(), seed ^ 1),
            routing,
            router,
            scale: noise(if parts.scale { s.out_channels } else { 0 }, seed ^ 3),
            shift: noise(shifts, seed ^ 4),
        }
    }

    /// The kernels of a sample.
    fn of(&self, s: &ConvShape, sample: usize) -> Vec<Term> {
        let set = |index: usize| &self.kernels[index * s.kernel_len()..][..s.kernel_len()];
        let terms = |set: &[f32]| set.iter().map(|w| (f64::from(*w), f64::from(w.abs()))).collect();
        match self.source {
            Source::Shared => terms(set(0)),
            Source::PerSample => terms(set(sample)),
            Source::Mixed(experts) | Source::Routed(experts) => {
                let weights = &self.routing[sample * experts..][..experts];
                let mix = |i: usize| {
                    let parts = weights.iter().enumerate().map(|(e, r)| f64::from(*r) * f64::from(set(e)[i]));
                    parts.fold((0.0, 0.0), |(sum, size), part| (sum + part, size + part.abs()))
                };
                (0..s.kernel_len()).map(mix).collect()
            }
        }
    }

    fn run(&self, isa: IsaName, x: &[f32], silu: bool, s: &ConvShape) -> Vec<f32> {
        let kernels = match self.source {
            Source::Shared => Kernels::Shared(&self.kernels),
            Source::PerSample => Kernels::PerSample(&self.kernels),
            Source::Mixed(_) => Kernels::Mixed { weights: &self.routing, experts: &self.kernels },
            Source::Routed(_) => {
                let (weight, bias) = (&self.router.0, &self.router.1);
                let router = super::Router { weight, bias, routing: Routing::Sigmoid };
                Kernels::Routed { router, experts: &self.kernels }
            }
        };
        let mut y = vec![f32::NAN; s.batch * s.out_channels * s.output.0 * s.output.1];
        let epilogue = Epilogue { scale: &self.scale, shift: &self.shift, silu };
        conv2d_on(isa, x, &kernels, &epilogue, &mut y, s);
        y
    }
}

fn convolution((s, (source, parts), seed): (ConvShape, (Source, Parts), u32)) -> Case {
    let x = noise(s.batch * s.in_channels * s.input.0 * s.input.1, seed);
    let operands = Operands::new(&x, &s, source, parts, seed);
    let at = |values: &[f32], index: usize, default: f64| match values.len() {
        0 => default,
        count => f64::from(values[index % count]),
    };
    // An interpreter has no time for all of them: of the others it is only asked that they are numbers. The distance has no
    // divisor in common with most widths.
    let terms = s.batch * s.kernel_len() * s.output.0 * s.output.1;
    let every = if SMALL && terms > SMALL_TERMS { (terms / SMALL_TERMS).next_multiple_of(6) + 1 } else { 1 };
    let mut sums: Vec<Term> = Vec::new();
    for b in 0..s.batch {
        let kernels = operands.of(&s, b);
        for o in 0..s.out_channels {
            let scale = at(&operands.scale, o, 1.0);
            let shift = at(&operands.shift, b * s.out_channels + o, 0.0);
            for (i, j) in (0..s.output.0).flat_map(|i| (0..s.output.1).map(move |j| (i, j))) {
                if !sums.len().is_multiple_of(every) {
                    sums.push((0.0, f64::INFINITY));
                    continue;
                }
                let (sum, size) = sum_at(&x, &kernels, &s, [b, o, i, j]);
                let (y, size) = (scale * sum + shift, scale.abs() * size + shift.abs());
                // SiLU's slope is never above 1.1.
                sums.push(if parts.silu { (y / (1.0 + (-y).exp()), 1.1 * size) } else { (y, size) });
            }
        }
    }
    let (expected, sizes) = sums.into_iter().unzip();
    Case { expected, sizes, run: Box::new(move |isa| operands.run(isa, &x, parts.silu, &s)) }
}

/// The definition of one output, and the sum of its terms' sizes.
fn sum_at(x: &[f32], kernels: &[Term], s: &ConvShape, [b, o, i, j]: [usize; 4]) -> Term {
    let c = s.config;
    let (per_group, out_group) = (s.in_channels / c.groups, s.out_channels / c.groups);
    let (mut sum, mut size) = (0.0, 0.0);
    for ci in 0..per_group {
        let channel = b * s.in_channels + o / out_group * per_group + ci;
        for ky in 0..c.kernel.0 {
            let row = (i * c.stride.0 + ky * c.dilation.0).wrapping_sub(c.padding.0);
            for kx in 0..c.kernel.1 {
                let column = (j * c.stride.1 + kx * c.dilation.1).wrapping_sub(c.padding.1);
                if row < s.input.0 && column < s.input.1 {
                    let kernel = kernels[((o * per_group + ci) * c.kernel.0 + ky) * c.kernel.1 + kx];
                    let pixel = f64::from(x[(channel * s.input.0 + row) * s.input.1 + column]);
                    sum += kernel.0 * pixel;
                    size += kernel.1 * pixel.abs();
                }
            }
        }
    }
    (sum, size)
}

/// Samples, experts, values and a seed.
fn mixtures() -> impl Strategy<Value = (usize, usize, usize, u32)> {
    (1..4usize, 1..6usize, 1..if SMALL { 100usize } else { 5000 }, any::<u32>())
}

fn mixture((batch, experts, len, seed): (usize, usize, usize, u32)) -> Case {
    let (weights, values) = (noise(batch * experts, seed), noise(experts * len, seed ^ 1));
    let term = |b: usize, e: usize, i: usize| f64::from(weights[b * experts + e]) * f64::from(values[e * len + i]);
    let places = (0..batch).flat_map(|b| (0..len).map(move |i| (b, i)));
    let sums = places.map(|(b, i)| {
        (0..experts).map(|e| term(b, e, i)).fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    });
    let (expected, sizes) = sums.unzip();
    let run = move |isa| {
        let mut mixed = vec![f32::NAN; batch * len];
        mix_experts_on(isa, &weights, &values, &mut mixed, len);
        mixed
    };
    Case { expected, sizes, run: Box::new(run) }
}

/// Sizes of a router: samples, channels, pixels, experts.
type Router = (usize, usize, usize, usize);

/// A router, the temperature of its softmax where it has one, and a seed.
fn routers() -> impl Strategy<Value = (Router, Option<f64>, u32)> {
    let (channels, pixels) = if SMALL { (1..6usize, 1..20usize) } else { (1..90usize, 1..400usize) };
    ((1..4usize, channels, pixels, 1..6usize), proptest::option::of(0.1..30.0f64), any::<u32>())
}

fn routing(((batch, channels, pixels, experts), temperature, seed): (Router, Option<f64>, u32)) -> Case {
    let (x, weight) = (noise(batch * channels * pixels, seed), noise(experts * channels, seed ^ 1));
    let bias = noise(experts, seed ^ 2);
    let routing = temperature.map_or(Routing::Sigmoid, |temperature| Routing::Softmax { temperature });
    let mut expected = Vec::new();
    for x in x.chunks_exact(channels * pixels) {
        let average = |map: &[f32]| map.iter().map(|x| f64::from(*x)).sum::<f64>() / pixels as f64;
        let averages: Vec<f64> = x.chunks_exact(pixels).map(average).collect();
        let products = |weight: &[f32]| weight.iter().zip(&averages).map(|(w, a)| f64::from(*w) * a).sum::<f64>();
        let logits: Vec<f64> =
            weight.chunks_exact(channels).zip(&bias).map(|(w, b)| products(w) + f64::from(*b)).collect();
        let powers = logits.iter().map(|l| (l / temperature.unwrap_or(1.0)).exp());
        let total: f64 = powers.clone().sum();
        let weights = powers.map(|power| if temperature.is_some() { power / total } else { power / (1.0 + power) });
        expected.extend(weights);
    }
    // An error of a logit, whose terms are below 1, is one of the same part of the weight.
    let part = 1.0 + (channels + 1) as f64 / temperature.unwrap_or(1.0);
    let sizes = expected.iter().map(|r| r * part).collect();
    let run = move |isa| {
        let mut r = vec![f32::NAN; batch * experts];
        route_on(isa, &x, &weight, &bias, routing, &mut r, channels);
        r
    };
    Case { expected, sizes, run: Box::new(run) }
}

/// How many values, and a seed.
fn lengths() -> impl Strategy<Value = (usize, u32)> {
    (0..if SMALL { 20usize } else { 20_000 }, any::<u32>())
}

fn function(kind: Unary, exact: fn(f64) -> f64, (count, seed): (usize, u32)) -> Case {
    let mut x: Vec<f32> = noise(count, seed).iter().map(|x| x * 100.0).collect();
    x.extend([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY]);
    let expected: Vec<_> = x.iter().map(|x| exact(f64::from(*x))).collect();
    // Where the value is next to nothing, the exponential is clamped.
    let sizes = expected.iter().map(|y| y.abs() + 1e-29).collect();
    let run = move |isa| {
        let mut y = vec![f32::NAN; x.len()];
        unary_on(isa, kind, &x, &mut y);
        y
    };
    Case { expected, sizes, run: Box::new(run) }
}

/// Maps, a shape and a seed.
fn poolings() -> impl Strategy<Value = (usize, PoolShape, u32)> {
    let pixels = if SMALL { 1..7usize } else { 1..34usize };
    (1..5usize, pair(pixels), pair(1..8), pair(1..4), pair(0..7), any::<u32>()).prop_filter_map(
        "the window fits",
        |(maps, input, kernel, stride, padding, seed)| {
            let padding = (padding.0 % kernel.0, padding.1 % kernel.1);
            let output = (axis(input.0, kernel.0, stride.0, padding.0)?, axis(input.1, kernel.1, stride.1, padding.1)?);
            Some((maps, PoolShape { input, output, kernel, stride, padding }, seed))
        },
    )
}

/// Few distinct values, so that windows have several maxima; and the place of each window's.
fn maxima(maps: usize, s: &PoolShape, seed: u32) -> (Vec<f32>, Vec<usize>) {
    let plane = s.input.0 * s.input.1;
    let x: Vec<f32> = noise(maps * plane, seed).iter().map(|x| (x * 5.0).round() + 0.0).collect();
    let mut places = Vec::new();
    for start in (0..x.len()).step_by(plane) {
        for (i, j) in (0..s.output.0).flat_map(|i| (0..s.output.1).map(move |j| (i, j))) {
            let rows = (i * s.stride.0..i * s.stride.0 + s.kernel.0).map(|row| row.wrapping_sub(s.padding.0));
            let mut best: Option<usize> = None;
            for row in rows.filter(|row| *row < s.input.0) {
                let columns = (j * s.stride.1..j * s.stride.1 + s.kernel.1).map(|c| c.wrapping_sub(s.padding.1));
                for column in columns.filter(|column| *column < s.input.1) {
                    let at = start + row * s.input.1 + column;
                    if best.is_none_or(|best| x[at] > x[best]) {
                        best = Some(at);
                    }
                }
            }
            places.push(best.unwrap());
        }
    }
    (x, places)
}

fn pooling((maps, s, seed): (usize, PoolShape, u32)) -> Case {
    let (x, places) = maxima(maps, &s, seed);
    let expected: Vec<_> = places.iter().map(|place| f64::from(x[*place])).collect();
    let run = move |isa| {
        let mut y = vec![f32::NAN; places.len()];
        max_pool2d_on(isa, &x, &mut y, &s);
        y
    };
    Case { sizes: vec![1.0; expected.len()], expected, run: Box::new(run) }
}

fn pooling_gradient((maps, s, seed): (usize, PoolShape, u32)) -> Case {
    let (x, places) = maxima(maps, &s, seed);
    let dy = noise(places.len(), seed ^ 1);
    let (mut expected, mut sizes) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for (place, dy) in places.iter().zip(&dy) {
        expected[*place] += f64::from(*dy);
        sizes[*place] += f64::from(dy.abs());
    }
    let run = move |isa| {
        let mut dx = vec![f32::NAN; x.len()];
        max_pool2d_backward_on(isa, &x, &dy, &mut dx, &s);
        dx
    };
    Case { expected, sizes, run: Box::new(run) }
}

/// Rows, width, factor and a seed.
fn enlargements() -> impl Strategy<Value = (usize, usize, (usize, usize), u32)> {
    (1..20usize, if SMALL { 1..9usize } else { 1..70usize }, pair(1..5), any::<u32>())
}

/// Where each value of an enlarged map comes from.
fn sources(rows: usize, width: usize, factor: (usize, usize)) -> Vec<usize> {
    let row = |i: usize| (0..width * factor.1).map(move |j| i / factor.0 * width + j / factor.1);
    (0..rows * factor.0).flat_map(row).collect()
}

fn enlargement((rows, width, factor, seed): (usize, usize, (usize, usize), u32)) -> Case {
    let x = noise(rows * width, seed);
    let expected: Vec<_> = sources(rows, width, factor).iter().map(|from| f64::from(x[*from])).collect();
    let run = move |isa| {
        let mut y = vec![f32::NAN; x.len() * factor.0 * factor.1];
        upsample_nearest2d_on(isa, &x, &mut y, width, factor);
        y
    };
    Case { sizes: vec![1.0; expected.len()], expected, run: Box::new(run) }
}

fn enlargement_gradient((rows, width, factor, seed): (usize, usize, (usize, usize), u32)) -> Case {
    let dy = noise(rows * width * factor.0 * factor.1, seed);
    let (mut expected, mut sizes) = (vec![0.0; rows * width], vec![0.0; rows * width]);
    for (from, dy) in sources(rows, width, factor).iter().zip(&dy) {
        expected[*from] += f64::from(*dy);
        sizes[*from] += f64::from(dy.abs());
    }
    let run = move |isa| {
        let mut dx = vec![f32::NAN; rows * width];
        upsample_nearest2d_backward_on(isa, &dy, &mut dx, width, factor);
        dx
    };
    Case { expected, sizes, run: Box::new(run) }
}

/// What the machine has by its own word, not by the detection that the kernels rely on.
pub(super) fn machine_has(isa: IsaName) -> bool {
    match isa {
        IsaName::Scalar => true,
        IsaName::Neon => cfg!(target_arch = "aarch64"),
        _ if !cfg!(target_arch = "x86_64") => false,
        IsaName::Avx2 => cpu_flags().is_superset(&["avx2", "fma"].map(String::from).into()),
        IsaName::Avx512 => cpu_flags().is_superset(&["avx512f", "avx512vl"].map(String::from).into()),
    }
}

/// The flags of /proc/cpuinfo; where there is none, what the compiler was allowed to take for granted.
fn cpu_flags() -> BTreeSet<String> {
    let taken = [
        ("avx2", cfg!(target_feature = "avx2")),
        ("fma", cfg!(target_feature = "fma")),
        ("avx512f", cfg!(target_feature = "avx512f")),
        ("avx512vl", cfg!(target_feature = "avx512vl")),
    ];
    let taken = taken.into_iter().filter(|(_, has)| *has).map(|(flag, _)| flag.to_string());
    let text = if SMALL { String::new() } else { std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default() };
    let line = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    line.split_whitespace().map(String::from).chain(taken).collect()
}

#[test]
fn every_kernel_on_every_instruction_set() {
    // A sum in f32 rounds each partial sum by up to 6e-8 of it; random signs keep those, and so the errors, small.
    const SUM: f64 = 5e-7;
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let silu = |x: f64| if x == f64::NEG_INFINITY { 0.0 } else { x / (1.0 + (-x).exp()) };
    let mut suite = Suite::default();
    suite.check("conv2d", SUM, convolutions(Form::Any), convolution);
    suite.check("conv2d, pointwise", SUM, convolutions(Form::Pointwise), convolution);
    suite.check("conv2d, depthwise", SUM, convolutions(Form::Depthwise), convolution);
    // Winograd's transforms multiply values by up to 8 and subtract them from each other again: a digit is lost.
    suite.check("conv2d, winograd", 40.0 * SUM, convolutions(Form::Winograd), convolution);
    suite.check("mix_experts", SUM, mixtures(), mixture);
    suite.check("route", SUM, routers(), routing);
    suite.check("sigmoid", SUM, lengths(), |input| function(Unary::Sigmoid, sigmoid, input));
    suite.check("silu", SUM, lengths(), |input| function(Unary::Silu, silu, input));
    suite.check("max_pool2d", 0.0, poolings(), pooling);
    suite.check("max_pool2d_backward", SUM, poolings(), pooling_gradient);
    suite.check("upsample_nearest2d", 0.0, enlargements(), enlargement);
    suite.check("upsample_nearest2d_backward", SUM, enlargements(), enlargement_gradient);

    eprintln!("{:<28} {:<7} {:>5}  {:>11}", "kernel", "isa", "cases", "worst error");
    for Row { kernel, isa, cases, worst } in &suite.rows {
        eprintln!("{kernel:<28} {:<7} {cases:>5}  {worst:>11.1e}", isa.name());
    }
    for isa in IsaName::ALL {
        if suite.rows.iter().any(|row| row.isa == isa && row.cases >= CASES) {
            continue;
        }
        if machine_has(isa) {
            suite.failures.push(format!("this machine has {}, which did not run", isa.name()));
        } else {
            eprintln!("{}: this machine has none", isa.name());
        }
    }
    assert!(suite.failures.is_empty(), "{}", suite.failures.join("\n"));
}
