//! Random rotation, scale, shear, translation and perspective in one warp; boxes and outlines follow.

use super::warp::{IDENTITY, Matrix, compose, invert, map, warp};
use super::{Object, Sample};
use crate::Hyp;
use crate::data::rng::Rng;

/// Boxes with a side of at most this many pixels are dropped, ...
const MIN_SIDE: f32 = 2.0;
/// ... and those that are this many times longer than wide, ...
const MAX_RATIO: f32 = 100.0;
/// ... and those of which no more than this share is left in the picture, ...
const MIN_SHARE: f32 = 0.1;
/// ... which is less where the outline is known, and so the box is tight.
const MIN_SHARE_OUTLINED: f32 = 0.01;
/// Keeps divisions by an empty side finite.
const EPS: f32 = 1e-16;

/// A warp of pictures of one size.
#[derive(Debug, Clone)]
pub struct Transform {
    matrix: Matrix,
    /// How much longer things get, before perspective.
    scale: f64,
    width: u32,
    height: u32,
}

impl Transform {
    /// Draws a warp of pictures of `from` = (width, height) pixels onto `to`, centre on centre but for the translation.
    pub fn random(hyp: &Hyp, rng: &mut Rng, from: (u32, u32), to: (u32, u32)) -> Self {
        let mut symmetric = |limit: f64| rng.uniform(-limit, limit);
        let tilt = [symmetric(hyp.perspective), symmetric(hyp.perspective)];
        let angle = symmetric(hyp.degrees).to_radians();
        let scale = 1.0 + symmetric(hyp.scale);
        let shear = [symmetric(hyp.shear), symmetric(hyp.shear)].map(|degrees| degrees.to_radians().tan());
        let place = [to.0, to.1].map(|side| (0.5 + symmetric(hyp.translate)) * f64::from(side));

        let centre = [[1.0, 0.0, -f64::from(from.0) / 2.0], [0.0, 1.0, -f64::from(from.1) / 2.0], [0.0, 0.0, 1.0]];
        let perspective = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [tilt[0], tilt[1], 1.0]];
        let (sin, cos) = angle.sin_cos();
        let rotation = [[scale * cos, scale * sin, 0.0], [-scale * sin, scale * cos, 0.0], [0.0, 0.0, 1.0]];
        let shear = [[1.0, shear[0], 0.0], [shear[1], 1.0, 0.0], [0.0, 0.0, 1.0]];
        let translation = [[1.0, 0.0, place[0]], [0.0, 1.0, place[1]], [0.0, 0.0, 1.0]];
        let matrix =
            [perspective, rotation, shear, translation].iter().fold(centre, |matrix, next| compose(next, &matrix));
        Self { matrix, scale, width: to.0, height: to.1 }
    }

    /// A warp by a matrix that maps the source's points to those of a picture of `to` = (width, height) pixels; `scale` is how
    /// much longer things get.
    #[must_use]
    pub fn new(matrix: Matrix, scale: f64, to: (u32, u32)) -> Self {
        Self { matrix, scale, width: to.0, height: to.1 }
    }

    /// Warps the picture, and keeps those of its objects of which enough is left.
    #[must_use]
    pub fn apply(&self, sample: Sample) -> Sample {
        let Sample { picture, objects } = sample;
        let still = self.matrix == IDENTITY && picture.dimensions() == (self.width, self.height);
        // A scale of 0 makes a point of everything: there is nothing to see, and nothing to learn.
        let Some(inverse) = invert(&self.matrix) else {
            let grey = image::Rgb([super::warp::BORDER; 3]);
            return Sample { picture: image::RgbImage::from_pixel(self.width, self.height, grey), objects: Vec::new() };
        };
        let picture = if still { picture } else { warp(&picture, &inverse, self.width, self.height) };
        let objects = objects.into_iter().filter_map(|object| self.follow(object)).collect();
        Sample { picture, objects }
    }

    fn follow(&self, object: Object) -> Option<Object> {
        let move_point = |point: [f32; 2]| map(&self.matrix, point.map(f64::from)).map(|value| value as f32);
        let segment: Vec<[f32; 2]> = object.segment.iter().copied().map(move_point).collect();
        let bbox = if segment.is_empty() {
            let [left, top, right, bottom] = object.bbox;
            let corners = [[left, top], [right, bottom], [left, bottom], [right, top]].map(move_point);
            let [left, top, right, bottom] = bounds(corners.iter().copied())?;
            let (width, height) = (self.width as f32, self.height as f32);
            [left.clamp(0.0, width), top.clamp(0.0, height), right.clamp(0.0, width), bottom.clamp(0.0, height)]
        } else {
            self.visible_bounds(&segment)?
        };
        let least = if segment.is_empty() { MIN_SHARE } else { MIN_SHARE_OUTLINED };
        let before = object.bbox.map(|value| value * self.scale as f32);
        is_candidate(before, bbox, least).then_some(Object { class: object.class, bbox, segment })
    }

    /// The box of the part of a closed outline that runs through the picture.
    fn visible_bounds(&self, segment: &[[f32; 2]]) -> Option<[f32; 4]> {
        let limits = [self.width as f32, self.height as f32];
        let last = segment.last()?;
        let edges = std::iter::once((*last, segment[0])).chain(segment.windows(2).map(|pair| (pair[0], pair[1])));
        bounds(edges.filter_map(|(from, to)| clip(from, to, limits)).flatten())
    }
}

