//! Anchors for a data set: whether the network's own fit its labels, and better ones where they do not.

use rayon::prelude::*;

use crate::data::Labels;
use crate::data::rng::Rng;

/// Anchors that are the best possible for this share of the labels are good enough.
const GOOD: f64 = 0.98;
/// Runs of k-means, each from other starting points, and the most rounds of one.
const RUNS: u64 = 30;
const ROUNDS: usize = 300;
/// So many labels are enough for k-means.
const SAMPLE: usize = 50_000;
/// Generations of the genetic search.
const GENERATIONS: u64 = 1000;
/// Sides of labels below this many pixels do not shape anchors.
const SMALLEST: f64 = 2.0;
/// Sets these random numbers apart from the data's.
const STREAM: u64 = 0x616e_6368_6f72_7321;

/// What [`fit`] found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fit {
    /// Anchors of the right proportions a label, on average.
    pub(super) per_target: f64,
    /// Best possible recall: the share of labels that at least one anchor fits.
    pub(super) recall: f64,
    /// Better anchors by level in pixels, and their recall; none where the old ones stay.
    pub(super) better: Option<(Vec<Vec<[f64; 2]>>, f64)>,
}

/// Holds the `anchors` (by level, in pixels) against the labels at an input of `imgsz` pixels, and looks for better ones by
/// k-means and a genetic search, as YOLOv5 does. `limit` is the greatest ratio of sides of an anchor to a label's that fits.
pub(super) fn fit(labels: &[Labels], anchors: &[Vec<[f64; 2]>], imgsz: usize, limit: f64, seed: u64) -> Option<Fit> {
    let flat: Vec<[f64; 2]> = anchors.iter().flatten().copied().collect();
    let mut rng = Rng::keyed(seed ^ STREAM, 0, 0);
    // Augmentation scales pictures, so labels are held against anchors a little larger and smaller.
    let scaled: Vec<[f64; 2]> = labels
        .iter()
        .flat_map(|picture| {
            let scale = rng.uniform(0.9, 1.1);
            sizes(picture, imgsz).map(move |[w, h]| [w * scale, h * scale])
        })
        .collect();
    if scaled.is_empty() || flat.is_empty() {
        return None;
    }
    let (recall, per_target) = measure(&scaled, &flat, limit);
    let mut found = Fit { per_target, recall, better: None };
    if recall > GOOD {
        return Some(found);
    }
    let sizes: Vec<[f64; 2]> = labels.iter().flat_map(|picture| sizes(picture, imgsz)).collect();
    if let Some(evolved) = search(&sizes, flat.len(), limit, seed) {
        let (better, _) = measure(&scaled, &evolved, limit);
        if better > recall {
            let mut rest = evolved.into_iter();
            let mut levels: Vec<Vec<[f64; 2]>> =
                anchors.iter().map(|level| rest.by_ref().take(level.len()).collect()).collect();
            // They rise by area; a network whose levels go from coarse to fine takes them the other way round.
            if falls(anchors) {
                levels.reverse();
            }
            found.better = Some((levels, better));
        }
    }
    Some(found)
}

fn area(level: &[[f64; 2]]) -> f64 {
    level.iter().map(|[w, h]| w * h).sum::<f64>() / level.len().max(1) as f64
}

fn falls(anchors: &[Vec<[f64; 2]>]) -> bool {
    match (anchors.first(), anchors.last()) {
        (Some(first), Some(last)) => area(first) > area(last),
        _ => false,
    }
}

/// Widths and heights of a picture's labels, in pixels, where its longer side is `imgsz`.
fn sizes(picture: &Labels, imgsz: usize) -> impl Iterator<Item = [f64; 2]> + '_ {
    let (height, width) = (f64::from(picture.size.0), f64::from(picture.size.1));
    let scale = imgsz as f64 / height.max(width).max(1.0);
    picture.boxes.iter().map(move |b| [f64::from(b[2]) * width * scale, f64::from(b[3]) * height * scale])
}

/// How well the best anchor fits a label: the least ratio of sides, from 0 to 1.
fn closeness([w, h]: [f64; 2], [aw, ah]: [f64; 2]) -> f64 {
    (w / aw).min(aw / w).min((h / ah).min(ah / h))
}

