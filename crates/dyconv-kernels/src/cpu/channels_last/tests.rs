//! Programs of one convolution and of the other steps, on every instruction set of the machine, against loops in f64.

use super::super::conformance::noise;
use super::super::isa::bf16_bits;
use super::super::{IsaName, available};
use super::bf16_tests::kinds;
use super::build::has_bf16;
use super::*;
use crate::Routing;

/// The same along both axes, without dilation.
pub(super) fn square(kernel: usize, stride: usize, padding: usize) -> Window {
    Window { kernel: (kernel, kernel), stride: (stride, stride), padding: (padding, padding), dilation: (1, 1) }
}

/// A convolution to try.
#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    inputs: usize,
    outputs: usize,
    size: (usize, usize),
    window: Window,
    groups: usize,
    act: Act,
    residual: bool,
    /// Experts, none for fixed kernels.
    experts: usize,
    algorithm: Algorithm,
    threads: usize,
    /// No gaps in the input, and one part.
    dense: bool,
}

impl Case {
    fn output_size(&self) -> Option<(usize, usize)> {
        let Window { kernel, stride, padding, dilation } = self.window;
        let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
            Some((size + 2 * padding).checked_sub(dilation * (kernel - 1) + 1)? / stride + 1)
        };
        Some((
            axis(self.size.0, kernel.0, stride.0, padding.0, dilation.0)?,
            axis(self.size.1, kernel.1, stride.1, padding.1, dilation.1)?,
        ))
    }

    /// The largest error over the largest sum before the activation.
    fn error(&self, (isa, tiles): (IsaName, bool), seed: u32) -> Option<f64> {
        let (height, width) = self.size;
        let (rows, columns) = self.output_size()?;
        let Self { batch, inputs, outputs, groups, .. } = *self;
        let kernel_len = inputs / groups * self.window.kernel.0 * self.window.kernel.1 * outputs;
        let x = noise(batch * inputs * height * width, seed);
        let sets = self.experts.max(1);
        let kernels = noise(sets * kernel_len, seed + 1);
        let bias = noise(sets * outputs, seed + 2);
        let router = Router {
            squeeze: None,
            weight: noise(sets * inputs, seed + 3),
            bias: noise(sets, seed + 4),
            routing: Routing::Softmax { temperature: 0.5 },
        };

        // The input in two places, with gaps; the output between other channels.
        let gap = if self.dense { 0 } else { 3 };
        let first = inputs / 3;
        let split = self.algorithm.is_direct() && groups == 1 && first > 0 && !self.dense;
        let source = View::dense(16, height, width, inputs);
        let first_view = View { offset: source.end(batch) + 5, channels: first, pixel: first + gap, ..source };
        let second_view =
            View { offset: first_view.end(batch) + 7, channels: inputs - first, pixel: inputs - first + gap, ..source };
        let whole_view = View { offset: first_view.offset, pixel: inputs + gap, ..source };
        let end = second_view.end(batch).max(whole_view.end(batch)) + 1;
        let output = View { pixel: outputs + 5, ..View::dense(end + 2, rows, columns, outputs) };
        let mut builder = Builder::for_isa(isa, batch, self.threads, output.end(batch) + 3);
        builder.tiles = builder.tiles.filter(|_| tiles);
        builder.import(source, (0, 0));
        let parts: Vec<Part> = if split {
            builder.pointwise("first", vec![source.channels(0, first).into()], first_view, None, Act::Identity, None);
            let rest = source.channels(first, inputs - first);
            builder.pointwise("second", vec![rest.into()], second_view, None, Act::Identity, None);
            vec![first_view.into(), second_view.into()]
        } else {
            builder.pointwise("copy", vec![source.into()], whole_view, None, Act::Identity, None);
            vec![whole_view.into()]
        };
        let kernels_of = if self.experts > 0 {
            Kernels::Mixed {
                router: router.clone(),
                averaged: parts.clone(),
                experts: &kernels,
                bias: &bias,
                shift: &bias[..outputs],
            }
        } else {
            Kernels::Fixed { kernels: &kernels, bias: &bias }
        };
        let mut convolution = Convolution {
            name: "conv",
            window: self.window,
            groups,
            inputs: parts,
            output,
            residual: None,
            act: self.act,
            kernels: kernels_of,
            algorithm: self.algorithm,
        };
        builder.convolution(&convolution);
        if self.residual {
            convolution.residual = Some(output);
            builder.convolution(&convolution);
        }
        builder.export("out", output);
        let program = builder.finish();
        let mut session = program.session().unwrap();
        let mut y = vec![f32::NAN; batch * outputs * rows * columns];
        // Twice: nothing may be left of the first run.
        for _ in 0..2 {
            program.run(&mut session, &[Input::Maps(&x)], &mut [&mut y], RunOptions::default()).unwrap();
        }

        let mut worst = 0.0;
        let mut largest: f64 = 1e-30;
        for sample in 0..batch {
            let map = &x[sample * inputs * height * width..][..inputs * height * width];
            let mut weights = vec![1.0; sets];
            if self.experts > 0 {
                let logits: Vec<f64> = (0..sets)
                    .map(|k| {
                        let average = |c: usize| {
                            let plane = &map[c * height * width..][..height * width];
                            plane.iter().map(|v| f64::from(*v)).sum::<f64>() / plane.len() as f64
                        };
                        f64::from(router.bias[k])
                            + (0..inputs).map(|c| f64::from(router.weight[k * inputs + c]) * average(c)).sum::<f64>()
                    })
                    .collect();
                let sum: f64 = logits.iter().map(|l| (l / 0.5).exp()).sum();
                weights = logits.iter().map(|l| (l / 0.5).exp() / sum).collect();
            }
            let kernel = |index: usize| -> f64 {
                weights.iter().enumerate().map(|(k, w)| w * f64::from(kernels[k * kernel_len + index])).sum()
            };
            let round = |v: f32| match self.algorithm {
                Algorithm::DirectBf16 => f32::from_bits(u32::from(bf16_bits(v)) << 16),
                _ => v,
            };
            let kernel: Vec<f64> = if self.algorithm == Algorithm::DirectBf16 {
                (0..kernel_len).map(|index| f64::from(round(kernel(index) as f32))).collect()
            } else {
                (0..kernel_len).map(kernel).collect()
            };
            let map: Vec<f32> = map.iter().map(|v| round(*v)).collect();
            for out in 0..outputs {
                let mut own: f64 =
                    weights.iter().enumerate().map(|(k, w)| w * f64::from(bias[k * outputs + out])).sum();
                if self.experts > 0 {
                    own += f64::from(bias[out]);
                }
                for row in 0..rows {
                    for column in 0..columns {
                        let sum = own + self.sum(&map, &kernel, out, (row, column));
                        let mut expected = act(self.act, sum);
                        if self.residual {
                            expected *= 2.0;
                        }
                        let got = y[((sample * outputs + out) * rows + row) * columns + column];
                        let error = (f64::from(got) - expected).abs();
                        worst = if error.is_nan() { f64::INFINITY } else { f64::max(worst, error) };
                        largest = largest.max(sum.abs());
                    }
                }
            }
        }
        Some(worst / largest)
    }

    fn sum(&self, map: &[f32], kernel: &[f64], out: usize, (row, column): (usize, usize)) -> f64 {
        let Window { kernel: (kh, kw), stride, padding, dilation } = self.window;
        let per_group = self.inputs / self.groups;
        let group = out / (self.outputs / self.groups);
        let mut sum = 0.0;
        for input in 0..per_group {
            for ky in 0..kh {
                for kx in 0..kw {
                    let y = (row * stride.0 + ky * dilation.0).wrapping_sub(padding.0);
                    let x = (column * stride.1 + kx * dilation.1).wrapping_sub(padding.1);
                    if y < self.size.0 && x < self.size.1 {
                        let value = map[((group * per_group + input) * self.size.0 + y) * self.size.1 + x];
                        sum += kernel[((out * per_group + input) * kh + ky) * kw + kx] * f64::from(value);
                    }
                }
            }
        }
        sum
    }
}

