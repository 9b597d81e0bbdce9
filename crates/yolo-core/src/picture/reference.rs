//! Plain twins of what is fast here: each pixel by its definition. Tests and benchmarks hold the others to them.

use image::{Rgb, RgbImage};

use super::resize::check_sides;
use crate::Result;

/// OpenCV's 8-bit `INTER_LINEAR`, pixel by pixel: what [`resize_bilinear`](super::resize_bilinear) gives, some times slower.
///
/// # Errors
/// As [`resize_bilinear`](super::resize_bilinear).
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check_sides(image, width, height)?;
    let (from_width, from_height) = image.dimensions();
    Ok(RgbImage::from_fn(width, height, |x, y| {
        let (left, mut across) = position(x, from_width, width);
        // Columns beyond the border take the border's pixel whole; rows are clamped after weighting.
        if left < 0 || left >= i64::from(from_width) - 1 {
            across = 0.0;
        }
        let (top, down) = position(y, from_height, height);
        let pixel = |x: i64, y: i64| {
            let inside = |index: i64, side: u32| index.clamp(0, i64::from(side) - 1) as u32;
            image.get_pixel(inside(x, from_width), inside(y, from_height))
        };
        Rgb(std::array::from_fn(|channel| {
            let row = |y| {
                let [left, right] = [left, left + 1].map(|x| u32::from(pixel(x, y).0[channel]));
                (left * weight(1.0 - across) + right * weight(across)) >> 4
            };
            let (upper, lower) = (row(top) * weight(1.0 - down), row(top + 1) * weight(down));
            (((upper >> 16) + (lower >> 16) + 2) >> 2) as u8
        }))
    }))
}

/// Where an output index lies in the source: the pixel before it and the way to the next one.
fn position(index: u32, from: u32, to: u32) -> (i64, f32) {
    let scale = 1.0 / (f64::from(to) / f64::from(from));
    let position = ((f64::from(index) + 0.5) * scale - 0.5) as f32;
    (position.floor() as i64, position - position.floor())
}

/// A weight with 11 fractional bits.
fn weight(value: f32) -> u32 {
    (value * 2048.0).round_ties_even() as u32
}
