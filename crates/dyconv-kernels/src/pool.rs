//! Maximum pooling as an operation of Candle, with any stride and padding, and gradients of its own.
//!
//! Candle's own takes no padding, and its gradient is wrong or refused (windows that overlap, as SPPF's do).

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use crate::cpu::{self, PoolShape};
use crate::error::{Operation, Result, on_cpu};
use crate::op::slice;
use crate::reference::{every, rest};

/// The largest value under each window, around the map negative infinity; NaN where the window sees one.
///
/// The gradient goes to the first maximum of a window in reading order, or to its last NaN.
///
/// # Shapes
/// `x` is `[B, C, H, W]`; pairs are (vertical, horizontal). The result is `[B, C, H', W']` with
/// `H' = (H + 2 * padding - kernel) / stride + 1`, rounded down.
///
/// # Errors
/// Where `x` is no such map, the padding is not less than the kernel, or the window does not fit into the padded map.
pub fn max_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    let shape = pool_shape(x.dims(), kernel, stride, padding)?;
    if on_cpu(x) {
        return Ok(x.contiguous()?.apply_op1(MaxPool { shape })?);
    }
    Ok(plain(x, &shape)?)
}

fn pool_shape(
    x: &[usize],
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<PoolShape> {
    const POOL: Operation = Operation("max_pool2d");
    let &[_, _, height, width] = x else { return Err(POOL.wrong("x", "[B, C, H, W]", format!("{x:?}"))) };
    if stride.0 == 0 || stride.1 == 0 {
        return Err(POOL.wrong("stride", "at least 1", format!("{stride:?}")));
    }
    if padding.0 >= kernel.0 || padding.1 >= kernel.1 {
        return Err(POOL.wrong("padding", format!("less than `kernel` {kernel:?}"), format!("{padding:?}")));
    }
    let padded = |size: usize, padding: usize| padding.checked_mul(2)?.checked_add(size);
    let pixels = padded(height, padding.0).zip(padded(width, padding.1)).and_then(|(h, w)| h.checked_mul(w));
    if height == 0 || width == 0 || pixels.is_none_or(|pixels| u32::try_from(pixels).is_err()) {
        let got = format!("{height}x{width} with padding {padding:?}");
        return Err(POOL.wrong("x", "a map of 1 to 2^32 - 1 pixels", got));
    }
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize| {
        Some((size + 2 * padding).checked_sub(kernel)? / stride + 1)
    };
    let (Some(out_height), Some(out_width)) =
        (axis(height, kernel.0, stride.0, padding.0), axis(width, kernel.1, stride.1, padding.1))
    else {
        let expected = format!("a window that fits into {height}x{width} pixels with padding {padding:?}");
        return Err(POOL.wrong("kernel", expected, format!("{kernel:?}")));
    };
    Ok(PoolShape { input: (height, width), output: (out_height, out_width), kernel, stride, padding })
}

/// In Candle's own operations: right on every device and in every floating type.
///
/// A candidate takes the place of the best so far only where it is larger, so the first maximum keeps the gradient. (A window
/// of nothing but negative infinity passes none on.)
fn plain(x: &Tensor, shape: &PoolShape) -> candle_core::Result<Tensor> {
    let PoolShape { output, kernel, stride, padding, .. } = *shape;
    let rows = along(x, 3, kernel.1, stride.1, padding.1, output.1)?;
    along(&rows, 2, kernel.0, stride.0, padding.0, output.0)
}

/// The largest of `kernel` neighbours along `dim`.
fn along(
    x: &Tensor,
    dim: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    outputs: usize,
) -> candle_core::Result<Tensor> {
    // GPUs refuse to fill nothing.
    let filled = |size: usize| {
        let mut dims = x.dims().to_vec();
        dims[dim] = size;
        let some = dims.iter().product::<usize>() > 0;
        some.then(|| Tensor::full(f32::NEG_INFINITY, dims, x.device())?.to_dtype(x.dtype())).transpose()
    };
    // Room on the far side so that every tap can be cut out as whole strides.
    let parts = [filled(padding)?, Some(x.clone()), filled(padding + rest(outputs, stride))?];
    let parts: Vec<Tensor> = parts.into_iter().flatten().collect();
    let x = if let [x] = parts.as_slice() { x.clone() } else { Tensor::cat(&parts, dim)? };
    let mut best = every(&x, dim, 0, outputs, stride)?;
    for tap in 1..kernel {
        let candidate = every(&x, dim, tap, outputs, stride)?;
        // A comparison has no gradient, but would be asked for one.
        let (new, old) = (candidate.detach(), best.detach());
        let higher = (new.gt(&old)? + new.ne(&new)?)?;
        best = higher.where_cond(&candidate, &best)?;
    }
    Ok(best)
}

struct MaxPool {
    shape: PoolShape,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, ..) = layout.shape().dims4()?;
        let (height, width) = self.shape.output;
        let mut y = vec![0.0; batch * channels * height * width];
        cpu::max_pool2d(slice(x, layout)?, &mut y, &self.shape);
        Ok((CpuStorage::F32(y), (batch, channels, height, width).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        x.apply_op2_no_bwd(&dy.contiguous()?, &MaxPoolGradient { shape: self.shape }).map(Some)
    }
}

struct MaxPoolGradient {
    shape: PoolShape,
}

impl CustomOp2 for MaxPoolGradient {
    fn name(&self) -> &'static str {
        "max-pool2d-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice(x, x_layout)?;
        let mut dx = vec![0.0; x.len()];
        cpu::max_pool2d_backward(x, slice(dy, dy_layout)?, &mut dx, &self.shape);
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    /// Values, and the gradient when window number i has i + 1, by the definition.
    fn by_hand(x: &[f32], s: &PoolShape) -> (Vec<f32>, Vec<f32>) {
        let (mut y, mut dx) = (Vec::new(), vec![0.0; x.len()]);
        let plane = s.input.0 * s.input.1;
        for start in (0..x.len()).step_by(plane) {
            for (i, j) in (0..s.output.0).flat_map(|i| (0..s.output.1).map(move |j| (i, j))) {
                let mut best = None;
                for (ky, kx) in (0..s.kernel.0).flat_map(|ky| (0..s.kernel.1).map(move |kx| (ky, kx))) {
                    let row = (i * s.stride.0 + ky).wrapping_sub(s.padding.0);
                    let column = (j * s.stride.1 + kx).wrapping_sub(s.padding.1);
                    if row < s.input.0 && column < s.input.1 {
                        let at = start + row * s.input.1 + column;
                        if best.is_none_or(|best: usize| x[at] > x[best] || x[at].is_nan()) {
                            best = Some(at);
                        }
                    }
                }
                let best = best.unwrap();
                y.push(x[best]);
                dx[best] += y.len() as f32;
            }
        }
        (y, dx)
    }

    fn run(x: &Tensor, s: &PoolShape, pool: impl Fn(&Tensor) -> Result<Tensor>) -> (Vec<f32>, Vec<f32>) {
        let x = Var::from_tensor(x).unwrap();
        let y = pool(x.as_tensor()).unwrap();
        assert_eq!(y.dims()[2..], [s.output.0, s.output.1]);
        let weights = Tensor::arange(1f32, y.elem_count() as f32 + 1.0, &Device::Cpu).unwrap();
        let loss = (y.flatten_all().unwrap() * weights.to_dtype(y.dtype()).unwrap()).unwrap().sum_all().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
        (flat(&y), flat(loss.backward().unwrap().get(&x).unwrap()))
    }

    fn bits(values: &(Vec<f32>, Vec<f32>)) -> Vec<u32> {
        values.0.iter().chain(&values.1).map(|v| if v.is_nan() { f32::NAN } else { *v }.to_bits()).collect()
    }

    /// Few distinct values, so that windows have several maxima.
    fn coarse(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.7).sin().mul_add(4.0, 0.0).round() + 0.0).collect()
    }

    #[test]
    fn values_and_gradients_follow_the_definition() {
        for (size, kernel, stride, padding) in [
            ((20, 20), (5, 5), (1, 1), (2, 2)),
            ((7, 9), (13, 13), (1, 1), (6, 6)),
            ((8, 6), (2, 2), (2, 2), (0, 0)),
            ((9, 35), (3, 3), (2, 2), (1, 1)),
            ((5, 11), (2, 4), (3, 2), (1, 3)),
            ((1, 19), (1, 3), (1, 5), (0, 2)),
            ((17, 1), (3, 1), (1, 1), (2, 0)),
            ((1, 1), (5, 5), (1, 1), (2, 2)),
            ((6, 7), (1, 1), (4, 3), (0, 0)),
        ] {
            let mut values = coarse(2 * 3 * size.0 * size.1);
            for nans in [0, 3] {
                (0..nans).for_each(|i| values[i * 5 % size.1] = f32::NAN);
                let x = Tensor::from_slice(&values, (2, 3, size.0, size.1), &Device::Cpu).unwrap();
                let s = pool_shape(x.dims(), kernel, stride, padding).unwrap();
                let expected = bits(&by_hand(&values, &s));
                let pool = |x: &Tensor| max_pool2d(x, kernel, stride, padding);
                assert_eq!(bits(&run(&x, &s, pool)), expected, "{s:?}");
                assert_eq!(bits(&run(&x, &s, |x| Ok(plain(x, &s)?))), expected, "{s:?}, plain");
                assert_eq!(bits(&run(&x.to_dtype(DType::F64).unwrap(), &s, pool)), expected, "{s:?}, f64");
            }
        }
    }

    /// Of one output no stride is too large, in any type.
    #[test]
    fn a_stride_takes_no_memory() {
        for dtype in [DType::F32, DType::F64] {
            let x = Tensor::from_vec(coarse(16), (1, 1, 4, 4), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let y = max_pool2d(&x, (2, 3), (usize::MAX, 1), (0, 0)).unwrap();
            let same = max_pool2d(&x, (2, 3), (3, 1), (0, 0)).unwrap();
            assert_eq!(y.dims(), [1, 1, 1, 2]);
            let values = |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(&y), values(&same));
        }
    }

    #[test]
    fn negative_infinity_is_a_value() {
        let x = Tensor::full(f32::NEG_INFINITY, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let s = pool_shape(x.dims(), (3, 3), (1, 1), (1, 1)).unwrap();
        let (y, dx) = run(&x, &s, |x| max_pool2d(x, s.kernel, s.stride, s.padding));
        assert_eq!((y, dx), by_hand(&[f32::NEG_INFINITY; 9], &s));
    }

    #[test]
    fn views_other_types_and_empty_batches() {
        let x = Tensor::from_vec(coarse(3 * 9 * 7 * 5), (3, 9, 7, 5), &Device::Cpu).unwrap();
        let view = x.narrow(0, 1, 2).unwrap().permute((0, 3, 1, 2)).unwrap();
        let pool = |x: &Tensor| {
            let y = max_pool2d(x, (3, 3), (2, 2), (1, 1)).unwrap();
            y.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let expected = pool(&view.contiguous().unwrap());
        assert_eq!(pool(&view), expected);
        // Whole numbers up to 4 are exact in every type.
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            assert_eq!(pool(&view.to_dtype(dtype).unwrap()), expected, "{dtype:?}");
        }
        assert_eq!(max_pool2d(&x.narrow(0, 0, 0).unwrap(), (5, 5), (1, 1), (2, 2)).unwrap().dims(), [0, 9, 7, 5]);
    }

    #[test]
    fn misfits_are_named() {
        let x = Tensor::zeros((1, 2, 3, 4), DType::F32, &Device::Cpu).unwrap();
        for (outcome, expected) in [
            (
                max_pool2d(&x, (5, 5), (1, 1), (0, 0)),
                "`kernel` must be a window that fits into 3x4 pixels with padding (0, 0), it is (5, 5)",
            ),
            (max_pool2d(&x, (2, 2), (0, 1), (0, 0)), "`stride` must be at least 1, it is (0, 1)"),
            (max_pool2d(&x, (2, 2), (1, 1), (0, 2)), "`padding` must be less than `kernel` (2, 2), it is (0, 2)"),
            (max_pool2d(&x, (usize::MAX, 2), (1, 1), (usize::MAX - 1, 0)), "a map of 1 to 2^32 - 1 pixels"),
            (max_pool2d(&x.squeeze(0).unwrap(), (2, 2), (1, 1), (0, 0)), "`x` must be [B, C, H, W], it is [2, 3, 4]"),
            (max_pool2d(&x.narrow(2, 0, 0).unwrap(), (2, 2), (1, 1), (1, 1)), "it is 0x4 with padding (1, 1)"),
        ] {
            let text = outcome.unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        }
    }
}