pub(super) fn act(act: Act, v: f64) -> f64 {
    match act {
        Act::Identity => v,
        Act::Silu => v / (1.0 + (-v).exp()),
        Act::Leaky(slope) => v.max(0.0) + f64::from(slope) * v.min(0.0),
        Act::Relu6 => v.clamp(0.0, 6.0),
        Act::Sigmoid => 1.0 / (1.0 + (-v).exp()),
        Act::Hardswish => v * (v + 3.0).clamp(0.0, 6.0) / 6.0,
    }
}

const ACTS: [Act; 6] = [Act::Identity, Act::Silu, Act::Leaky(0.1), Act::Relu6, Act::Sigmoid, Act::Hardswish];

/// Random cases of an algorithm.
fn random(algorithm: Algorithm, count: usize, tolerance: f64) {
    let mut state = 12345u32;
    let mut below = |n: usize| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % n
    };
    let mut done = 0;
    while done < count {
        let groups = match algorithm {
            Algorithm::Direct | Algorithm::DirectBf16 => [1, 1, 1, 2, 3][below(5)],
            _ => 1,
        };
        let (most, pixels) = if cfg!(miri) { ((4, 36), 7) } else { ((40, 70), 33) };
        let (mut inputs, mut outputs) =
            (groups * (1 + below((most.0 / groups).max(1))), groups * (1 + below(most.1 / groups)));
        let mut groups = groups;
        let mut pick = |from: &[usize]| from[below(from.len())];
        let window = match algorithm {
            Algorithm::Winograd => Window {
                kernel: (3, 3),
                stride: [(1, 1), (2, 2)][pick(&[0, 1])],
                padding: (pick(&[0, 1, 1, 2]), pick(&[0, 1, 1, 3])),
                dilation: (1, 1),
            },
            _ => Window {
                kernel: (pick(&[1, 2, 3, 5]), pick(&[1, 2, 3, 6])),
                stride: (pick(&[1, 1, 2, 3]), pick(&[1, 1, 2, 3])),
                padding: (pick(&[0, 1, 2]), pick(&[0, 1, 3])),
                dilation: (pick(&[1, 1, 2]), pick(&[1, 1, 3])),
            },
        };
        let window = if algorithm.is_direct() && below(3) == 0 { square(1, 1, 0) } else { window };
        if algorithm == Algorithm::Depthwise {
            outputs = inputs;
            groups = inputs;
        }
        if groups > 1 && algorithm.is_direct() {
            inputs = inputs.next_multiple_of(groups);
            outputs = outputs.next_multiple_of(groups);
        }
        let case = Case {
            batch: 1 + below(3),
            inputs,
            outputs,
            size: (1 + below(pixels), 1 + below(pixels)),
            window,
            groups,
            act: ACTS[below(ACTS.len())],
            residual: below(3) == 0,
            // Mixtures are transformed for stride 1 only.
            experts: if algorithm == Algorithm::Winograd && window.stride == (2, 2) {
                0
            } else {
                [0, 0, 1, 4][below(4)]
            },
            algorithm,
            threads: 1 + below(3),
            dense: below(2) == 0,
        };
        if case.output_size().is_none() {
            continue;
        }
        done += 1;
        for isa in kinds(algorithm) {
            let error = case.error(isa, done as u32).unwrap();
            // A mixture that lies between two bf16 may be rounded to the other one.
            let mixed = algorithm == Algorithm::DirectBf16 && case.experts > 0;
            let tolerance = if mixed { MIXED_BF16 } else { tolerance };
            assert!(error <= tolerance, "{isa:?} {case:?}: an error of {error:.1e}");
        }
    }
}

