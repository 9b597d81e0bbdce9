//! Bilinear resizing as OpenCV does it on 8-bit pictures.

use image::RgbImage;

use super::MAX_PIXELS;
use crate::{Error, Result};

/// Coefficients carry 11 fractional bits.
const ONE: u16 = 2048;

/// Where an output row or column reads: two source indices and their weights, which sum to 2048.
#[derive(Clone, Copy)]
struct Tap {
    low: u32,
    high: u32,
    weight_low: u16,
    weight_high: u16,
}

impl Tap {
    /// Whether it takes its lower source as it is.
    fn is_whole(&self) -> bool {
        (self.weight_low, self.weight_high) == (ONE, 0)
    }
}

/// Resizes to `width` x `height` pixels, bit for bit as OpenCV's `resize(..., INTER_LINEAR)` on 8-bit pictures.
///
/// That is plain two-tap interpolation, also when shrinking (nothing is averaged), in 11-bit fixed point: rows first, cut to
/// 4 bits less, then columns with a rounded end. [`reference::resize_bilinear`](super::reference::resize_bilinear) says it
/// pixel by pixel.
///
/// # Errors
/// [`Error::Argument`] where a side is 0 or the result would have more than [`MAX_PIXELS`] pixels.
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    check_sides(image, width, height)?;
    let mut resized = RgbImage::new(width, height);
    resize_into(image, &mut resized, (0, 0), (width, height));
    Ok(resized)
}

pub(super) fn check_sides(image: &RgbImage, width: u32, height: u32) -> Result<()> {
    let (from_width, from_height) = image.dimensions();
    if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
        let problem = format!("cannot resize {from_width}x{from_height} to {width}x{height}: a side has no pixels");
        return Err(Error::Argument { argument: "size", problem });
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        let problem = format!("{width}x{height} pixels is too large: at most {MAX_PIXELS}");
        return Err(Error::Argument { argument: "size", problem });
    }
    Ok(())
}

/// Resizes `image` into the window of `size` = (width, height) whose first pixel is `corner` = (left, top); the rest of
/// `target` stays as it is. No side may be 0, and the window lies in `target`.
pub(super) fn resize_into(image: &RgbImage, target: &mut RgbImage, corner: (u32, u32), size: (u32, u32)) {
    let (from_width, from_height) = image.dimensions();
    let columns = Columns::new(from_width as usize, size.0 as usize);
    let rows = row_taps(from_height as usize, size.1 as usize);
    let source = |index: u32| &image.as_raw()[index as usize * from_width as usize * 3..][..from_width as usize * 3];

    let (first, samples) = (corner.0 as usize * 3, size.0 as usize * 3);
    let stride = target.width() as usize * 3;
    let mut low = CachedRow::new(samples);
    let mut high = CachedRow::new(samples);
    let mut gathered = [vec![0; samples], vec![0; samples]];
    for (out, tap) in target.chunks_exact_mut(stride).skip(corner.1 as usize).zip(rows) {
        let out = &mut out[first..first + samples];
        if columns.whole && tap.is_whole() {
            gather(source(tap.low), &columns.low, out);
            continue;
        }
        if high.index == Some(tap.low) {
            std::mem::swap(&mut low, &mut high);
        }
        let mut fill = |row: &mut CachedRow, index: u32| {
            if row.index != Some(index) {
                row.index = Some(index);
                columns.interpolate(source(index), &mut gathered, &mut row.samples);
            }
        };
        fill(&mut low, tap.low);
        if tap.weight_high != 0 {
            fill(&mut high, tap.high);
        }
        blend_rows(out, &low.samples, &high.samples, &tap);
    }
}

