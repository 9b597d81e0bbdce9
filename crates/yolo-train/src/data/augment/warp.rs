//! Projective warps of pictures, interpolated bilinearly in whole numbers.

use image::RgbImage;

/// What is drawn where a warp reads outside of the picture.
pub const BORDER: u8 = 114;

/// A 3x3 matrix that maps `[x, y, 1]` to `[x', y', w]`.
pub type Matrix = [[f64; 3]; 3];

/// The matrix that leaves everything where it is.
pub const IDENTITY: Matrix = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];

/// The matrix of `second` after `first`.
#[must_use]
pub fn compose(second: &Matrix, first: &Matrix) -> Matrix {
    std::array::from_fn(|i| std::array::from_fn(|j| (0..3).map(|k| second[i][k] * first[k][j]).sum()))
}

/// The matrix that undoes another; none where that is flat.
#[must_use]
pub fn invert(m: &Matrix) -> Option<Matrix> {
    // The adjugate: each entry is the minor across, its rows and columns taken in turn, which gives the sign too.
    let minor = |i: usize, j: usize| {
        let (r, s, c, d) = ((i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3);
        m[r][c] * m[s][d] - m[r][d] * m[s][c]
    };
    let determinant: f64 = (0..3).map(|j| m[0][j] * minor(0, j)).sum();
    let inverse: Matrix = std::array::from_fn(|i| std::array::from_fn(|j| minor(j, i) / determinant));
    (determinant != 0.0 && inverse.as_flattened().iter().all(|value| value.is_finite())).then_some(inverse)
}

/// Where a point goes.
#[must_use]
pub fn map(m: &Matrix, [x, y]: [f64; 2]) -> [f64; 2] {
    let [u, v, w] = std::array::from_fn(|i| m[i][0] * x + m[i][1] * y + m[i][2]);
    if w == 1.0 { [u, v] } else { [u / w, v / w] }
}

/// Places carry 32 fractional bits while they are stepped along a row, ...
const STEP_BITS: u32 = 32;
/// ... of which 8 weigh the four pixels around.
const WEIGHT_BITS: u32 = 8;
const ONE: u32 = 1 << WEIGHT_BITS;
/// Half of the last bit that is kept, so that cutting rounds.
const ROUND: i64 = 1 << (STEP_BITS - WEIGHT_BITS - 1);

/// The picture of `width` x `height` pixels whose pixel (x, y) is the source at `inverse * (x, y)`, where whole numbers are
/// pixels' centres; [`BORDER`] outside.
#[must_use]
pub fn warp(source: &RgbImage, inverse: &Matrix, width: u32, height: u32) -> RgbImage {
    let mut warped = RgbImage::new(width, height);
    if width == 0 {
        return warped;
    }
    let source = Source::new(source);
    let affine = inverse[2] == [0.0, 0.0, 1.0];
    for (y, row) in warped.chunks_exact_mut(width as usize * 3).enumerate() {
        let row = row.as_chunks_mut::<3>().0;
        if affine {
            affine_row(&source, inverse, y as f64, row);
        } else {
            projective_row(&source, inverse, y as f64, row);
        }
    }
    warped
}

fn affine_row(source: &Source<'_>, inverse: &Matrix, y: f64, row: &mut [[u8; 3]]) {
    let fixed = |value: f64| (value * (1u64 << STEP_BITS) as f64).round() as i64;
    // Far beyond any picture steps could overflow.
    let reach = |line: &[f64; 3]| line[0].abs() * row.len() as f64 + (line[1] * y + line[2]).abs();
    if !(reach(&inverse[0]) < 1e9 && reach(&inverse[1]) < 1e9) {
        return projective_row(source, inverse, y, row);
    }
    let start = [0, 1].map(|axis| fixed(inverse[axis][1] * y + inverse[axis][2]) + ROUND);
    let step = [0, 1].map(|axis| fixed(inverse[axis][0]));
    // Columns whose four pixels are all in the picture need no look at the border.
    let across = steps_within(start[0], step[0], source.width - 1, row.len());
    let down = steps_within(start[1], step[1], source.height - 1, row.len());
    let (first, end) = (across.0.max(down.0), across.1.min(down.1));
    let (first, end) = if first < end { (first, end) } else { (0, 0) };
    let place = |x: usize| [0, 1].map(|axis| start[axis] + x as i64 * step[axis]);
    for x in (0..first).chain(end..row.len()) {
        row[x] = source.near_border(place(x));
    }
    let mut at = place(first);
    for out in &mut row[first..end] {
        *out = source.inside(at);
        at[0] += step[0];
        at[1] += step[1];
    }
}

fn projective_row(source: &Source<'_>, inverse: &Matrix, y: f64, row: &mut [[u8; 3]]) {
    for (x, out) in row.iter_mut().enumerate() {
        let [u, v, w] = std::array::from_fn(|i| inverse[i][0] * x as f64 + inverse[i][1] * y + inverse[i][2]);
        let scale = if w == 0.0 { 0.0 } else { (1u64 << STEP_BITS) as f64 / w };
        // A conversion beyond the range gives its end, which is outside of the picture as well.
        let at = [u, v].map(|value| ((value * scale).round() as i64).saturating_add(ROUND));
        *out = source.near_border(at);
    }
}

/// The steps `first..end` of `count` at which `start + step * index` has a whole part in `0..limit`.
fn steps_within(start: i64, step: i64, limit: i64, count: usize) -> (usize, usize) {
    let top = limit << STEP_BITS;
    let count_i = count as i64;
    let (first, end) = match step.signum() {
        0 => return if (0..top).contains(&start) { (0, count) } else { (0, 0) },
        // The least index with start + step * index >= 0, and the least with >= top.
        1 => (ceil_div(-start, step), ceil_div(top - start, step)),
        // The least index with start + step * index < top, and the least with < 0.
        _ => (ceil_div(start - top + 1, -step), ceil_div(start + 1, -step)),
    };
    (first.clamp(0, count_i) as usize, end.clamp(0, count_i) as usize)
}

/// Division by a positive number, rounded up.
fn ceil_div(a: i64, b: i64) -> i64 {
    -((-a).div_euclid(b))
}

struct Source<'a> {
    pixels: &'a [[u8; 3]],
    width: i64,
    height: i64,
}

