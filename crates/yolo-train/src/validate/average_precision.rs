//! Precision, recall and average precision of every class: `ap_per_class` and `compute_ap` of YOLOv5.
//!
//! Sums are taken in NumPy's order, so that the figures agree with YOLOv5's to the last digit.

use super::matching::{Correct, LEVELS};

/// Values of confidence (and of recall) at which curves are kept.
pub const CURVE_POINTS: usize = 1000;
/// Values of recall that average precision is integrated over.
const RECALL_POINTS: usize = 101;
/// The share of the curve that is smoothed over before its greatest F1 is looked for.
const SMOOTHING: f64 = 0.1;
/// Keeps quotients numbers.
const EPSILON: f64 = 1e-16;

/// What is known of all detections and labels of a data set: all that the metrics are made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Statistics {
    /// For each detection, at which thresholds it is right.
    pub correct: Vec<Correct>,
    /// For each detection, its confidence.
    pub confidence: Vec<f32>,
    /// For each detection, its class.
    pub class: Vec<usize>,
    /// For each label, its class.
    pub labels: Vec<usize>,
}

impl Statistics {
    /// Adds the detections of a picture; lists of unlike lengths are cut to the shortest.
    pub fn add_detections(&mut self, correct: &[Correct], confidence: &[f32], class: &[usize]) {
        let count = correct.len().min(confidence.len()).min(class.len());
        self.correct.extend(&correct[..count]);
        self.confidence.extend(&confidence[..count]);
        self.class.extend(&class[..count]);
    }

    /// Whether any detection is right at any threshold.
    pub fn any_correct(&self) -> bool {
        self.correct.iter().flatten().any(|correct| *correct)
    }
}

/// The figures of every class that has labels, by rising class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PerClass {
    /// The classes.
    pub classes: Vec<usize>,
    /// Labels of each.
    pub instances: Vec<usize>,
    /// Precision of each at the confidence where the mean F1 is greatest.
    pub precision: Vec<f64>,
    /// Recall there.
    pub recall: Vec<f64>,
    /// F1 there.
    pub f1: Vec<f64>,
    /// Average precision at each of the ten overlaps.
    pub ap: Vec<[f64; LEVELS]>,
    /// What plots are drawn of.
    pub curves: Curves,
}

/// Curves at an overlap of one half, one a class in the order of [`PerClass::classes`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Curves {
    /// The 1000 places from 0 to 1 that all curves are given at: confidence, or recall for `precision_at_recall`.
    pub x: Vec<f64>,
    /// Precision over confidence.
    pub precision: Vec<Vec<f64>>,
    /// Recall over confidence.
    pub recall: Vec<Vec<f64>>,
    /// F1 over confidence.
    pub f1: Vec<Vec<f64>>,
    /// Precision over recall; 0 throughout for a class of which nothing was found.
    pub precision_at_recall: Vec<Vec<f64>>,
}