/// Best possible recall and anchors a target.
fn measure(sizes: &[[f64; 2]], anchors: &[[f64; 2]], limit: f64) -> (f64, f64) {
    let fitting = |size: &[f64; 2]| anchors.iter().filter(|anchor| closeness(*size, **anchor) > 1.0 / limit).count();
    let (hit, all) =
        sizes.iter().map(fitting).fold((0usize, 0usize), |(hit, all), n| (hit + usize::from(n > 0), all + n));
    let count = sizes.len().max(1) as f64;
    (hit as f64 / count, all as f64 / count)
}

/// Mean closeness of the best anchor, where it fits.
fn fitness(sizes: &[[f64; 2]], anchors: &[[f64; 2]], limit: f64) -> f64 {
    let best = |size: &[f64; 2]| anchors.iter().map(|anchor| closeness(*size, *anchor)).fold(0.0, f64::max);
    let kept = |size: &[f64; 2]| Some(best(size)).filter(|best| *best > 1.0 / limit).unwrap_or(0.0);
    // In parts of a fixed size, so that the sum does not depend on the number of threads.
    let sums: Vec<f64> = sizes.par_chunks(8192).map(|part| part.iter().map(kept).sum()).collect();
    sums.iter().sum::<f64>() / sizes.len().max(1) as f64
}

/// `count` anchors that rise by area; none where there are fewer labels than that.
fn search(sizes: &[[f64; 2]], count: usize, limit: f64, seed: u64) -> Option<Vec<[f64; 2]>> {
    let large: Vec<[f64; 2]> = sizes
        .iter()
        .copied()
        .filter(|[w, h]| *w >= SMALLEST || *h >= SMALLEST)
        .filter(|[w, h]| *w > 0.0 && *h > 0.0)
        .collect();
    if large.len() < count {
        return None;
    }
    let mut anchors = k_means(&large, count, seed);
    anchors.iter_mut().for_each(|anchor| *anchor = anchor.map(|side| side.max(SMALLEST)));
    sort(&mut anchors);
    let mut best = fitness(&large, &anchors, limit);
    for generation in 0..GENERATIONS {
        let mut rng = Rng::keyed(seed ^ STREAM, 2, generation);
        let mutated = mutate(&anchors, &mut rng);
        let mutated_fitness = fitness(&large, &mutated, limit);
        if mutated_fitness > best {
            (best, anchors) = (mutated_fitness, mutated);
        }
    }
    sort(&mut anchors);
    Some(anchors)
}

fn sort(anchors: &mut [[f64; 2]]) {
    anchors.sort_by(|a, b| (a[0] * a[1]).total_cmp(&(b[0] * b[1])));
}

/// Every side times a random factor near 1, most of them.
fn mutate(anchors: &[[f64; 2]], rng: &mut Rng) -> Vec<[f64; 2]> {
    loop {
        let strength = rng.unit() * 0.1;
        let mut changed = false;
        let mut factor = || {
            if !rng.chance(0.9) {
                return 1.0;
            }
            // Standard normal, by Box and Muller.
            let radius = (-2.0 * (1.0 - rng.unit()).ln()).sqrt();
            let normal = radius * (std::f64::consts::TAU * rng.unit()).cos();
            let factor = (normal * strength + 1.0).clamp(0.3, 3.0);
            changed |= factor != 1.0;
            factor
        };
        let mutated = anchors.iter().map(|anchor| anchor.map(|side| (side * factor()).max(SMALLEST))).collect();
        if changed {
            return mutated;
        }
    }
}

