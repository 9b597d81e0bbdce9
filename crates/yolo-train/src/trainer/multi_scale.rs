//! Batches in another size than they were made in.

use candle_core::Tensor;
use yolo_core::picture::interpolate;

use crate::Result;
use crate::data::rng::Rng;

/// Sets the sizes apart from what else is drawn from the seed.
const STREAM: u64 = 0x6d75_6c74_6973_6361;

/// The longer side of a batch: a multiple of the stride from half of `imgsz` to one and a half.
pub(super) fn side(imgsz: usize, stride: usize, seed: u64, epoch: usize, batch: usize) -> usize {
    let (low, high) = (imgsz / 2, imgsz * 3 / 2 + stride);
    let mut rng = Rng::keyed(seed ^ STREAM, epoch as u64, batch as u64);
    ((low + rng.below(high - low)) / stride * stride).max(stride)
}

/// Pictures `[B, C, H, W]` on the CPU, enlarged or shrunk so that the longer side is about `side` and both are multiples of
/// `stride`.
///
/// # Errors
/// Where the tensor has another shape or type.
pub(super) fn resize(images: &Tensor, side: usize, stride: usize) -> Result<Tensor> {
    let (_, _, height, width) = images.dims4()?;
    let factor = side as f64 / height.max(width) as f64;
    let fitted = |old: usize| ((old as f64 * factor / stride as f64).ceil() as usize).max(1) * stride;
    if factor == 1.0 {
        return Ok(images.clone());
    }
    Ok(interpolate(images, (fitted(height), fitted(width)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_within_the_range() {
        let mut seen = std::collections::BTreeSet::new();
        for batch in 0..500 {
            let side = side(320, 32, 1, 2, batch);
            assert!(side.is_multiple_of(32) && (160..=480 + 31).contains(&side), "{side}");
            assert_eq!(side, super::side(320, 32, 1, 2, batch));
            seen.insert(side);
        }
        assert_eq!(seen.first(), Some(&160));
        assert_eq!(seen.len(), 11);
    }

    #[test]
    fn sides_fit_the_stride() {
        let image = Tensor::zeros((1, 3, 96, 64), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert_eq!(resize(&image, 160, 32).unwrap().dims(), [1, 3, 160, 128]);
        assert_eq!(resize(&image, 96, 32).unwrap().dims(), [1, 3, 96, 64]);
    }
}
