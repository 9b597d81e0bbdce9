//! The operations in plain Candle: right on every device, differentiable, and the oracle for any faster form.

use candle_core::{DType, Result, Tensor, bail};

use crate::{ConvConfig, Normalised, Routing};

/// Routing weights of each sample: global average pool, linear layer, activation.
///
/// # Shapes
/// `x` is `[B, C, H, W]`, `weight` `[K, C]`, `bias` `[K]`; the result is `[B, K]`.
///
/// # Errors
/// Where the shapes do not fit.
pub fn route(x: &Tensor, weight: &Tensor, bias: &Tensor, routing: Routing) -> Result<Tensor> {
    let (_, channels, _, _) = x.dims4()?;
    let (_, features) = weight.dims2()?;
    if channels != features {
        bail!("route: `weight` takes {features} channels, `x` has {channels}");
    }
    let pooled = average(x)?;
    Ok(routing.activate(&pooled.matmul(&weight.t()?)?.broadcast_add(bias)?)?)
}

/// The average of each map, `[B, C]`. Halves are summed in f32: of their own sums, those of bf16 would stay at 256 ones, and those of
/// f16 end at 65504.
///
/// # Errors
/// Where `x` is not `[B, C, H, W]`.
pub fn average(x: &Tensor) -> Result<Tensor> {
    if is_half(x) { x.to_dtype(DType::F32)?.mean((2, 3))?.to_dtype(x.dtype()) } else { x.mean((2, 3)) }
}

fn is_half(x: &Tensor) -> bool {
    matches!(x.dtype(), DType::F16 | DType::BF16)
}

/// Each sample's mixture of the experts: `sum_k r[b, k] * experts[k]`.
///
/// # Shapes
/// `r` is `[B, K]`, `experts` `[K, P]`; the result is `[B, P]`.
///
/// # Errors
/// Where the shapes do not fit.
pub fn mix_experts(r: &Tensor, experts: &Tensor) -> Result<Tensor> {
    r.matmul(experts)
}

/// Batch normalisation by the batch's own statistics, and SiLU behind it where wanted; as
/// [`batch_norm_training`](crate::batch_norm_training).
///
/// # Errors
/// Where the shapes do not fit.
pub fn batch_norm_training(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, silu: bool) -> Result<Normalised> {
    if is_half(x) {
        let [wide, weight, bias] = [x, weight, bias].map(|t| t.to_dtype(DType::F32));
        let Normalised { y, mean, var } = batch_norm_training(&wide?, &weight?, &bias?, eps, silu)?;
        let [y, mean, var] = [y, mean, var].map(|t| t.to_dtype(x.dtype()));
        return Ok(Normalised { y: y?, mean: mean?, var: var? });
    }
    let (batch, channels, height, width) = x.dims4()?;
    let n = (batch * height * width) as f64;
    let mean = x.mean_keepdim((0, 2, 3))?;
    let centred = x.broadcast_sub(&mean)?;
    let var = centred.sqr()?.mean_keepdim((0, 2, 3))?;
    let per_channel = |t: &Tensor| t.reshape((1, channels, 1, 1));
    let scale = (per_channel(weight)? / (&var + eps)?.sqrt()?)?;
    let y = centred.broadcast_mul(&scale)?.broadcast_add(&per_channel(bias)?)?;
    Ok(Normalised {
        y: if silu { y.silu()? } else { y },
        mean: mean.detach().flatten_all()?,
        var: (var.detach().flatten_all()? * (n / (n - 1.0)))?,
    })
}

/// Convolution of each sample with its own kernels.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `kernels` `[B, Cout * (Cin / groups) * kh * kw]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// Where the shapes do not fit, or the window does not fit into the padded map.
pub fn conv2d_per_sample(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (batch, _) = kernels.dims2()?;
    if batch != x.dim(0)? {
        bail!("conv2d_per_sample: `kernels` has {batch} samples, `x` has {}", x.dim(0)?);
    }
    convolve(x, kernels, config)
}

/// Convolution of all samples with the same kernels, in groups, without a loop over them.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `weight` `[Cout, Cin / groups, kh, kw]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// Where the shapes do not fit, or the window does not fit into the padded map.
pub fn conv2d_grouped(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let kernels = weight.flatten_all()?.unsqueeze(0)?;
    convolve(x, &kernels, config)
}

