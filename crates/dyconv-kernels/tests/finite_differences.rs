//! Every gradient against central differences in f64, and the gradients of the kernels in f32 against those in f64.

use candle_core::{DType, Device, Tensor, Var};
use dyconv_kernels::{
    ConvConfig, Epilogue, Mixing, Result, Routing, batch_norm_training, conv_transpose2d, conv2d, conv2d_per_sample,
    dynamic_conv2d, max_pool2d, mix_experts, route, scale_shift, sigmoid, silu, upsample_nearest2d,
};

/// Half the distance of a difference. Its own error grows with the square, that of rounding with the inverse.
const STEP: f64 = 1e-5;
/// Of the largest value of a gradient: STEP squared, times a third derivative.
const DIFFERENCES: f64 = 1e-7;
/// Of the largest value of a gradient: sums of some hundred terms in f32.
const SINGLE: f64 = 1e-5;

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// Values from -1 to 1 that look random: those of a regular wave would cancel in sums, and leave little but rounding.
fn noise(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
    };
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A sum in which every value has its own weight.
fn loss(y: &Tensor) -> Tensor {
    let weights = noise(y.dims(), 9).to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

/// The gradient for each input, by the operation's own backward pass.
fn gradients(inputs: &[Tensor], dtype: DType, operation: Operation<'_>) -> Vec<Vec<f64>> {
    let inputs: Vec<_> = inputs.iter().map(|t| Var::from_tensor(&t.to_dtype(dtype).unwrap()).unwrap()).collect();
    let tensors: Vec<_> = inputs.iter().map(|input| input.as_tensor().clone()).collect();
    let store = loss(&operation(&tensors).unwrap()).backward().unwrap();
    inputs.iter().map(|input| values(store.get(input).unwrap())).collect()
}

/// The gradient for input number `which`, by moving one value after the other.
fn differences(inputs: &[Tensor], which: usize, operation: Operation<'_>) -> Vec<f64> {
    let start = values(&inputs[which]);
    let at = |i: usize, step: f64| {
        let mut moved = start.clone();
        moved[i] += step;
        let mut inputs = inputs.to_vec();
        inputs[which] = Tensor::from_vec(moved, inputs[which].dims(), &Device::Cpu).unwrap();
        loss(&operation(&inputs).unwrap()).to_scalar::<f64>().unwrap()
    };
    (0..start.len()).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
}

/// The largest difference as a part of the largest value.
fn error(got: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let largest = expected.iter().fold(1e-3, |max, v| f64::max(max, v.abs()));
    let errors = got.iter().zip(expected).map(|(g, e)| (g - e).abs() / largest);
    errors.fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { f64::max(worst, e) })
}

/// Holds an operation's gradients for `inputs`, which are of f64, to the differences, and those of f32 to these.
fn check(what: &str, inputs: &[Tensor], operation: Operation<'_>) {
    let double = gradients(inputs, DType::F64, operation);
    let single = gradients(inputs, DType::F32, operation);
    for (i, (double, single)) in double.iter().zip(&single).enumerate() {
        let worst = error(double, &differences(inputs, i, operation));
        assert!(worst < DIFFERENCES, "{what}, input {i}: {worst:.1e} from the differences");
        let worst = error(single, double);
        assert!(worst < SINGLE, "{what}, input {i}: {worst:.1e} between f32 and f64");
    }
}

const ONE: ConvConfig = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };

/// The map, the channels written, and the convolution.
fn convolutions() -> Vec<([usize; 4], usize, ConvConfig)> {
    let three = ConvConfig { kernel: (3, 3), padding: (1, 1), ..ONE };
    vec![
        ([1, 3, 4, 5], 2, ONE),
        ([2, 4, 3, 5], 6, ConvConfig { groups: 2, stride: (2, 1), ..ONE }),
        ([2, 2, 5, 4], 3, three),
        ([3, 1, 1, 1], 1, three),
        ([2, 3, 1, 7], 2, three),
        ([2, 3, 6, 1], 2, ConvConfig { stride: (2, 2), ..three }),
        ([1, 2, 7, 5], 2, ConvConfig { dilation: (2, 2), padding: (2, 2), ..three }),
        ([2, 2, 6, 7], 2, ConvConfig { dilation: (1, 2), stride: (2, 2), padding: (0, 2), ..three }),
        ([1, 4, 5, 6], 2, ConvConfig { kernel: (2, 3), padding: (1, 0), groups: 2, ..ONE }),
        ([3, 2, 4, 7], 4, ConvConfig { kernel: (1, 5), padding: (0, 2), stride: (1, 3), groups: 2, ..ONE }),
        ([2, 3, 5, 5], 3, ConvConfig { groups: 3, ..three }),
        ([1, 4, 7, 6], 4, ConvConfig { kernel: (5, 5), padding: (2, 2), stride: (2, 2), groups: 4, ..ONE }),
        ([2, 2, 7, 9], 2, ConvConfig { kernel: (3, 1), dilation: (2, 1), stride: (2, 3), groups: 2, ..ONE }),
        // One channel read by two, which is depthwise in groups only.
        ([2, 2, 4, 5], 4, ConvConfig { groups: 2, ..three }),
        // Padding beyond the kernel: rows of zeros.
        ([1, 2, 3, 4], 2, ConvConfig { padding: (3, 2), stride: (2, 2), ..three }),
    ]
}

