//! A frame with ticks, into which numbers are plotted.

use super::canvas::{Align, Area, BLACK, Canvas, Colour, PALE, Point, shortened, text_width};

/// What is written around a plot.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Titles<'a> {
    pub(super) title: &'a str,
    pub(super) x: &'a str,
    pub(super) y: &'a str,
}

/// From the least to the greatest number of an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Range {
    pub(super) const UNIT: Self = Self { low: 0.0, high: 1.0 };

    /// A range that holds all finite values, with some room around them.
    pub(super) fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self::UNIT;
        }
        // A single value, however large or small, is in the middle.
        let room = if high > low { (high - low) * 0.05 } else { low.abs().max(1e-3) * 0.05 };
        Self { low: low - room, high: high + room }
    }

    /// Round numbers in the range, about `count` of them, and the decimals that they need.
    fn ticks(self, count: f64) -> (Vec<f64>, usize) {
        let rough = (self.high - self.low) / count.max(1.0);
        if !(rough.is_finite() && rough > 0.0) {
            return (Vec::new(), 0);
        }
        let power = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * 0.999);
        let step = step.unwrap_or(power * 10.0);
        // A thousandth of a step is a rounding error, not a tick outside.
        let first = (self.low / step - 1e-3).ceil();
        let ticks = (0..100).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= self.high + step * 1e-3);
        (ticks.collect(), (-step.log10().floor()).max(0.0) as usize)
    }
}

fn tick_text(value: f64, decimals: usize) -> String {
    if value.abs() >= 1e6 || decimals > 5 && value != 0.0 {
        let text = format!("{value:.1e}");
        return text.replace(".0e", "e");
    }
    // No minus before zero.
    format!("{:.decimals$}", if value.abs() < 1e-12 { 0.0 } else { value })
}

/// A plot's frame, drawn, and the way from numbers to pixels.
pub(super) struct Axes {
    /// Inside of the frame.
    pub(super) area: Area,
    x: Range,
    y: Range,
    line: f32,
}

impl Axes {
    /// Draws frame, ticks and titles into `outer`; `size` is that of the ticks' text in pixels an em, which the rest follows.
    pub(super) fn draw(canvas: &mut Canvas, outer: Area, x: Range, y: Range, titles: Titles<'_>, size: f32) -> Self {
        let gap = size * 0.5;
        let title_size = size * 1.2;
        let row = |text: &str, size: f32| if text.is_empty() { 0.0 } else { size * 1.5 };
        let top = outer[1] + row(titles.title, title_size).max(size * 0.6);
        let bottom = outer[3] - size * 1.2 - gap - row(titles.x, size);
        let (y_ticks, y_decimals) = y.ticks(f64::from((bottom - top) / (size * 3.0)).clamp(2.0, 10.0));
        let y_texts: Vec<String> = y_ticks.iter().map(|tick| tick_text(*tick, y_decimals)).collect();
        let widest = y_texts.iter().map(|text| text_width(text, size)).fold(0.0, f32::max);
        let left = outer[0] + row(titles.y, size) + widest + gap * 1.5;
        let right = outer[2] - size;
        let (x_ticks, x_decimals) = x.ticks(f64::from((right - left) / (size * 4.5)).clamp(2.0, 10.0));
        let area = [left, top, right, bottom].map(f32::round);
        let axes = Self { area, x, y, line: (size / 14.0).max(1.0) };

        for tick in &x_ticks {
            let at = axes.at(*tick, y.low);
            canvas.fill([at[0] - 0.5, area[1], at[0] + 0.5, area[3]], PALE, 1.0);
            canvas.fill([at[0] - axes.line / 2.0, area[3], at[0] + axes.line / 2.0, area[3] + gap * 0.5], BLACK, 1.0);
            let text = tick_text(*tick, x_decimals);
            canvas.text(&text, [at[0], area[3] + gap + size * 0.5], size, BLACK, Align::Middle);
        }
        for (tick, text) in y_ticks.iter().zip(&y_texts) {
            let at = axes.at(x.low, *tick);
            canvas.fill([area[0], at[1] - 0.5, area[2], at[1] + 0.5], PALE, 1.0);
            canvas.fill([area[0] - gap * 0.5, at[1] - axes.line / 2.0, area[0], at[1] + axes.line / 2.0], BLACK, 1.0);
            canvas.text(text, [area[0] - gap, at[1]], size, BLACK, Align::End);
        }
        canvas.frame(area, axes.line, BLACK);
        axes.write(canvas, outer, titles, size, title_size);
        axes
    }

    fn write(&self, canvas: &mut Canvas, outer: Area, titles: Titles<'_>, size: f32, title_size: f32) {
        let [left, top, right, bottom] = self.area;
        let (middle, centre) = ((left + right) / 2.0, (top + bottom) / 2.0);
        let title = shortened(titles.title, title_size, outer[2] - outer[0]);
        canvas.text(&title, [middle, outer[1] + title_size * 0.65], title_size, BLACK, Align::Middle);
        canvas.text(titles.x, [middle, outer[3] - size * 0.7], size, BLACK, Align::Middle);
        canvas.text_upwards(titles.y, [outer[0] + size * 0.7, centre], size, BLACK, Align::Middle);
    }

    /// The pixel of a pair of numbers.
    pub(super) fn at(&self, x: f64, y: f64) -> Point {
        let [left, top, right, bottom] = self.area;
        let across = (x - self.x.low) / (self.x.high - self.x.low);
        let up = (y - self.y.low) / (self.y.high - self.y.low);
        [left + (right - left) * across as f32, bottom - (bottom - top) * up as f32]
    }