/// `kernels` is `[B, values]` or `[1, values]`.
pub(crate) fn convolve(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (batch, channels, ..) = x.dims4()?;
    let (_, values) = kernels.dims2()?;
    let groups = config.groups;
    if groups == 0 || channels % groups != 0 {
        bail!("convolution: {channels} channels do not divide by {groups} groups");
    }
    let taps = channels / groups * config.kernel.0 * config.kernel.1;
    if taps == 0 || !values.is_multiple_of(taps * groups) {
        bail!("convolution: {values} kernel values are no multiple of {taps} taps in {groups} groups");
    }
    let out_channels = values / taps;
    let (columns, height, width) = im2col(x, config)?;
    let columns = columns.reshape((batch, groups, taps, height * width))?;
    let kernels = kernels.reshape((kernels.dim(0)?, groups, out_channels / groups, taps))?;
    let y = if kernels.dim(0)? == batch { kernels.matmul(&columns)? } else { kernels.broadcast_matmul(&columns)? };
    y.reshape((batch, out_channels, height, width))
}

/// The pixels under each tap of the window, `[B, C, kh * kw, H' * W']`, with H' and W'.
pub(crate) fn im2col(x: &Tensor, config: &ConvConfig) -> Result<(Tensor, usize, usize)> {
    let (batch, channels, height, width) = x.dims4()?;
    let ConvConfig { kernel, stride, padding, dilation, .. } = *config;
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        let window = dilation * (kernel.max(1) - 1) + 1;
        (size + 2 * padding).checked_sub(window).map(|room| room / stride.max(1) + 1)
    };
    let (Some(out_height), Some(out_width)) = (
        axis(height, kernel.0, stride.0, padding.0, dilation.0),
        axis(width, kernel.1, stride.1, padding.1, dilation.1),
    ) else {
        bail!("convolution: a window of {kernel:?} does not fit into a map of {height}x{width}");
    };
    if kernel == (1, 1) && stride == (1, 1) && padding == (0, 0) {
        return Ok((x.reshape((batch, channels, 1, height * width))?, height, width));
    }
    // Room on the far side so that every tap can be cut out as whole strides.
    let x = x.pad_with_zeros(2, padding.0, padding.0 + rest(out_height, stride.0))?;
    let x = x.pad_with_zeros(3, padding.1, padding.1 + rest(out_width, stride.1))?;
    let mut taps = Vec::with_capacity(kernel.0 * kernel.1);
    for i in 0..kernel.0 {
        let rows = every(&x, 2, i * dilation.0, out_height, stride.0)?;
        for j in 0..kernel.1 {
            let tap = every(&rows, 3, j * dilation.1, out_width, stride.1)?;
            taps.push(tap.reshape((batch, channels, 1, out_height * out_width))?);
        }
    }
    Ok((Tensor::cat(&taps, 2)?, out_height, out_width))
}

/// A convolution's transpose: `y` spread out by the stride, zeros around it, and a convolution with the kernels turned round
/// (`[sets, values]`, channels exchanged), cut or filled to `size` = (height, width).
pub(crate) fn spread_convolution(
    y: &Tensor,
    turned: &Tensor,
    config: &ConvConfig,
    size: (usize, usize),
    convolve: impl Fn(&Tensor, &Tensor, &ConvConfig) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, c, h, w) = y.dims4()?;
    let ConvConfig { kernel, padding, dilation, groups, .. } = *config;
    let stride = (rest(h, config.stride.0) + 1, rest(w, config.stride.1) + 1);
    let spread = y.reshape([b, c, h, 1, w, 1].as_slice())?;
    let spread = spread.pad_with_zeros(3, 0, stride.0 - 1)?.pad_with_zeros(5, 0, stride.1 - 1)?;
    let spread = spread.reshape((b, c, h * stride.0, w * stride.1))?;
    // Every output pixel of the transpose sees the window turned round; those that the padding made are cut off again.
    let fit = |x: &Tensor, dim: usize, window: usize, padding: usize, size: usize| {
        let x = x.pad_with_zeros(dim, window, window + size + 2 * padding)?;
        x.narrow(dim, padding, size + window)
    };
    let spread = fit(&spread, 2, dilation.0 * (kernel.0 - 1), padding.0, size.0)?;
    let spread = fit(&spread, 3, dilation.1 * (kernel.1 - 1), padding.1, size.1)?;
    let plain = ConvConfig { kernel, stride: (1, 1), padding: (0, 0), dilation, groups };
    convolve(&spread, turned, &plain)
}

/// What the last of `count` places, `step` apart, has behind it, so that all take as much. A single one takes one place only: no step
/// is too large for it.
pub(crate) fn rest(count: usize, step: usize) -> usize {
    if count <= 1 { 0 } else { step - 1 }
}