/// Left, top, right, bottom of some points; none where there is no point, or one is nowhere.
fn bounds(points: impl Iterator<Item = [f32; 2]>) -> Option<[f32; 4]> {
    let mut bounds = [f32::INFINITY, f32::INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    for point in points {
        for axis in 0..2 {
            if point[axis].is_nan() {
                return None;
            }
            bounds[axis] = bounds[axis].min(point[axis]);
            bounds[2 + axis] = bounds[2 + axis].max(point[axis]);
        }
    }
    (bounds[0] <= bounds[2]).then_some(bounds)
}

/// The part of an edge between 0 and `limits` (Liang and Barsky, "A new concept and method for line clipping", 1984).
fn clip(from: [f32; 2], to: [f32; 2], limits: [f32; 2]) -> Option<[[f32; 2]; 2]> {
    let delta = [to[0] - from[0], to[1] - from[1]];
    let (mut enter, mut leave) = (0f32, 1f32);
    for axis in 0..2 {
        if delta[axis] == 0.0 {
            if !(0.0..=limits[axis]).contains(&from[axis]) {
                return None;
            }
            continue;
        }
        let [a, b] = [0.0, limits[axis]].map(|edge| (edge - from[axis]) / delta[axis]);
        enter = enter.max(a.min(b));
        leave = leave.min(a.max(b));
    }
    let at = |share: f32| std::array::from_fn(|axis| (from[axis] + share * delta[axis]).clamp(0.0, limits[axis]));
    (enter <= leave).then(|| [at(enter), at(leave)])
}

/// Whether enough of a box is left: sides, proportions, share of the area it had.
fn is_candidate(before: [f32; 4], after: [f32; 4], least_share: f32) -> bool {
    let sides = |[left, top, right, bottom]: [f32; 4]| (right - left, bottom - top);
    let ((old_width, old_height), (width, height)) = (sides(before), sides(after));
    let ratio = (width / (height + EPS)).max(height / (width + EPS));
    width > MIN_SIDE
        && height > MIN_SIDE
        && width * height / (old_width * old_height + EPS) > least_share
        && ratio < MAX_RATIO
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    fn object(bbox: [f32; 4], segment: &[[f32; 2]]) -> Object {
        Object { class: 1, bbox, segment: segment.to_vec() }
    }

    fn moved(matrix: Matrix, scale: f64, object: Object) -> Option<Object> {
        let sample = Sample { picture: RgbImage::new(100, 80), objects: vec![object] };
        Transform::new(matrix, scale, (100, 80)).apply(sample).objects.pop()
    }

    #[test]
    fn boxes_follow_and_are_cut() {
        let shift = |x, y| [[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]];
        let square = || object([10.0, 10.0, 30.0, 30.0], &[]);
        assert_eq!(moved(shift(5.0, -2.0), 1.0, square()).unwrap().bbox, [15.0, 8.0, 35.0, 28.0]);
        assert_eq!(moved(shift(-20.0, 0.0), 1.0, square()).unwrap().bbox, [0.0, 10.0, 10.0, 30.0]);
        // A tenth of the area and less is not enough; two pixels neither.
        assert!(moved(shift(-27.9, 0.0), 1.0, square()).is_some());
        assert!(moved(shift(-28.0, 0.0), 1.0, square()).is_none());
        assert!(moved(shift(0.0, 0.0), 1.0, object([10.0, 10.0, 12.0, 30.0], &[])).is_none());
        // A quarter turn: x' = y, y' = 80 - x.
        let turn = [[0.0, 1.0, 0.0], [-1.0, 0.0, 80.0], [0.0, 0.0, 1.0]];
        assert_eq!(moved(turn, 1.0, object([10.0, 20.0, 30.0, 60.0], &[])).unwrap().bbox, [20.0, 50.0, 60.0, 70.0]);
    }

    #[test]
    fn outlines_give_tight_boxes() {
        let triangle = || object([10.0, 10.0, 50.0, 50.0], &[[10.0, 10.0], [50.0, 10.0], [10.0, 50.0]]);
        let shift = [[1.0, 0.0, -30.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        // The slanted side leaves the picture at x = 0, where y is 10 + 20.
        let cut = moved(shift, 1.0, triangle()).unwrap();
        assert_eq!(cut.bbox, [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(cut.segment, [[-20.0, 10.0], [20.0, 10.0], [-20.0, 50.0]]);
        let away = [[1.0, 0.0, -60.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]];
        assert!(moved(away, 1.0, triangle()).is_none());
    }

    #[test]
    fn strengths_of_zero_change_nothing() {
        let hyp = Hyp::default().without_augmentation();
        let transform = Transform::random(&hyp, &mut Rng::keyed(1, 2, 3), (100, 80), (100, 80));
        assert_eq!(transform.matrix, IDENTITY);
        let flat = Transform::new([[0.0; 3]; 3], 0.0, (9, 9));
        let sample =
            flat.apply(Sample { picture: RgbImage::new(20, 20), objects: vec![object([1.0, 1.0, 9.0, 9.0], &[])] });
        assert!(sample.objects.is_empty() && sample.picture.dimensions() == (9, 9));
    }
}
