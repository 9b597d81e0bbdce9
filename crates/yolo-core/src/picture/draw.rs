//! Drawing detections into a picture, in the look of YOLOv5's annotated pictures.

use image::{Rgb, RgbImage};

use super::font::TextLine;
use crate::detection::{Detection, Mask};

/// The twenty class colours of YOLOv5 (2024 and later), RGB.
pub const PALETTE: [[u8; 3]; 20] = [
    [0x04, 0x2A, 0xFF],
    [0x0B, 0xDB, 0xEB],
    [0xF3, 0xF3, 0xF3],
    [0x00, 0xDF, 0xB7],
    [0x11, 0x1F, 0x68],
    [0xFF, 0x6F, 0xDD],
    [0xFF, 0x44, 0x4F],
    [0xCC, 0xED, 0x00],
    [0x00, 0xF3, 0x44],
    [0xBD, 0x00, 0xFF],
    [0x00, 0xB4, 0xFF],
    [0xDD, 0x00, 0xBA],
    [0x00, 0xFF, 0xFF],
    [0x26, 0xC0, 0x00],
    [0x01, 0xFF, 0xB3],
    [0x7D, 0x24, 0xFF],
    [0x7B, 0x00, 0x68],
    [0xFF, 0x1B, 0x6C],
    [0xFC, 0x6D, 0x2F],
    [0xA2, 0xFF, 0x0B],
];

const WHITE: [u8; 3] = [0xFF; 3];
const NAVY: [u8; 3] = [0x0B, 0x14, 0x45];
/// Plates lighter than this (relative luminance) carry dark text.
const DARK_TEXT_FROM: f32 = 0.35;
/// Pixels an em of a label for each pixel of line thickness.
const TEXT_FOR_LINE: f32 = 8.0;
/// In small pictures, label text takes at most this share of the mean side, pixels an em.
const TEXT_FOR_PICTURE: f32 = 0.04;
/// The smallest label text, pixels an em.
const SMALLEST_TEXT: f32 = 11.0;

/// How [`annotate`] draws; the default is YOLOv5's look.
#[derive(Debug, Clone, PartialEq)]
pub struct Style {
    /// Thickness of the boxes' lines in pixels, which the text's size follows; chosen from the picture's size where absent.
    pub line_thickness: Option<u32>,
    /// Leave the labels out.
    pub hide_labels: bool,
    /// Leave the confidences out of the labels.
    pub hide_conf: bool,
    /// How much of a mask's colour covers the picture, 0 (none) to 1 (all).
    pub mask_alpha: f32,
}

impl Default for Style {
    fn default() -> Self {
        Self { line_thickness: None, hide_labels: false, hide_conf: false, mask_alpha: 0.5 }
    }
}

/// The colour of a class, RGB.
pub fn colour(class: usize) -> [u8; 3] {
    PALETTE[class % PALETTE.len()]
}

/// Draws detections into a picture: masks, then boxes, then labels, the most confident on top.
///
/// Boxes are in pixels of the picture; one that is not finite is left out. A class without a name is labelled by its number.
/// Characters that the embedded font lacks come from the font file that the environment variable `YOLO_FONT` names, or from a
/// Chinese, Japanese and Korean font of the system; where there is none they are hollow boxes.
pub fn annotate(image: &mut RgbImage, detections: &[Detection], names: &[String], style: &Style) {
    let (width, height) = image.dimensions();
    if width == 0 || height == 0 {
        return;
    }
    let mut drawn: Vec<&Detection> =
        detections.iter().filter(|found| found.bbox.iter().all(|side| side.is_finite())).collect();
    drawn.sort_by(|a, b| a.confidence.total_cmp(&b.confidence));

    for found in &drawn {
        if let Some(mask) = &found.mask {
            tint(image, mask, colour(found.class), style.mask_alpha);
        }
    }
    let thickness = style.line_thickness.unwrap_or_else(|| automatic_thickness(width, height));
    let thickness = thickness.clamp(1, width.max(height)) as f32;
    let text_limit = match style.line_thickness {
        Some(_) => f32::INFINITY,
        None => (width as f32 + height as f32) / 2.0 * TEXT_FOR_PICTURE,
    };
    let text_size = (thickness * TEXT_FOR_LINE).min(text_limit).max(SMALLEST_TEXT);
    for found in &drawn {
        stroke_rectangle(image, frame(found.bbox, width, height), thickness, colour(found.class));
    }
    if !style.hide_labels {
        for found in &drawn {
            let text = label(found, names, style.hide_conf);
            draw_label(image, frame(found.bbox, width, height), &text, text_size, thickness, colour(found.class));
        }
    }
}