/// `count` slices along `dim`, `step` apart, from `start` on.
pub(crate) fn every(x: &Tensor, dim: usize, start: usize, count: usize, step: usize) -> Result<Tensor> {
    let step = rest(count, step) + 1;
    let x = x.narrow(dim, start, count * step)?;
    if step == 1 {
        return Ok(x);
    }
    let mut dims = x.dims().to_vec();
    dims[dim] = count;
    dims.insert(dim + 1, step);
    x.reshape(dims)?.narrow(dim + 1, 0, 1)?.squeeze(dim + 1)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    /// Values that differ everywhere and need no random numbers.
    fn wave(shape: &[usize], phase: f64) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f64> = (0..count).map(|i| (i as f64 * 0.7 + phase).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// The definition, as eight nested loops in f64.
    fn direct(x: &Tensor, kernels: &[f64], out: usize, c: &ConvConfig) -> Vec<f64> {
        let (batch, channels, height, width) = x.dims4().unwrap();
        let x: Vec<f64> = x.flatten_all().unwrap().to_vec1().unwrap();
        let span = |size: usize, k: usize, s: usize, p: usize, d: usize| (size + 2 * p - d * (k - 1) - 1) / s + 1;
        let oh = span(height, c.kernel.0, c.stride.0, c.padding.0, c.dilation.0);
        let ow = span(width, c.kernel.1, c.stride.1, c.padding.1, c.dilation.1);
        let per_group = channels / c.groups;
        let mut y = Vec::new();
        for b in 0..batch {
            for o in 0..out {
                let group = o / (out / c.groups);
                for (i, j) in (0..oh).flat_map(|i| (0..ow).map(move |j| (i, j))) {
                    let mut sum = 0.0;
                    for ci in 0..per_group {
                        for (ky, kx) in (0..c.kernel.0).flat_map(|ky| (0..c.kernel.1).map(move |kx| (ky, kx))) {
                            let row = (i * c.stride.0 + ky * c.dilation.0).wrapping_sub(c.padding.0);
                            let col = (j * c.stride.1 + kx * c.dilation.1).wrapping_sub(c.padding.1);
                            if row < height && col < width {
                                let kernel = (((b * out + o) * per_group + ci) * c.kernel.0 + ky) * c.kernel.1 + kx;
                                let pixel = ((b * channels + group * per_group + ci) * height + row) * width + col;
                                sum += kernels[kernel] * x[pixel];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
        y
    }

    fn assert_close(got: &[f64], expected: &[f64], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= 1e-12 * (1.0 + e.abs()), "{what}: {g} instead of {e}");
        }
    }

    #[test]
    fn convolutions_agree_with_their_definition() {
        let one = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
        let configs = [
            (4, 6, one),
            (4, 6, ConvConfig { stride: (2, 2), ..one }),
            (4, 6, ConvConfig { kernel: (3, 3), padding: (1, 1), ..one }),
            (4, 4, ConvConfig { kernel: (3, 3), padding: (1, 1), groups: 4, stride: (2, 2), ..one }),
            (4, 8, ConvConfig { kernel: (1, 5), padding: (0, 2), stride: (1, 3), groups: 2, ..one }),
            (6, 3, ConvConfig { kernel: (5, 3), padding: (4, 0), dilation: (2, 2), groups: 3, stride: (3, 2) }),
        ];
        for (channels, out, config) in configs {
            let x = wave(&[3, channels, 7, 9], 0.1);
            let values = out * (channels / config.groups) * config.kernel.0 * config.kernel.1;
            let kernels = wave(&[3, values], 0.5);
            let flat: Vec<f64> = kernels.flatten_all().unwrap().to_vec1().unwrap();
            let y = conv2d_per_sample(&x, &kernels, &config).unwrap();
            assert_close(
                &y.flatten_all().unwrap().to_vec1().unwrap(),
                &direct(&x, &flat, out, &config),
                &format!("{config:?}"),
            );
            // A strided view gives the same as its copy.
            let view = wave(&[3, 7, 9, channels], 0.1).permute((0, 3, 1, 2)).unwrap();
            let from_view = conv2d_per_sample(&view, &kernels, &config).unwrap();
            let from_copy = conv2d_per_sample(&view.contiguous().unwrap(), &kernels, &config).unwrap();
            assert_close(
                &from_view.flatten_all().unwrap().to_vec1().unwrap(),
                &from_copy.flatten_all().unwrap().to_vec1::<f64>().unwrap(),
                "view",
            );
            let shared = wave(&[out, channels / config.groups, config.kernel.0, config.kernel.1], 0.5);
            let repeated: Vec<f64> = shared.flatten_all().unwrap().to_vec1::<f64>().unwrap().repeat(3);
            let y = conv2d_grouped(&x, &shared, &config).unwrap();
            assert_close(&y.flatten_all().unwrap().to_vec1().unwrap(), &direct(&x, &repeated, out, &config), "shared");
        }
    }

    #[test]
    fn routing_weighs_each_sample_on_its_own() {
        let (x, weight, bias) = (wave(&[2, 3, 4, 5], 0.3), wave(&[4, 3], 0.9), wave(&[4], 0.2));
        let r = route(&x, &weight, &bias, Routing::Softmax { temperature: 2.0 }).unwrap();
        let pooled: Vec<Vec<f64>> = x.mean((2, 3)).unwrap().to_vec2().unwrap();
        let (w, b): (Vec<Vec<f64>>, Vec<f64>) = (weight.to_vec2().unwrap(), bias.to_vec1().unwrap());
        for (row, pooled) in r.to_vec2::<f64>().unwrap().iter().zip(pooled) {
            let logits: Vec<f64> =
                (0..4).map(|k| w[k].iter().zip(&pooled).map(|(w, p)| w * p).sum::<f64>() + b[k]).collect();
            let total: f64 = logits.iter().map(|l| (l / 2.0).exp()).sum();
            let expected: Vec<f64> = logits.iter().map(|l| (l / 2.0).exp() / total).collect();
            assert_close(row, &expected, "softmax");
        }
        let gates = route(&x, &weight, &bias, Routing::Sigmoid).unwrap();
        assert!(gates.to_vec2::<f64>().unwrap().iter().flatten().all(|g| (0.0..1.0).contains(g)));
    }

    /// More ones than f16 and bf16 can count.
    #[test]
    fn halves_are_summed_in_f32() {
        let one = |count: usize, dtype: DType| Tensor::ones(count, dtype, &Device::Cpu).unwrap();
        for dtype in [DType::F16, DType::BF16] {
            let x = Tensor::ones((2, 1, 80, 80), dtype, &Device::Cpu).unwrap();
            let float = |t: Tensor| t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(float(average(&x).unwrap()), [1.0, 1.0]);
            let weight = Tensor::ones((1, 1), dtype, &Device::Cpu).unwrap();
            let r =
                float(route(&x, &weight, &Tensor::zeros(1, dtype, &Device::Cpu).unwrap(), Routing::Sigmoid).unwrap());
            assert!((r[0] - 0.731_059).abs() < 4e-3, "{dtype:?}: {r:?}");
            let minus = Tensor::cat(&[&x, &(&x * 3.0).unwrap()], 0).unwrap();
            let norm = batch_norm_training(&minus, &one(1, dtype), &one(1, dtype), 1e-3, false).unwrap();
            assert_eq!(norm.y.dtype(), dtype);
            assert_eq!((float(norm.mean), float(norm.var)[0].round()), (vec![2.0], 1.0));
        }
    }

    #[test]
    fn a_single_output_needs_no_stride() {
        let (x, kernel) = (wave(&[1, 2, 5, 5], 0.1), wave(&[3, 2, 4, 4], 0.4));
        let config = ConvConfig { kernel: (4, 4), stride: (2, 2), padding: (0, 0), dilation: (1, 1), groups: 1 };
        let values = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let expected = values(conv2d_grouped(&x, &kernel, &config).unwrap());
        let huge = ConvConfig { stride: (usize::MAX, 1 << 45), ..config };
        assert_eq!(values(conv2d_grouped(&x, &kernel, &huge).unwrap()), expected);
        let (point, weight) = (wave(&[1, 2, 1, 1], 0.1), wave(&[2, 3, 4, 4], 0.4));
        let [small, large] =
            [&config, &huge].map(|config| values(crate::conv_transpose2d(&point, &weight, config, 0).unwrap()));
        assert_eq!(small, large);
    }

    #[test]
    fn routing_of_nothing_is_nothing() {
        let x = Tensor::zeros((0, 3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
        let bias = Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap();
        for routing in [Routing::Sigmoid, Routing::Softmax { temperature: 2.0 }] {
            assert_eq!(crate::route(&x, &weight, &bias, routing).unwrap().dims(), [0, 5]);
        }
    }

    #[test]
    fn misfits_are_named() {
        let config = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 2 };
        let x = Tensor::zeros((2, 3, 5, 5), DType::F32, &Device::Cpu).unwrap();
        let kernels = Tensor::zeros((2, 27), DType::F32, &Device::Cpu).unwrap();
        let text = conv2d_per_sample(&x, &kernels, &config).unwrap_err().to_string();
        assert!(text.contains("3 channels do not divide by 2 groups"), "{text}");
        let config = ConvConfig { groups: 1, kernel: (7, 7), ..config };
        let kernels = Tensor::zeros((2, 147), DType::F32, &Device::Cpu).unwrap();
        let text = conv2d_per_sample(&x, &kernels, &config).unwrap_err().to_string();
        assert!(text.contains("does not fit into a map of 5x5"), "{text}");
    }
}
