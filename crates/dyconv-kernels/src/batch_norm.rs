//! Batch normalisation by the batch's own statistics, with SiLU behind it where wanted: forward and backward in one operation
//! each, which keeps the input and the result and no map between.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Tensor, bail};

use crate::cpu::{self, NormShape, Statistics};
use crate::error::{Operation, Result, on_cpu};
use crate::op::{slice, with_values};
use crate::reference;

/// A normalised map, and the statistics that it was normalised by.
#[derive(Debug, Clone)]
pub struct Normalised {
    /// The result, of the input's shape.
    pub y: Tensor,
    /// Mean of each channel, `[C]`; no gradient flows through it.
    pub mean: Tensor,
    /// Variance of each channel with `n - 1` for the divisor, `[C]`, which running statistics are made of; no gradient flows
    /// through it.
    pub var: Tensor,
}

/// Batch normalisation in training (arXiv 1502.03167): `y = weight * (x - mean) / sqrt(var + eps) + bias`, where mean and
/// variance (divisor `n`) are those of a channel over the batch; and `y / (1 + exp(-y))` of that with `silu`.
///
/// # Shapes
/// `x` is `[B, C, H, W]`, `weight` and `bias` `[C]`.
///
/// # Errors
/// Where types, devices or shapes do not fit, or a channel has less than two values.
pub fn batch_norm_training(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64, silu: bool) -> Result<Normalised> {
    const NORM: Operation = Operation("batch_norm_training");
    let [batch, channels, height, width] = NORM.dims("x", x, "[B, C, H, W]")?;
    for (name, tensor) in [("weight", weight), ("bias", bias)] {
        NORM.shape(name, tensor, &[channels], "[C of `x`]")?;
    }
    NORM.alike(&[("x", Some(x)), ("weight", Some(weight)), ("bias", Some(bias))])?;
    if batch * height * width < 2 {
        let expected = "at least two values a channel, for there is no variance of one: a larger batch or picture";
        return Err(NORM.wrong("x", expected, format!("{:?}", x.dims())));
    }
    if !on_cpu(x) || channels == 0 {
        return Ok(reference::batch_norm_training(x, weight, bias, eps, silu)?);
    }
    let statistics = Arc::new(OnceLock::new());
    let op = Norm { eps, silu, statistics: Arc::clone(&statistics) };
    let y = x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)?;
    let Some(Statistics { mean, var, .. }) = statistics.get() else {
        return Err(candle_core::Error::msg("batch_norm_training: no statistics").into());
    };
    let n = (batch * height * width) as f32;
    let unbiased: Vec<f32> = var.iter().map(|var| var * (n / (n - 1.0))).collect();
    let mean = Tensor::from_slice(mean, channels, x.device())?;
    Ok(Normalised { y, mean, var: Tensor::from_vec(unbiased, channels, x.device())? })
}

struct Norm {
    eps: f64,
    silu: bool,
    /// Set by the forward pass.
    statistics: Arc<OnceLock<Statistics>>,
}

fn norm_shape(dims: &[usize]) -> candle_core::Result<NormShape> {
    let &[batch, channels, height, width] = dims else { bail!("batch_norm_training: expected a map, got {dims:?}") };
    Ok(NormShape { batch, channels, pixels: height * width })
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "batch-norm-training"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = norm_shape(x_layout.dims())?;
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let (y, statistics) = cpu::batch_norm_training(x, (weight, bias), self.eps as f32, self.silu, &shape);
        if self.statistics.set(statistics).is_err() {
            bail!("batch_norm_training: ran twice");
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(statistics) = self.statistics.get() else { bail!("batch_norm_training: no statistics") };
        let shape = norm_shape(x.dims())?;
        let mut dx: Vec<f32> = dy.flatten_all()?.to_vec1()?;
        let (dweight, dbias) = with_values([x, weight, bias], |[x, weight, bias]| {
            cpu::batch_norm_backward(x, (weight, bias), &mut dx, statistics, self.silu, &shape)
        })?;
        let vector = |values: Vec<f32>| Tensor::from_vec(values, shape.channels, x.device());
        Ok((Some(Tensor::from_vec(dx, x.dims(), x.device())?), Some(vector(dweight)?), Some(vector(dbias)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    fn values(t: &Tensor) -> Vec<f64> {
        t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
        let (got, expected) = (values(got), values(expected));
        assert_eq!(got.len(), expected.len());
        let largest = expected.iter().fold(1e-3f64, |max, v| max.max(v.abs()));
        for (g, e) in got.iter().zip(&expected) {
            assert!((g - e).abs() <= 2e-6 * largest, "{what}: {g} instead of {e}");
        }
    }

    #[test]
    fn results_and_statistics_agree_with_the_twin_in_f64() {
        for (shape, offset) in [([2, 3, 5, 7], 0.0), ([1, 2, 1, 2], 0.3), ([3, 1, 67, 31], 5.0), ([7, 4, 1, 1], -2.0)] {
            let count = shape.iter().product::<usize>();
            let wave: Vec<f64> = (0..count).map(|i| (i as f64 * i as f64 * 0.7).sin() * 3.0 + offset).collect();
            let x = Tensor::from_vec(wave, &shape, &Device::Cpu).unwrap();
            let weight = Tensor::arange(0.5, 0.5 + shape[1] as f64, &Device::Cpu).unwrap();
            let bias = (&weight - 1.0).unwrap();
            let single = [&x, &weight, &bias].map(|t| t.to_dtype(DType::F32).unwrap());
            for silu in [false, true] {
                let got = batch_norm_training(&single[0], &single[1], &single[2], 1e-3, silu).unwrap();
                let expected = reference::batch_norm_training(&x, &weight, &bias, 1e-3, silu).unwrap();
                assert_close(&got.y, &expected.y, "y");
                assert_close(&got.mean, &expected.mean, "mean");
                assert_close(&got.var, &expected.var, "var");
            }
        }
    }

    /// Two values: the mean between them, one of their distance's squares halved.
    #[test]
    fn statistics_by_hand() {
        let x = Tensor::new(&[[[[1f32, 3.0]]], [[[5.0, 7.0]]]], &Device::Cpu).unwrap();
        let one = Tensor::ones(1, DType::F32, &Device::Cpu).unwrap();
        let got = batch_norm_training(&x, &one, &one, 0.0, false).unwrap();
        assert_eq!(values(&got.mean), [4.0]);
        assert!((values(&got.var)[0] - 20.0 / 3.0).abs() < 1e-6);
        for (got, expected) in values(&got.y).iter().zip([-3.0, -1.0, 1.0, 3.0]) {
            assert!((got - (1.0 + expected / 5f64.sqrt())).abs() < 1e-6);
        }
    }

    #[test]
    fn a_single_value_has_no_variance() {
        let x = Tensor::zeros((1, 2, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let one = Tensor::ones(2, DType::F32, &Device::Cpu).unwrap();
        let text = batch_norm_training(&x, &one, &one, 1e-3, false).unwrap_err().to_string();
        assert!(text.contains("at least two values a channel"), "{text}");
    }
}
