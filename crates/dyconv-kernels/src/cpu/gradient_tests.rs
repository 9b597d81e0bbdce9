//! Both gradients of convolutions against their definition in f64, on random shapes.

use super::conformance::noise;
use super::kernel_gradient::gradient_on;
use super::{ConvShape, available, conv2d_input_gradient};
use crate::ConvConfig;

/// Of the largest value: sums of some thousand terms in f32.
const TOLERANCE: f64 = 1e-5;

/// Small whole numbers that look random.
struct Dice(u32);

impl Dice {
    /// From `first` to `last`.
    fn roll(&mut self, first: usize, last: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        first + (self.0 >> 4) as usize % (last - first + 1)
    }

    fn pair(&mut self, first: usize, last: usize) -> (usize, usize) {
        (self.roll(first, last), self.roll(first, last))
    }

    /// A convolution, none where its window does not fit.
    fn shape(&mut self) -> Option<ConvShape> {
        let groups = [1, 1, 2, 3, 5][self.roll(0, 4)];
        let one = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups };
        let config = match self.roll(0, 3) {
            0 => one,
            1 => ConvConfig { kernel: (3, 3), padding: (1, 1), ..one },
            _ => ConvConfig {
                kernel: self.pair(1, 5),
                stride: self.pair(1, 3),
                padding: self.pair(0, 4),
                dilation: self.pair(1, 3),
                groups,
            },
        };
        let (in_channels, out_channels) = (groups * self.roll(1, 9), groups * self.roll(1, 9));
        let (batch, input) = (self.roll(1, 5), self.pair(1, 33));
        let axis = |size: usize, k: usize, s: usize, p: usize, d: usize| {
            Some((size + 2 * p).checked_sub(d * (k - 1) + 1)? / s + 1)
        };
        let ConvConfig { kernel, stride, padding, dilation, .. } = config;
        let output = (
            axis(input.0, kernel.0, stride.0, padding.0, dilation.0)?,
            axis(input.1, kernel.1, stride.1, padding.1, dilation.1)?,
        );
        Some(ConvShape { batch, in_channels, out_channels, input, output, config })
    }
}

/// Calls `f` with the places of kernel, input and output of every product of the convolution.
fn products(s: &ConvShape, per_sample: bool, mut f: impl FnMut(usize, usize, usize)) {
    let c = s.config;
    let (inputs, outputs) = (s.in_channels / c.groups, s.out_channels / c.groups);
    for (b, o) in (0..s.batch).flat_map(|b| (0..s.out_channels).map(move |o| (b, o))) {
        for (ci, ky, kx) in
            (0..inputs).flat_map(|ci| (0..c.kernel.0).flat_map(move |ky| (0..c.kernel.1).map(move |kx| (ci, ky, kx))))
        {
            let set = if per_sample { b * s.kernel_len() } else { 0 };
            let kernel = set + ((o * inputs + ci) * c.kernel.0 + ky) * c.kernel.1 + kx;
            for (i, j) in (0..s.output.0).flat_map(|i| (0..s.output.1).map(move |j| (i, j))) {
                let row = (i * c.stride.0 + ky * c.dilation.0).wrapping_sub(c.padding.0);
                let column = (j * c.stride.1 + kx * c.dilation.1).wrapping_sub(c.padding.1);
                if row < s.input.0 && column < s.input.1 {
                    let channel = b * s.in_channels + o / outputs * inputs + ci;
                    let pixel = (channel * s.input.0 + row) * s.input.1 + column;
                    f(kernel, pixel, ((b * s.out_channels + o) * s.output.0 + i) * s.output.1 + j);
                }
            }
        }
    }
}

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3f64, |max, v| max.max(v.abs()));
    for (got, expected) in got.iter().zip(expected) {
        let error = (f64::from(*got) - expected).abs();
        assert!(error <= TOLERANCE * largest, "{what}: {got} instead of {expected}");
    }
}

