//! Objects of several parts as one polygon.

type Point = [f64; 2];

/// Joins polygons to one by bridges without width, each at the narrowest place: the covered area stays what it was.
///
/// YOLO's label files have room for one polygon an object, where COCO's objects come in parts when something stands before them.
pub(super) fn join(mut parts: Vec<Vec<Point>>) -> Vec<Point> {
    if parts.is_empty() {
        return Vec::new();
    }
    let mut joined = parts.swap_remove(0);
    while let Some((part, near, far)) = narrowest(&joined, &parts) {
        let next = parts.swap_remove(part);
        // Over the bridge, once around the part, and back.
        let detour = next[far..].iter().chain(&next[..=far]).copied().chain([joined[near]]);
        joined.splice(near + 1..near + 1, detour.collect::<Vec<_>>());
    }
    joined
}

/// The part that is nearest to `joined`, with the points on both sides of the gap.
fn narrowest(joined: &[Point], parts: &[Vec<Point>]) -> Option<(usize, usize, usize)> {
    let mut best = None;
    let mut least = f64::INFINITY;
    for (part, points) in parts.iter().enumerate() {
        for (far, b) in points.iter().enumerate() {
            for (near, a) in joined.iter().enumerate() {
                let distance = (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2);
                if distance < least {
                    least = distance;
                    best = Some((part, near, far));
                }
            }
        }
    }
    best
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
}