/// Computes the figures of every class that has labels. A class with labels of which nothing was found has zeros.
///
/// Source: YOLOv5's metrics; the average precision is the area under the envelope of precision over recall, by the trapezoidal
/// rule on 101 points of recall.
pub fn ap_per_class(statistics: &Statistics) -> PerClass {
    let Statistics { correct, confidence, class, labels } = statistics;
    let mut order: Vec<usize> = (0..confidence.len().min(correct.len()).min(class.len())).collect();
    // Stable: NumPy's default sort leaves the order of equal confidences to chance.
    order.sort_by(|&a, &b| confidence[b].total_cmp(&confidence[a]));

    let count = labels.iter().max().map_or(0, |last| last + 1);
    let mut instances = vec![0; count];
    labels.iter().for_each(|&label| instances[label] += 1);
    let mut of_class = vec![Vec::new(); count];
    for index in order {
        if let Some(list) = of_class.get_mut(class[index]) {
            list.push(index);
        }
    }

    let x = linspace(CURVE_POINTS);
    let mut result = PerClass { curves: Curves { x: x.clone(), ..Curves::default() }, ..PerClass::default() };
    for (class, found) in of_class.iter().enumerate().filter(|(class, _)| instances[*class] > 0) {
        let labels = instances[class];
        result.classes.push(class);
        result.instances.push(labels);
        let mut ap = [0.0; LEVELS];
        let zeros = || vec![0.0; CURVE_POINTS];
        let mut curves = [zeros(), zeros(), zeros()];
        if !found.is_empty() {
            // Rising places for `interpolate`.
            let places: Vec<f64> = found.iter().map(|&index| -f64::from(confidence[index])).collect();
            for level in 0..LEVELS {
                let (recall, precision) = recall_and_precision(found, correct, level, labels);
                let envelope = Envelope::new(&recall, &precision);
                ap[level] = envelope.area();
                if level == 0 {
                    let at = |values: &[f64], left: f64| {
                        x.iter().map(|&x| interpolate(-x, &places, values, left)).collect::<Vec<f64>>()
                    };
                    let over_recall = x.iter().map(|&x| envelope.precision_at(x)).collect();
                    curves = [at(&precision, 1.0), at(&recall, 0.0), over_recall];
                }
            }
        }
        let [precision, recall, over_recall] = curves;
        let f1 = precision.iter().zip(&recall).map(|(p, r)| 2.0 * p * r / (p + r + EPSILON)).collect();
        result.ap.push(ap);
        result.curves.precision.push(precision);
        result.curves.recall.push(recall);
        result.curves.f1.push(f1);
        result.curves.precision_at_recall.push(over_recall);
    }

    if !result.classes.is_empty() {
        let best = first_maximum(&smooth(&mean_curve(&result.curves.f1), SMOOTHING));
        let at_best = |curves: &[Vec<f64>]| curves.iter().map(|curve| curve[best]).collect();
        result.precision = at_best(&result.curves.precision);
        result.recall = at_best(&result.curves.recall);
        result.f1 = at_best(&result.curves.f1);
    }
    result
}

/// Recall and precision after each of a class's detections, the most confident first.
fn recall_and_precision(found: &[usize], correct: &[Correct], level: usize, labels: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut right, mut all) = (0.0, 0.0);
    found
        .iter()
        .map(|&index| {
            right += f64::from(u8::from(correct[index][level]));
            all += 1.0;
            (right / (labels as f64 + EPSILON), right / all)
        })
        .unzip()
}

/// The greatest precision at this or a greater recall.
struct Envelope {
    recall: Vec<f64>,
    precision: Vec<f64>,
}

impl Envelope {
    fn new(recall: &[f64], precision: &[f64]) -> Self {
        let around = |first: f64, values: &[f64], last: f64| {
            std::iter::once(first).chain(values.iter().copied()).chain(std::iter::once(last)).collect::<Vec<f64>>()
        };
        let recall = around(0.0, recall, 1.0);
        let mut precision = around(1.0, precision, 0.0);
        for i in (1..precision.len()).rev() {
            precision[i - 1] = precision[i - 1].max(precision[i]);
        }
        Self { recall, precision }
    }

    fn precision_at(&self, recall: f64) -> f64 {
        interpolate(recall, &self.recall, &self.precision, 1.0)
    }

    fn area(&self) -> f64 {
        let x = linspace(RECALL_POINTS);
        let y: Vec<f64> = x.iter().map(|&x| self.precision_at(x)).collect();
        let pieces: Vec<f64> =
            x.windows(2).zip(y.windows(2)).map(|(x, y)| (x[1] - x[0]) * (y[1] + y[0]) / 2.0).collect();
        pairwise_sum(&pieces)
    }
}

/// `count` values from 0 to 1, as NumPy's `linspace`.
pub fn linspace(count: usize) -> Vec<f64> {
    let step = 1.0 / (count.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|i| i as f64 * step).collect();
    if let Some(last) = values.last_mut().filter(|_| count > 1) {
        *last = 1.0;
    }
    values
}

