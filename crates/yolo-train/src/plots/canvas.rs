//! A white sheet and what is drawn on it, all edges smooth.

use image::{Rgb, RgbImage, imageops};
use yolo_core::picture::TextLine;

/// A colour, RGB.
pub(super) type Colour = [u8; 3];
/// A point in pixels from the sheet's upper left corner.
pub(super) type Point = [f32; 2];
/// Left, top, right, bottom in pixels.
pub(super) type Area = [f32; 4];

pub(super) const WHITE: Colour = [255; 3];
pub(super) const BLACK: Colour = [24; 3];
pub(super) const PALE: Colour = [228; 3];

/// Where a text's anchor lies in it, across the direction of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Start,
    Middle,
    End,
}

/// A picture to draw on.
pub(super) struct Canvas {
    image: RgbImage,
}

impl Canvas {
    pub(super) fn new(width: u32, height: u32) -> Self {
        Self { image: RgbImage::from_pixel(width, height, Rgb(WHITE)) }
    }

    pub(super) fn finish(self) -> RgbImage {
        self.image
    }

    /// The whole sheet.
    pub(super) fn area(&self) -> Area {
        [0.0, 0.0, self.image.width() as f32, self.image.height() as f32]
    }

    /// Fills a rectangle; pixels that it covers in part are mixed.
    pub(super) fn fill(&mut self, [left, top, right, bottom]: Area, colour: Colour, opacity: f32) {
        let (columns, rows) = (pixels(left, right, self.image.width()), pixels(top, bottom, self.image.height()));
        for y in rows {
            let down = (bottom.min(y as f32 + 1.0) - top.max(y as f32)).clamp(0.0, 1.0);
            for x in columns.clone() {
                let across = (right.min(x as f32 + 1.0) - left.max(x as f32)).clamp(0.0, 1.0);
                self.mix(x, y, colour, across * down * opacity);
            }
        }
    }

    /// A rectangle's outline, its line to both sides of the edge.
    pub(super) fn frame(&mut self, area: Area, width: f32, colour: Colour) {
        let half = width / 2.0;
        let [left, top, right, bottom] = area.map(|side| side.round());
        let outer = [left - half, top - half, right + half, bottom + half];
        self.fill([outer[0], outer[1], outer[2], top + half], colour, 1.0);
        self.fill([outer[0], bottom - half, outer[2], outer[3]], colour, 1.0);
        self.fill([outer[0], top + half, left + half, bottom - half], colour, 1.0);
        self.fill([right - half, top + half, outer[2], bottom - half], colour, 1.0);
    }

    /// A line through points with round joints, as much of it as lies in `clip`; where a point is not finite there is a gap.
    pub(super) fn line(&mut self, points: &[Point], width: f32, colour: Colour, opacity: f32, clip: Area) {
        let finite = |point: &Point| point.iter().all(|v| v.is_finite());
        for run in points.split(|point| !finite(point)).filter(|run| !run.is_empty()) {
            self.run(run, width, colour, opacity, clip);
        }
    }

