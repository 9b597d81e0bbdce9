//! One scale and one shift a channel, in one pass: batch normalisation by running statistics.

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Shape, Tensor};

use crate::cpu;
use crate::error::{Operation, Result};
use crate::op::slice;

/// `y[b, c, i, j] = x[b, c, i, j] * scale[c] + shift[c]`
///
/// # Shapes
/// `x` is `[B, C, H, W]` of a floating type, `scale` and `shift` `[C]`, which are converted to it; the result is as `x`.
///
/// # Errors
/// Where the shapes do not fit, or `x` holds whole numbers.
pub fn scale_shift(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    const SCALE_SHIFT: Operation = Operation("scale_shift");
    let [_, channels, ..] = SCALE_SHIFT.dims::<4>("x", x, "[B, C, H, W]")?;
    for (name, tensor) in [("scale", scale), ("shift", shift)] {
        SCALE_SHIFT.shape(name, tensor, &[channels], "[C of `x`]")?;
    }
    SCALE_SHIFT.alike(&[("x", Some(x))])?;
    let tracked = x.track_op() || scale.track_op() || shift.track_op();
    if !tracked && matches!(x.device(), Device::Cpu) && [x, scale, shift].iter().all(|t| t.dtype() == DType::F32) {
        return Ok(x.contiguous()?.apply_op3_no_bwd(&scale.contiguous()?, &shift.contiguous()?, &ScaleShift)?);
    }
    let per_channel = |t: &Tensor| t.to_dtype(x.dtype())?.reshape((1, channels, 1, 1));
    Ok(x.broadcast_mul(&per_channel(scale)?)?.broadcast_add(&per_channel(shift)?)?)
}

struct ScaleShift;

impl CustomOp3 for ScaleShift {
    fn name(&self) -> &'static str {
        "scale-shift"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        scale: &CpuStorage,
        scale_layout: &Layout,
        shift: &CpuStorage,
        shift_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, channels, height, width) = x_layout.shape().dims4()?;
        let (x, scale, shift) = (slice(x, x_layout)?, slice(scale, scale_layout)?, slice(shift, shift_layout)?);
        debug_assert_eq!(scale.len(), channels);
        Ok((CpuStorage::F32(cpu::scale_shift(x, scale, shift, height * width)), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    #[test]
    fn both_ways_agree() {
        let wave = |count: usize| (0..count).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<_>>();
        let x =
            Tensor::from_vec(wave(2 * 3 * 5 * 4), (2, 5, 4, 3), &Device::Cpu).unwrap().permute((0, 3, 1, 2)).unwrap();
        let scale = Tensor::from_vec(wave(3), 3, &Device::Cpu).unwrap();
        let shift = (&scale + 0.5).unwrap();
        let fast = scale_shift(&x, &scale, &shift).unwrap();
        // A variable is tracked, and takes the differentiable way.
        let plain = scale_shift(Var::from_tensor(&x).unwrap().as_tensor(), &scale, &shift).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (fast, plain) in values(&fast).iter().zip(values(&plain)) {
            assert!((fast - plain).abs() < 1e-6, "{fast} {plain}");
        }
        let text = scale_shift(&x, &shift.narrow(0, 0, 2).unwrap(), &shift).unwrap_err().to_string();
        assert!(text.contains("`scale` must be [C of `x`] = [3], it is [2]"), "{text}");
        let text = scale_shift(&x.to_dtype(DType::U8).unwrap(), &scale, &shift).unwrap_err().to_string();
        assert!(text.contains("`x` must be of a floating type, it is u8"), "{text}");
    }
}