/// An interpreter takes a thousand times as long.
const CASES: usize = if cfg!(miri) { 2 } else { 120 };

#[test]
fn direct_convolution_is_its_definition() {
    random(Algorithm::Direct, CASES, 2e-6);
}

/// A bf16 has eight digits; some of many taps are one off in the last.
const MIXED_BF16: f64 = 5e-4;

#[test]
fn direct_convolution_in_bf16_is_that_of_rounded_values() {
    random(Algorithm::DirectBf16, CASES, 2e-6);
}

/// So many taps that they are cut into portions: between rows of the window, between taps, and within one.
#[test]
fn portions_of_taps_add_up() {
    if cfg!(miri) {
        return;
    }
    for (inputs, kernel) in [(60, 3), (90, 5), (200, 3), (700, 1), (700, 2)] {
        for (dense, experts, algorithm) in
            [(true, 0, Algorithm::Direct), (false, 3, Algorithm::Direct), (false, 0, Algorithm::DirectBf16)]
        {
            let window = square(kernel, 1, 1);
            let case = Case {
                batch: 2,
                inputs,
                outputs: 21,
                size: (7, 9),
                window,
                groups: 1,
                act: Act::Silu,
                residual: true,
                experts,
                algorithm,
                threads: 2,
                dense,
            };
            for isa in kinds(algorithm) {
                let error = case.error(isa, 9).unwrap();
                // Thousands of terms, each rounded.
                assert!(error <= 1e-5, "{isa:?} {case:?}: an error of {error:.1e}");
            }
        }
    }
}

#[test]
fn winograd_convolution_is_its_definition() {
    // The transforms cost a digit, see the module.
    random(Algorithm::Winograd, CASES, 2e-5);
}

#[test]
fn depthwise_convolution_is_its_definition() {
    random(Algorithm::Depthwise, CASES, 2e-6);
}

