//! Every instruction set of this machine against the definition in f64.

use super::conformance::{machine_has, noise};
use super::*;
use crate::{ConvConfig, Routing};

/// Values that differ everywhere and need no random numbers.
fn wave(count: usize, phase: f32) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7 + phase).sin()).collect()
}

fn shape(batch: usize, channels: (usize, usize), input: (usize, usize), config: ConvConfig) -> Option<ConvShape> {
    let axis = |size: usize, k: usize, s: usize, p: usize, d: usize| {
        Some((size + 2 * p).checked_sub(d * (k - 1) + 1)? / s + 1)
    };
    let output = (
        axis(input.0, config.kernel.0, config.stride.0, config.padding.0, config.dilation.0)?,
        axis(input.1, config.kernel.1, config.stride.1, config.padding.1, config.dilation.1)?,
    );
    Some(ConvShape { batch, in_channels: channels.0, out_channels: channels.1, input, output, config })
}

/// The definition: eight nested loops.
fn definition(x: &[f32], kernels: &[f32], s: &ConvShape) -> Vec<f64> {
    let c = s.config;
    let (per_group, out_group) = (s.in_channels / c.groups, s.out_channels / c.groups);
    let mut y = Vec::new();
    for b in 0..s.batch {
        let kernels =
            if kernels.len() == s.kernel_len() { kernels } else { &kernels[b * s.kernel_len()..][..s.kernel_len()] };
        for o in 0..s.out_channels {
            for (i, j) in (0..s.output.0).flat_map(|i| (0..s.output.1).map(move |j| (i, j))) {
                let mut sum = 0.0;
                for ci in 0..per_group {
                    for (ky, kx) in (0..c.kernel.0).flat_map(|ky| (0..c.kernel.1).map(move |kx| (ky, kx))) {
                        let row = (i * c.stride.0 + ky * c.dilation.0).wrapping_sub(c.padding.0);
                        let column = (j * c.stride.1 + kx * c.dilation.1).wrapping_sub(c.padding.1);
                        if row < s.input.0 && column < s.input.1 {
                            let kernel = kernels[((o * per_group + ci) * c.kernel.0 + ky) * c.kernel.1 + kx];
                            let channel = b * s.in_channels + o / out_group * per_group + ci;
                            let pixel = x[(channel * s.input.0 + row) * s.input.1 + column];
                            sum += f64::from(kernel) * f64::from(pixel);
                        }
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

/// Worst error over the largest value, on every instruction set of this machine.
fn check(s: &ConvShape, per_sample: bool) -> Result<(), String> {
    let x = wave(s.batch * s.in_channels * s.input.0 * s.input.1, 0.1);
    let kernels = wave(s.kernel_len() * if per_sample { s.batch } else { 1 }, 0.5);
    let expected = definition(&x, &kernels, s);
    let largest = expected.iter().fold(1e-3f64, |max, v| max.max(v.abs()));
    for isa in available() {
        let mut y = vec![f32::NAN; expected.len()];
        let kernels = if per_sample { Kernels::PerSample(&kernels) } else { Kernels::Shared(&kernels) };
        conv2d_on(isa, &x, &kernels, &Epilogue::default(), &mut y, s);
        for (got, expected) in y.iter().zip(&expected) {
            let error = (f64::from(*got) - expected).abs();
            // A sum of n terms in f32 errs by less than n * 2^-24 of the sum of their sizes; far less in practice.
            if error.is_nan() || error > 2e-6 * largest.max(s.taps() as f64 * 0.1) {
                return Err(format!("{}: {got} instead of {expected} for {s:?}, per sample {per_sample}", isa.name()));
            }
        }
    }
    Ok(())
}

const ONE: ConvConfig = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };

/// Sizes just below, at and just above those of tiles, panels and blocks.
#[test]
fn sizes_around_the_tiles() {
    let three = ConvConfig { kernel: (3, 3), padding: (1, 1), ..ONE };
    let mut failures = Vec::new();
    for out in [1, 3, 4, 5, 6, 7, 13, 14, 15, 29] {
        for size in [(1, 1), (1, 15), (3, 5), (4, 4), (1, 17), (3, 11), (8, 8), (5, 13), (17, 17)] {
            for (channels, config) in [(1, ONE), (5, ONE), (3, three), (33, three)] {
                failures.extend(check(&shape(2, (channels, out), size, config).unwrap(), true).err());
            }
        }
    }
    // More taps than one chunk and than two, in whole tiles and in parts of them, in place and copied.
    for size in [(5, 7), (4, 16), (3, 37)] {
        failures.extend(check(&shape(1, (1300, 9), size, ONE).unwrap(), false).err());
        failures.extend(check(&shape(2, (150, 9), size, three).unwrap(), true).err());
    }
    // More pixels than a piece.
    failures.extend(check(&shape(1, (2, 3), (40, 33), three).unwrap(), false).err());
    assert!(failures.is_empty(), "{} failures, such as {:#?}", failures.len(), &failures[..failures.len().min(3)]);
}

/// Experts that are read once for several samples of a thread, with weights given and with a router.
#[test]
fn threads_take_several_samples() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // By Winograd's algorithm in groups of up to four samples.
    let three = ConvConfig { kernel: (3, 3), padding: (1, 1), ..ONE };
    for (config, batch, channels, size) in [
        (ONE, 4, (5, 9), (3, 11)),
        (ONE, 6, (3, 30), (5, 10)),
        (ONE, 7, (4, 17), (7, 7)),
        (three, 5, (33, 50), (13, 12)),
        (three, 7, (40, 48), (12, 12)),
        (three, 4, (40, 48), (12, 12)),
    ] {
        let s = shape(batch, channels, size, config).unwrap();
        let bound = 2e-6 * (s.kernel_len() / channels.1) as f64;
        let (x, experts) = (wave(batch * channels.0 * size.0 * size.1, 0.1), wave(3 * s.kernel_len(), 0.5));
        let router = Router { weight: &wave(3 * channels.0, 0.3), bias: &[0.1, -0.2, 0.3], routing: Routing::Sigmoid };
        let mut weights = vec![0.0; batch * 3];
        route(&x, router.weight, router.bias, router.routing, &mut weights, channels.0);
        let mixed = |r: &[f32]| -> Vec<f32> {
            let value = |i: usize| (0..3).map(|e| r[e] * experts[e * s.kernel_len() + i]).sum();
            (0..s.kernel_len()).map(value).collect()
        };
        let kernels: Vec<f32> = weights.chunks_exact(3).flat_map(mixed).collect();
        let expected = definition(&x, &kernels, &s);
        for isa in available() {
            let given = Kernels::Mixed { weights: &weights, experts: &experts };
            for kernels in [given, Kernels::Routed { router, experts: &experts }] {
                let mut y = vec![f32::NAN; expected.len()];
                pool.install(|| conv2d_on(isa, &x, &kernels, &Epilogue::default(), &mut y, &s));
                let near = y.iter().zip(&expected).all(|(y, expected)| (f64::from(*y) - expected).abs() < bound);
                assert!(near, "{}: {s:?}", isa.name());
            }
        }
    }
}

#[test]
fn the_widest_set_is_chosen() {
    let widest = [IsaName::Avx512, IsaName::Avx2, IsaName::Neon, IsaName::Scalar];
    let has: Vec<_> = widest.into_iter().filter(|isa| machine_has(*isa)).collect();
    assert_eq!(available(), has);
    let forced = std::env::var("DYCONV_ISA").unwrap_or_default();
    assert_eq!(chosen(), has.iter().find(|isa| isa.name() == forced).copied().unwrap_or(has[0]));
}

/// Whoever comes takes part: no number of threads leaves one without its share of rows, blocks or samples, or with too much.
#[test]
fn any_number_of_threads() {
    let five = ConvConfig { kernel: (5, 5), padding: (2, 2), ..ONE };
    let two = ConvConfig { kernel: (3, 3), stride: (2, 2), padding: (1, 1), ..ONE };
    let most = if cfg!(miri) { 3 } else { 17 };
    for threads in 1..=most {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for (channels, size, config) in [
            ((3, 40), (4, 5), ONE),
            ((2, 130), (3, 3), ONE),
            ((3, 40), (2, 2), five),
            ((2, 130), (1, 3), five),
            ((3, 40), (4, 4), two),
            ((6, 90), (3, 3), ConvConfig { groups: 3, ..two }),
        ] {
            for batch in [1, 2, 5] {
                let s = shape(batch, channels, size, config).unwrap();
                pool.install(|| check(&s, batch > 1)).unwrap_or_else(|problem| panic!("{threads} threads: {problem}"));
                let (len, x) = (s.kernel_len(), wave(batch * channels.0 * size.0 * size.1, 0.1));
                let (experts, weight) = (wave(2 * len, 0.5), wave(2 * channels.0, 0.3));
                let router = Router { weight: &weight, bias: &[0.1, -0.2], routing: Routing::Sigmoid };
                let mut weights = vec![0.0; batch * 2];
                route(&x, &weight, router.bias, router.routing, &mut weights, channels.0);
                let of = |kernels| pool.install(|| conv2d_new(&x, &kernels, &Epilogue::default(), &s));
                let given = of(Kernels::Mixed { weights: &weights, experts: &experts });
                let routed = of(Kernels::Routed { router, experts: &experts });
                let near = given.iter().zip(&routed).all(|(a, b)| (a - b).abs() < 1e-5 * s.taps() as f32);
                assert!(near, "{threads} threads: {s:?}");
            }
        }
    }
}

/// Callers that are tasks of the pool themselves, as of a server that starts one a request: a thread that waits for its own
/// tasks takes up another call meanwhile.
#[test]
fn calls_within_calls() {
    let (calls, channels, pixels) = if cfg!(miri) { (4, 2, 5) } else { (1000, 32, 24) };
    let call = move |index: usize| {
        let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };
        let s = ConvShape {
            batch: 2,
            in_channels: channels,
            out_channels: channels,
            input: (pixels, pixels),
            output: (pixels, pixels),
            // Ordinary, and depthwise.
            config: ConvConfig { groups: [1, channels][index % 2], ..config },
        };
        let x = noise(2 * channels * pixels * pixels, 1);
        let (weight, experts) = (noise(3 * channels, 2), noise(3 * s.kernel_len(), 3));
        let mut r = vec![0.0; 6];
        super::route(&x, &weight, &[0.1, 0.2, 0.3], Routing::Sigmoid, &mut r, channels);
        let mut y = vec![0.0; x.len()];
        let mixed = Kernels::Mixed { weights: &r, experts: &experts };
        conv2d(&x, &mixed, &Epilogue::default(), &mut y, &s);
        y
    };
    let alone = [call(0), call(1)];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
    let (sender, results) = std::sync::mpsc::channel();
    for index in 0..calls {
        let sender = sender.clone();
        // A panic would end the process and name nothing; so would one for a test that has failed and listens no more.
        pool.spawn(move || drop(sender.send((index, std::panic::catch_unwind(|| call(index))))));
        if index % 3 == 0 {
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
    drop(sender);
    for (index, result) in results {
        assert!(result.is_ok_and(|y| y == alone[index % 2]), "call {index}");
    }
}
