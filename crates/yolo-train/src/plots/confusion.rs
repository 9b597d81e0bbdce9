//! `confusion_matrix.png`.

use image::RgbImage;

use super::axes::Range;
use super::canvas::{Align, Area, BLACK, Canvas, WHITE, blend, is_light, shortened, text_width};
use super::colours::blues;

/// Shares below this are left blank, in matrices of fewer classes the others are written into their cells.
const LEAST: f64 = 0.005;
const MOST_WRITTEN: usize = 30;
/// With more classes than this, names would lie over each other.
const MOST_NAMED: usize = 99;
/// The matrix's side in pixels, about, and the least and greatest of a cell's.
const SIDE: f32 = 1100.0;
const CELLS: (f32, f32) = (14.0, 180.0);
/// The greatest side of a matrix of many classes: its cells become single pixels, and then stand for several classes each.
const MOST: f32 = 4000.0;
/// Width of the bar that explains the colours.
const BAR: f32 = 40.0;

/// The confusion matrix as a picture, every column divided by its sum.
///
/// `matrix[predicted][true]` counts pairs, of `names.len() + 1` classes: the last is the background, which stands for objects
/// that were missed and for what was found where nothing is. Rows that are shorter count as filled with zeros.
pub fn confusion_matrix(matrix: &[Vec<f64>], names: &[String]) -> RgbImage {
    let count = names.len() + 1;
    let cell = (SIDE / count as f32).clamp(CELLS.0, CELLS.1).floor().min(MOST / count as f32);
    let side = cell * count as f32;
    let text = (cell * 0.55).clamp(10.0, 26.0);
    let title = 34.0;

    let labels: Vec<String> =
        names.iter().map(String::as_str).chain(["background"]).map(|name| shortened(name, text, SIDE * 0.25)).collect();
    let named = count <= MOST_NAMED;
    let widest = labels.iter().map(|label| text_width(label, text)).fold(0.0, f32::max);
    let margin = title * 1.6 + if named { widest + 24.0 } else { 12.0 };
    let (left, top) = (margin.round(), (title * 2.0).round());
    let (width, height) = (left + side + BAR + 140.0, top + side + margin);
    let mut canvas = Canvas::new(width as u32, height as u32);

    let sums: Vec<f64> = (0..count).map(|column| (0..count).map(|row| at(matrix, row, column)).sum()).collect();
    let cell_area = |row: usize, column: usize| -> Area {
        let (x, y) = (left + cell * column as f32, top + cell * row as f32);
        [x, y, x + cell, y + cell]
    };
    for row in 0..count {
        for column in 0..count {
            let share = if sums[column] > 0.0 { at(matrix, row, column) / sums[column] } else { 0.0 };
            if !share.is_finite() || share < LEAST {
                continue;
            }
            let area = cell_area(row, column);
            canvas.fill(area, blues(share), 1.0);
            if count <= MOST_WRITTEN {
                let ink = if is_light(blues(share)) { BLACK } else { WHITE };
                let middle = [(area[0] + area[2]) / 2.0, (area[1] + area[3]) / 2.0];
                canvas.text(&format!("{share:.2}"), middle, (cell * 0.36).min(34.0), ink, Align::Middle);
            }
        }
    }
    canvas.frame([left, top, left + side, top + side], 2.0, BLACK);
    if named {
        for (index, label) in labels.iter().enumerate() {
            let [x1, y1, x2, y2] = cell_area(index, index);
            canvas.text(label, [left - 12.0, (y1 + y2) / 2.0], text, BLACK, Align::End);
            canvas.text_upwards(label, [(x1 + x2) / 2.0, top + side + 12.0], text, BLACK, Align::End);
        }
    }
    let middle = left + side / 2.0;
    canvas.text("Confusion Matrix", [middle, title], title, BLACK, Align::Middle);
    canvas.text("True", [middle, height - title * 0.8], title * 0.85, BLACK, Align::Middle);
    canvas.text_upwards("Predicted", [title * 0.8, top + side / 2.0], title * 0.85, BLACK, Align::Middle);
    bar(&mut canvas, [left + side + 30.0, top, left + side + 30.0 + BAR, top + side]);
    canvas.finish()
}

fn at(matrix: &[Vec<f64>], row: usize, column: usize) -> f64 {
    matrix.get(row).and_then(|row| row.get(column)).copied().unwrap_or(0.0)
}

/// The colours from 0 to 1.
fn bar(canvas: &mut Canvas, area: Area) {
    let [left, top, right, bottom] = area;
    let height = bottom - top;
    for step in 0..height as usize {
        let y = top + step as f32;
        canvas.fill([left, y, right, y + 1.0], blues(1.0 - step as f64 / f64::from(height)), 1.0);
    }
    canvas.frame(area, 1.0, blend(BLACK, WHITE, 0.4));
    let Range { low, high } = Range::UNIT;
    for step in 0..=5 {
        let value = low + (high - low) * f64::from(step) / 5.0;
        let y = bottom - height * value as f32;
        canvas.fill([right, y - 1.0, right + 6.0, y + 1.0], BLACK, 1.0);
        canvas.text(&format!("{value:.1}"), [right + 14.0, y], 22.0, BLACK, Align::Start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_classes_share_pixels() {
        let names: Vec<String> = (0..9_999).map(|class| class.to_string()).collect();
        let picture = confusion_matrix(&[], &names);
        assert!(picture.width().max(picture.height()) < 4300, "{:?}", picture.dimensions());
    }

    #[test]
    fn columns_are_divided_by_their_sums() {
        let names = ["a".to_string(), "b".to_string()];
        let matrix = [vec![3.0, 0.0, 0.0], vec![1.0, 0.0, 0.002], vec![0.0, 0.0, 1.0]];
        let picture = confusion_matrix(&matrix, &names);
        let cell = 180.0;
        let left = (34.0_f32 * 1.6 + text_width("background", 26.0) + 24.0).round();
        // A quarter of the cell's side from its corner, where there is no number.
        let colour = |row: usize, column: usize| {
            let place = |start: f32, index: usize| (start + cell * (index as f32 + 0.15)) as u32;
            picture.get_pixel(place(left, column), place(68.0, row)).0
        };
        assert_eq!(colour(0, 0), blues(0.75));
        assert_eq!(colour(1, 0), blues(0.25));
        assert_eq!(colour(2, 2), blues(1.0 / 1.002));
        // Nothing, a column without a sum, and what is too little to show.
        assert_eq!([colour(2, 0), colour(0, 1), colour(1, 2)], [WHITE; 3]);
    }

    #[test]
    fn any_number_of_classes_is_drawn() {
        for count in [0, 1, 40, 200] {
            let names: Vec<String> = (0..count).map(|i| format!("a rather long name of class {i}").repeat(3)).collect();
            let picture = confusion_matrix(&vec![vec![1.0; count + 1]; count + 1], &names);
            assert!(picture.width() > 200 && picture.width() < 3500, "{count}: {:?}", picture.dimensions());
        }
        assert!(confusion_matrix(&[], &["a".into()]).width() > 200);
    }
}