/// A convolution that reads an enlarged map and another one gives what it gives on both copied into one.
#[test]
fn enlarged_parts_are_read_where_they_lie() {
    let window = |kernel, padding| Window { kernel, stride: (1, 1), padding, dilation: (1, 1) };
    for (window, out) in [(window((1, 1), (0, 0)), 19), (window((3, 2), (1, 1)), 5)] {
        for isa in available() {
            let (small, large) = (View::dense(0, 3, 4, 5), View::dense(200, 6, 8, 7));
            let joined = View::dense(1000, 6, 8, 12);
            let width = 8 + 2 * window.padding.1 - window.kernel.1 + 1;
            let output = |offset| View::dense(offset, 6 + 2 * window.padding.0 - window.kernel.0 + 1, width, out);
            let kernels = noise(out * 12 * window.kernel.0 * window.kernel.1, 3);
            let parts = vec![Part { view: small, shift: 1 }, large.into()];
            let mut builder = Builder::for_isa(isa, 1, 2, 8000);
            builder.import(small, (0, 0));
            builder.import(large, (0, 0));
            builder.pointwise("join", parts.clone(), joined, None, Act::Identity, None);
            for (inputs, output) in [(parts, output(2000)), (vec![joined.into()], output(5000))] {
                builder.convolution(&Convolution {
                    name: "conv",
                    window,
                    groups: 1,
                    inputs,
                    output,
                    residual: None,
                    act: Act::Silu,
                    kernels: Kernels::Fixed { kernels: &kernels, bias: &[] },
                    algorithm: Algorithm::Direct,
                });
                builder.export("out", output);
            }
            builder.export("joined", joined);
            let program = builder.finish();
            let (x, z) = (noise(60, 1), noise(336, 2));
            let values = out * output(0).height * width;
            let (mut a, mut b, mut c) = (vec![0.0; values], vec![1.0; values], vec![0.0; 12 * 48]);
            let mut session = program.session().unwrap();
            program
                .run(
                    &mut session,
                    &[Input::Maps(&x), Input::Maps(&z)],
                    &mut [&mut a, &mut b, &mut c],
                    RunOptions::default(),
                )
                .unwrap();
            assert!(a == b, "{window:?} on {}", isa.name());
            let enlarged = |i: usize| x[i / 48 * 12 + i % 48 / 8 / 2 * 4 + i % 8 / 2];
            assert!((0..5 * 48).all(|i| c[i] == enlarged(i)) && c[5 * 48..] == z, "{}", isa.name());
        }
    }
}

/// Pools in a row against their definition; NaN is above all, as in PyTorch.
#[test]
fn pools_keep_what_is_no_number() {
    for isa in available() {
        let (input, pool) = (View::dense(0, 5, 7, 19), Pool { kernel: 3, stride: 1, padding: 1 });
        let views = [View::dense(1000, 5, 7, 19), View::dense(2000, 5, 7, 19)];
        let mut builder = Builder::for_isa(isa, 1, 2, 3000);
        builder.import(input, (0, 0));
        builder.pools("pools", input, views.map(|view| (pool, view)).to_vec());
        views.iter().for_each(|view| builder.export("out", *view));
        let program = builder.finish();
        let mut x = noise(5 * 7 * 19, 4);
        x[17] = f32::NAN;
        x[200] = f32::INFINITY;
        let pooled = |x: &[f32]| -> Vec<f32> {
            let at = |i: usize| {
                let (plane, y, column) = (i / 35 * 35, i % 35 / 7, i % 7);
                let window = (y.saturating_sub(1)..(y + 2).min(5))
                    .flat_map(|y| (column.saturating_sub(1)..(column + 2).min(7)).map(move |c| x[plane + y * 7 + c]));
                window.fold(f32::NEG_INFINITY, |m, v| if m.is_nan() || v.is_nan() { f32::NAN } else { m.max(v) })
            };
            (0..x.len()).map(at).collect()
        };
        let (mut a, mut b) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let mut session = program.session().unwrap();
        program.run(&mut session, &[Input::Maps(&x)], &mut [&mut a, &mut b], RunOptions::default()).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| if v.is_nan() { 1 } else { v.to_bits() }).collect::<Vec<_>>();
        assert_eq!(bits(&a), bits(&pooled(&x)), "{}", isa.name());
        assert_eq!(bits(&b), bits(&pooled(&pooled(&x))), "{}", isa.name());
    }
}

