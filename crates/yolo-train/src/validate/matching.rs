//! Which detections are right: `process_batch` of YOLOv5's `val.py`.

use std::cmp::Reverse;

/// How many overlaps are asked for.
pub const LEVELS: usize = 10;

/// For each of the [`iou_thresholds`], whether a detection is right.
pub type Correct = [bool; LEVELS];

/// Keeps the quotient a number where both boxes are empty.
const EPSILON: f32 = 1e-7;

/// The overlaps at which detections count: 0.50, 0.55, ... 0.95, in f32, each half of the row reckoned from its own end as
/// PyTorch's `linspace` does.
pub fn iou_thresholds() -> [f32; LEVELS] {
    let (first, last) = (0.5_f32, 0.95_f32);
    let step = (last - first) / (LEVELS - 1) as f32;
    std::array::from_fn(
        |i| {
            if i < LEVELS / 2 { first + step * i as f32 } else { last - step * (LEVELS - 1 - i) as f32 }
        },
    )
}

/// Overlaps (intersection over union) of each label with each detection, in f32 and in YOLOv5's order of operations.
///
/// # Shapes
/// Boxes are `[x1, y1, x2, y2]` in any unit; the result is labels x detections, row-major.
pub fn box_iou(labels: &[[f32; 4]], detections: &[[f32; 4]]) -> Vec<f32> {
    let area = |bbox: &[f32; 4]| (bbox[2] - bbox[0]) * (bbox[3] - bbox[1]);
    let areas: Vec<f32> = detections.iter().map(area).collect();
    let mut overlaps = Vec::with_capacity(labels.len() * detections.len());
    for a in labels {
        let area_a = area(a);
        overlaps.extend(detections.iter().zip(&areas).map(|(b, area_b)| {
            let width = (a[2].min(b[2]) - a[0].max(b[0])).max(0.0);
            let height = (a[3].min(b[3]) - a[1].max(b[1])).max(0.0);
            let intersection = width * height;
            intersection / (area_a + area_b - intersection + EPSILON)
        }));
    }
    overlaps
}

/// Says for each detection and threshold whether it is right: it overlaps a label of its class by at least the threshold, and
/// is the one that the label is given to.
///
/// A detection that overlaps several labels goes to the one it overlaps most. A label that several detections go to is given to
/// the *first* of them, which is the most confident as detections are sorted, whatever the overlaps are: YOLOv5 loses the order
/// by overlap between the two steps, and so do we, for the same figures.
///
/// # Shapes
/// `iou` is labels x detections, row-major, as of [`box_iou`]; a value that is not a number matches nothing.
pub fn match_detections(iou: &[f32], label_classes: &[usize], detection_classes: &[usize]) -> Vec<Correct> {
    let count = detection_classes.len();
    let mut correct = vec![[false; LEVELS]; count];
    let thresholds = iou_thresholds();
    let mut pairs = Vec::new();
    for (label, class) in label_classes.iter().enumerate() {
        for (detection, other) in detection_classes.iter().enumerate() {
            let overlap = iou.get(label * count + detection).copied().unwrap_or(0.0);
            if class == other && overlap >= thresholds[0] {
                pairs.push(Pair { label, detection, iou: overlap });
            }
        }
    }
    let pairs = best_first(pairs);
    for (level, threshold) in thresholds.iter().enumerate() {
        let mut label_of = vec![None; count];
        for pair in pairs.iter().filter(|pair| pair.iou >= *threshold) {
            label_of[pair.detection].get_or_insert(pair.label);
        }
        let mut taken = vec![false; label_classes.len()];
        for (detection, label) in label_of.iter().enumerate() {
            if let Some(label) = *label {
                correct[detection][level] = !std::mem::replace(&mut taken[label], true);
            }
        }
    }
    correct
}

/// A label and a detection that overlap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pair {
    pub(super) label: usize,
    pub(super) detection: usize,
    pub(super) iou: f32,
}

