//! Which cells and anchors of a level predict which object.

use crate::data::Target;

/// A cell takes objects whose centre lies in the half of a neighbour that touches it.
const REACH: f32 = 0.5;

/// Size of a level's map and its anchors, in cells.
pub(super) struct LevelShape<'a> {
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) anchors: &'a [[f32; 2]],
}

/// An object that an anchor of a cell must predict.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Match {
    pub(super) image: usize,
    pub(super) anchor: usize,
    pub(super) y: usize,
    pub(super) x: usize,
    /// Place in the batch's targets.
    pub(super) target: usize,
    /// Centre from the cell's corner, width and height, all in cells.
    pub(super) xywh: [f32; 4],
}

/// YOLOv5's assignment: an anchor takes an object whose sides differ from its own by less than a factor of `limit`; the cell of
/// the object's centre predicts it, and the nearer neighbour on each axis.
///
/// The order is YOLOv5's (neighbour, anchor, object): where two objects meet in a cell, the last one's overlap is what the
/// objectness learns.
pub(super) fn assign(targets: &[Target], shape: &LevelShape<'_>, limit: f32) -> Vec<Match> {
    let (height, width) = (shape.height as f32, shape.width as f32);
    let mut fitting = Vec::new();
    for (anchor, size) in shape.anchors.iter().enumerate() {
        for (place, target) in targets.iter().enumerate() {
            let [cx, cy, w, h] = target.xywh;
            let xywh = [cx * width, cy * height, w * width, h * height];
            let ratio = |i: usize| (xywh[2 + i] / size[i]).max(size[i] / xywh[2 + i]);
            if ratio(0).max(ratio(1)) < limit {
                fitting.push((anchor, place, target.image, xywh));
            }
        }
    }
    let mut matches = Vec::with_capacity(3 * fitting.len());
    for (dx, dy) in [(0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)] {
        for &(anchor, target, image, [cx, cy, w, h]) in &fitting {
            let near = |from_edge: f32| from_edge % 1.0 < REACH && from_edge > 1.0;
            let takes = match (dx, dy) {
                (1, _) => near(cx),
                (_, 1) => near(cy),
                (-1, _) => near(width - cx),
                (_, -1) => near(height - cy),
                _ => true,
            };
            if takes {
                // Truncation towards zero, as in PyTorch.
                let cell = |centre: f32, step: i32, cells: usize| {
                    ((centre - step as f32 * REACH) as i64).clamp(0, cells as i64 - 1) as usize
                };
                let (x, y) = (cell(cx, dx, shape.width), cell(cy, dy, shape.height));
                matches.push(Match { image, anchor, y, x, target, xywh: [cx - x as f32, cy - y as f32, w, h] });
            }
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(cx: f32, cy: f32) -> Vec<(usize, usize)> {
        let shape = LevelShape { height: 10, width: 10, anchors: &[[2.0, 2.0]] };
        let target = Target { image: 0, class: 0, xywh: [cx / 10.0, cy / 10.0, 0.2, 0.2] };
        let matches = assign(&[target], &shape, 4.0);
        for found in &matches {
            assert!((found.xywh[0] + found.x as f32 - cx).abs() < 1e-5);
            assert!((found.xywh[1] + found.y as f32 - cy).abs() < 1e-5);
        }
        matches.iter().map(|found| (found.x, found.y)).collect()
    }

    #[test]
    fn the_nearer_neighbours_predict_too() {
        assert_eq!(cells(4.3, 6.2), [(4, 6), (3, 6), (4, 5)]);
        assert_eq!(cells(4.7, 6.2), [(4, 6), (4, 5), (5, 6)]);
        assert_eq!(cells(4.7, 6.8), [(4, 6), (5, 6), (4, 7)]);
        // At the border there is no neighbour.
        assert_eq!(cells(0.3, 9.8), [(0, 9)]);
        assert_eq!(cells(0.7, 9.3), [(0, 9), (0, 8), (1, 9)]);
    }

    #[test]
    fn anchors_take_what_has_about_their_size() {
        let shape = LevelShape { height: 10, width: 10, anchors: &[[1.0, 1.0], [5.0, 2.5]] };
        let target = |w: f32, h: f32| Target { image: 3, class: 0, xywh: [0.55, 0.55, w / 10.0, h / 10.0] };
        let anchors = |w, h| {
            let mut anchors: Vec<usize> = assign(&[target(w, h)], &shape, 4.0).iter().map(|m| m.anchor).collect();
            anchors.dedup();
            anchors
        };
        assert_eq!(anchors(3.9, 3.9)[..2], [0, 1]);
        assert_eq!(anchors(4.1, 1.0)[0], 1);
        assert_eq!(anchors(0.2, 0.2), [0usize; 0]);
        // An object without width fits none.
        assert_eq!(anchors(0.0, 1.0), [0usize; 0]);
    }
}
