//! Maps in bf16: what is read and written by whom, on vectors and on tiles.

use super::super::amx::Amx;
use super::super::conformance::noise;
use super::super::isa::bf16_bits;
use super::super::{IsaName, available};
use super::build::has_bf16;
use super::tests::square;
use super::*;

/// Instruction sets that have what the algorithm needs, each without tiles, and with them where bf16 goes on such.
pub(super) fn kinds(algorithm: Algorithm) -> Vec<(IsaName, bool)> {
    let able = |isa: &IsaName| algorithm != Algorithm::DirectBf16 || has_bf16(*isa);
    let mut kinds: Vec<_> = available().into_iter().filter(able).map(|isa| (isa, false)).collect();
    if algorithm == Algorithm::DirectBf16 && Amx::detect().is_some() && available().contains(&IsaName::Avx512) {
        kinds.push((IsaName::Avx512, true));
    }
    kinds
}

/// Maps in bf16 are what convolutions in bf16 make of maps in f32 anyway, so that results are the same to the bit: through the
/// border of an imported map, runs of several parts, one of them enlarged, and pixels that are multiplied where they lie.
#[test]
fn maps_in_bf16_change_nothing() {
    // An interpreter takes a thousand times as long.
    let (height, width, channels) = if cfg!(miri) { (4, 6, 18) } else { (10, 15, 38) };
    let x = noise(2 * 3 * 4 * height * width, 7);
    let kernels = |count: usize, seed: u32| noise(count, seed);
    for (isa, tiles) in kinds(Algorithm::DirectBf16) {
        let run = |bf16: bool| {
            let map = |offset: usize, height: usize, width: usize, channels: usize| View {
                bf16,
                ..View::dense(offset, height, width, channels)
            };
            let mut builder = Builder::for_isa(isa, 2, 2, 40_000);
            builder.tiles = builder.tiles.filter(|_| tiles);
            // Two rows and columns of zeros around it.
            let input = map(0, 2 * height + 4, 2 * width + 4, 3);
            let half = (height / 2, width.div_ceil(2));
            let first = map(5000, height, width, channels);
            let (second, third) = (map(17_000, height, width, 9), map(21_000, half.0, half.1, 22));
            let out = View::dense(30_000, height, width, 7);
            builder.import(input, (2, 2));
            let mut add = |(kernel, stride, padding): (usize, usize, usize), inputs: Vec<Part>, output: View, seed| {
                let window = square(kernel, stride, padding);
                let count: usize = inputs.iter().map(|part| part.view.channels).sum();
                let kernels = kernels(count * kernel * kernel * output.channels, seed);
                builder.convolution(&Convolution {
                    name: "conv",
                    window,
                    groups: 1,
                    inputs,
                    output,
                    residual: None,
                    act: Act::Leaky(0.1),
                    kernels: Kernels::Fixed { kernels: &kernels, bias: &[] },
                    algorithm: Algorithm::DirectBf16,
                });
            };
            add((6, 2, 0), vec![input.into()], first, 1);
            add((1, 1, 0), vec![first.into()], second, 2);
            add((3, 2, 1), vec![first.into()], third, 3);
            let enlarged = Part { view: third.channels(4, 6), shift: 1 };
            let size = (2 * half.0, 2 * half.1);
            assert_eq!(enlarged.size(), size);
            let wide = map(23_000, size.0, size.1, 12);
            let last = View::dense(29_000, size.0, size.1, 2);
            add((3, 1, 1), vec![enlarged], wide, 4);
            add((3, 1, 1), vec![wide.into(), enlarged], last, 5);
            add((1, 1, 0), vec![first.into(), second.into()], out, 6);
            builder.export("a", out);
            builder.export("b", last);
            let program = builder.finish();
            let (mut a, mut b) = (vec![f32::NAN; 2 * 7 * height * width], vec![f32::NAN; 2 * 2 * size.0 * size.1]);
            let mut session = program.session().unwrap();
            program.run(&mut session, &[Input::Maps(&x)], &mut [&mut a, &mut b], RunOptions::default()).unwrap();
            (a, b)
        };
        let (plain, rounded) = (run(false), run(true));
        assert!(plain.0.iter().chain(&plain.1).all(|v| v.is_finite()));
        assert!(plain == rounded, "{isa:?}");
    }
}

/// A convolution of a map of `inputs` channels to one of `outputs`, both in bf16 and among others, and the f64 sums of it.
struct Lone {
    size: (usize, usize),
    inputs: usize,
    outputs: usize,
    window: Window,
    act: Act,
    residual: bool,
}