/// NumPy's `interp`: the value at `x` of the straight lines through (`places`, `values`); `places` never fall. Before the first
/// it is `left`, after the last the last value. Of several values at one place the last counts.
fn interpolate(x: f64, places: &[f64], values: &[f64], left: f64) -> f64 {
    let after = places.partition_point(|&place| place <= x);
    if after == 0 {
        return left;
    }
    let low = after - 1;
    if after == places.len() || places[low] == x {
        return values[low];
    }
    let slope = (values[after] - values[low]) / (places[after] - places[low]);
    slope * (x - places[low]) + values[low]
}

/// The mean of a curve over classes, class by class as NumPy adds along the first axis.
pub fn mean_curve(curves: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; curves.first().map_or(0, Vec::len)];
    for curve in curves {
        sum.iter_mut().zip(curve).for_each(|(sum, value)| *sum += value);
    }
    sum.iter_mut().for_each(|sum| *sum /= curves.len() as f64);
    sum
}

/// A running mean over a `share` of the curve, whose ends are drawn out.
pub fn smooth(curve: &[f64], share: f64) -> Vec<f64> {
    let (Some(&first), Some(&last)) = (curve.first(), curve.last()) else { return Vec::new() };
    // Odd, so that it has a middle.
    let width = (curve.len() as f64 * share * 2.0).round_ties_even() as usize / 2 + 1;
    let half = width / 2;
    let padded: Vec<f64> =
        std::iter::repeat_n(first, half).chain(curve.iter().copied()).chain(std::iter::repeat_n(last, half)).collect();
    padded.windows(width).map(|window| window.iter().map(|value| value / width as f64).sum()).collect()
}

fn first_maximum(values: &[f64]) -> usize {
    let best = |best: usize, index: usize| if values[index] > values[best] { index } else { best };
    (0..values.len()).fold(0, best)
}

/// The mean in NumPy's order of additions; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { pairwise_sum(values) / values.len() as f64 }
}

