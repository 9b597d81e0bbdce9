//! Mirroring; doing it twice changes nothing.

use image::{RgbImage, imageops};

use crate::data::batch::Target;

/// Swaps left and right.
pub fn left_right(picture: &mut RgbImage, targets: &mut [Target]) {
    imageops::flip_horizontal_in_place(picture);
    for target in targets {
        target.xywh[0] = 1.0 - target.xywh[0];
    }
}

/// Swaps top and bottom.
pub fn up_down(picture: &mut RgbImage, targets: &mut [Target]) {
    imageops::flip_vertical_in_place(picture);
    for target in targets {
        target.xywh[1] = 1.0 - target.xywh[1];
    }
}