#[test]
fn gradients_agree_with_their_definition() {
    let mut dice = Dice(12_345);
    // Maps whose only columns, or rows and columns, lie between the taps: no output has seen them.
    let sparse = ConvConfig { kernel: (1, 1), stride: (2, 2), padding: (1, 1), dilation: (1, 1), groups: 1 };
    let unseen = |input: (usize, usize), output: (usize, usize)| ConvShape {
        batch: 2,
        in_channels: 3,
        out_channels: 2,
        input,
        output,
        config: sparse,
    };
    let mut shapes = vec![unseen((1, 1), (2, 2)), unseen((5, 1), (4, 2))];
    while shapes.len() < if cfg!(miri) { 3 } else { 150 } {
        shapes.extend(dice.shape());
    }
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = if cfg!(miri) { vec![pool(2)] } else { [2, 1, 7, 16].map(pool).into() };
    for ((seed, s), pool) in (1..).zip(&shapes).zip(pools.iter().cycle()) {
        let x = noise(s.batch * s.in_channels * s.input.0 * s.input.1, seed);
        let dy = noise(s.batch * s.out_channels * s.output.0 * s.output.1, seed + 1000);
        for per_sample in [false, true] {
            let kernels = noise(s.kernel_len() * if per_sample { s.batch } else { 1 }, seed + 2000);
            let (mut dx, mut dk) = (vec![0.0; x.len()], vec![0.0; kernels.len()]);
            products(s, per_sample, |kernel, pixel, output| {
                dk[kernel] += f64::from(x[pixel]) * f64::from(dy[output]);
                dx[pixel] += f64::from(kernels[kernel]) * f64::from(dy[output]);
            });
            let got = pool.install(|| conv2d_input_gradient(&dy, &kernels, s));
            assert_close(&got, &dx, &format!("input of {s:?}, {per_sample}"));
            for isa in available() {
                let got = pool.install(|| gradient_on(isa, &x, &dy, per_sample, s));
                assert_close(&got, &dk, &format!("kernels of {s:?}, {per_sample}, {}", isa.name()));
            }
        }
    }
}

/// More rows, channels and outputs than one task or piece takes; the same to the bit on any number of threads.
#[test]
fn gradients_of_many_tasks() {
    let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };
    let shape = |channels: (usize, usize), input: (usize, usize)| ConvShape {
        batch: 2,
        in_channels: channels.0,
        out_channels: channels.1,
        input,
        output: input,
        config,
    };
    for s in [shape((3, 130), (9, 7)), shape((90, 70), (5, 6)), shape((2, 5), (70, 41))] {
        let x = noise(s.batch * s.in_channels * s.input.0 * s.input.1, 1);
        let dy = noise(s.batch * s.out_channels * s.output.0 * s.output.1, 2);
        let mut dk = vec![0.0; s.kernel_len()];
        products(&s, false, |kernel, pixel, output| dk[kernel] += f64::from(x[pixel]) * f64::from(dy[output]));
        for isa in available() {
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| gradient_on(isa, &x, &dy, false, &s))
            };
            let got = on(1);
            assert_close(&got, &dk, &format!("{s:?}, {}", isa.name()));
            assert!(on(2) == got && on(5) == got, "{s:?}, {}", isa.name());
        }
    }
}

#[test]
fn nothing_in_gives_zeros_and_groups_that_do_not_divide_are_refused() {
    let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 2 };
    let shape = ConvShape { batch: 0, in_channels: 4, out_channels: 6, input: (5, 5), output: (5, 5), config };
    for isa in available() {
        assert_eq!(gradient_on(isa, &[], &[], false, &shape), vec![0.0; shape.kernel_len()]);
        assert!(gradient_on(isa, &[], &[], true, &shape).is_empty());
    }
    let shape = ConvShape { batch: 1, out_channels: 5, ..shape };
    let (x, dy, kernels) = (noise(4 * 25, 1), noise(5 * 25, 2), noise(shape.kernel_len(), 3));
    assert!(std::panic::catch_unwind(|| gradient_on(available()[0], &x, &dy, false, &shape)).is_err());
    assert!(std::panic::catch_unwind(|| conv2d_input_gradient(&dy, &kernels, &shape)).is_err());
}