    /// Coverage is gathered over all pieces of the line before colour is mixed in, so that pieces do not show where they meet.
    fn run(&mut self, points: &[Point], width: f32, colour: Colour, opacity: f32, clip: Area) {
        let reach = width / 2.0 + 1.0;
        let bounds = |from: Point, to: Point| {
            let columns = pixels(from[0].min(to[0]) - reach, from[0].max(to[0]) + reach, self.image.width());
            let rows = pixels(from[1].min(to[1]) - reach, from[1].max(to[1]) + reach, self.image.height());
            let within = |span: std::ops::Range<u32>, allowed: std::ops::Range<u32>| {
                let start = span.start.max(allowed.start);
                start..span.end.min(allowed.end).max(start)
            };
            let allowed = (pixels(clip[0], clip[2], u32::MAX), pixels(clip[1], clip[3], u32::MAX));
            (within(columns, allowed.0), within(rows, allowed.1))
        };
        let low = points.iter().copied().reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1])]).unwrap_or_default();
        let high = points.iter().copied().reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])]).unwrap_or_default();
        let (all_columns, all_rows) = bounds(low, high);
        let stride = all_columns.len();
        let mut coverage = vec![0.0_f32; stride * all_rows.len()];
        let single = [[points[0], points[0]]];
        let pieces = points.windows(2).map(|pair| [pair[0], pair[1]]);
        for [from, to] in pieces.chain(single.into_iter().take(usize::from(points.len() == 1))) {
            let (columns, rows) = bounds(from, to);
            for y in rows {
                let line = &mut coverage[(y - all_rows.start) as usize * stride..][..stride];
                for x in columns.clone() {
                    let distance = distance([x as f32 + 0.5, y as f32 + 0.5], from, to);
                    let share = (width / 2.0 + 0.5 - distance).clamp(0.0, width.min(1.0));
                    let pixel = &mut line[(x - all_columns.start) as usize];
                    *pixel = pixel.max(share);
                }
            }
        }
        for (index, share) in coverage.into_iter().enumerate().filter(|(_, share)| *share > 0.0) {
            let (x, y) = (all_columns.start + (index % stride) as u32, all_rows.start + (index / stride) as u32);
            self.mix(x, y, colour, share * opacity);
        }
    }

    /// A disc.
    pub(super) fn dot(&mut self, centre: Point, radius: f32, colour: Colour, clip: Area) {
        self.line(&[centre], radius * 2.0, colour, 1.0, clip);
    }

    /// A line of text, its capitals' middle at the height of `at`.
    pub(super) fn text(&mut self, text: &str, at: Point, size: f32, colour: Colour, align: Align) {
        let line = TextLine::new(text, size);
        let baseline = at[1] + TextLine::capital_height(size) / 2.0;
        line.draw(&mut self.image, at[0] - line.width * share(align), baseline.round(), colour);
    }

    /// A line of text that runs upwards, its capitals' middle at the column of `at`.
    pub(super) fn text_upwards(&mut self, text: &str, at: Point, size: f32, colour: Colour, align: Align) {
        let line = TextLine::new(text, size);
        // Drawn flat on a copy of what is below, so that it is mixed with that and turned back with it.
        let (length, height) = (line.width.ceil() as u32 + 2, (size * 1.5).ceil() as u32);
        let left = (at[0] - height as f32 / 2.0).round() as i64;
        let top = (at[1] - line.width * (1.0 - share(align))).round() as i64 - 1;
        let mut below = RgbImage::from_pixel(height, length, Rgb(WHITE));
        for (x, y, pixel) in below.enumerate_pixels_mut() {
            let at = |start: i64, offset: u32| u32::try_from(start + i64::from(offset)).ok();
            if let (Some(x), Some(y)) = (at(left, x), at(top, y))
                && let Some(under) = self.image.get_pixel_checked(x, y)
            {
                *pixel = *under;
            }
        }
        let mut flat = imageops::rotate90(&below);
        let baseline = (height as f32 + TextLine::capital_height(size)) / 2.0;
        line.draw(&mut flat, 1.0, baseline.round(), colour);
        imageops::replace(&mut self.image, &imageops::rotate270(&flat), left, top);
    }

    fn mix(&mut self, x: u32, y: u32, colour: Colour, share: f32) {
        if let Some(Rgb(pixel)) = self.image.get_pixel_mut_checked(x, y) {
            *pixel = blend(*pixel, colour, share);
        }
    }
}

impl From<RgbImage> for Canvas {
    fn from(image: RgbImage) -> Self {
        Self { image }
    }
}

fn share(align: Align) -> f32 {
    match align {
        Align::Start => 0.0,
        Align::Middle => 0.5,
        Align::End => 1.0,
    }
}

/// Width of a text in pixels.
pub(super) fn text_width(text: &str, size: f32) -> f32 {
    TextLine::new(text, size).width
}

/// A text that is no wider than `room`: what is cut off becomes an ellipsis.
pub(super) fn shortened(text: &str, size: f32, room: f32) -> String {
    if text_width(text, size) <= room {
        return text.to_string();
    }
    let mut characters: Vec<char> = text.chars().take(200).collect();
    loop {
        let short = characters.iter().collect::<String>() + "…";
        if characters.pop().is_none() || text_width(&short, size) <= room {
            return short;
        }
    }
}

/// Between two colours: `from` at 0, `to` at 1.
pub(super) fn blend(from: Colour, to: Colour, share: f32) -> Colour {
    std::array::from_fn(|i| (f32::from(from[i]) + (f32::from(to[i]) - f32::from(from[i])) * share).round() as u8)
}

/// Whether dark text is easier to read on a colour than white text.
pub(super) fn is_light([red, green, blue]: Colour) -> bool {
    0.299 * f32::from(red) + 0.587 * f32::from(green) + 0.114 * f32::from(blue) > 140.0
}

/// The pixels of a side of `len` that a span touches.
fn pixels(low: f32, high: f32, len: u32) -> std::ops::Range<u32> {
    let start = (low.floor().max(0.0) as u32).min(len);
    start..(high.ceil().max(0.0) as u32).clamp(start, len)
}

