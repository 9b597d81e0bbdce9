//! Non-maximum suppression: YOLOv5's `non_max_suppression`, with torchvision's `nms` inside.

use candle_core::{DType, Device, Storage, Tensor};

use crate::{Error, Result};

/// Columns before the class scores: centre x and y, width, height, objectness.
const BOX_COLUMNS: usize = 5;
/// The last of them.
pub(crate) const OBJECTNESS: usize = 4;
/// How far the boxes of different classes are moved apart, in pixels for each class index.
const CLASS_OFFSET: f32 = 7680.0;

/// What [`nms`] keeps; the defaults are those of YOLOv5's `detect`.
#[derive(Debug, Clone, PartialEq)]
pub struct NmsOptions {
    /// Objectness, and objectness times class score, must be greater than this.
    pub conf_thres: f64,
    /// A box is dropped where its overlap (intersection over union) with a better one of its class is greater than this.
    pub iou_thres: f64,
    /// Keep only these classes.
    pub classes: Option<Vec<usize>>,
    /// Let boxes suppress boxes of other classes.
    pub agnostic: bool,
    /// Give a row every class that passes `conf_thres`, not only its best.
    pub multi_label: bool,
    /// At most this many detections a picture.
    pub max_det: usize,
    /// At most this many candidates, the best, go into the suppression.
    pub max_nms: usize,
    /// Mask coefficients at the end of each row (32 for YOLOv5's segmentation networks).
    pub nm: usize,
}

impl Default for NmsOptions {
    fn default() -> Self {
        Self {
            conf_thres: 0.25,
            iou_thres: 0.45,
            classes: None,
            agnostic: false,
            multi_label: false,
            max_det: 1000,
            max_nms: 30_000,
            nm: 0,
        }
    }
}

/// A detection in the network's input: what [`nms`] kept of the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Corners `[x1, y1, x2, y2]` in pixels of the network's input.
    pub bbox: [f32; 4],
    /// Objectness times class score.
    pub confidence: f32,
    /// Class index.
    pub class: usize,
    /// Mask coefficients, multiplied by the objectness as YOLOv5 does by accident; empty for detection networks.
    pub coefficients: Vec<f32>,
}

/// Suppresses the rows of one picture: `rows` is `[N, columns]`, row-major, `columns` = 5 + classes + `options.nm`, decoded
/// (pixels and probabilities). Best first; among equal scores the earlier row, then the lower class.
///
/// Rows with a value that is not finite are left out. There is no time limit.
///
/// # Errors
/// [`Error::Shape`] where the columns do not fit, [`Error::Argument`] where a threshold is outside 0..=1.
pub fn nms(rows: &[f32], columns: usize, options: &NmsOptions) -> Result<Vec<Candidate>> {
    check(columns, options)?;
    if !rows.len().is_multiple_of(columns) {
        return Err(Error::Shape {
            what: "predictions".into(),
            expected: format!("whole rows of {columns} values"),
            got: format!("{} values", rows.len()),
        });
    }
    let mut found = scored(rows, columns, options);
    // Stable, so that ties stay in the order of the rows.
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    found.truncate(options.max_nms);

    let first_coefficient = columns - options.nm;
    let candidate = |kept: &Scored| {
        let row = &rows[kept.row * columns..][..columns];
        let coefficients = row[first_coefficient..].iter().map(|c| c * row[OBJECTNESS]).collect();
        Candidate { bbox: kept.bbox, confidence: kept.confidence, class: kept.class, coefficients }
    };
    Ok(suppress(&found, options).into_iter().map(candidate).collect())
}

/// Suppresses a batch: `prediction` is a network's decoded output `[B, N, 5 + classes + nm]` on any device; one list a picture.
///
/// # Errors
/// As for [`nms`]; [`Error::Candle`] where the tensor cannot be read.
pub fn nms_batch(prediction: &Tensor, options: &NmsOptions) -> Result<Vec<Vec<Candidate>>> {
    let Ok((batch, rows, columns)) = prediction.dims3() else {
        return Err(Error::Shape {
            what: "predictions".into(),
            expected: "[batch, rows, 5 + classes + mask coefficients]".into(),
            got: format!("{:?}", prediction.dims()),
        });
    };
    check(columns, options)?;
    // Borrowed, not copied, where the values are in main memory already.
    let prediction = prediction.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
    let (storage, layout) = prediction.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(Error::Device("the predictions could not be brought to main memory".into()));
    };
    let values = &storage.as_slice::<f32>()?[layout.start_offset()..];
    let picture = rows * columns;
    (0..batch).map(|index| nms(&values[index * picture..][..picture], columns, options)).collect()
}

