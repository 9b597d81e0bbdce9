//! From the head's maps to boxes in pixels of the network's input.

use candle_core::{D, DType, Result, Tensor};
use dyconv_kernels::sigmoid;

/// Rows of all levels, `[B, anchors, 5 + classes (+ masks)]`: centre, width, height, objectness, class probabilities, and
/// mask coefficients as they come.
///
/// With `s = sigmoid(map)`: the centre is `(2 s + cell - 0.5) * stride`, the size `(2 s)^2 * anchor * stride`.
/// Rows are ordered by level, anchor, row and column. Always in f32: half precision would move boxes by half pixels.
pub(super) fn rows(
    maps: &[&Tensor],
    anchors: &Tensor,
    strides: &[f64],
    classes: usize,
    per_level: usize,
) -> Result<Tensor> {
    let anchors = anchors.to_dtype(DType::F32)?;
    let levels = maps.iter().zip(strides).enumerate();
    let rows = levels.map(|(i, (map, &stride))| level(map, &anchors.get(i)?, stride, classes, per_level));
    Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 1)
}

fn level(map: &Tensor, anchors: &Tensor, stride: f64, classes: usize, per_level: usize) -> Result<Tensor> {
    let (batch, channels, height, width) = map.dims4()?;
    let outputs = channels / per_level;
    let map = map.to_dtype(DType::F32)?.reshape((batch, per_level, outputs, height, width))?;
    let map = map.permute((0, 1, 3, 4, 2))?;
    let s = sigmoid(&map.narrow(D::Minus1, 0, 5 + classes)?)?;
    let centre = ((s.narrow(D::Minus1, 0, 2)? * 2.0)?.broadcast_add(&cells(height, width, map.device())?)? * stride)?;
    let sizes = (anchors * stride)?.reshape((1, per_level, 1, 1, 2))?;
    let size = (s.narrow(D::Minus1, 2, 2)? * 2.0)?.sqr()?.broadcast_mul(&sizes)?;
    let mut parts = vec![centre, size, s.narrow(D::Minus1, 4, 1 + classes)?];
    let masks = outputs - 5 - classes;
    if masks > 0 {
        parts.push(map.narrow(D::Minus1, 5 + classes, masks)?);
    }
    Tensor::cat(&parts, D::Minus1)?.reshape((batch, per_level * height * width, outputs))
}

/// Column and row of each cell less a half, `[1, 1, height, width, 2]`.
fn cells(height: usize, width: usize, device: &candle_core::Device) -> Result<Tensor> {
    let values: Vec<f32> =
        (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as f32 - 0.5, y as f32 - 0.5])).collect();
    Tensor::from_vec(values, (1, 1, height, width, 2), device)
}
