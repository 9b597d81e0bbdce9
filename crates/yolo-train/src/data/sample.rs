//! A picture with its objects on the way to the network.

use image::RgbImage;

use super::labels::Labels;

/// An object of a [`Sample`], in pixels of its picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Index of the class.
    pub class: usize,
    /// Left, top, right, bottom.
    pub bbox: [f32; 4],
    /// The outline; empty where only the box is known.
    pub segment: Vec<[f32; 2]>,
}

/// A picture with its objects.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The picture.
    pub picture: RgbImage,
    /// What is on it.
    pub objects: Vec<Object>,
}

/// Labels in pixels: shares times `scale`, moved by `shift`, both as (x, y).
pub(super) fn objects(labels: &Labels, scale: (f32, f32), shift: (f32, f32)) -> impl Iterator<Item = Object> {
    labels.boxes.iter().enumerate().map(move |(index, [x, y, width, height])| Object {
        class: labels.classes[index],
        bbox: [
            scale.0 * (x - width / 2.0) + shift.0,
            scale.1 * (y - height / 2.0) + shift.1,
            scale.0 * (x + width / 2.0) + shift.0,
            scale.1 * (y + height / 2.0) + shift.1,
        ],
        segment: labels
            .segments
            .get(index)
            .map(|points| points.iter().map(|[x, y]| [scale.0 * x + shift.0, scale.1 * y + shift.1]).collect())
            .unwrap_or_default(),
    })
}

/// A box's centre, width and height in shares of a picture of `width` x `height` pixels, after it was cut to just inside.
pub(super) fn normalised(bbox: [f32; 4], width: u32, height: u32) -> [f32; 4] {
    // YOLOv5 keeps this far off the far sides, so that no centre falls into a cell beyond the last.
    const MARGIN: f32 = 1e-3;
    let (width, height) = (width as f32, height as f32);
    let [left, right] = [bbox[0], bbox[2]].map(|x| x.clamp(0.0, width - MARGIN));
    let [top, bottom] = [bbox[1], bbox[3]].map(|y| y.clamp(0.0, height - MARGIN));
    [(left + right) / 2.0 / width, (top + bottom) / 2.0 / height, (right - left) / width, (bottom - top) / height]
}