/// A session's memory is as large as its own program needs.
#[test]
fn sessions_of_other_programs_are_refused() {
    let program = |channels: usize| {
        let mut builder = Builder::new(1, 1, 64);
        builder.import(View::dense(0, 1, 1, channels), (0, 0));
        builder.finish()
    };
    let (one, other) = (program(3), program(3));
    let problem = other.run(&mut one.session().unwrap(), &[Input::Maps(&[1.0; 3])], &mut [], RunOptions::default());
    assert!(problem.unwrap_err().contains("another program"));
}

/// Large enough for several chunks and shares; the number of threads must not change a bit.
#[test]
fn results_do_not_depend_on_threads() {
    if cfg!(miri) {
        return;
    }
    let window = square(3, 1, 1);
    for (algorithm, channels, size) in [
        (Algorithm::Winograd, 96, 40),
        (Algorithm::Winograd, 32, 80),
        (Algorithm::Direct, 64, 40),
        (Algorithm::DirectBf16, 64, 40),
    ] {
        for (isa, tiles) in kinds(algorithm) {
            if isa == IsaName::Scalar || algorithm == Algorithm::DirectBf16 && !multiplies_bf16() {
                continue;
            }
            let run = |threads: usize| {
                let source = View::dense(0, size, size, channels);
                let output = View::dense(source.end(2), size, size, channels);
                let mut builder = Builder::for_isa(isa, 2, threads, output.end(2));
                builder.tiles = builder.tiles.filter(|_| tiles);
                builder.import(source, (0, 0));
                builder.convolution(&Convolution {
                    name: "conv",
                    window,
                    groups: 1,
                    inputs: vec![source.into()],
                    output,
                    residual: None,
                    act: Act::Silu,
                    kernels: Kernels::Fixed { kernels: &noise(channels * channels * 9, 1), bias: &[] },
                    algorithm,
                });
                builder.export("out", output);
                let program = builder.finish();
                let mut y = vec![0.0; 2 * channels * size * size];
                let x = noise(y.len(), 5);
                program
                    .run(&mut program.session().unwrap(), &[Input::Maps(&x)], &mut [&mut y], RunOptions::default())
                    .unwrap();
                y
            };
            let alone = run(1);
            for threads in [2, 3, 8] {
                assert!(run(threads) == alone, "{algorithm:?} on {threads} threads of {}", isa.name());
            }
        }
    }
}

/// Pixels are read as what they stand for, whatever lies around and between them.
#[test]
fn pictures_are_read_as_maps_of_unit_samples() {
    let (batch, height, width) = if cfg!(miri) { (2, 2, 5) } else { (3, 5, 37) };
    let kinds = [(3, 3, false), (3, 3, true), (3, 4, false), (2, 16, true)];
    let all = available().into_iter().flat_map(|isa| kinds.map(|kind| (isa, kind)));
    for (isa, (channels, pixel, bf16)) in all.filter(|(isa, (.., bf16))| !bf16 || has_bf16(*isa)) {
        let view = View { pixel, bf16, ..View::dense(0, height + 2, width + 4, channels) };
        let output = View::dense(view.end(batch).next_multiple_of(16), height + 2, width + 4, channels);
        let pixels: Vec<u8> = (0..batch * height * width * channels).map(|i| (i * 37 + i / 256) as u8).collect();
        let sample = |i: usize| {
            let (x, y, channel) = (i % width, i / width % height, i / (width * height) % channels);
            let row = i / (width * height * channels) * height + y;
            f32::from(pixels[(row * width + x) * channels + channel]) / 255.0
        };
        let maps: Vec<f32> = (0..pixels.len()).map(sample).collect();
        let kernels = noise(channels * channels * 9, 5);
        let run = |input: Input<'_>| {
            let mut builder = Builder::for_isa(isa, batch, 2, 20_000);
            builder.import(view, (1, 2));
            builder.convolution(&Convolution {
                name: "conv",
                window: square(3, 1, 1),
                groups: 1,
                inputs: vec![view.into()],
                output,
                residual: None,
                act: Act::Identity,
                kernels: Kernels::Fixed { kernels: &kernels, bias: &[] },
                algorithm: if bf16 { Algorithm::DirectBf16 } else { Algorithm::Direct },
            });
            builder.export("out", output);
            let program = builder.finish();
            let mut y = vec![f32::NAN; batch * channels * (height + 2) * (width + 4)];
            let mut session = program.session().unwrap();
            program.run(&mut session, &[input], &mut [&mut y], RunOptions::default()).unwrap();
            y
        };
        let expected = run(Input::Maps(&maps));
        assert!(expected.iter().all(|value| value.is_finite()));
        assert!(expected == run(Input::Pixels(&pixels)), "{} {channels} of {pixel}, bf16 {bf16}", isa.name());
    }
}