fn check(columns: usize, options: &NmsOptions) -> Result<()> {
    let least = BOX_COLUMNS.saturating_add(1).saturating_add(options.nm);
    if columns < least {
        return Err(Error::Shape {
            what: "predictions".into(),
            expected: format!(
                "at least {least} columns (box, objectness, one class, {} mask coefficients)",
                options.nm
            ),
            got: format!("{columns} columns"),
        });
    }
    for (argument, value) in [("conf_thres", options.conf_thres), ("iou_thres", options.iou_thres)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(Error::Argument { argument, problem: format!("{value} is not a threshold between 0 and 1") });
        }
    }
    Ok(())
}

/// A row with one of its classes.
struct Scored {
    bbox: [f32; 4],
    confidence: f32,
    class: usize,
    row: usize,
}

/// The (row, class) pairs that pass the confidence threshold, in order.
fn scored(rows: &[f32], columns: usize, options: &NmsOptions) -> Vec<Scored> {
    let threshold = options.conf_thres as f32;
    let classes = BOX_COLUMNS..columns - options.nm;
    let wanted = |class: usize| options.classes.as_ref().is_none_or(|classes| classes.contains(&class));
    let mut found = Vec::new();
    for (index, row) in rows.chunks_exact(columns).enumerate() {
        let objectness = row[OBJECTNESS];
        if !(objectness > threshold && row.iter().all(|value| value.is_finite())) {
            continue;
        }
        let scores = row[classes.clone()].iter().map(|score| score * objectness).enumerate();
        let mut keep = |class: usize, confidence: f32| {
            if confidence > threshold && confidence.is_finite() && wanted(class) {
                found.push(Scored { bbox: corners(row), confidence, class, row: index });
            }
        };
        if options.multi_label {
            scores.for_each(|(class, score)| keep(class, score));
        } else {
            let best = scores.fold((0, f32::NEG_INFINITY), |best, next| if next.1 > best.1 { next } else { best });
            keep(best.0, best.1);
        }
    }
    found
}

fn corners(row: &[f32]) -> [f32; 4] {
    let (half_width, half_height) = (row[2] / 2.0, row[3] / 2.0);
    [row[0] - half_width, row[1] - half_height, row[0] + half_width, row[1] + half_height]
}

/// Greedy suppression of boxes sorted by score. Comparing each with those kept so far, instead of striking out what each
/// kept one covers, gives the same list and ends as soon as `max_det` are found.
fn suppress<'a>(sorted: &'a [Scored], options: &NmsOptions) -> Vec<&'a Scored> {
    let mut kept: Vec<&Scored> = Vec::new();
    let mut boxes: Vec<Area> = Vec::new();
    for candidate in sorted {
        if kept.len() >= options.max_det {
            break;
        }
        let offset = if options.agnostic { 0.0 } else { candidate.class as f32 * CLASS_OFFSET };
        let area = Area::new(candidate.bbox.map(|side| side + offset));
        if !boxes.iter().any(|better| f64::from(better.overlap(&area)) > options.iou_thres) {
            kept.push(candidate);
            boxes.push(area);
        }
    }
    kept
}

/// A box and its area.
struct Area {
    bbox: [f32; 4],
    area: f32,
}

impl Area {
    fn new(bbox: [f32; 4]) -> Self {
        Self { bbox, area: (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]) }
    }

    /// Intersection over union, in torchvision's order of operations.
    fn overlap(&self, other: &Self) -> f32 {
        let [ax1, ay1, ax2, ay2] = self.bbox;
        let [bx1, by1, bx2, by2] = other.bbox;
        let width = (ax2.min(bx2) - ax1.max(bx1)).max(0.0);
        let height = (ay2.min(by2) - ay1.max(by1)).max(0.0);
        let intersection = width * height;
        intersection / (self.area + other.area - intersection)
    }
}
