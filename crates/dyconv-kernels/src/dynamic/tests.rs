//! The fused operation against its steps, and what it refuses.

use candle_core::{DType, Device};

use super::*;
use crate::{BatchNorm, fold_batch_norm};

const THREE: ConvConfig = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };

fn wave(shape: &[usize], phase: f64) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i as f64 * 0.7 + phase).sin()) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The largest difference as a part of the largest value.
fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(1e-6f64, |max, v| max.max(v.abs()));
    let worst = got.iter().zip(&expected).map(|(g, e)| (g - e).abs());
    worst.fold(0.0f64, |max, d| if d.is_nan() { f64::INFINITY } else { max.max(d) }) / largest
}

fn double(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// In f64 the plain twin runs: every form of mixing, bias and epilogue, batches from one on, inputs that lie anyhow.
#[test]
fn fused_and_plain_agree() {
    let mut cases = 0;
    for (batch, channels, out, count, config) in [
        (1, 3, 5, 1, THREE),
        (3, 4, 6, 4, THREE),
        (2, 4, 4, 3, ConvConfig { groups: 4, ..THREE }),
        (2, 6, 8, 2, ConvConfig { groups: 2, stride: (2, 1), ..THREE }),
        (5, 7, 9, 4, ConvConfig { kernel: (1, 1), padding: (0, 0), ..THREE }),
    ] {
        let x = wave(&[batch, 9, 6, channels + 1], 0.1).permute((0, 3, 1, 2)).unwrap().narrow(1, 1, channels).unwrap();
        let values = out * channels / config.groups * config.kernel.0 * config.kernel.1;
        let experts = wave(&[values, count], 0.3).t().unwrap();
        let (weight, router_bias) = (wave(&[count, channels], 0.2), wave(&[count], 0.6));
        let (bias, scale, shift) = (wave(&[count, out], 0.8), wave(&[out], 0.4), wave(&[out], 0.9));
        for routing in [None, Some(Routing::Sigmoid), Some(Routing::Softmax { temperature: 3.0 })] {
            if routing.is_none() && count > 1 {
                continue;
            }
            for parts in 0..16 {
                let given = |bit: usize, t: &Tensor| (parts & bit != 0).then(|| t.clone());
                let run = |convert: &dyn Fn(&Tensor) -> Tensor| {
                    let (weight, router_bias) = (convert(&weight), convert(&router_bias));
                    let mixing = routing.map_or(Mixing::Single, |routing| Mixing::Router {
                        weight: &weight,
                        bias: &router_bias,
                        routing,
                    });
                    let [bias, scale, shift] =
                        [given(1, &bias), given(2, &scale), given(4, &shift)].map(|t| t.map(|t| convert(&t)));
                    let epilogue = Epilogue { scale: scale.as_ref(), shift: shift.as_ref(), silu: parts & 8 != 0 };
                    dynamic_conv2d(&convert(&x), mixing, &convert(&experts), bias.as_ref(), &epilogue, &config).unwrap()
                };
                let worst = difference(&run(&Tensor::clone), &run(&double));
                assert!(worst < 2e-6, "{config:?}, {routing:?}, parts {parts}: {worst:e}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, (5 * 2 + 1) * 16);
}

#[test]
fn empty_batches_and_single_pixels() {
    let (experts, r) = (wave(&[2, 5 * 3 * 9], 0.1), wave(&[0, 2], 0.0));
    let x = wave(&[0, 3, 4, 4], 0.0);
    let y = dynamic_conv2d(&x, Mixing::Weights(&r), &experts, None, &Epilogue::default(), &THREE).unwrap();
    assert_eq!(y.dims(), [0, 5, 4, 4]);
    let (weight, bias) = (wave(&[2, 3], 0.4), wave(&[2], 0.1));
    assert_eq!(route(&x, &weight, &bias, Routing::Sigmoid).unwrap().dims(), [0, 2]);
    let x = wave(&[2, 3, 1, 1], 0.2);
    let mixing = Mixing::Router { weight: &weight, bias: &bias, routing: Routing::Sigmoid };
    let y = dynamic_conv2d(&x, mixing, &experts, None, &Epilogue::default(), &THREE).unwrap();
    assert_eq!(y.dims(), [2, 5, 1, 1]);
}

#[test]
fn misfits_are_named() {
    let (x, experts, r) = (wave(&[2, 3, 5, 5], 0.1), wave(&[4, 54], 0.2), wave(&[2, 4], 0.3));
    let none = Epilogue::default();
    let short = wave(&[3], 0.0);
    let fails = |mixing, experts: &Tensor, bias: Option<&Tensor>, epilogue: &Epilogue<'_>, expected: &str| {
        let text = dynamic_conv2d(&x, mixing, experts, bias, epilogue, &THREE).unwrap_err().to_string();
        assert!(text.starts_with("dynamic_conv2d: ") && text.contains(expected), "{text}");
    };
    fails(Mixing::Single, &experts, None, &none, "`experts` must be one where nothing mixes them, it is 4");
    fails(
        Mixing::Weights(&r),
        &experts.narrow(0, 0, 3).unwrap(),
        None,
        &none,
        "`mixing` must be [B of `x`, K of `experts`] = [2, 3], it is [2, 4]",
    );
    fails(Mixing::Weights(&r), &short, None, &none, "`experts` must be [K, values], it is [3]");
    fails(
        Mixing::Weights(&r),
        &experts,
        Some(&short),
        &none,
        "`bias` must be [K of `experts`, output channels] = [4, 2], it is [3]",
    );
    let epilogue = Epilogue { scale: Some(&short), ..none };
    fails(Mixing::Weights(&r), &experts, None, &epilogue, "`scale` must be [output channels] = [2], it is [3]");
    fails(Mixing::Weights(&double(&r)), &experts, None, &none, "`mixing` must be f32 as `x`, it is f64");
    let integers = Tensor::zeros((2, 3, 5, 5), DType::U8, &Device::Cpu).unwrap();
    let text = route(&integers, &wave(&[4, 3], 0.0), &wave(&[4], 0.0), Routing::Sigmoid).unwrap_err().to_string();
    assert_eq!(text, "route: `x` must be of a floating type, it is u8");
    let text = route(&x, &wave(&[4, 3], 0.0), &wave(&[4], 0.0), Routing::Softmax { temperature: 0.0 }).unwrap_err();
    assert_eq!(text.to_string(), "route: `temperature` must be positive and finite, it is 0");
}

/// Folding changes no value: here with a bias, and weights that do not sum to one.
#[test]
fn batch_normalisation_folds_into_the_experts() {
    let x = wave(&[2, 3, 6, 5], 0.1);
    let (experts, r, bias) = (wave(&[4, 6, 3, 3, 3], 0.2), wave(&[2, 4], 0.3), wave(&[4, 6], 0.5));
    let var = (wave(&[6], 0.7).sqr().unwrap() + 0.1).unwrap();
    let (gamma, beta, mean) = (wave(&[6], 0.9), wave(&[6], 1.1), wave(&[6], 1.3));
    let norm = BatchNorm { weight: &gamma, bias: &beta, mean: &mean, var: &var, eps: 1e-3 };
    for bias in [None, Some(&bias)] {
        let mixing = Mixing::Weights(&r);
        let y = dynamic_conv2d(&x, mixing, &experts, bias, &Epilogue::default(), &THREE).unwrap();
        let (scale, shift) = norm.scale_shift().unwrap();
        let expected = scale_shift(&y, &scale, &shift).unwrap();
        let folded = fold_batch_norm(&experts, bias, &norm).unwrap();
        assert_eq!(folded.experts.dims(), experts.dims());
        let epilogue = Epilogue { shift: Some(&folded.shift), ..Epilogue::default() };
        let got = dynamic_conv2d(&x, mixing, &folded.experts, folded.bias.as_ref(), &epilogue, &THREE).unwrap();
        let worst = difference(&got, &expected);
        assert!(worst < 1e-6, "{worst:e}");
    }
    let text = fold_batch_norm(&wave(&[4, 25], 0.0), None, &norm).unwrap_err().to_string();
    assert_eq!(text, "fold_batch_norm: `experts` must be [K, ...] with kernels of 6 channels, it is [4, 25]");
}