fn kernel_len(channels: usize, out: usize, config: &ConvConfig) -> usize {
    out * (channels / config.groups) * config.kernel.0 * config.kernel.1
}

#[test]
fn functions_of_one_value() {
    for shape in [vec![3, 2, 1, 5], vec![1, 1, 7, 1], vec![17]] {
        let x = (noise(&shape, 3) * 4.0).unwrap();
        check("sigmoid", std::slice::from_ref(&x), &|t| sigmoid(&t[0]));
        check("silu", &[x], &|t| silu(&t[0]));
    }
}

/// The result, and the statistics with a loss of their own weights: nothing flows through these.
#[test]
fn batch_normalisation() {
    for shape in [[2, 3, 4, 5], [1, 1, 1, 7], [3, 5, 2, 1], [2, 2, 9, 7], [5, 1, 1, 1]] {
        let inputs = [(noise(&shape, 1) * 2.0).unwrap(), noise(&[shape[1]], 4), noise(&[shape[1]], 7)];
        for silu in [false, true] {
            check("batch_norm_training", &inputs, &|t| Ok(batch_norm_training(&t[0], &t[1], &t[2], 1e-3, silu)?.y));
        }
    }
    // Read through strides, and in parts that are longer than what is added up side by side.
    let inputs = [noise(&[3, 7, 11, 2], 1), noise(&[2], 4), noise(&[2], 7)];
    check("batch_norm_training of a view", &inputs, &|t| {
        Ok(batch_norm_training(&t[0].permute((0, 3, 1, 2))?, &t[1], &t[2], 1e-3, true)?.y)
    });
}

#[test]
fn scale_and_shift() {
    for shape in [[2, 3, 4, 5], [1, 1, 1, 7], [3, 5, 2, 1]] {
        let inputs = [noise(&shape, 1), noise(&[shape[1]], 4), noise(&[shape[1]], 7)];
        check("scale_shift", &inputs, &|t| scale_shift(&t[0], &t[1], &t[2]));
    }
}

#[test]
fn routing() {
    for (shape, experts) in [([2, 5, 3, 4], 4), ([1, 3, 1, 7], 1), ([3, 1, 6, 1], 2), ([2, 7, 1, 1], 3)] {
        let inputs = [noise(&shape, 1), noise(&[experts, shape[1]], 4), noise(&[experts], 7)];
        for routing in [
            Routing::Sigmoid,
            Routing::Softmax { temperature: 1.0 },
            Routing::Softmax { temperature: 0.3 },
            Routing::Softmax { temperature: 30.0 },
        ] {
            let what = format!("route of {shape:?} to {experts} experts by {routing:?}");
            check(&what, &inputs, &|t| route(&t[0], &t[1], &t[2], routing));
        }
    }
}

#[test]
fn mixing() {
    for (batch, experts, values) in [(1, 1, 5), (3, 4, 7), (2, 1, 17), (1, 3, 1)] {
        let inputs = [noise(&[batch, experts], 2), noise(&[experts, values], 5)];
        check(&format!("mix_experts of {experts} for {batch}"), &inputs, &|t| mix_experts(&t[0], &t[1]));
    }
}

#[test]
fn convolution() {
    for (shape, out, config) in convolutions() {
        let channels = shape[1];
        let x = noise(&shape, 1);
        let own = noise(&[shape[0], kernel_len(channels, out, &config)], 5);
        let what = format!("{config:?} of {shape:?} to {out} channels");
        check(&format!("conv2d_per_sample, {what}"), &[x.clone(), own], &|t| conv2d_per_sample(&t[0], &t[1], &config));
        let shared = noise(&[out, channels / config.groups, config.kernel.0, config.kernel.1], 5);
        check(&format!("conv2d, {what}"), &[x, shared], &|t| conv2d(&t[0], &t[1], &config));
    }
}

