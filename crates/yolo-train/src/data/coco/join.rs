//! Objects of several parts as one polygon.

use std::ops::Range;

type Point = [f64; 2];

/// Joins polygons to one by bridges without width, each at the narrowest place: the covered area stays what it was.
///
/// YOLO's label files have room for one polygon an object, where COCO's objects come in parts when something stands before them.
pub(super) fn join(mut parts: Vec<Vec<Point>>) -> Vec<Point> {
    if parts.is_empty() {
        return Vec::new();
    }
    let mut joined = parts.swap_remove(0);
    let mut open: Vec<Open> = parts.into_iter().map(Open::new).collect();
    let mut new = 0..joined.len();
    loop {
        open.iter_mut().for_each(|part| part.look_at(&joined, new.clone()));
        let Some(nearest) = (0..open.len()).min_by(|a, b| open[*a].gap.total_cmp(&open[*b].gap)) else { return joined };
        let Open { points, near, far, .. } = open.swap_remove(nearest);
        if points.is_empty() {
            continue;
        }
        // Over the bridge, once around the part, and back.
        let detour = points[far..].iter().chain(&points[..=far]).copied().chain([joined[near]]);
        new = near + 1..near + points.len() + 3;
        joined.splice(near + 1..near + 1, detour.collect::<Vec<_>>());
        open.iter_mut().filter(|part| part.near > near).for_each(|part| part.near += new.len());
    }
}

/// A part that is not joined yet.
struct Open {
    points: Vec<Point>,
    /// The square of its distance from what is joined, and the points on both sides of the gap.
    gap: f64,
    near: usize,
    far: usize,
}

impl Open {
    fn new(points: Vec<Point>) -> Self {
        Self { points, gap: f64::INFINITY, near: 0, far: 0 }
    }

    /// Looks whether one of the points that have been joined last is nearer than any before.
    fn look_at(&mut self, joined: &[Point], new: Range<usize>) {
        for near in new {
            for (far, b) in self.points.iter().enumerate() {
                let a = joined[near];
                let gap = (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
                if gap < self.gap {
                    (self.gap, self.near, self.far) = (gap, near, far);
                }
            }
        }
    }
}

/// Area of a polygon by the shoelace formula.
pub(super) fn area(polygon: &[Point]) -> f64 {
    let next = polygon.iter().cycle().skip(1);
    let double: f64 = polygon.iter().zip(next).map(|(a, b)| a[0] * b[1] - b[0] * a[1]).sum();
    (double / 2.0).abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(x: f64, y: f64) -> Vec<Point> {
        vec![[x, y], [x + 2.0, y], [x + 2.0, y + 2.0], [x, y + 2.0]]
    }

    #[test]
    fn joined_parts_cover_what_they_covered() {
        let parts = vec![square(0.0, 0.0), square(20.0, 0.0), square(4.0, 1.0)];
        let joined = join(parts.clone());
        assert!((area(&joined) - 12.0).abs() < 1e-12, "{joined:?}");
        assert_eq!(joined.len(), 12 + 2 * 2);
        assert!(parts.iter().flatten().all(|point| joined.contains(point)));
        // The far part is reached over the middle one: no bridge is longer than the gap of 14.
        let longest = joined.windows(2).map(|w| (w[0][0] - w[1][0]).hypot(w[0][1] - w[1][1])).fold(0.0, f64::max);
        assert!(longest < 14.1, "{longest}");
        assert_eq!(join(vec![square(1.0, 1.0)]), square(1.0, 1.0));
        assert!(join(Vec::new()).is_empty());
    }

    /// Many parts in no order: each is reached from the nearest one, and time grows with the pairs of points only.
    #[test]
    fn many_parts_are_joined_by_short_bridges() {
        let parts: Vec<_> = (0..400).map(|i| square(f64::from(i * 37 % 400) * 5.0, 0.0)).collect();
        let joined = join(parts.clone());
        assert!((area(&joined) - 1600.0).abs() < 1e-6);
        assert_eq!(joined.len(), 4 * 400 + 2 * 399);
        let longest = joined.windows(2).map(|w| (w[0][0] - w[1][0]).hypot(w[0][1] - w[1][1])).fold(0.0, f64::max);
        assert!(longest < 3.01, "{longest}");
    }
}
