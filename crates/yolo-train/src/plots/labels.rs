//! `labels.jpg`: what the objects of a data set are and where they lie.

use image::RgbImage;
use yolo_core::picture::colour;

use super::axes::{Axes, Range, Titles};
use super::canvas::{Align, Area, BLACK, Canvas, Colour, WHITE, blend, shortened, text_width};
use super::colours::blues;

const SIDE: u32 = 1600;
const TEXT: f32 = 22.0;
/// Names stand under the bars of fewer classes than this.
const MOST_NAMED: usize = 40;
/// As many boxes are drawn over each other.
const MOST_BOXES: usize = 1000;
/// Cells along a side of the two-dimensional histograms.
const CELLS: usize = 50;

/// Four plots of all objects of a data set: how many of which class; the boxes (of the first thousand) around a common centre;
/// where their centres lie; how wide and high they are.
///
/// `boxes` are class, and centre, width and height in shares of the picture.
pub fn labels(boxes: &[(usize, [f32; 4])], names: &[String]) -> RgbImage {
    let mut canvas = Canvas::new(SIDE, SIDE);
    let (half, full, gap) = (SIDE as f32 / 2.0, SIDE as f32, TEXT * 0.6);
    let areas = [[0.0, 0.0], [half, 0.0], [0.0, half], [half, half]]
        .map(|[x, y]: [f32; 2]| [x + gap, y + gap, (x + half).min(full) - gap, (y + half).min(full) - gap]);
    histogram(&mut canvas, areas[0], boxes, names);
    outlines(&mut canvas, areas[1], boxes);
    // Rows of pictures are counted from above.
    let centres = boxes.iter().map(|(_, [x, y, ..])| [*x, 1.0 - *y]);
    density(&mut canvas, areas[2], centres, Titles { title: "centres", x: "x", y: "1 - y" });
    let sizes = boxes.iter().map(|(_, [.., width, height])| [*width, *height]);
    density(&mut canvas, areas[3], sizes, Titles { title: "sizes", x: "width", y: "height" });
    canvas.finish()
}

/// Objects a class.
fn histogram(canvas: &mut Canvas, area: Area, boxes: &[(usize, [f32; 4])], names: &[String]) {
    let classes = boxes.iter().map(|(class, _)| class + 1).max().unwrap_or(0).max(names.len()).max(1);
    // A class far beyond the names is one of a broken label file; memory is not to depend on it.
    let classes = classes.min(names.len().max(1) + 10_000);
    let mut counts = vec![0_u32; classes];
    for (class, _) in boxes {
        if let Some(count) = counts.get_mut(*class) {
            *count += 1;
        }
    }
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    let named = classes <= MOST_NAMED;
    let texts: Vec<String> = (0..classes)
        .map(|class| names.get(class).cloned().unwrap_or_else(|| class.to_string()))
        .map(|name| shortened(&name, TEXT * 0.9, 180.0))
        .collect();
    let widest = texts.iter().map(|text| text_width(text, TEXT * 0.9)).fold(0.0, f32::max);
    // The row of the ticks' numbers is there already.
    let room = if named { (widest - TEXT).max(0.0) } else { 0.0 };
    let [left, top, right, bottom] = area;
    let titles = Titles { title: "objects", x: if named { "" } else { "class" }, y: "instances" };
    let y = Range { low: 0.0, high: f64::from(most) * 1.08 };
    let x = Range { low: -0.5, high: classes as f64 - 0.5 };
    let axes = Axes::draw(canvas, [left, top, right, bottom - room], x, y, titles, TEXT);
    if named {
        // The numbers of the classes give way to their names.
        canvas.fill([axes.area[0] - 1.0, axes.area[3] + 2.0, right, bottom], WHITE, 1.0);
    }
    for (class, &count) in counts.iter().enumerate() {
        let (from, to) = (axes.at(class as f64 - 0.4, f64::from(count)), axes.at(class as f64 + 0.4, 0.0));
        canvas.fill([from[0], from[1], to[0], to[1]], blend(seen(class), BLACK, 0.3), 1.0);
        let edge = ((to[0] - from[0]) * 0.05).min(2.0);
        canvas.fill([from[0] + edge, from[1] + edge, to[0] - edge, to[1]], seen(class), 1.0);
        if named {
            let middle = (from[0] + to[0]) / 2.0;
            canvas.text_upwards(&texts[class], [middle, axes.area[3] + TEXT * 0.5], TEXT * 0.9, BLACK, Align::End);
            let number = count.to_string();
            if text_width(&number, TEXT * 0.8) < (to[0] - from[0]) * 1.2 {
                canvas.text(&number, [middle, from[1] - TEXT * 0.5], TEXT * 0.8, BLACK, Align::Middle);
            }
        }
    }
    canvas.frame(axes.area, 1.5, BLACK);
}

/// The colour of a class, darker where it could not be told from the paper.
fn seen(class: usize) -> Colour {
    let colour = colour(class);
    if colour.iter().all(|&sample| sample > 190) { blend(colour, BLACK, 0.3) } else { colour }
}

/// The boxes around the middle of the frame.
fn outlines(canvas: &mut Canvas, area: Area, boxes: &[(usize, [f32; 4])]) {
    let title = TEXT * 1.2;
    let [left, top, right, bottom] = area;
    canvas.text("boxes", [(left + right) / 2.0, top + title * 0.65], title, BLACK, Align::Middle);
    let side = (right - left).min(bottom - top - title * 1.5);
    let (middle, centre) = ((left + right) / 2.0, bottom - side / 2.0);
    let frame = [middle - side / 2.0, centre - side / 2.0, middle + side / 2.0, centre + side / 2.0];
    for (class, [_, _, width, height]) in boxes.iter().take(MOST_BOXES) {
        let (w, h) = (width * side / 2.0, height * side / 2.0);
        let corners = [
            [middle - w, centre - h],
            [middle + w, centre - h],
            [middle + w, centre + h],
            [middle - w, centre + h],
            [middle - w, centre - h],
        ];
        canvas.line(&corners, 1.2, seen(*class), 0.6, frame);
    }
    canvas.frame(frame, 1.5, BLACK);
}

/// A two-dimensional histogram over 0 to 1.
fn density(canvas: &mut Canvas, area: Area, points: impl Iterator<Item = [f32; 2]>, titles: Titles<'_>) {
    let mut counts = vec![0_u32; CELLS * CELLS];
    for point in points.filter(|point| point.iter().all(|v| v.is_finite())) {
        let [x, y] = point.map(|v| ((v * CELLS as f32).max(0.0) as usize).min(CELLS - 1));
        counts[y * CELLS + x] += 1;
    }
    let mut filled: Vec<u32> = counts.iter().copied().filter(|count| *count > 0).collect();
    filled.sort_unstable();
    // A single crowded cell is not to make all others pale.
    let strong = filled.get(filled.len().saturating_sub(1) * 98 / 100).copied().unwrap_or(1);
    let axes = Axes::draw(canvas, area, Range::UNIT, Range::UNIT, titles, TEXT);
    let side = |index: usize| index as f64 / CELLS as f64;
    for (index, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let (column, row) = (index % CELLS, index / CELLS);
        let (lower, upper) = (axes.at(side(column), side(row)), axes.at(side(column + 1), side(row + 1)));
        let share = 0.15 + 0.85 * f64::from(count) / f64::from(strong);
        canvas.fill([lower[0], upper[1], upper[0], lower[1]], blues(share), 1.0);
    }
    canvas.frame(axes.area, 1.5, BLACK);
}
