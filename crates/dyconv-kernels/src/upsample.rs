//! Nearest-neighbour upsampling as an operation of Candle, with a gradient of its own.
//!
//! The gradient of Candle's own takes the place of what other readers of the same map passed back.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use crate::cpu;
use crate::error::{Operation, Result, on_cpu};
use crate::op::slice;

/// Each pixel as a block of `factor` = (rows, columns) pixels.
///
/// # Shapes
/// `x` is `[B, C, H, W]`; the result is `[B, C, H * factor.0, W * factor.1]`.
///
/// # Errors
/// Where `x` is no such map, or a factor is zero.
pub fn upsample_nearest2d(x: &Tensor, factor: (usize, usize)) -> Result<Tensor> {
    const UPSAMPLE: Operation = Operation("upsample_nearest2d");
    let [batch, channels, height, width] = UPSAMPLE.dims("x", x, "[B, C, H, W]")?;
    let values = height.checked_mul(factor.0).zip(width.checked_mul(factor.1));
    let values = values.and_then(|(h, w)| h.checked_mul(w)?.checked_mul(batch * channels));
    if factor.0 == 0 || factor.1 == 0 || values.is_none_or(|values| values > isize::MAX as usize / 8) {
        let expected = "at least 1, for a map that fits into memory";
        return Err(UPSAMPLE.wrong("factor", expected, format!("{factor:?}")));
    }
    if on_cpu(x) {
        return Ok(x.contiguous()?.apply_op1(Upsample { factor })?);
    }
    Ok(plain(x, factor)?)
}

/// In Candle's own operations: a broadcast, whose gradient is a sum.
fn plain(x: &Tensor, factor: (usize, usize)) -> candle_core::Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let x = x.reshape([b, c, h, 1, w, 1].as_slice())?.broadcast_as([b, c, h, factor.0, w, factor.1].as_slice())?;
    x.reshape((b, c, h * factor.0, w * factor.1))
}

struct Upsample {
    factor: (usize, usize),
}

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample-nearest2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len() * self.factor.0 * self.factor.1];
        cpu::upsample_nearest2d(x, &mut y, w, self.factor);
        Ok((CpuStorage::F32(y), (b, c, h * self.factor.0, w * self.factor.1).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        dy.contiguous()?.apply_op1_no_bwd(&BlockSums { factor: self.factor }).map(Some)
    }
}

struct BlockSums {
    factor: (usize, usize),
}

impl CustomOp1 for BlockSums {
    fn name(&self) -> &'static str {
        "upsample-nearest2d-gradient"
    }

    fn cpu_fwd(&self, dy: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, c, h, w) = layout.shape().dims4()?;
        let (h, w) = (h / self.factor.0, w / self.factor.1);
        let mut dx = vec![0.0; b * c * h * w];
        cpu::upsample_nearest2d_backward(slice(dy, layout)?, &mut dx, w, self.factor);
        Ok((CpuStorage::F32(dx), (b, c, h, w).into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn wave(shape: &[usize], phase: f32) -> Tensor {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.7 + phase).sin()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
    }

    /// A map that is enlarged, and read once more beside: both readers' gradients arrive.
    #[test]
    fn values_and_gradients_agree_with_broadcasting() {
        for (shape, factor) in [
            ([2, 3, 4, 5], (2, 2)),
            ([1, 2, 20, 19], (2, 2)),
            ([2, 1, 3, 1], (1, 3)),
            ([1, 3, 1, 7], (4, 1)),
            ([3, 2, 5, 3], (3, 5)),
            ([2, 2, 2, 9], (1, 1)),
        ] {
            let run = |upsample: &dyn Fn(&Tensor) -> Result<Tensor>| {
                let x = Var::from_tensor(&wave(&shape, 0.1)).unwrap();
                let y = upsample(x.as_tensor()).unwrap();
                let enlarged = (&y * wave(y.dims(), 0.9)).unwrap().sum_all().unwrap();
                let loss = (x.sqr().unwrap().sum_all().unwrap() + enlarged).unwrap();
                (values(&y), values(loss.backward().unwrap().get(&x).unwrap()))
            };
            let (y, dx) = run(&|x| upsample_nearest2d(x, factor));
            let (plain_y, plain_dx) = run(&|x| Ok(plain(x, factor)?));
            assert_eq!(y, plain_y);
            for (got, expected) in dx.iter().zip(&plain_dx) {
                assert!((got - expected).abs() < 1e-5, "{got} instead of {expected} of {shape:?} by {factor:?}");
            }
        }
    }

    #[test]
    fn pixels_become_blocks() {
        let x = Tensor::new(&[[[[1f32, 2.0], [3.0, 4.0]]]], &Device::Cpu).unwrap();
        let y = upsample_nearest2d(&x, (2, 3)).unwrap();
        let rows =
            [[1., 1., 1., 2., 2., 2.], [1., 1., 1., 2., 2., 2.], [3., 3., 3., 4., 4., 4.], [3., 3., 3., 4., 4., 4.]];
        assert_eq!(values(&y), rows.concat());
        let half = upsample_nearest2d(&x.to_dtype(DType::F16).unwrap(), (2, 3)).unwrap();
        assert_eq!((half.dtype(), values(&half)), (DType::F16, rows.concat()));
    }

    #[test]
    fn views_empty_batches_and_misfits() {
        let x = wave(&[3, 9, 7, 5], 0.2);
        let view = x.narrow(0, 1, 2).unwrap().permute((0, 3, 1, 2)).unwrap();
        let expected = upsample_nearest2d(&view.contiguous().unwrap(), (2, 2)).unwrap();
        assert_eq!(values(&upsample_nearest2d(&view, (2, 2)).unwrap()), values(&expected));
        assert_eq!(upsample_nearest2d(&x.narrow(0, 0, 0).unwrap(), (2, 2)).unwrap().dims(), [0, 9, 14, 10]);
        for (outcome, expected) in [
            (upsample_nearest2d(&x, (0, 2)), "`factor` must be at least 1"),
            (upsample_nearest2d(&x, (usize::MAX, 2)), "fits into memory"),
            (upsample_nearest2d(&x.flatten(0, 1).unwrap(), (2, 2)), "`x` must be [B, C, H, W], it is [27, 7, 5]"),
        ] {
            let text = outcome.unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