impl Lone {
    /// The largest error in halves of a bf16's last digit, but for errors below `least` of the largest sum.
    fn error(&self, (isa, tiles): (IsaName, bool), least: f64) -> f64 {
        let (height, width) = self.size;
        let Self { inputs, outputs, window, .. } = *self;
        let (rows, columns) = (height.div_ceil(window.stride.0), width.div_ceil(window.stride.1));
        let round = |v: f32| f32::from_bits(u32::from(bf16_bits(v)) << 16);
        let x: Vec<f32> = noise(inputs * height * width, 3).into_iter().map(round).collect();
        let added: Vec<f32> = noise(outputs * rows * columns, 4).into_iter().map(round).collect();
        let taps = inputs * window.taps();
        let kernels: Vec<f32> = noise(outputs * taps, 5).into_iter().map(round).collect();
        let bias = noise(outputs, 6);

        let among = |offset: usize, height: usize, width: usize, channels: usize, all: usize| {
            let whole = View { bf16: true, ..View::dense(offset, height, width, all) };
            (whole, whole.channels(2 * ((all - channels) / 4), channels))
        };
        // Channels begin at a cache line, or do not.
        let (whole, input) =
            among(0, height, width, inputs, if inputs.is_multiple_of(64) { 3 * inputs } else { inputs + 6 });
        let (_, output) = among(whole.end(1).next_multiple_of(16), rows, columns, outputs, outputs + 10);
        let (other, residual) =
            among((output.end(1) + outputs + 30).next_multiple_of(16), rows, columns, outputs, outputs + 4);
        let plain = View::dense((other.end(1) + 40).next_multiple_of(16), rows, columns, outputs);
        let mut builder = Builder::for_isa(isa, 1, 2, plain.end(1) + 16);
        builder.tiles = builder.tiles.filter(|_| tiles);
        builder.import(input, (0, 0));
        builder.import(residual, (0, 0));
        let identity: Vec<f32> =
            (0..outputs * outputs).map(|i| if i / outputs == i % outputs { 1.0 } else { 0.0 }).collect();
        let mut convolution = Convolution {
            name: "conv",
            window,
            groups: 1,
            inputs: vec![input.into()],
            output,
            residual: self.residual.then_some(residual),
            act: self.act,
            kernels: Kernels::Fixed { kernels: &kernels, bias: &bias },
            algorithm: Algorithm::DirectBf16,
        };
        builder.convolution(&convolution);
        // What was written, in f32.
        convolution = Convolution {
            window: square(1, 1, 0),
            inputs: vec![output.into()],
            output: plain,
            residual: None,
            act: Act::Identity,
            kernels: Kernels::Fixed { kernels: &identity, bias: &[] },
            ..convolution
        };
        builder.convolution(&convolution);
        builder.export("out", plain);
        let program = builder.finish();
        let mut y = vec![f32::NAN; outputs * rows * columns];
        let mut session = program.session().unwrap();
        for _ in 0..2 {
            program
                .run(&mut session, &[Input::Maps(&x), Input::Maps(&added)], &mut [&mut y], RunOptions::default())
                .unwrap();
        }
        let (mut worst, mut largest) = (0.0, 0.0);
        for (index, got) in y.iter().enumerate() {
            let (out, row, column) = (index / (rows * columns), index / columns % rows, index % columns);
            let mut sum = f64::from(bias[out]);
            for tap in 0..taps {
                let (input, at) = (tap / window.taps(), tap % window.taps());
                let y = (row * window.stride.0 + at / window.kernel.1).wrapping_sub(window.padding.0);
                let x_at = (column * window.stride.1 + at % window.kernel.1).wrapping_sub(window.padding.1);
                if y < height && x_at < width {
                    sum += f64::from(kernels[out * taps + tap]) * f64::from(x[(input * height + y) * width + x_at]);
                }
            }
            largest = f64::max(largest, sum.abs());
            let mut expected = super::tests::act(self.act, sum);
            if self.residual {
                expected += f64::from(added[index]);
            }
            let error = (f64::from(*got) - expected).abs();
            // A half of the last of eight digits.
            let half = expected.abs() / 256.0;
            if error.is_nan() || error > least * largest {
                worst = if error.is_nan() { f64::INFINITY } else { f64::max(worst, error / half) };
            }
        }
        worst
    }
}

/// Whole tiles where they lie, pixels fewer than a tile has, ends of rows, one output more than a panel has; and bands: strides,
/// rows of the window that are one step, and such that are not.
#[test]
fn maps_in_bf16_are_read_and_written_among_others() {
    if cfg!(miri) {
        return;
    }
    for isa in kinds(Algorithm::DirectBf16) {
        for (size, inputs, outputs, window) in [
            ((5, 3), 64, 33, square(1, 1, 0)),
            ((4, 4), 64, 16, square(1, 1, 0)),
            ((7, 9), 128, 40, square(1, 1, 0)),
            ((6, 17), 64, 8, square(1, 1, 0)),
            ((9, 40), 64, 70, square(3, 1, 1)),
            ((12, 10), 32, 33, square(3, 2, 1)),
            ((8, 22), 10, 20, square(3, 1, 1)),
            ((8, 23), 16, 20, square(3, 1, 1)),
            ((9, 22), 4, 9, square(6, 2, 2)),
            ((33, 70), 6, 9, square(5, 1, 2)),
        ] {
            for (act, residual) in
                [(Act::Identity, false), (Act::Silu, false), (Act::Silu, true), (Act::Leaky(0.2), true)]
            {
                let lone = Lone { size, inputs, outputs, window, act, residual };
                // SiLU is a part in five thousand off, which is a tenth of a half of the last digit; sums of f32 are off in
                // proportion to the largest.
                let error = lone.error(isa, 1e-5);
                assert!(error <= 1.1, "{isa:?} {size:?} {inputs} {outputs} {window:?} {act:?} {residual}: {error}");
            }
        }
    }
}
