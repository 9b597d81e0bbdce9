//! Which classes are taken for which: YOLOv5's `ConfusionMatrix`.

use super::matching::{Pair, best_first, box_iou};

/// Detections and labels by the class they were found to be and the class they are.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfusionMatrix {
    /// (classes + 1) x (classes + 1) counts, row-major; the row is the class found, the column the label's. The last of each is
    /// the background: labels that nothing was found for, and detections of nothing.
    counts: Vec<u64>,
    classes: usize,
    conf_thres: f32,
    iou_thres: f32,
}

impl ConfusionMatrix {
    /// An empty one for so many classes, with YOLOv5's thresholds: confidence greater than 0.25, overlap greater than 0.45.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![0; (classes + 1) * (classes + 1)], classes, conf_thres: 0.25, iou_thres: 0.45 }
    }

    /// How many classes it has, the background not among them.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// How often a label of class `label` was found as class `found`; [`ConfusionMatrix::classes`] stands for the background.
    pub fn count(&self, found: usize, label: usize) -> u64 {
        let side = self.classes + 1;
        if found < side && label < side { self.counts[found * side + label] } else { 0 }
    }

    /// All counts, row by row; the row is the class found.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Right and wrong detections of each class.
    pub fn true_and_false_positives(&self) -> Vec<(u64, u64)> {
        let class = |class: usize| {
            let right = self.count(class, class);
            let all: u64 = (0..=self.classes).map(|label| self.count(class, label)).sum();
            (right, all - right)
        };
        (0..self.classes).map(class).collect()
    }

    /// Adds a picture. Classes out of range are left out.
    ///
    /// Here, unlike in the matching for average precision, a label that several detections go to is given to the one that
    /// overlaps it most. Like in YOLOv5, detections count as of nothing only where the picture has at least one match.
    pub fn add(&mut self, labels: (&[[f32; 4]], &[usize]), detections: (&[[f32; 4]], &[usize]), confidence: &[f32]) {
        let sure = |index: &usize| confidence.get(*index).is_some_and(|confidence| *confidence > self.conf_thres);
        let kept: Vec<usize> = (0..detections.1.len()).filter(sure).collect();
        let boxes: Vec<[f32; 4]> = kept.iter().filter_map(|&index| detections.0.get(index).copied()).collect();
        let classes: Vec<usize> = kept.iter().map(|&index| detections.1[index]).collect();
        let iou = box_iou(labels.0, &boxes);
        let count = boxes.len();
        let pairs = iou.iter().enumerate().filter(|(_, iou)| **iou > self.iou_thres);
        let pairs = pairs.map(|(at, &iou)| Pair { label: at / count, detection: at % count, iou }).collect();

        // The best label of each detection, then the best detection of each label.
        let mut best_of_detection: Vec<Option<Pair>> = vec![None; count];
        for pair in best_first(pairs) {
            best_of_detection[pair.detection].get_or_insert(pair);
        }
        let mut found_of_label: Vec<Option<usize>> = vec![None; labels.1.len()];
        for pair in best_first(best_of_detection.into_iter().flatten().collect()) {
            found_of_label[pair.label].get_or_insert(pair.detection);
        }

        let background = self.classes;
        for (class, found) in labels.1.iter().zip(&found_of_label) {
            self.increment(found.map_or(background, |found| classes[found]), *class);
        }
        if found_of_label.iter().any(Option::is_some) {
            for (detection, class) in classes.iter().enumerate() {
                if !found_of_label.contains(&Some(detection)) {
                    self.increment(*class, background);
                }
            }
        }
    }

    fn increment(&mut self, found: usize, label: usize) {
        let side = self.classes + 1;
        if found < side && label < side {
            self.counts[found * side + label] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f32; 4] = [0.0, 0.0, 10.0, 10.0];
    const B: [f32; 4] = [50.0, 50.0, 60.0, 60.0];
    const FAR: [f32; 4] = [200.0, 200.0, 220.0, 220.0];

    #[test]
    fn counts_by_hand() {
        let mut matrix = ConfusionMatrix::new(3);
        // A is found as class 1 instead of 0, B is missed as its detection is not sure, FAR is a detection of nothing.
        matrix.add((&[A, B], &[0, 2]), (&[A, FAR, B], &[1, 2, 2]), &[0.9, 0.8, 0.25]);
        assert_eq!(matrix.count(1, 0), 1);
        assert_eq!(matrix.count(3, 2), 1);
        assert_eq!(matrix.count(2, 3), 1);
        assert_eq!(matrix.counts().iter().sum::<u64>(), 3);
        assert_eq!(matrix.true_and_false_positives(), [(0, 0), (0, 1), (0, 1)]);
    }

    #[test]
    fn the_detection_that_overlaps_most_gets_the_label() {
        let mut matrix = ConfusionMatrix::new(2);
        // The first is the more confident, the second overlaps more: unlike in the matching for average precision it wins.
        let loose = [0.0, 0.0, 10.0, 15.0];
        matrix.add((&[A], &[0]), (&[loose, A], &[1, 0]), &[0.9, 0.5]);
        assert_eq!(matrix.count(0, 0), 1);
        assert_eq!(matrix.count(1, 2), 1);
    }

    #[test]
    fn without_a_match_detections_of_nothing_are_not_counted() {
        let mut matrix = ConfusionMatrix::new(2);
        matrix.add((&[A], &[0]), (&[FAR], &[1]), &[0.9]);
        assert_eq!(matrix.count(2, 0), 1);
        assert_eq!(matrix.counts().iter().sum::<u64>(), 1);
        matrix.add((&[A], &[1]), (&[], &[]), &[]);
        assert_eq!(matrix.count(2, 1), 1);
        matrix.add((&[A], &[7]), (&[A], &[9]), &[0.9]);
        assert_eq!(matrix.counts().iter().sum::<u64>(), 2, "classes out of range are left out");
    }

    #[test]
    fn an_overlap_of_the_threshold_is_no_match() {
        let mut matrix = ConfusionMatrix::new(1);
        matrix.iou_thres = box_iou(&[A], &[[0.0, 0.0, 10.0, 20.0]])[0];
        matrix.add((&[A], &[0]), (&[[0.0, 0.0, 10.0, 20.0]], &[0]), &[0.9]);
        assert_eq!(matrix.count(1, 0), 1);
    }
}
