//! Batches in another size than they were made in.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

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
    bilinear(images, fitted(height), fitted(width))
}

/// Two neighbours on an axis and the weight of the second.
fn taps(from: usize, to: usize) -> Vec<(usize, usize, f32)> {
    let scale = from as f32 / to as f32;
    let tap = |i: usize| {
        let place = ((i as f32 + 0.5) * scale - 0.5).max(0.0);
        let low = (place as usize).min(from - 1);
        (low, (low + 1).min(from - 1), place - low as f32)
    };
    (0..to).map(tap).collect()
}

/// Bilinear resizing with corners not aligned, as PyTorch's `interpolate`.
fn bilinear(images: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = images.dims4()?;
    let values: Vec<f32> = images.flatten_all()?.to_vec1()?;
    let (rows, columns) = (taps(old_height, height), taps(old_width, width));
    let mut resized = vec![0.0f32; batch * channels * height * width];
    resized.par_chunks_mut(height * width).zip(values.par_chunks(old_height * old_width)).for_each(|(to, from)| {
        for (line, &(y0, y1, wy)) in to.chunks_exact_mut(width).zip(&rows) {
            let (above, below) = (&from[y0 * old_width..][..old_width], &from[y1 * old_width..][..old_width]);
            for (value, &(x0, x1, wx)) in line.iter_mut().zip(&columns) {
                let upper = above[x0] * (1.0 - wx) + above[x1] * wx;
                let lower = below[x0] * (1.0 - wx) + below[x1] * wx;
                *value = upper * (1.0 - wy) + lower * wy;
            }
        }
    });
    Ok(Tensor::from_vec(resized, (batch, channels, height, width), &Device::Cpu)?)
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
    fn enlarged_as_pytorch_does() {
        // torch.nn.functional.interpolate([[0, 1], [2, 3]], size=(4, 4), mode="bilinear", align_corners=False)
        let image = Tensor::new(&[[[[0f32, 1.0], [2.0, 3.0]]]], &Device::Cpu).unwrap();
        let large = bilinear(&image, 4, 4).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let rows = [0.0f32, 0.5, 1.5, 2.0];
        let columns = [0.0f32, 0.25, 0.75, 1.0];
        for (i, value) in large.iter().enumerate() {
            assert!((value - rows[i / 4] - columns[i % 4]).abs() < 1e-6, "{large:?}");
        }
    }

    #[test]
    fn sides_fit_the_stride() {
        let image = Tensor::zeros((1, 3, 96, 64), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(resize(&image, 160, 32).unwrap().dims(), [1, 3, 160, 128]);
        assert_eq!(resize(&image, 96, 32).unwrap().dims(), [1, 3, 96, 64]);
    }
}