/// From a point to a piece of a line.
fn distance(point: Point, from: Point, to: Point) -> f32 {
    let along = [to[0] - from[0], to[1] - from[1]];
    let away = [point[0] - from[0], point[1] - from[1]];
    let length = along[0] * along[0] + along[1] * along[1];
    let place = if length > 0.0 { ((away[0] * along[0] + away[1] * along[1]) / length).clamp(0.0, 1.0) } else { 0.0 };
    (away[0] - along[0] * place).hypot(away[1] - along[1] * place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(image: &RgbImage, area: Area) -> f32 {
        let inside = |x: u32, y: u32| {
            (area[0]..area[2]).contains(&(x as f32 + 0.5)) && (area[1]..area[3]).contains(&(y as f32 + 0.5))
        };
        let dark = image.enumerate_pixels().filter(|(x, y, _)| inside(*x, *y));
        dark.map(|(_, _, pixel)| (255.0 - f32::from(pixel.0[0])) / 255.0).sum()
    }

    #[test]
    fn lines_have_their_width_and_stay_in_their_area() {
        let mut canvas = Canvas::new(60, 40);
        canvas.line(&[[5.0, 10.0], [30.0, 10.0], [55.0, 10.0]], 3.0, [0; 3], 1.0, [0.0, 0.0, 40.0, 40.0]);
        let image = canvas.finish();
        let all = ink(&image, [0.0, 0.0, 60.0, 40.0]);
        assert!((all - 35.0 * 3.0).abs() < 5.0, "{all}");
        assert_eq!(ink(&image, [40.0, 0.0, 60.0, 40.0]), 0.0);
        // No darker or lighter spot where two pieces meet.
        assert!((20..38).all(|x| image.get_pixel(x, 10) == image.get_pixel(25, 10)));
    }

    #[test]
    fn what_is_not_finite_or_outside_is_a_gap() {
        let mut canvas = Canvas::new(30, 10);
        let points = [[1.0, 5.0], [9.0, 5.0], [f32::NAN, 5.0], [20.0, 5.0], [28.0, 5.0], [f32::INFINITY, 5.0]];
        canvas.line(&points, 2.0, [0; 3], 1.0, [0.0, 0.0, 30.0, 10.0]);
        canvas.line(&[[-90.0, -5.0], [-80.0, -1e9]], 2.0, [0; 3], 1.0, [0.0, 0.0, 30.0, 10.0]);
        canvas.line(&[], 2.0, [0; 3], 1.0, [0.0, 0.0, 30.0, 10.0]);
        canvas.dot([-50.0, 500.0], 3.0, [0; 3], [0.0, 0.0, 30.0, 10.0]);
        canvas.fill([-50.0, -50.0, -1.0, 5.0], [0; 3], 1.0);
        canvas.text("x", [-100.0, -100.0], 12.0, [0; 3], Align::Start);
        canvas.text_upwards("x", [-100.0, -100.0], 12.0, [0; 3], Align::Start);
        let image = canvas.finish();
        assert!(ink(&image, [2.0, 0.0, 9.0, 10.0]) > 10.0 && ink(&image, [21.0, 0.0, 28.0, 10.0]) > 10.0);
        assert_eq!(ink(&image, [11.0, 0.0, 18.0, 10.0]), 0.0);
    }

    #[test]
    fn text_runs_to_the_right_and_upwards() {
        let mut canvas = Canvas::new(100, 100);
        canvas.text("Hello", [50.0, 20.0], 16.0, [0; 3], Align::Middle);
        let image = canvas.finish();
        let inked = ink(&image, [25.0, 10.0, 75.0, 30.0]);
        assert!(inked > 30.0 && (ink(&image, [0.0, 0.0, 100.0, 100.0]) - inked).abs() < 1e-3);
        let mut canvas = Canvas::new(100, 100);
        canvas.text_upwards("Hello", [20.0, 90.0], 16.0, [0; 3], Align::Start);
        let image = canvas.finish();
        let upwards = ink(&image, [10.0, 45.0, 30.0, 92.0]);
        assert!((upwards - inked).abs() < inked * 0.1, "{upwards} {inked}");
        assert!((ink(&image, [0.0, 0.0, 100.0, 100.0]) - upwards).abs() < 1e-3);
        // H, the widest letter, is at the lower end.
        assert!(ink(&image, [10.0, 80.0, 30.0, 92.0]) > ink(&image, [10.0, 48.0, 30.0, 60.0]));
    }

    #[test]
    fn long_texts_are_cut() {
        assert_eq!(shortened("short", 12.0, 100.0), "short");
        let cut = shortened(&"long ".repeat(1000), 12.0, 100.0);
        assert!(cut.ends_with('…') && text_width(&cut, 12.0) <= 100.0, "{cut}");
        assert_eq!(shortened("any", 12.0, 0.0), "…");
    }
}