    /// Plots a curve.
    pub(super) fn curve(&self, canvas: &mut Canvas, x: &[f64], y: &[f64], width: f32, colour: Colour) {
        canvas.line(&self.points(x, y), width, colour, 1.0, self.area);
    }

    /// Plots a curve as dots at equal distances along it.
    pub(super) fn dotted(&self, canvas: &mut Canvas, x: &[f64], y: &[f64], width: f32, colour: Colour) {
        let step = width * 2.2;
        let mut left = 0.0;
        for pair in self.points(x, y).windows(2) {
            let (along, length) = between(pair[0], pair[1]);
            if !length.is_finite() {
                continue;
            }
            while left <= length {
                let share = if length > 0.0 { left / length } else { 0.0 };
                let at = [pair[0][0] + along[0] * share, pair[0][1] + along[1] * share];
                canvas.dot(at, width / 2.0, colour, self.area);
                left += step;
            }
            left -= length;
        }
    }

    /// Plots points.
    pub(super) fn dots(&self, canvas: &mut Canvas, x: &[f64], y: &[f64], radius: f32, colour: Colour) {
        for point in self.points(x, y) {
            canvas.dot(point, radius, colour, self.area);
        }
    }

    fn points(&self, x: &[f64], y: &[f64]) -> Vec<Point> {
        x.iter().zip(y).map(|(&x, &y)| self.at(x, y)).collect()
    }
}

fn between(from: Point, to: Point) -> (Point, f32) {
    let along = [to[0] - from[0], to[1] - from[1]];
    (along, along[0].hypot(along[1]))
}

/// A line of a legend.
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) colour: Colour,
    /// The line's width in pixels; 0 for a patch of colour.
    pub(super) width: f32,
}

/// Draws a legend with its upper left corner at `at`, no wider than `room`; gives its width.
pub(super) fn legend(canvas: &mut Canvas, entries: &[Entry], at: Point, room: f32, size: f32) -> f32 {
    let (sample, gap, row) = (size * 1.8, size * 0.5, size * 1.45);
    let text_room = room - sample - 3.0 * gap;
    let texts: Vec<String> = entries.iter().map(|entry| shortened(&entry.text, size, text_room)).collect();
    let widest = texts.iter().map(|text| text_width(text, size)).fold(0.0, f32::max);
    let area = [at[0], at[1], at[0] + widest + sample + 3.0 * gap, at[1] + row * entries.len() as f32 + gap];
    canvas.fill(area, [255; 3], 0.85);
    canvas.frame(area, 1.0, [200; 3]);
    for (index, (entry, text)) in entries.iter().zip(&texts).enumerate() {
        let middle = at[1] + gap / 2.0 + row * (index as f32 + 0.5);
        let (from, to) = (at[0] + gap, at[0] + gap + sample);
        if entry.width > 0.0 {
            canvas.line(&[[from, middle], [to, middle]], entry.width, entry.colour, 1.0, area);
        } else {
            canvas.fill([from, middle - size * 0.4, to, middle + size * 0.4], entry.colour, 1.0);
        }
        canvas.text(text, [to + gap, middle], size, BLACK, Align::Start);
    }
    area[2] - area[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_inside() {
        let ticks = |low, high, count| Range { low, high }.ticks(count);
        assert_eq!(ticks(0.0, 1.0, 5.0), (vec![0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0], 1));
        assert_eq!(ticks(-3.0, 57.0, 6.0), (vec![0.0, 10.0, 20.0, 30.0, 40.0, 50.0], 0));
        let (small, decimals) = ticks(0.0213, 0.0287, 4.0);
        let small: Vec<_> = small.into_iter().map(|tick| tick_text(tick, decimals)).collect();
        assert_eq!(small, ["0.022", "0.024", "0.026", "0.028"]);
        assert!(ticks(1.0, 1.0, 5.0).0.is_empty() && ticks(f64::NAN, 1.0, 5.0).0.is_empty());
        assert_eq!(tick_text(-0.0, 1), "0.0");
        assert_eq!((tick_text(2e6, 0), tick_text(2.5e-7, 8)), ("2e6".into(), "2.5e-7".into()));
    }

    #[test]
    fn a_range_holds_its_values() {
        let range = Range::around([3.0, f64::NAN, 1.0, f64::INFINITY].into_iter());
        assert_eq!((range.low, range.high), (0.9, 3.1));
        for single in [5.0, 0.0, -1e9, 1e-9] {
            let Range { low, high } = Range::around([single].into_iter());
            assert!(low < single && high > single, "{single}");
        }
        assert_eq!(Range::around([f64::NAN].into_iter()), Range::UNIT);
    }

    #[test]
    fn numbers_land_in_the_frame() {
        let mut canvas = Canvas::new(300, 200);
        let outer = canvas.area();
        let titles = Titles { title: "title", x: "x", y: "y" };
        let axes = Axes::draw(&mut canvas, outer, Range { low: 0.0, high: 10.0 }, Range::UNIT, titles, 12.0);
        let [left, top, right, bottom] = axes.area;
        assert!(left > 20.0 && top > 10.0 && right < 300.0 && bottom < 180.0, "{:?}", axes.area);
        assert_eq!((axes.at(0.0, 0.0), axes.at(10.0, 1.0)), ([left, bottom], [right, top]));
    }
}