/// YOLOv5's rule, in which the three channels count as well.
fn automatic_thickness(width: u32, height: u32) -> u32 {
    let sum = f64::from(width) + f64::from(height) + 3.0;
    ((sum / 2.0 * 0.003).round_ties_even() as u32).max(2)
}

fn label(found: &Detection, names: &[String], hide_conf: bool) -> String {
    let name = names.get(found.class).cloned().unwrap_or_else(|| found.class.to_string());
    if hide_conf { name } else { format!("{name} {:.2}", found.confidence) }
}

/// The pixels that a box's line runs through, all of them in the picture.
fn frame(bbox: [f32; 4], width: u32, height: u32) -> [f32; 4] {
    let (right, bottom) = ((width - 1) as f32, (height - 1) as f32);
    [bbox[0].clamp(0.0, right), bbox[1].clamp(0.0, bottom), bbox[2].clamp(0.0, right), bbox[3].clamp(0.0, bottom)]
        .map(f32::round)
}

/// Draws a label at a box's upper left corner; `size` in pixels an em, less where the picture is too narrow for it.
fn draw_label(image: &mut RgbImage, frame: [f32; 4], text: &str, mut size: f32, thickness: f32, colour: [u8; 3]) {
    let (width, height) = (image.width() as f32, image.height() as f32);
    let mut line = TextLine::new(text, size);
    let margin = |size: f32| (size * 0.3).round();
    let room = (width - 2.0 * margin(size)).max(1.0);
    if line.width > room {
        size = (size * room / line.width).max(SMALLEST_TEXT);
        line = TextLine::new(text, size);
    }
    let margin = margin(size);
    let half_line = thickness / 2.0;
    let plate_width = (line.width + 2.0 * margin).ceil();
    let plate_height = (TextLine::capital_height(size) + 2.0 * margin).ceil();
    let edge = |side: f32| (side + half_pixel(thickness) - half_line + 0.5).max(0.0);

    // Over the box where there is room, else inside it; never out of the picture.
    let left = edge(frame[0]).min(width - plate_width).max(0.0);
    let line_bottom = edge(frame[1]) + thickness;
    let top = if line_bottom >= plate_height { line_bottom - plate_height } else { edge(frame[1]) };
    let top = top.min(height - plate_height).max(0.0);
    fill_rectangle(image, [left, top, left + plate_width, top + plate_height], half_line.min(4.0), colour);
    let ink = if luminance(colour) > DARK_TEXT_FROM { NAVY } else { WHITE };
    let baseline = (top + (plate_height + TextLine::capital_height(size)) / 2.0).round();
    line.draw(image, left + margin, baseline, ink);
}

