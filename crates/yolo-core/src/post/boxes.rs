//! Boxes between a network's input and the picture.

use crate::picture::Placement;

/// Moves boxes from the network's input to the picture and clips them to it, in place: YOLOv5's `scale_boxes`.
pub fn scale_boxes(boxes: &mut [[f32; 4]], placement: &Placement) {
    let pad = [placement.pad.0 as f32, placement.pad.1 as f32];
    let gain = [placement.gain.0 as f32, placement.gain.1 as f32];
    for bbox in boxes.iter_mut() {
        for (side, value) in bbox.iter_mut().enumerate() {
            *value = (*value - pad[side % 2]) / gain[side % 2];
        }
    }
    clip_boxes(boxes, placement.picture);
}

/// Clips boxes to a picture of `shape` = (height, width), in place.
pub fn clip_boxes(boxes: &mut [[f32; 4]], shape: (u32, u32)) {
    let limits = [shape.1 as f32, shape.0 as f32];
    for bbox in boxes {
        for (side, value) in bbox.iter_mut().enumerate() {
            *value = value.clamp(0.0, limits[side % 2]);
        }
    }
}

/// Rounds boxes to whole pixels, halves to the even one as `torch.round` does, in place.
pub fn round_boxes(boxes: &mut [[f32; 4]]) {
    for value in boxes.iter_mut().flatten() {
        *value = value.round_ties_even();
    }
}