/// Pairs by falling overlap; among equals the later one first, as a rising stable sort read backwards has it.
pub(super) fn best_first(mut pairs: Vec<Pair>) -> Vec<Pair> {
    pairs.reverse();
    pairs.sort_by_key(|pair| Reverse(Ordered(pair.iou)));
    pairs
}

/// Numbers in their total order.
#[derive(PartialEq)]
struct Ordered(f32);

impl Eq for Ordered {}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many thresholds a detection is right at.
    fn levels(correct: &[Correct]) -> Vec<usize> {
        correct.iter().map(|levels| levels.iter().filter(|level| **level).count()).collect()
    }

    #[test]
    fn thresholds_are_those_of_pytorch() {
        let expected = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];
        for (got, want) in iou_thresholds().iter().zip(expected) {
            assert!((got - want).abs() <= 1e-7, "{got} {want}");
        }
        assert_eq!((iou_thresholds()[0], iou_thresholds()[9]), (0.5, 0.95));
    }

    #[test]
    fn overlaps_by_hand() {
        let labels = [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]];
        let detections = [[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [10.0, 0.0, 20.0, 10.0]];
        let iou = box_iou(&labels, &detections);
        let expected = [1.0, 50.0 / 150.0, 0.0, 0.0, 0.0, 0.0];
        for (got, want) in iou.iter().zip(expected) {
            assert!((got - want).abs() < 1e-6, "{iou:?}");
        }
        assert_eq!(box_iou(&[[3.0; 4]], &[[3.0; 4]]), [0.0], "empty boxes overlap nothing");
    }

    #[test]
    fn an_overlap_of_the_threshold_counts_and_another_class_does_not() {
        let just = iou_thresholds()[5];
        assert_eq!(levels(&match_detections(&[just], &[3], &[3])), [6]);
        assert_eq!(levels(&match_detections(&[just.next_down()], &[3], &[3])), [5]);
        assert_eq!(levels(&match_detections(&[1.0], &[3], &[2])), [0]);
        assert_eq!(levels(&match_detections(&[f32::NAN], &[3], &[3])), [0]);
    }

    #[test]
    fn the_first_detection_gets_the_label_though_another_overlaps_more() {
        // One label, two detections: .62 and .92. Up to .60 both pass, and the first has it; above only the second does.
        let correct = match_detections(&[0.62, 0.92], &[0], &[0, 0]);
        let at = |detection: usize| correct[detection].map(u8::from);
        assert_eq!(at(0), [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(at(1), [0, 0, 0, 1, 1, 1, 1, 1, 1, 0]);
    }

    #[test]
    fn a_detection_goes_to_the_label_it_overlaps_most_and_to_no_second_one() {
        // The first detection overlaps both labels, the second label more; the second detection overlaps only that one, so the
        // first label goes without.
        let iou = [0.60, 0.0, 0.70, 0.66];
        let correct = match_detections(&iou, &[0, 0], &[0, 0]);
        assert_eq!(levels(&correct), [5, 0]);
        // Where the first one overlaps the first label more, both labels are found.
        assert_eq!(levels(&match_detections(&[0.80, 0.0, 0.70, 0.66], &[0, 0], &[0, 0])), [7, 4]);
    }

    #[test]
    fn of_equal_overlaps_the_later_label_is_taken() {
        let iou = [0.8, 0.0, 0.8, 0.7];
        // Were it the first label, the second detection would have the other one.
        assert_eq!(levels(&match_detections(&iou, &[0, 0], &[0, 0])), [7, 0]);
    }

    #[test]
    fn nothing_matches_nothing() {
        assert_eq!(match_detections(&[], &[], &[]), Vec::<Correct>::new());
        assert_eq!(levels(&match_detections(&[], &[], &[1, 2])), [0, 0]);
        assert_eq!(match_detections(&[], &[1], &[]), Vec::<Correct>::new());
    }
}
