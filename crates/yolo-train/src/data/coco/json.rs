//! What stands in a COCO file.

use serde::{Deserialize, Serialize};

/// A file of annotations; what else is in it is not read.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct File {
    pub(super) images: Vec<Picture>,
    pub(super) annotations: Vec<Annotation>,
    #[serde(default)]
    pub(super) categories: Vec<Category>,
}

/// A picture's number; some tools write names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(i64),
    Name(String),
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Picture {
    pub(super) id: Id,
    pub(super) file_name: String,
    #[serde(serialize_with = "whole")]
    pub(super) width: f64,
    #[serde(serialize_with = "whole")]
    pub(super) height: f64,
}

/// Sides are written without a point, as other tools expect them.
fn whole<S: serde::Serializer>(side: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(*side as u64)
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Annotation {
    #[serde(default)]
    pub(super) id: u64,
    pub(super) image_id: Id,
    pub(super) category_id: i64,
    /// Left, top, width, height.
    pub(super) bbox: Option<[f64; 4]>,
    #[serde(default)]
    pub(super) area: f64,
    #[serde(default)]
    pub(super) segmentation: Option<Segmentation>,
    #[serde(default)]
    pub(super) iscrowd: Flag,
}

/// An object's mask.
#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Segmentation {
    /// The outlines of its parts, x and y in turn.
    Polygons(Vec<Vec<f64>>),
    /// Lengths of runs, background first, column by column.
    Runs {
        /// Height and width.
        size: [usize; 2],
        counts: Counts,
    },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum Counts {
    Plain(Vec<u64>),
    Packed(String),
}

/// 0 or 1; some tools write false or true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(from = "RawFlag", into = "u8")]
pub(super) struct Flag(pub(super) bool);

#[derive(Deserialize)]
#[serde(untagged)]
enum RawFlag {
    Number(f64),
    Truth(bool),
}

impl From<RawFlag> for Flag {
    fn from(raw: RawFlag) -> Self {
        match raw {
            RawFlag::Number(number) => Self(number != 0.0),
            RawFlag::Truth(truth) => Self(truth),
        }
    }
}

impl From<Flag> for u8 {
    fn from(Flag(set): Flag) -> Self {
        u8::from(set)
    }
}

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Category {
    pub(super) id: i64,
    pub(super) name: String,
}