/// Resizes one channel of bytes as [`resize_bilinear`] does three; shapes are (height, width), no side may be 0.
pub(crate) fn resize_plane(plane: &[u8], (height, width): (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let columns = column_taps(width, to.1);
    let interpolate = |row: &mut CachedRow, index: u32| {
        let line = &plane[index as usize * width..][..width];
        for (out, tap) in row.samples.iter_mut().zip(&columns) {
            let part = |place: u32, weight: u16| u32::from(line[place as usize]) * u32::from(weight);
            *out = ((part(tap.low, tap.weight_low) + part(tap.high, tap.weight_high)) >> 4) as u16;
        }
        row.index = Some(index);
    };
    let mut low = CachedRow::new(to.1);
    let mut high = CachedRow::new(to.1);
    let mut resized = vec![0; to.0 * to.1];
    for (out, tap) in resized.chunks_exact_mut(to.1).zip(row_taps(height, to.0)) {
        if high.index == Some(tap.low) {
            std::mem::swap(&mut low, &mut high);
        }
        for (row, index) in [(&mut low, tap.low), (&mut high, tap.high)] {
            if row.index != Some(index) {
                interpolate(row, index);
            }
        }
        blend_rows(out, &low.samples, &high.samples, &tap);
    }
    resized
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
}

/// The taps of all output columns, as vector instructions want them: source pixels apart from weights, and a weight for each
/// of a pixel's three samples.
struct Columns {
    low: Vec<u32>,
    high: Vec<u32>,
    weights_low: Vec<u16>,
    weights_high: Vec<u16>,
    /// Every column is a source column as it is.
    whole: bool,
}

impl Columns {
    fn new(from: usize, to: usize) -> Self {
        let taps = column_taps(from, to);
        let samples = |weight: fn(&Tap) -> u16| taps.iter().flat_map(|tap| [weight(tap); 3]).collect();
        Self {
            low: taps.iter().map(|tap| tap.low).collect(),
            high: taps.iter().map(|tap| tap.high).collect(),
            weights_low: samples(|tap| tap.weight_low),
            weights_high: samples(|tap| tap.weight_high),
            whole: taps.iter().all(Tap::is_whole),
        }
    }

    fn interpolate(&self, row: &[u8], [low, high]: &mut [Vec<u8>; 2], out: &mut [u16]) {
        gather(row, &self.low, low);
        gather(row, &self.high, high);
        let len = out.len();
        let (low, high) = (&low[..len], &high[..len]);
        let (weights_low, weights_high) = (&self.weights_low[..len], &self.weights_high[..len]);
        for i in 0..len {
            // (a * weight_a + b * weight_b) >> 4 needs 20 bits. With the weights' last four bits apart, 16 are enough for
            // all of it, and nothing is lost: what stands before the four is a multiple of 16.
            let (a, b, weight_a, weight_b) = (u16::from(low[i]), u16::from(high[i]), weights_low[i], weights_high[i]);
            let coarse = a.wrapping_mul(weight_a >> 4).wrapping_add(b.wrapping_mul(weight_b >> 4));
            let fine = a.wrapping_mul(weight_a & 15).wrapping_add(b.wrapping_mul(weight_b & 15));
            out[i] = coarse.wrapping_add(fine >> 4);
        }
    }
}

/// The pixels of a row at the given places.
fn gather(row: &[u8], places: &[u32], out: &mut [u8]) {
    let (row, _) = row.as_chunks::<3>();
    let (out, _) = out.as_chunks_mut::<3>();
    for (out, place) in out.iter_mut().zip(places) {
        *out = row[*place as usize];
    }
}

fn blend_rows(out: &mut [u8], low: &[u16], high: &[u16], tap: &Tap) {
    // The high half of a 16-bit product: an instruction of its own on most processors.
    let high_half = |sample: u16, weight: u16| ((u32::from(sample) * u32::from(weight)) >> 16) as u16;
    for ((out, &a), &b) in out.iter_mut().zip(low).zip(high) {
        // Together they are less than 1024: nothing wraps, and checks for that would keep vector instructions away.
        let sum = high_half(a, tap.weight_low).wrapping_add(high_half(b, tap.weight_high));
        *out = (sum.wrapping_add(2) >> 2) as u8;
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
    let weight = |value: f32| (value * f32::from(ONE)).round_ties_even() as u16;
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
