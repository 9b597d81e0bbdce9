//! What a validation ends in.

use std::time::Duration;

use super::average_precision::{Curves, PerClass, Statistics, ap_per_class, mean};
use super::coco::CocoResults;
use super::confusion::ConfusionMatrix;

/// The four figures of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Metrics {
    /// Precision at the confidence where the mean F1 is greatest.
    pub precision: f64,
    /// Recall there.
    pub recall: f64,
    /// Average precision at an overlap of 0.5.
    pub map50: f64,
    /// Average precision, the mean over overlaps of 0.5 to 0.95.
    pub map: f64,
}

impl Metrics {
    /// What checkpoints are ranked by: a tenth of mAP50 and nine of mAP50-95. For segmentation that of boxes and that of masks
    /// are added.
    pub fn fitness(&self) -> f64 {
        0.1 * self.map50 + 0.9 * self.map
    }
}

/// The figures of a class.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassMetrics {
    /// The class.
    pub class: usize,
    /// Its labels.
    pub instances: usize,
    /// Its figures.
    pub metrics: Metrics,
}

/// Figures of boxes, or of masks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// The mean over the classes that have labels.
    pub mean: Metrics,
    /// Each class that has labels, by rising class; empty where nothing at all is right, as YOLOv5 has it.
    pub classes: Vec<ClassMetrics>,
    /// What plots are drawn of, one curve a class in the order of `classes`.
    pub curves: Curves,
}

impl Summary {
    /// Computes the figures. Where not a single detection is right they are all 0 and no class is listed.
    pub fn new(statistics: &Statistics) -> Self {
        if !statistics.any_correct() {
            return Self::default();
        }
        let PerClass { classes, instances, precision, recall, ap, curves, .. } = ap_per_class(statistics);
        let ap50: Vec<f64> = ap.iter().map(|levels| levels[0]).collect();
        let ap: Vec<f64> = ap.iter().map(|levels| mean(levels)).collect();
        let all = Metrics { precision: mean(&precision), recall: mean(&recall), map50: mean(&ap50), map: mean(&ap) };
        let class = |(i, &class): (usize, &usize)| {
            let metrics = Metrics { precision: precision[i], recall: recall[i], map50: ap50[i], map: ap[i] };
            ClassMetrics { class, instances: instances[i], metrics }
        };
        Self { mean: all, classes: classes.iter().enumerate().map(class).collect(), curves }
    }
}

/// Time that all pictures together took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// From the loader's batch to the network's input.
    pub pre_process: Duration,
    /// The network.
    pub inference: Duration,
    /// Suppression.
    pub nms: Duration,
}

impl Times {
    /// Milliseconds a picture of each of the three.
    pub fn per_picture(&self, images: usize) -> [f64; 3] {
        let each = |time: Duration| time.as_secs_f64() * 1e3 / images.max(1) as f64;
        [each(self.pre_process), each(self.inference), each(self.nms)]
    }
}

/// What a validation found.
#[derive(Debug, Clone)]
pub struct Report {
    /// Pictures seen.
    pub images: usize,
    /// Labels of each class.
    pub instances: Vec<usize>,
    /// Figures of boxes.
    pub boxes: Summary,
    /// Figures of masks, where the network segments.
    pub masks: Option<Summary>,
    /// Which classes were taken for which.
    pub confusion: ConfusionMatrix,
    /// Where the time went.
    pub times: Times,
    /// Results in COCO's form, where they were asked for.
    pub coco: Option<CocoResults>,
}

impl Report {
    /// Labels of all classes.
    pub fn labels(&self) -> usize {
        self.instances.iter().sum()
    }

    /// What checkpoints are ranked by: of boxes, plus of masks where there are some.
    pub fn fitness(&self) -> f64 {
        self.boxes.mean.fitness() + self.masks.as_ref().map_or(0.0, |masks| masks.mean.fitness())
    }

    /// mAP50-95 of every class; a class without labels has the mean's. Boxes and masks are added, as in the fitness.
    pub fn maps(&self) -> Vec<f64> {
        let mut maps = vec![0.0; self.instances.len()];
        for summary in std::iter::once(&self.boxes).chain(&self.masks) {
            let mut own = vec![summary.mean.map; maps.len()];
            for class in &summary.classes {
                if let Some(map) = own.get_mut(class.class) {
                    *map = class.metrics.map;
                }
            }
            maps.iter_mut().zip(own).for_each(|(sum, map)| *sum += map);
        }
        maps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fitness_and_maps_by_hand() {
        let metrics = |map50, map| Metrics { map50, map, ..Metrics::default() };
        let class = |class, map| ClassMetrics { class, instances: 1, metrics: metrics(1.0, map) };
        let summary = |mean, classes| Summary { mean, classes, curves: Curves::default() };
        let mut report = Report {
            images: 1,
            instances: vec![1, 0, 1],
            boxes: summary(metrics(0.5, 0.3), vec![class(0, 0.2), class(2, 0.4)]),
            masks: None,
            confusion: ConfusionMatrix::new(3),
            times: Times::default(),
            coco: None,
        };
        assert!((report.fitness() - 0.32).abs() < 1e-12);
        assert_eq!(report.maps(), [0.2, 0.3, 0.4]);
        report.masks = Some(summary(metrics(0.1, 0.1), vec![class(0, 0.1), class(2, 0.1)]));
        assert!((report.fitness() - 0.42).abs() < 1e-12);
        assert_eq!(report.maps()[1], 0.4);
        assert_eq!(report.labels(), 2);
    }

    #[test]
    fn where_nothing_is_right_no_class_is_listed() {
        let mut statistics = Statistics { labels: vec![0, 1], ..Statistics::default() };
        statistics.add_detections(&[[false; 10]], &[0.9], &[0]);
        assert_eq!(Summary::new(&statistics), Summary::default());
        statistics.add_detections(&[[true; 10]], &[0.9], &[1]);
        assert_eq!(Summary::new(&statistics).classes.len(), 2);
    }
}
