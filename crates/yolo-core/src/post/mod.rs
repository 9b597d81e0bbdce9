//! From a network's raw output to detections: suppression, boxes, masks and outlines, as YOLOv5 computes them.
//!
//! Shapes are (height, width) and boxes `[x1, y1, x2, y2]`, as in YOLOv5; the arithmetic is f32 where PyTorch's is, so that
//! the same rows come out in the same order.

mod boxes;
mod masks;
mod nms;
mod polygon;

pub use boxes::{clip_boxes, round_boxes, scale_boxes};
pub use masks::{crop_mask, process_mask, process_mask_native, scale_mask, unpad_mask};
pub(crate) use nms::OBJECTNESS;
pub use nms::{Candidate, NmsOptions, nms, nms_batch};
pub use polygon::{contours, largest_contour, scale_segments};

#[cfg(test)]
mod tests;
