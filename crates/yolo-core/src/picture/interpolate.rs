//! Bilinear interpolation with corners not aligned, as PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::{Error, Result};

/// Where a value of the result reads along one axis: two neighbours, and the share of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tap {
    /// The first neighbour.
    pub low: usize,
    /// The second one, or at the end of the axis the first one again.
    pub high: usize,
    /// From 0 to 1: how much of the second one is in the result.
    pub part: f32,
}

/// Those of an axis of `from` values that becomes one of `to`.
pub fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f32 / to.max(1) as f32;
    let last = from.saturating_sub(1);
    let tap = |index: usize| {
        let position = (scale * (index as f32 + 0.5) - 0.5).max(0.0);
        let low = (position as usize).min(last);
        Tap { low, high: (low + 1).min(last), part: (position - low as f32).clamp(0.0, 1.0) }
    };
    (0..to).map(tap).collect()
}

/// Resizes maps `[B, C, H, W]` in main memory to `[B, C, height, width]`.
///
/// # Errors
/// Where the tensor has another rank or type, or a side is 0.
pub fn interpolate(maps: &Tensor, (height, width): (usize, usize)) -> Result<Tensor> {
    let (batch, channels, old_height, old_width) = maps.dims4()?;
    if height * width * old_height * old_width == 0 {
        return Err(Error::Shape {
            what: "maps that are resized".into(),
            expected: "sides of at least one pixel".into(),
            got: format!("{old_height}x{old_width} to {height}x{width}"),
        });
    }
    let values: Vec<f32> = maps.flatten_all()?.to_vec1()?;
    let (rows, columns) = (taps(old_height, height), taps(old_width, width));
    let mut resized = vec![0.0f32; batch * channels * height * width];
    resized.par_chunks_mut(height * width).zip(values.par_chunks(old_height * old_width)).for_each(|(to, from)| {
        for (line, row) in to.chunks_exact_mut(width).zip(&rows) {
            let [above, below] = [row.low, row.high].map(|y| &from[y * old_width..][..old_width]);
            for (value, column) in line.iter_mut().zip(&columns) {
                let along = |line: &[f32]| line[column.low] * (1.0 - column.part) + line[column.high] * column.part;
                *value = along(above) * (1.0 - row.part) + along(below) * row.part;
            }
        }
    });
    Ok(Tensor::from_vec(resized, (batch, channels, height, width), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enlarged_as_pytorch_does() {
        // torch.nn.functional.interpolate([[0, 1], [2, 3]], size=(4, 4), mode="bilinear", align_corners=False)
        let map = Tensor::new(&[[[[0f32, 1.0], [2.0, 3.0]]]], &Device::Cpu).unwrap();
        let large = interpolate(&map, (4, 4)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let rows = [0.0f32, 0.5, 1.5, 2.0];
        let columns = [0.0f32, 0.25, 0.75, 1.0];
        for (i, value) in large.iter().enumerate() {
            assert!((value - rows[i / 4] - columns[i % 4]).abs() < 1e-6, "{large:?}");
        }
    }

    #[test]
    fn shrunk_as_pytorch_does() {
        // interpolate(torch.arange(20.).view(1, 1, 4, 5) ** 2, size=(3, 2), mode="bilinear", align_corners=False)
        let map = Tensor::from_vec((0..20).map(|i| (i * i) as f32).collect::<Vec<_>>(), (1, 1, 4, 5), &Device::Cpu);
        let small = interpolate(&map.unwrap(), (3, 2)).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = [6.166_667_5, 20.333_333, 74.5, 122.0, 226.166_69, 307.000_03];
        for (got, expected) in small.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-4, "{small:?}");
        }
        assert!(
            interpolate(&Tensor::zeros((1, 1, 4, 5), candle_core::DType::F32, &Device::Cpu).unwrap(), (0, 2)).is_err()
        );
    }
}
