//! Shrinking by averaging, as OpenCV's `resize(..., INTER_AREA)` does it on 8-bit pictures.

use image::RgbImage;

use crate::{Error, Result};

/// The share of a source row or column in an output row or column.
#[derive(Clone, Copy)]
struct Part {
    source: usize,
    weight: f32,
}

/// Shrinks to `width` x `height` pixels: each output pixel is the mean of the source's area under it.
///
/// Whole ratios are summed in whole numbers and rounded once; others are weighted in f32, columns before rows.
///
/// # Errors
/// [`Error::Argument`] where a side is 0 or longer than the source's: this does not enlarge.
pub fn resize_area(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_width, from_height) = image.dimensions();
    if width == 0 || height == 0 || width > from_width || height > from_height {
        let problem = format!("cannot shrink {from_width}x{from_height} pixels to {width}x{height}");
        return Err(Error::Argument { argument: "size", problem });
    }
    let mut resized = RgbImage::new(width, height);
    if from_width % width == 0 && from_height % height == 0 {
        whole_ratio(image, &mut resized);
    } else {
        any_ratio(image, &mut resized);
    }
    Ok(resized)
}

fn whole_ratio(image: &RgbImage, resized: &mut RgbImage) {
    let (across, down) = ((image.width() / resized.width()) as usize, (image.height() / resized.height()) as usize);
    let (from, to) = (image.width() as usize * 3, resized.width() as usize * 3);
    let area = across * down;
    let scale = 1.0 / area as f32;
    let mut sums = vec![0u32; to];
    for (rows, out) in image.as_raw().chunks_exact(from * down).zip(resized.chunks_exact_mut(to)) {
        sums.fill(0);
        for row in rows.chunks_exact(from) {
            for (sum, cell) in sums.as_chunks_mut::<3>().0.iter_mut().zip(row.chunks_exact(across * 3)) {
                for pixel in cell.as_chunks::<3>().0 {
                    for channel in 0..3 {
                        sum[channel] += u32::from(pixel[channel]);
                    }
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            // Quarters have a rule of their own: halves go up, not to even.
            *out = if (across, down) == (2, 2) {
                ((sum + 2) >> 2) as u8
            } else {
                (*sum as f32 * scale).round_ties_even() as u8
            };
        }
    }
}

fn any_ratio(image: &RgbImage, resized: &mut RgbImage) {
    let (from, to) = (image.width() as usize * 3, resized.width() as usize * 3);
    let columns = parts(image.width() as usize, resized.width() as usize);
    let rows = parts(image.height() as usize, resized.height() as usize);
    let mut sums = vec![0f32; to];
    for (out, rows) in resized.chunks_exact_mut(to).zip(&rows) {
        for (index, row) in rows.iter().enumerate() {
            let source = image.as_raw()[row.source * from..][..from].as_chunks::<3>().0;
            for (sum, columns) in sums.as_chunks_mut::<3>().0.iter_mut().zip(&columns) {
                let mut mean = [0f32; 3];
                for column in columns {
                    for channel in 0..3 {
                        mean[channel] += f32::from(source[column.source][channel]) * column.weight;
                    }
                }
                for channel in 0..3 {
                    let weighted = mean[channel] * row.weight;
                    sum[channel] = if index == 0 { weighted } else { sum[channel] + weighted };
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = sum.round_ties_even() as u8;
        }
    }
}

/// What each output index is made of. Slivers under a thousandth are left out, as OpenCV does.
fn parts(from: usize, to: usize) -> Vec<Vec<Part>> {
    const SLIVER: f64 = 1e-3;
    let scale = 1.0 / (to as f64 / from as f64);
    (0..to)
        .map(|index| {
            let begin = index as f64 * scale;
            let end = begin + scale;
            let cell = scale.min(from as f64 - begin);
            let last = (end.floor() as usize).min(from - 1);
            let first = (begin.ceil() as usize).min(last);
            let mut parts = Vec::with_capacity(last - first + 2);
            let before = first as f64 - begin;
            if before > SLIVER && first > 0 {
                parts.push(Part { source: first - 1, weight: (before / cell) as f32 });
            }
            parts.extend((first..last).map(|source| Part { source, weight: (1.0 / cell) as f32 }));
            let after = end - last as f64;
            if after > SLIVER {
                parts.push(Part { source: last, weight: (after.min(1.0).min(cell) / cell) as f32 });
            }
            parts
        })
        .collect()
}