/// The best of several runs of Lloyd's algorithm over sizes in units of their standard deviation.
fn k_means(sizes: &[[f64; 2]], count: usize, seed: u64) -> Vec<[f64; 2]> {
    let deviation: [f64; 2] = std::array::from_fn(|axis| {
        let n = sizes.len() as f64;
        let mean = sizes.iter().map(|size| size[axis]).sum::<f64>() / n;
        let variance = sizes.iter().map(|size| (size[axis] - mean).powi(2)).sum::<f64>() / n;
        if variance > 0.0 { variance.sqrt() } else { 1.0 }
    });
    let step = sizes.len().div_ceil(SAMPLE);
    let points: Vec<[f64; 2]> =
        sizes.iter().step_by(step).map(|size| std::array::from_fn(|axis| size[axis] / deviation[axis])).collect();
    let run = |run: u64| {
        let mut rng = Rng::keyed(seed ^ STREAM, 1, run);
        let mut order: Vec<usize> = (0..points.len()).collect();
        rng.shuffle(&mut order);
        let mut centres: Vec<[f64; 2]> = (0..count).map(|i| points[order[i % order.len()]]).collect();
        let mut last = f64::INFINITY;
        for _ in 0..ROUNDS {
            let mut sums = vec![([0.0; 2], 0usize); count];
            let mut distortion = 0.0;
            for point in &points {
                let (nearest, distance) = nearest(point, &centres);
                distortion += distance.sqrt();
                let (sum, members) = &mut sums[nearest];
                sum.iter_mut().zip(point).for_each(|(sum, value)| *sum += value);
                *members += 1;
            }
            for (centre, (sum, members)) in centres.iter_mut().zip(sums) {
                if members > 0 {
                    *centre = sum.map(|value| value / members as f64);
                }
            }
            let distortion = distortion / points.len() as f64;
            if last - distortion <= 1e-5 {
                break;
            }
            last = distortion;
        }
        let distortion: f64 = points.iter().map(|point| nearest(point, &centres).1.sqrt()).sum();
        (distortion, centres)
    };
    let runs: Vec<(f64, Vec<[f64; 2]>)> = (0..RUNS).into_par_iter().map(run).collect();
    let best = runs.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, centres)| centres).unwrap_or_default();
    best.into_iter().map(|centre| std::array::from_fn(|axis| centre[axis] * deviation[axis])).collect()
}

fn nearest(point: &[f64; 2], centres: &[[f64; 2]]) -> (usize, f64) {
    let distance = |centre: &[f64; 2]| (point[0] - centre[0]).powi(2) + (point[1] - centre[1]).powi(2);
    centres
        .iter()
        .map(distance)
        .enumerate()
        .fold((0, f64::INFINITY), |best, (i, d)| if d < best.1 { (i, d) } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anchors() -> Vec<Vec<[f64; 2]>> {
        vec![
            vec![[10.0, 13.0], [16.0, 30.0], [33.0, 23.0]],
            vec![[30.0, 61.0], [62.0, 45.0], [59.0, 119.0]],
            vec![[116.0, 90.0], [156.0, 198.0], [373.0, 326.0]],
        ]
    }

    fn labels(sides: &[(f32, f32)]) -> Vec<Labels> {
        let boxes = sides.iter().map(|(w, h)| [0.5, 0.5, w / 640.0, h / 640.0]).collect();
        vec![Labels { size: (640, 640), boxes, ..Labels::default() }]
    }

    #[test]
    fn anchors_that_fit_stay() {
        let found = fit(&labels(&[(20.0, 20.0), (100.0, 150.0), (300.0, 300.0)]), &anchors(), 640, 4.0, 0).unwrap();
        assert_eq!((found.recall, found.better), (1.0, None));
        assert!(found.per_target > 1.0);
    }

    #[test]
    fn others_are_found_where_they_do_not() {
        // Long, flat labels of three kinds, a little different from each other.
        let sides: Vec<(f32, f32)> =
            (0..300).map(|i| (200.0 + 100.0 * (i % 3) as f32 + (i % 7) as f32, 8.0 + 4.0 * (i % 3) as f32)).collect();
        let found = fit(&labels(&sides), &anchors(), 640, 4.0, 0).unwrap();
        assert!(found.recall < 0.5, "{found:?}");
        let (better, recall) = found.better.clone().unwrap();
        assert!(recall > 0.99, "{found:?}");
        assert!(better.iter().all(|level| level.len() == 3));
        assert!(area(&better[0]) < area(&better[1]) && area(&better[1]) < area(&better[2]));
        assert_eq!(fit(&labels(&sides), &anchors(), 640, 4.0, 0), Some(found));
    }

    #[test]
    fn levels_keep_their_direction() {
        let sides: Vec<(f32, f32)> = (0..100).map(|i| (300.0 + i as f32, 10.0 + (i % 9) as f32)).collect();
        let mut reversed = anchors();
        reversed.reverse();
        let (better, _) = fit(&labels(&sides), &reversed, 640, 4.0, 0).unwrap().better.unwrap();
        assert!(area(&better[0]) > area(&better[2]));
    }

    #[test]
    fn too_few_labels_change_nothing() {
        let found = fit(&labels(&[(600.0, 4.0)]), &anchors(), 640, 4.0, 0).unwrap();
        assert!(found.recall < 0.98 && found.better.is_none());
        assert_eq!(fit(&[], &anchors(), 640, 4.0, 0), None);
    }
}
