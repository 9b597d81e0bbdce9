//! The operation against its plain twin: values, and gradients by the twin's own and by finite differences.

use candle_core::{DType, Device, Var};

use super::*;

fn wave(shape: &[usize], phase: f64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i as f64 * 0.7 + phase).sin()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The largest difference as a part of the largest value.
fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(1e-6f32, |max, v| max.max(v.abs()));
    let worst = got.iter().zip(&expected).map(|(g, e)| (g - e).abs());
    worst.fold(0.0f32, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) }) / largest
}

fn configs() -> Vec<(usize, usize, ConvConfig)> {
    let one = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
    vec![
        (4, 6, one),
        (4, 6, ConvConfig { stride: (2, 3), ..one }),
        (3, 8, ConvConfig { kernel: (3, 3), padding: (1, 1), ..one }),
        (3, 5, ConvConfig { kernel: (3, 3), padding: (1, 1), stride: (2, 2), ..one }),
        (4, 4, ConvConfig { kernel: (3, 3), padding: (1, 1), groups: 4, ..one }),
        (4, 4, ConvConfig { kernel: (5, 5), padding: (2, 2), groups: 4, stride: (2, 2), ..one }),
        (4, 8, ConvConfig { kernel: (1, 5), padding: (0, 2), stride: (1, 3), groups: 2, ..one }),
        (6, 3, ConvConfig { kernel: (5, 3), padding: (5, 0), dilation: (2, 2), groups: 3, stride: (3, 2) }),
    ]
}

#[test]
fn values_and_gradients_agree_with_the_twin() {
    for (channels, out, config) in configs() {
        let values = out * (channels / config.groups) * config.kernel.0 * config.kernel.1;
        for sets in [3, 1] {
            let run = |convolve: &dyn Fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>| {
                let (x, k) = (
                    Var::from_tensor(&wave(&[3, channels, 7, 9], 0.1)).unwrap(),
                    Var::from_tensor(&wave(&[sets, values], 0.5)).unwrap(),
                );
                let y = convolve(x.as_tensor(), k.as_tensor()).unwrap();
                // A gradient that differs at every value.
                let gradients = (&y * wave(y.dims(), 0.9)).unwrap().sum_all().unwrap().backward().unwrap();
                (y, gradients.get(&x).unwrap().clone(), gradients.get(&k).unwrap().clone())
            };
            let ours = run(&|x, k| convolve_any(x, k, &config));
            let twin = run(&|x, k| reference::convolve(x, k, &config));
            for (what, ours, twin) in [("y", &ours.0, &twin.0), ("dx", &ours.1, &twin.1), ("dk", &ours.2, &twin.2)] {
                let worst = difference(ours, twin);
                assert!(worst < 3e-6, "{what} of {config:?}, {sets} sets: {worst:e}");
            }
        }
    }
}

#[test]
fn strided_and_offset_inputs() {
    let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };
    let x = wave(&[3, 9, 7, 5], 0.2).narrow(0, 1, 2).unwrap().permute((0, 3, 1, 2)).unwrap();
    let kernels = wave(&[5 * 4 * 9, 3], 0.4).t().unwrap().narrow(0, 1, 2).unwrap();
    let got = conv2d_per_sample(&x, &kernels, &config).unwrap();
    let expected =
        reference::conv2d_per_sample(&x.contiguous().unwrap(), &kernels.contiguous().unwrap(), &config).unwrap();
    assert!(difference(&got, &expected) < 1e-6);
}

#[test]
fn misfits_are_named() {
    let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let x = zeros(&[2, 3, 5, 5]);
    let doubles = zeros(&[2, 27]).to_dtype(DType::F64).unwrap();
    for (outcome, expected) in [
        (
            conv2d_per_sample(&x, &zeros(&[3, 27]), &config),
            "`kernels` must be [2, values], a row a sample, it is [3, 27]",
        ),
        (
            conv2d(&zeros(&[1, 4, 5, 5]), &zeros(&[3, 2, 3, 3]), &ConvConfig { groups: 2, ..config }),
            "conv2d: `weight` must be [a multiple of 2 groups, 2, 3, 3], it is [3, 2, 3, 3]",
        ),
        (conv2d_per_sample(&x, &zeros(&[2, 28]), &config), "`kernels` must be of a multiple of 27 values a sample"),
        (conv2d_per_sample(&x, &zeros(&[2, 3, 9]), &config), "`kernels` must be [B, values], it is [2, 3, 9]"),
        (conv2d_per_sample(&zeros(&[3, 5, 5]), &zeros(&[3, 27]), &config), "`x` must be [B, C, H, W], it is [3, 5, 5]"),
        (conv2d_per_sample(&x, &doubles, &config), "`kernels` must be f32 as `x`, it is f64"),
        (
            conv2d_per_sample(&x, &zeros(&[2, 27]), &ConvConfig { groups: 2, ..config }),
            "`x` must be [B, channels in 2 groups, H, W], it is [2, 3, 5, 5]: 3 channels do not divide",
        ),
        (conv2d_per_sample(&x, &zeros(&[2, 27]), &ConvConfig { stride: (0, 1), ..config }), "of at least 1"),
        (
            conv2d_per_sample(&x, &zeros(&[2, 27]), &ConvConfig { dilation: (usize::MAX, 1), ..config }),
            "`x` must be a map that a window of (3, 3) fits into",
        ),
        (conv2d_per_sample(&zeros(&[2, 3, 2, 5]), &zeros(&[2, 27]), &config), "it is of 2x5 pixels"),
        (conv2d(&x, &zeros(&[4, 2, 3, 3]), &config), "`weight` must be [out, 3 / 1 groups, 3, 3], it is [4, 2, 3, 3]"),
        (conv_transpose2d(&x, &zeros(&[4, 2, 3, 3]), &config, 0), "`weight` must be [3, out / 1 groups, 3, 3]"),
        (conv_transpose2d(&x, &zeros(&[3, 2, 3, 3]), &config, 1), "`output_padding` must be at most 0"),
        (
            conv_transpose2d(&x, &zeros(&[3, 2, 3, 3]), &ConvConfig { stride: (1, 0), ..config }, 0),
            "`config` must be strides and dilations of at least 1",
        ),
    ] {
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn an_empty_batch_is_empty() {
    let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };
    let (x, k) = (wave(&[0, 3, 5, 5], 0.0), wave(&[0, 54], 0.0));
    assert_eq!(conv2d_per_sample(&x, &k, &config).unwrap().dims(), [0, 2, 5, 5]);
}
