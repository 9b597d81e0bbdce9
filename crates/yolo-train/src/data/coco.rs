//! COCO's JSON and YOLO's folders, from one to the other.
//!
//! COCO keeps a split's annotations in one file, in pixels from the upper left corner (<https://cocodataset.org/#format-data>);
//! YOLO keeps a text file beside every picture, in shares of the picture's sides.

mod classes;
mod from_yolo;
mod join;
mod json;
mod rle;
mod to_yolo;

pub use from_yolo::{FromYolo, FromYoloReport, from_yolo};
pub use to_yolo::{Source, ToYolo, ToYoloReport, to_yolo};

#[cfg(test)]
mod tests;
