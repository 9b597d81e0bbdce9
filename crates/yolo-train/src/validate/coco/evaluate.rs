//! mAP by COCO's rule: the evaluation of `pycocotools`.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Annotation, ImageId, Record, Truth};
use crate::{Error, Result};

const LEVELS: usize = 10;
const RECALL_POINTS: usize = 101;
/// At most this many detections of a class and picture count; the figures of all sizes take the last.
const MAX_DETECTIONS: [usize; 3] = [1, 10, 100];
/// All objects, small, medium and large ones, by their area in pixels, both ends among them.
const AREAS: [[f64; 2]; 4] = [[0.0, 1e10], [0.0, 32.0 * 32.0], [32.0 * 32.0, 96.0 * 96.0], [96.0 * 96.0, 1e10]];

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Boxes.
    Boxes,
    /// Masks.
    Masks,
}

/// COCO's twelve figures; -1 where there is no object that they could be about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CocoStats {
    /// Average precision, the mean over overlaps of 0.50 to 0.95.
    pub ap: f64,
    /// At an overlap of 0.50.
    pub ap50: f64,
    /// At an overlap of 0.75.
    pub ap75: f64,
    /// Of small, medium and large objects.
    pub ap_sizes: [f64; 3],
    /// Average recall with at most 1, 10 and 100 detections a picture and class.
    pub ar: [f64; 3],
    /// Of small, medium and large objects.
    pub ar_sizes: [f64; 3],
}

impl CocoStats {
    /// The twelve lines that COCO's tools print.
    pub fn lines(&self) -> Vec<String> {
        const SIZES: [&str; 3] = ["small", "medium", "large"];
        let line = |precision: bool, iou: &str, area: &str, most: usize, value: f64| {
            let (title, kind) = if precision { ("Average Precision", "(AP)") } else { ("Average Recall", "(AR)") };
            format!(" {title:<18} {kind} @[ IoU={iou:<9} | area={area:>6} | maxDets={most:>3} ] = {value:0.3}")
        };
        let all = "0.50:0.95";
        let last = MAX_DETECTIONS[2];
        let mut lines = vec![
            line(true, all, "all", last, self.ap),
            line(true, "0.50", "all", last, self.ap50),
            line(true, "0.75", "all", last, self.ap75),
        ];
        lines.extend(SIZES.iter().zip(self.ap_sizes).map(|(size, value)| line(true, all, size, last, value)));
        lines.extend(MAX_DETECTIONS.iter().zip(self.ar).map(|(&most, value)| line(false, all, "all", most, value)));
        lines.extend(SIZES.iter().zip(self.ar_sizes).map(|(size, value)| line(false, all, size, last, value)));
        lines
    }
}