impl<'a> Source<'a> {
    fn new(image: &'a RgbImage) -> Self {
        let pixels = image.as_raw().as_chunks::<3>().0;
        Self { pixels, width: i64::from(image.width()), height: i64::from(image.height()) }
    }

    /// The picture at a place all of whose four pixels are in it.
    #[inline]
    fn inside(&self, at: [i64; 2]) -> [u8; 3] {
        let [(x, right), (y, down)] = at.map(split);
        let index = (y * self.width + x) as usize;
        let upper = &self.pixels[index..index + 2];
        let index = index + self.width as usize;
        let lower = &self.pixels[index..index + 2];
        blend([upper[0], upper[1], lower[0], lower[1]], right, down)
    }

    fn near_border(&self, at: [i64; 2]) -> [u8; 3] {
        let [(x, right), (y, down)] = at.map(split);
        if x < -1 || y < -1 || x >= self.width || y >= self.height {
            return [BORDER; 3];
        }
        let pixel = |x: i64, y: i64| {
            let inside = (0..self.width).contains(&x) && (0..self.height).contains(&y);
            if inside { self.pixels[(y * self.width + x) as usize] } else { [BORDER; 3] }
        };
        blend([pixel(x, y), pixel(x + 1, y), pixel(x, y + 1), pixel(x + 1, y + 1)], right, down)
    }
}

/// The whole part of a place and its weight towards the next pixel.
#[inline]
fn split(place: i64) -> (i64, u32) {
    (place >> STEP_BITS, ((place >> (STEP_BITS - WEIGHT_BITS)) as u32) & (ONE - 1))
}

#[inline]
fn blend(corners: [[u8; 3]; 4], right: u32, down: u32) -> [u8; 3] {
    std::array::from_fn(|channel| {
        let [a, b, c, d] = corners.map(|pixel| u32::from(pixel[channel]));
        let upper = a * (ONE - right) + b * right;
        let lower = c * (ONE - right) + d * right;
        ((upper * (ONE - down) + lower * down + (1 << (2 * WEIGHT_BITS - 1))) >> (2 * WEIGHT_BITS)) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn noise(width: u32, height: u32) -> RgbImage {
        let mut rng = crate::data::rng::Rng::keyed(u64::from(width), u64::from(height), 0);
        RgbImage::from_fn(width, height, |_, _| Rgb(std::array::from_fn(|_| rng.bits() as u8)))
    }

    /// Interpolation by its definition.
    fn plain(source: &RgbImage, inverse: &Matrix, x: u32, y: u32) -> [f64; 3] {
        let [u, v] = map(inverse, [f64::from(x), f64::from(y)]);
        let pixel = |dx: f64, dy: f64, channel: usize| {
            let (x, y) = (u.floor() + dx, v.floor() + dy);
            let inside = x >= 0.0 && y >= 0.0 && x < f64::from(source.width()) && y < f64::from(source.height());
            f64::from(if inside { source.get_pixel(x as u32, y as u32).0[channel] } else { BORDER })
        };
        let (right, down) = (u - u.floor(), v - v.floor());
        std::array::from_fn(|channel| {
            let row = |dy| pixel(0.0, dy, channel) * (1.0 - right) + pixel(1.0, dy, channel) * right;
            row(0.0) * (1.0 - down) + row(1.0) * down
        })
    }

    #[test]
    fn warps_are_interpolations() {
        let source = noise(37, 23);
        for inverse in [
            IDENTITY,
            [[1.0, 0.0, 3.0], [0.0, 1.0, -5.0], [0.0, 0.0, 1.0]],
            [[0.7, -0.4, 8.3], [0.5, 0.9, -6.1], [0.0, 0.0, 1.0]],
            [[-1.3, 0.2, 40.5], [0.1, -0.8, 22.0], [0.0, 0.0, 1.0]],
            [[0.9, 0.1, 2.0], [-0.1, 1.1, 1.0], [0.004, -0.003, 1.0]],
            [[1e12, 0.0, 5.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        ] {
            let warped = warp(&source, &inverse, 41, 31);
            for (x, y, pixel) in warped.enumerate_pixels() {
                let expected = plain(&source, &inverse, x, y);
                for channel in 0..3 {
                    let difference = (f64::from(pixel.0[channel]) - expected[channel]).abs();
                    // Two weights of 8 bits, each off by half a step, over 255 levels, and the rounding at the end.
                    assert!(difference < 1.6, "{inverse:?} ({x}, {y}): {:?}, expected {expected:?}", pixel.0);
                }
            }
        }
        assert_eq!(warp(&source, &IDENTITY, 37, 23), source);
        assert_eq!(warp(&noise(1, 1), &IDENTITY, 1, 1), noise(1, 1));
    }

    #[test]
    fn an_inverse_undoes() {
        let m = [[0.7, -0.4, 8.3], [0.5, 0.9, -6.1], [0.001, 0.002, 1.0]];
        let one = compose(&m, &invert(&m).unwrap());
        for (i, j) in (0..9).map(|k| (k / 3, k % 3)) {
            assert!((one[i][j] - IDENTITY[i][j]).abs() < 1e-12, "{one:?}");
        }
        assert!(invert(&[[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]]).is_none());
    }
}
