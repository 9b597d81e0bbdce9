//! Results in COCO's form, and mAP by COCO's own rule.
//!
//! [`Record`] is a line of a results file, as `--save-json` writes them and COCO's servers read them. [`coco_map`] is the
//! evaluation of `pycocotools`; `docs/validation.md` tells how its figures differ from YOLOv5's.

mod evaluate;
mod file;
mod rle;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use evaluate::{CocoStats, Kind, coco_map};
pub use file::{open_annotations, open_records, write_records};
pub use rle::Rle;

/// A picture's name in COCO's files: a number where the file's name is one (`000000000139.jpg` is 139), else the name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ImageId {
    /// A number.
    Number(u64),
    /// A file's name without its ending.
    Name(String),
}

impl ImageId {
    /// Of a picture's file.
    pub fn of_file(path: &Path) -> Self {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let digits = !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit());
        match stem.parse() {
            Ok(number) if digits => Self::Number(number),
            _ => Self::Name(stem.into_owned()),
        }
    }
}

impl std::fmt::Display for ImageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// A detection in a results file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The picture.
    pub image_id: ImageId,
    /// The class, under the data set's own number.
    pub category_id: u64,
    /// Left, top, width and height in pixels of the picture, to three decimals.
    pub bbox: [f64; 4],
    /// Confidence, to five decimals.
    pub score: f64,
    /// The mask at the picture's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segmentation: Option<Rle>,
}

impl Record {
    /// Of a box `[x1, y1, x2, y2]` in pixels of the picture, rounded as YOLOv5 rounds.
    pub fn new(image_id: ImageId, category_id: u64, bbox: [f32; 4], score: f32, segmentation: Option<Rle>) -> Self {
        let [left, top, width, height] = left_top_width_height(bbox).map(|side| rounded(f64::from(side), 3));
        let score = rounded(f64::from(score), 5);
        Self { image_id, category_id, bbox: [left, top, width, height], score, segmentation }
    }
}

/// A labelled object.
#[derive(Debug, Clone, PartialEq)]
pub struct Annotation {
    /// The picture.
    pub image_id: ImageId,
    /// The class, under the data set's own number.
    pub category_id: u64,
    /// Left, top, width and height in pixels of the picture.
    pub bbox: [f64; 4],
    /// Pixels that it covers, which say whether it is small, medium or large.
    pub area: f64,
    /// A crowd: detections inside it count neither as right nor as wrong.
    pub crowd: bool,
    /// The mask at the picture's size.
    pub segmentation: Option<Rle>,
}

impl Annotation {
    /// Of a box `[x1, y1, x2, y2]` in pixels of the picture; its area is the mask's, or without one the box's.
    pub fn new(image_id: ImageId, category_id: u64, bbox: [f32; 4], segmentation: Option<Rle>) -> Self {
        let bbox = left_top_width_height(bbox).map(f64::from);
        let area = segmentation.as_ref().map_or(bbox[2] * bbox[3], |mask| mask.area() as f64);
        Self { image_id, category_id, bbox, area, crowd: false, segmentation }
    }
}

/// What is on a set of pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// The pictures, with or without objects.
    pub images: BTreeSet<ImageId>,
    /// The objects.
    pub annotations: Vec<Annotation>,
}

/// All results of a validation, beside the labels in the same form.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CocoResults {
    /// What was found.
    pub records: Vec<Record>,
    /// What is there, by the data set's labels.
    pub truth: Truth,
}

/// The numbers that COCO's own files give its 80 classes: up to 90, with gaps.
pub fn coco_categories() -> Vec<u64> {
    const ABSENT: [u64; 10] = [12, 26, 29, 30, 45, 66, 68, 69, 71, 83];
    (1..=90).filter(|category| !ABSENT.contains(category)).collect()
}

fn left_top_width_height(bbox: [f32; 4]) -> [f32; 4] {
    // By way of the centre, as YOLOv5 goes: the last digits differ otherwise.
    let [x1, y1, x2, y2] = bbox;
    let (width, height) = (x2 - x1, y2 - y1);
    let (x, y) = ((x1 + x2) / 2.0, (y1 + y2) / 2.0);
    [x - width / 2.0, y - height / 2.0, width, height]
}

/// Rounded to so many decimals, exactly as Python's `round`.
fn rounded(value: f64, decimals: usize) -> f64 {
    format!("{value:.decimals$}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn categories_are_cocos() {
        let categories = coco_categories();
        assert_eq!(categories.len(), 80);
        assert_eq!((categories[0], categories[11], categories[79]), (1, 13, 90));
    }

    #[test]
    fn names_that_are_numbers_are_numbers() {
        let id = |path: &str| ImageId::of_file(Path::new(path));
        assert_eq!(id("a/000000000139.jpg"), ImageId::Number(139));
        assert_eq!(id("a/+5.jpg"), ImageId::Name("+5".into()));
        assert_eq!(id("99999999999999999999.png"), ImageId::Name("99999999999999999999".into()));
        assert_eq!(id("bus.jpg"), ImageId::Name("bus".into()));
    }

    #[test]
    fn records_are_written_as_yolov5_writes_them() {
        let record = Record::new(ImageId::Number(42), 18, [258.15, 41.29, 606.41, 285.07], 0.236_114_9, None);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(text, r#"{"image_id":42,"category_id":18,"bbox":[258.15,41.29,348.26,243.78],"score":0.23611}"#);
        let record = Record::new(ImageId::Name("bus".into()), 0, [1.0, 2.0, 4.0, 8.0], 1.0, None);
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(text, r#"{"image_id":"bus","category_id":0,"bbox":[1.0,2.0,3.0,6.0],"score":1.0}"#);
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