/// Evaluates detections by COCO's rule: at most 100 detections of a class and picture, each object given to the most confident
/// detection that overlaps it most of what is left, precision sampled at 101 values of recall without interpolation.
///
/// Source: the evaluation of `pycocotools`, with its parameters.
///
/// # Errors
/// Where a detection is of a picture that `truth` does not list, or masks are to be compared and one lacks its mask.
pub fn coco_map(truth: &Truth, records: &[Record], kind: Kind) -> Result<CocoStats> {
    let fail = |problem: String| Err(Error::Argument { argument: "COCO results", problem });
    if let Some(record) = records.iter().find(|record| !truth.images.contains(&record.image_id)) {
        return fail(format!("there is no picture {} among the annotated ones", record.image_id));
    }
    if kind == Kind::Masks {
        let lacks = records.iter().find(|record| record.segmentation.is_none()).map(|record| &record.image_id);
        let bare = |annotation: &&Annotation| annotation.segmentation.is_none();
        if let Some(image) = lacks.or_else(|| truth.annotations.iter().find(bare).map(|a| &a.image_id)) {
            return fail(format!("an object of picture {image} has no mask"));
        }
    }

    // Category by category, picture by picture, in the order of their names.
    type Pictures<'a> = BTreeMap<&'a ImageId, Picture<'a>>;
    let mut categories: BTreeMap<u64, Pictures<'_>> = BTreeMap::new();
    for annotation in &truth.annotations {
        let pictures = categories.entry(annotation.category_id).or_default();
        pictures.entry(&annotation.image_id).or_default().labels.push(annotation);
    }
    for record in records {
        // A category without any object has no figures.
        if let Some(pictures) = categories.get_mut(&record.category_id) {
            pictures.entry(&record.image_id).or_default().found.push(record);
        }
    }
    let categories: Vec<Vec<Picture<'_>>> =
        categories.into_values().map(|pictures| pictures.into_values().collect()).collect();
    let evaluated: Vec<[Option<Figures>; AREAS.len()]> = categories
        .into_par_iter()
        .map(|mut pictures| {
            for picture in &mut pictures {
                picture.sort();
            }
            let overlaps: Vec<Vec<f64>> = pictures.iter().map(|picture| picture.overlaps(kind)).collect();
            AREAS.map(|area| {
                let matched = pictures.iter().zip(&overlaps).map(|(picture, iou)| picture.matched(iou, area, kind));
                Figures::new(&matched.collect::<Vec<_>>())
            })
        })
        .collect();

    let all = |area: usize| evaluated.iter().filter_map(move |figures| figures[area].as_ref());
    let mean = |values: Vec<f64>| match values.len() {
        0 => -1.0,
        count => values.iter().sum::<f64>() / count as f64,
    };
    let ap = |area: usize, levels: std::ops::Range<usize>| {
        mean(all(area).flat_map(|figures| figures.precision[levels.clone()].iter().copied()).collect())
    };
    let ar = |area: usize, limit: usize| mean(all(area).flat_map(|figures| figures.recall[limit]).collect());
    Ok(CocoStats {
        ap: ap(0, 0..LEVELS),
        ap50: ap(0, 0..1),
        ap75: ap(0, 5..6),
        ap_sizes: [1, 2, 3].map(|area| ap(area, 0..LEVELS)),
        ar: [0, 1, 2].map(|limit| ar(0, limit)),
        ar_sizes: [1, 2, 3].map(|area| ar(area, 2)),
    })
}

fn thresholds() -> [f64; LEVELS] {
    let step = (0.95 - 0.5) / (LEVELS - 1) as f64;
    let mut thresholds = std::array::from_fn(|i| 0.5 + i as f64 * step);
    thresholds[LEVELS - 1] = 0.95;
    thresholds
}

/// The objects and detections of a class in a picture.
#[derive(Default)]
struct Picture<'a> {
    labels: Vec<&'a Annotation>,
    found: Vec<&'a Record>,
}

/// A picture's detections, matched.
struct Matched {
    /// Objects that count.
    objects: usize,
    /// Of each detection the confidence, and at each overlap what it is.
    found: Vec<(f64, [Verdict; LEVELS])>,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Right,
    Wrong,
    Ignored,
}

impl Picture<'_> {
    /// Brings the most confident detections to the front and drops what no figure looks at.
    fn sort(&mut self) {
        self.found.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.found.truncate(MAX_DETECTIONS[2]);
    }

    /// Of each detection with each object, detections x objects, row-major.
    fn overlaps(&self, kind: Kind) -> Vec<f64> {
        let pairs = self.found.iter().flat_map(|found| self.labels.iter().map(move |label| (found, label)));
        pairs
            .map(|(found, label)| match (kind, &found.segmentation, &label.segmentation) {
                (Kind::Masks, Some(a), Some(b)) => {
                    ratio(a.intersection(b) as f64, a.area() as f64, b.area() as f64, label.crowd)
                }
                _ => {
                    let ([ax, ay, aw, ah], [bx, by, bw, bh]) = (found.bbox, label.bbox);
                    let width = (ax + aw).min(bx + bw) - ax.max(bx);
                    let height = (ay + ah).min(by + bh) - ay.max(by);
                    let shared = if width > 0.0 && height > 0.0 { width * height } else { 0.0 };
                    ratio(shared, aw * ah, bw * bh, label.crowd)
                }
            })
            .collect()
    }

    /// Gives the objects to the detections, at each overlap: the most confident detection first, each to the object that it
    /// overlaps most of those left; objects that do not count only where there is no other.
    fn matched(&self, iou: &[f64], area: [f64; 2], kind: Kind) -> Matched {
        let outside = |pixels: f64| pixels < area[0] || pixels > area[1];
        let ignored: Vec<bool> = self.labels.iter().map(|label| label.crowd || outside(label.area)).collect();
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|&label| ignored[label]);

        let count = self.labels.len();
        let mut verdicts = vec![[Verdict::Wrong; LEVELS]; self.found.len()];
        for (level, threshold) in thresholds().into_iter().enumerate() {
            let mut taken = vec![false; count];
            for (index, found) in self.found.iter().enumerate() {
                let mut best: Option<usize> = None;
                let mut least = threshold.min(1.0 - 1e-10);
                for &label in &order {
                    if taken[label] && !self.labels[label].crowd {
                        continue;
                    }
                    if best.is_some_and(|best| !ignored[best] && ignored[label]) {
                        break;
                    }
                    let overlap = iou[index * count + label];
                    if overlap >= least {
                        (best, least) = (Some(label), overlap);
                    }
                }
                verdicts[index][level] = match best {
                    Some(label) => {
                        taken[label] = true;
                        if ignored[label] { Verdict::Ignored } else { Verdict::Right }
                    }
                    None if outside(size(found, kind)) => Verdict::Ignored,
                    None => Verdict::Wrong,
                };
            }
        }
        let found = self.found.iter().map(|found| found.score).zip(verdicts).collect();
        Matched { objects: ignored.iter().filter(|ignored| !**ignored).count(), found }
    }
}

