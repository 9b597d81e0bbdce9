//! Four pictures around a random point (Bochkovskiy et al., "YOLOv4", 2020).

use image::{Rgb, RgbImage};

use super::warp::BORDER;
use super::{Object, Sample};
use crate::data::rng::Rng;

/// Where the four pictures meet in a canvas of twice `size`: in its middle half.
pub fn random_centre(size: u32, rng: &mut Rng) -> (u32, u32) {
    let mut draw = || rng.uniform(f64::from(size) * 0.5, f64::from(size) * 1.5) as u32;
    let y = draw();
    (draw(), y)
}

/// A canvas of twice `size` that is filled quarter by quarter.
pub struct Mosaic {
    canvas: RgbImage,
    centre: (u32, u32),
    objects: Vec<Object>,
}

impl Mosaic {
    /// An empty canvas whose quarters meet at `centre` = (x, y), which lies in it.
    #[must_use]
    pub fn new(size: u32, centre: (u32, u32)) -> Self {
        let side = 2 * size;
        let centre = (centre.0.min(side), centre.1.min(side));
        Self { canvas: RgbImage::from_pixel(side, side, Rgb([BORDER; 3])), centre, objects: Vec::new() }
    }

    /// Lays a picture into a quarter (0 upper left, 1 upper right, 2 lower left, 3 lower right), a corner of it at the centre;
    /// what does not fit is cut off. Gives how far the picture moved, as (x, y).
    pub fn place(&mut self, quarter: usize, picture: &RgbImage) -> (i64, i64) {
        let side = self.canvas.width();
        let (left, right_from, width) = span(quarter % 2 == 1, self.centre.0, picture.width(), side);
        let (top, down_from, height) = span(quarter / 2 == 1, self.centre.1, picture.height(), side);
        let bytes = width as usize * 3;
        let canvas: &mut [u8] = &mut self.canvas;
        for row in 0..height {
            let to = ((top + row) as usize * side as usize + left as usize) * 3;
            let from = ((down_from + row) as usize * picture.width() as usize + right_from as usize) * 3;
            canvas[to..to + bytes].copy_from_slice(&picture.as_raw()[from..from + bytes]);
        }
        (i64::from(left) - i64::from(right_from), i64::from(top) - i64::from(down_from))
    }

    /// Adds an object in pixels of the canvas, cut to it.
    pub fn add(&mut self, mut object: Object) {
        let side = self.canvas.width() as f32;
        for value in object.bbox.iter_mut().chain(object.segment.as_flattened_mut()) {
            *value = value.clamp(0.0, side);
        }
        self.objects.push(object);
    }

    /// What was laid.
    #[must_use]
    pub fn finish(self) -> Sample {
        Sample { picture: self.canvas, objects: self.objects }
    }
}

/// Where one side of a picture goes: its first place in the canvas, its first own pixel, its pixels.
fn span(after: bool, centre: u32, length: u32, side: u32) -> (u32, u32, u32) {
    if after {
        (centre, 0, length.min(side - centre))
    } else {
        let kept = length.min(centre);
        (centre - kept, length - kept, kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quarters_meet_at_the_centre() {
        // Each picture has its own colour but for a dark pixel at the corner that goes to the centre.
        let (width, height) = (30, 20);
        let corner = |quarter: usize| {
            (if quarter % 2 == 1 { 0 } else { width - 1 }, if quarter / 2 == 1 { 0 } else { height - 1 })
        };
        for centre in [(20, 20), (5, 39), (33, 12), (0, 40)] {
            let mut mosaic = Mosaic::new(20, centre);
            for quarter in 0..4 {
                let colour = Rgb([50 * quarter as u8 + 20; 3]);
                let mut picture = RgbImage::from_pixel(width, height, colour);
                let (x, y) = corner(quarter);
                picture.put_pixel(x, y, Rgb([0; 3]));
                let (dx, dy) = mosaic.place(quarter, &picture);
                let (x, y) = (i64::from(x) + dx, i64::from(y) + dy);
                let expected = (
                    i64::from(centre.0) - i64::from(quarter % 2 == 0),
                    i64::from(centre.1) - i64::from(quarter / 2 == 0),
                );
                assert_eq!((x, y), expected, "{centre:?} {quarter}");
                if (0..40).contains(&x) && (0..40).contains(&y) {
                    assert_eq!(mosaic.canvas.get_pixel(x as u32, y as u32).0, [0; 3]);
                }
            }
            let covered = mosaic.canvas.pixels().filter(|pixel| pixel.0 != [BORDER; 3]).count() as u32;
            let kept = |centre: u32, length: u32| centre.min(length) + (40 - centre).min(length);
            assert_eq!(covered, kept(centre.0, width) * kept(centre.1, height));
        }
    }

    #[test]
    fn centres_lie_in_the_middle_half() {
        let mut rng = Rng::keyed(3, 0, 0);
        for _ in 0..1000 {
            let (x, y) = random_centre(64, &mut rng);
            assert!((32..96).contains(&x) && (32..96).contains(&y));
        }
    }
}