#[test]
fn transposed_convolution() {
    for (shape, out, config) in convolutions() {
        let channels = shape[1];
        for output_padding in [0, config.stride.0.min(config.stride.1) - 1] {
            let x = noise(&shape, 1);
            let weight = noise(&[channels, out / config.groups, config.kernel.0, config.kernel.1], 5);
            let what = format!("conv_transpose2d, {config:?} of {shape:?} to {out} channels");
            let operation = |t: &[Tensor]| conv_transpose2d(&t[0], &t[1], &config, output_padding);
            // Much padding cuts small maps away.
            if operation(&[x.clone(), weight.clone()]).is_ok() {
                check(&what, &[x, weight], &operation);
            }
        }
    }
}

/// The whole of it, from the map to the result, through both routings.
#[test]
fn dynamic_convolution() {
    for (i, (shape, out, config)) in convolutions().into_iter().enumerate() {
        let channels = shape[1];
        let experts = [1, 3, 4][i % 3];
        let inputs = [
            noise(&shape, 1),
            noise(&[experts, channels], 4),
            noise(&[experts], 7),
            noise(&[experts, kernel_len(channels, out, &config)], 5),
            noise(&[experts, out], 2),
            noise(&[out], 3),
            noise(&[out], 8),
        ];
        for (routing, parts) in
            [(Routing::Sigmoid, 4), (Routing::Softmax { temperature: 2.0 }, 5), (Routing::Sigmoid, 7)]
        {
            let what =
                format!("dynamic_conv2d, {config:?} of {shape:?}, {experts} experts, {routing:?}, {parts} inputs");
            check(&what, &inputs[..parts], &|t| {
                let mixing = Mixing::Router { weight: &t[1], bias: &t[2], routing };
                let epilogue = Epilogue { scale: t.get(5), shift: t.get(6), silu: t.len() > 5 };
                dynamic_conv2d(&t[0], mixing, &t[3], t.get(4), &epilogue, &config)
            });
        }
    }
}

#[test]
fn pooling() {
    for (shape, kernel, stride, padding) in [
        ([2, 3, 5, 6], (5, 5), (1, 1), (2, 2)),
        ([1, 2, 7, 4], (2, 2), (2, 2), (0, 0)),
        ([3, 1, 1, 9], (3, 3), (2, 2), (1, 1)),
        ([1, 2, 8, 1], (3, 2), (3, 1), (0, 1)),
        ([1, 1, 1, 1], (13, 13), (1, 1), (6, 6)),
        ([2, 2, 7, 9], (2, 4), (1, 2), (1, 3)),
    ] {
        let what = format!("max_pool2d of {shape:?} by {kernel:?}, {stride:?}, {padding:?}");
        check(&what, &[noise(&shape, 1)], &|t| max_pool2d(&t[0], kernel, stride, padding));
    }
}

/// Also where the map is read once more, as a network does that joins the enlarged map to another.
#[test]
fn upsampling() {
    for (shape, factor) in
        [([2, 3, 3, 5], (2, 2)), ([1, 2, 1, 7], (3, 1)), ([3, 1, 5, 1], (1, 4)), ([1, 1, 1, 1], (2, 2))]
    {
        let x = noise(&shape, 1);
        check("upsample_nearest2d", std::slice::from_ref(&x), &|t| upsample_nearest2d(&t[0], factor));
        check("upsample_nearest2d, and another reader", &[x], &|t| {
            let enlarged = upsample_nearest2d(&t[0].sqr()?, factor)?;
            let other = upsample_nearest2d(&enlarged.sin()?, (1, 1))?;
            Ok(Tensor::cat(&[&enlarged, &other, &enlarged.sqr()?], 1)?)
        });
    }
}

/// Pools in a row that share their inputs, joined at the end: SPPF.
#[test]
fn pools_in_a_row() {
    check("sppf", &[noise(&[2, 2, 4, 5], 1)], &|t| {
        let pool = |x: &Tensor| max_pool2d(x, (5, 5), (1, 1), (2, 2));
        let (x, first) = (&t[0], pool(&t[0])?);
        let second = pool(&first)?;
        Ok(Tensor::cat(&[x, &first, &second, &pool(&second)?], 1)?)
    });
}