/// Relative luminance of an sRGB colour, 0 to 1.
fn luminance(colour: [u8; 3]) -> f32 {
    let [red, green, blue] = colour.map(|sample| {
        let value = f32::from(sample) / 255.0;
        if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    });
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

/// Covers a mask's pixels with a translucent colour.
fn tint(image: &mut RgbImage, mask: &Mask, colour: [u8; 3], alpha: f32) {
    let alpha = if alpha.is_finite() { alpha.clamp(0.0, 1.0) } else { 0.0 };
    let tinted = colour.map(|target| -> [u8; 256] {
        std::array::from_fn(|sample| (f32::from(target) * alpha + sample as f32 * (1.0 - alpha)).round() as u8)
    });
    let stride = mask.width as usize;
    if stride == 0 {
        return;
    }
    for (row, inside) in image.rows_mut().zip(mask.data.chunks_exact(stride)) {
        for (pixel, _) in row.zip(inside).filter(|(_, inside)| **inside != 0) {
            pixel.0 = std::array::from_fn(|channel| tinted[channel][usize::from(pixel.0[channel])]);
        }
    }
}

/// Lines of an even thickness run between pixels, so that their edges are sharp.
fn half_pixel(thickness: f32) -> f32 {
    if thickness.round() as i64 % 2 == 0 { 0.5 } else { 0.0 }
}

/// Draws a rectangle's outline, smooth at its rounded corners; `corners` are pixels `[x1, y1, x2, y2]` that the line runs through.
pub(super) fn stroke_rectangle(image: &mut RgbImage, corners: [f32; 4], thickness: f32, colour: [u8; 3]) {
    let corners = corners.map(|side| side + half_pixel(thickness));
    let reach = thickness / 2.0 + 1.0;
    let near = |side: f32, len: u32| span(side - reach, side + reach, len);
    let (left, right) = (near(corners[0], image.width()), near(corners[2], image.width()));
    let all = span(corners[0] - reach, corners[2] + reach, image.width());
    for y in span(corners[1] - reach, corners[3] + reach, image.height()) {
        let along = (y as f32 - corners[1]).abs() <= reach || (y as f32 - corners[3]).abs() <= reach;
        let columns =
            if along || right.start <= left.end { all.clone().chain(0..0) } else { left.clone().chain(right.clone()) };
        for x in columns {
            let distance = distance_to_rectangle(x as f32, y as f32, corners).abs();
            blend(image, x, y, colour, thickness / 2.0 + 0.5 - distance);
        }
    }
}

/// Fills a rectangle with rounded corners; `edges` are `[x1, y1, x2, y2]` where pixel `i` covers `i..i + 1`.
fn fill_rectangle(image: &mut RgbImage, edges: [f32; 4], radius: f32, colour: [u8; 3]) {
    let inner = [edges[0] + radius, edges[1] + radius, edges[2] - radius, edges[3] - radius];
    for y in span(edges[1].floor(), edges[3].ceil(), image.height()) {
        for x in span(edges[0].floor(), edges[2].ceil(), image.width()) {
            let distance = distance_to_rectangle(x as f32 + 0.5, y as f32 + 0.5, inner);
            blend(image, x, y, colour, radius + 0.5 - distance);
        }
    }
}

/// Distance from a point to a rectangle's outline, negative inside.
fn distance_to_rectangle(x: f32, y: f32, [x1, y1, x2, y2]: [f32; 4]) -> f32 {
    let dx = (x1 - x).max(x - x2);
    let dy = (y1 - y).max(y - y2);
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// The pixels from `low` to `high` that are in a picture's side of `len`.
fn span(low: f32, high: f32, len: u32) -> std::ops::Range<i64> {
    let low = (low.floor() as i64).clamp(0, i64::from(len));
    low..(high.ceil() as i64).saturating_add(1).clamp(low, i64::from(len))
}

/// Mixes `coverage` (0 to 1, clamped) of a colour into a pixel, which may lie outside the picture.
pub(super) fn blend(image: &mut RgbImage, x: i64, y: i64, colour: [u8; 3], coverage: f32) {
    let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
    let coverage = coverage.min(1.0);
    if coverage <= 0.0 {
        return;
    }
    if let Some(Rgb(pixel)) = image.get_pixel_mut_checked(x, y) {
        for (sample, target) in pixel.iter_mut().zip(colour) {
            let mixed = f32::from(*sample) + (f32::from(target) - f32::from(*sample)) * coverage;
            *sample = mixed.round() as u8;
        }
    }
}
