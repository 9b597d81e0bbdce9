//! Bilinear resizing as OpenCV does it on 8-bit pictures.

use image::RgbImage;
use rayon::prelude::*;

use super::MAX_PIXELS;
use crate::{Error, Result};

/// Coefficients carry 11 fractional bits.
const ONE: f32 = 2048.0;
/// Output rows that one thread does in a go: enough to share the source rows between neighbours.
const BAND: usize = 32;

/// Where an output row or column reads: two source indices and their weights, which sum to 2048.
#[derive(Clone, Copy)]
struct Tap {
    low: u32,
    high: u32,
    weight_low: u16,
    weight_high: u16,
}

/// Resizes to `width` x `height` pixels, bit for bit as OpenCV's `resize(..., INTER_LINEAR)` on 8-bit pictures.
///
/// That is plain two-tap interpolation, also when shrinking (nothing is averaged), in 11-bit fixed point: rows first, cut to
/// 4 bits less, then columns with a rounded end.
///
/// # Errors
/// [`Error::Argument`] where a side is 0 or the result would have more than [`MAX_PIXELS`] pixels.
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_width, from_height) = image.dimensions();
    if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
        let problem = format!("cannot resize {from_width}x{from_height} to {width}x{height}: a side has no pixels");
        return Err(Error::Argument { argument: "size", problem });
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let problem = format!("{width}x{height} pixels is too large: at most {MAX_PIXELS}");
        return Err(Error::Argument { argument: "size", problem });
    }
    if (width, height) == (from_width, from_height) {
        return Ok(image.clone());
    }
    let columns = column_taps(from_width as usize, width as usize);
    let rows = row_taps(from_height as usize, height as usize);
    let source: Vec<&[u8]> = image.as_raw().chunks_exact(from_width as usize * 3).collect();

    let mut resized = RgbImage::new(width, height);
    let stride = width as usize * 3;
    resized.par_chunks_mut(stride * BAND).zip(rows.par_chunks(BAND)).for_each(|(band, taps)| {
        let mut low = CachedRow::new(stride);
        let mut high = CachedRow::new(stride);
        for (out, tap) in band.chunks_exact_mut(stride).zip(taps) {
            if high.index == Some(tap.low) {
                std::mem::swap(&mut low, &mut high);
            }
            low.fill(&source, tap.low, &columns);
            if tap.weight_high != 0 {
                high.fill(&source, tap.high, &columns);
            }
            blend_rows(out, &low.samples, &high.samples, tap);
        }
    });
    Ok(resized)
}

/// A source row after horizontal interpolation, 7 fractional bits.
struct CachedRow {
    index: Option<u32>,
    samples: Vec<u16>,
}

impl CachedRow {
    fn new(samples: usize) -> Self {
        Self { index: None, samples: vec![0; samples] }
    }

    fn fill(&mut self, source: &[&[u8]], index: u32, columns: &[Tap]) {
        if self.index == Some(index) {
            return;
        }
        self.index = Some(index);
        let (row, _) = source[index as usize].as_chunks::<3>();
        let (samples, _) = self.samples.as_chunks_mut::<3>();
        for (out, tap) in samples.iter_mut().zip(columns) {
            let (a, b) = (row[tap.low as usize], row[tap.high as usize]);
            let (weight_a, weight_b) = (u32::from(tap.weight_low), u32::from(tap.weight_high));
            *out = std::array::from_fn(|channel| {
                ((u32::from(a[channel]) * weight_a + u32::from(b[channel]) * weight_b) >> 4) as u16
            });
        }
    }
}

fn blend_rows(out: &mut [u8], low: &[u16], high: &[u16], tap: &Tap) {
    // The high half of a 16-bit product: an instruction of its own on most processors.
    let high_half = |sample: u16, weight: u16| ((u32::from(sample) * u32::from(weight)) >> 16) as u16;
    for ((out, &a), &b) in out.iter_mut().zip(low).zip(high) {
        *out = ((high_half(a, tap.weight_low) + high_half(b, tap.weight_high) + 2) >> 2) as u8;
    }
}

/// The source position of every output index: its whole part and its fraction in f32, as OpenCV has them.
fn positions(from: usize, to: usize) -> impl Iterator<Item = (i64, f32)> {
    let scale = 1.0 / (to as f64 / from as f64);
    (0..to).map(move |index| {
        let position = ((index as f64 + 0.5) * scale - 0.5) as f32;
        let whole = position.floor();
        (whole as i64, position - whole)
    })
}

fn tap(low: i64, high: i64, fraction: f32, from: usize) -> Tap {
    let clamp = |index: i64| index.clamp(0, from as i64 - 1) as u32;
    let weight = |value: f32| (value * ONE).round_ties_even() as u16;
    Tap { low: clamp(low), high: clamp(high), weight_low: weight(1.0 - fraction), weight_high: weight(fraction) }
}

/// Columns beyond the border take the border's pixel whole.
fn column_taps(from: usize, to: usize) -> Vec<Tap> {
    let last = from as i64 - 1;
    positions(from, to)
        .map(|(whole, fraction)| {
            let fraction = if whole < 0 || whole >= last { 0.0 } else { fraction };
            tap(whole, whole + 1, fraction, from)
        })
        .collect()
}

/// Rows beyond the border are clamped after weighting, so that their two parts are cut one by one: OpenCV's way.
fn row_taps(from: usize, to: usize) -> Vec<Tap> {
    positions(from, to).map(|(whole, fraction)| tap(whole, whole + 1, fraction, from)).collect()
}