fn size(found: &Record, kind: Kind) -> f64 {
    match (kind, &found.segmentation) {
        (Kind::Masks, Some(mask)) => mask.area() as f64,
        _ => found.bbox[2] * found.bbox[3],
    }
}

/// Intersection over union; over the detection alone for a crowd. Nothing in nothing is 0.
fn ratio(shared: f64, found: f64, label: f64, crowd: bool) -> f64 {
    let union = if crowd { found } else { found + label - shared };
    if shared > 0.0 && union > 0.0 { shared / union } else { 0.0 }
}

/// A class's figures among objects of some size.
struct Figures {
    /// The mean over recall at each overlap, with at most 100 detections a picture.
    precision: [f64; LEVELS],
    /// The greatest recall at each overlap, with at most 1, 10, 100 detections a picture.
    recall: [[f64; LEVELS]; MAX_DETECTIONS.len()],
}

impl Figures {
    /// None where there is no object that counts.
    fn new(pictures: &[Matched]) -> Option<Self> {
        let objects: usize = pictures.iter().map(|picture| picture.objects).sum();
        if objects == 0 {
            return None;
        }
        let mut figures = Self { precision: [0.0; LEVELS], recall: [[0.0; LEVELS]; MAX_DETECTIONS.len()] };
        for (limit, most) in MAX_DETECTIONS.into_iter().enumerate() {
            let mut found: Vec<_> = pictures.iter().flat_map(|picture| picture.found.iter().take(most)).collect();
            found.sort_by(|a, b| b.0.total_cmp(&a.0));
            for level in 0..LEVELS {
                let verdicts = found.iter().map(|found| found.1[level]);
                let (precision, recall) = curve(verdicts, objects as f64);
                figures.recall[limit][level] = recall.last().copied().unwrap_or(0.0);
                figures.precision[level] = sampled(&precision, &recall);
            }
        }
        Some(figures)
    }
}

/// The greatest precision at this or a greater recall, and recall, after each detection.
fn curve(verdicts: impl Iterator<Item = Verdict>, objects: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut right, mut wrong) = (0.0, 0.0);
    let (mut precision, mut recall) = (Vec::new(), Vec::new());
    for verdict in verdicts {
        match verdict {
            Verdict::Right => right += 1.0,
            Verdict::Wrong => wrong += 1.0,
            Verdict::Ignored => {}
        }
        precision.push(right / (right + wrong + f64::EPSILON));
        recall.push(right / objects);
    }
    for i in (1..precision.len()).rev() {
        precision[i - 1] = precision[i - 1].max(precision[i]);
    }
    (precision, recall)
}

/// The mean precision at 101 values of recall: at each that of the first detection to reach it, 0 where none does.
fn sampled(precision: &[f64], recall: &[f64]) -> f64 {
    let at = |point: usize| {
        let wanted = point as f64 * (1.0 / (RECALL_POINTS - 1) as f64);
        precision.get(recall.partition_point(|&recall| recall < wanted)).copied().unwrap_or(0.0)
    };
    (0..RECALL_POINTS).map(at).sum::<f64>() / RECALL_POINTS as f64
}

#[cfg(test)]
mod tests;