/// The sum in the order that NumPy adds contiguous values: up to 128 of them in eight lanes, more by halves.
fn pairwise_sum(values: &[f64]) -> f64 {
    const LANES: usize = 8;
    const BLOCK: usize = 128;
    if values.len() < LANES {
        return values.iter().sum();
    }
    if values.len() > BLOCK {
        let half = values.len() / 2;
        let (low, high) = values.split_at(half - half % LANES);
        return pairwise_sum(low) + pairwise_sum(high);
    }
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[..LANES]);
    let rows = values[LANES..].chunks_exact(LANES);
    let rest = rows.remainder();
    for row in rows {
        lanes.iter_mut().zip(row).for_each(|(lane, value)| *lane += value);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    rest.iter().fold(((a + b) + (c + d)) + ((e + f) + (g + h)), |sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Correct = [true; LEVELS];
    const NONE: Correct = [false; LEVELS];

    fn statistics(detections: &[(Correct, f32, usize)], labels: &[usize]) -> Statistics {
        Statistics {
            correct: detections.iter().map(|detection| detection.0).collect(),
            confidence: detections.iter().map(|detection| detection.1).collect(),
            class: detections.iter().map(|detection| detection.2).collect(),
            labels: labels.to_vec(),
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn labels_found_as_they_are_give_995_thousandths() {
        // Beyond a recall of 1 the precision falls to 0, which costs half of the last of 100 pieces.
        let result = ap_per_class(&statistics(&[(ALL, 0.9, 1), (ALL, 0.8, 1), (ALL, 0.7, 1)], &[1, 1, 1]));
        assert_eq!(result.classes, [1]);
        assert_eq!(result.instances, [3]);
        assert!(result.ap[0].iter().all(|ap| near(*ap, 0.995)), "{:?}", result.ap);
        assert_eq!((result.precision[0], result.recall[0]), (1.0, 1.0));
    }

    #[test]
    fn half_of_the_labels_by_hand() {
        // Right, wrong, right of four labels: recall 1/4, 1/4, 1/2 and precision 1, 1/2, 2/3.
        let result = ap_per_class(&statistics(&[(ALL, 0.9, 0), (NONE, 0.8, 0), (ALL, 0.7, 0)], &[0; 4]));
        // The envelope is 1 up to a recall of 1/4, 2/3 from there to 1/2 and falls to 0 at 1; of the two precisions at 1/4 the
        // last counts there.
        let piece = |x: f64| match x {
            x if x < 0.25 => 1.0,
            x if x <= 0.5 => 2.0 / 3.0,
            x => 2.0 / 3.0 * (1.0 - x) / 0.5,
        };
        let area: f64 = (0..100).map(|i| (piece(i as f64 / 100.0) + piece((i + 1) as f64 / 100.0)) / 200.0).sum();
        assert!(near(result.ap[0][0], area), "{} {area}", result.ap[0][0]);
    }

    #[test]
    fn only_classes_with_labels_have_figures() {
        let result = ap_per_class(&statistics(&[(ALL, 0.9, 2), (NONE, 0.8, 5), (NONE, 0.4, 9)], &[2, 5, 7]));
        assert_eq!(result.classes, [2, 5, 7]);
        assert!(near(result.ap[0][0], 0.995));
        assert_eq!((result.ap[1], result.ap[2]), ([0.0; LEVELS], [0.0; LEVELS]));
        assert_eq!((result.precision[2], result.recall[2]), (0.0, 0.0));
    }

    #[test]
    fn nothing_found_and_nothing_labelled() {
        let result = ap_per_class(&statistics(&[], &[0, 0, 3]));
        assert_eq!((result.classes.as_slice(), result.instances.as_slice()), (&[0, 3][..], &[2, 1][..]));
        assert_eq!((result.precision.as_slice(), result.recall.as_slice()), (&[0.0, 0.0][..], &[0.0, 0.0][..]));
        let result = ap_per_class(&statistics(&[(NONE, 0.5, 0)], &[]));
        assert!(result.classes.is_empty() && result.precision.is_empty());
    }

    #[test]
    fn confidences_that_are_no_numbers_do_no_harm() {
        let result = ap_per_class(&statistics(&[(ALL, f32::NAN, 0), (ALL, 0.5, 0)], &[0, 0]));
        assert!(near(result.ap[0][0], 0.995));
    }

    #[test]
    fn straight_lines_are_numpys() {
        let (places, values) = ([-0.9, -0.5, -0.5, -0.1], [1.0, 2.0, 3.0, 4.0]);
        let at = |x| interpolate(x, &places, &values, 7.0);
        assert_eq!((at(-1.0), at(-0.9), at(-0.5), at(-0.1), at(0.0)), (7.0, 1.0, 3.0, 4.0, 4.0));
        assert!(near(at(-0.7), 1.5) && near(at(-0.3), 3.5));
    }

    #[test]
    fn smoothing_keeps_the_length_and_a_constant() {
        // round(1000 x 0.1 x 2) / 2 + 1 = 101 values wide.
        let mut curve = vec![0.0; 1000];
        curve[500] = 101.0;
        let smoothed = smooth(&curve, 0.1);
        assert_eq!(smoothed.len(), 1000);
        assert_eq!(smoothed.iter().filter(|value| near(**value, 1.0)).count(), 101);
        assert_eq!(first_maximum(&smoothed), 450);
        assert!(smooth(&[0.25; 1000], 0.1).iter().all(|value| near(*value, 0.25)));
        assert!(smooth(&[], 0.1).is_empty());
    }

    #[test]
    fn sums_are_taken_in_eight_lanes() {
        let values: Vec<f64> = (0..1000).map(|i| 1.0 / f64::from(i + 1)).collect();
        // `np.sum(1 / np.arange(1, n + 1))` of NumPy 2.
        assert_eq!(pairwise_sum(&values), 7.485_470_860_550_345);
        assert_eq!(pairwise_sum(&values[..10]), 2.928_968_253_968_253_8);
        assert_eq!(pairwise_sum(&values[..100]), 5.187_377_517_639_621);
        assert_eq!(mean(&[]), 0.0);
    }
}
