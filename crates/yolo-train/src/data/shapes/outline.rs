//! The five kinds of shapes as polygons.

use std::f32::consts::{PI, TAU};

use super::random::Random;

/// A point `[x, y]`; y grows downwards.
pub(super) type Point = [f32; 2];

/// Names of the classes, in the order of their indices.
pub const NAMES: [&str; 5] = ["circle", "square", "triangle", "star", "ring"];

const CIRCLE_POINTS: usize = 40;

/// A shape's edges.
#[derive(Debug, Clone)]
pub(super) struct Outline {
    /// The outer edge.
    pub(super) outer: Vec<Point>,
    /// The edge of the hole of a ring.
    pub(super) hole: Option<Vec<Point>>,
}

impl Outline {
    /// A shape of class `class`, about as large as the circle of radius 1 around the origin, turned and squeezed at random.
    pub(super) fn random(class: usize, random: &mut Random) -> Self {
        let (outer, hole) = match class {
            0 => (regular(CIRCLE_POINTS), None),
            // Corners on the circle would make a square look smaller than the others.
            1 => (regular(4).map_all(|p| p.map(|v| v * 1.15)), None),
            2 => (triangle(random), None),
            3 => (star(random.between(0.38, 0.52)), None),
            _ => {
                let inner = random.between(0.45, 0.72);
                (regular(CIRCLE_POINTS), Some(regular(CIRCLE_POINTS).map_all(|p| p.map(|v| v * inner))))
            }
        };
        // Turn, squeeze along an axis, turn: what a tilted cardboard shape looks like.
        let squeeze = random.between(0.78, 1.0);
        let (first, second) = (random.between(0.0, TAU), random.between(0.0, TAU));
        let tilt = |point: Point| {
            let [x, y] = turn(point, first);
            turn([x, y * squeeze], second)
        };
        Self { outer: outer.map_all(tilt), hole: hole.map(|hole| hole.map_all(tilt)) }
    }

    /// The shape `scale` times as large, around `centre`.
    pub(super) fn placed(&self, scale: f32, centre: Point) -> Self {
        self.mapped(|[x, y]| [x * scale + centre[0], y * scale + centre[1]])
    }

    /// The shape without a rim of the width `share` times its size.
    pub(super) fn shrunk(&self, share: f32) -> Self {
        let inner = self.outer.clone().map_all(|p| p.map(|v| v * (1.0 - share)));
        Self { outer: inner, hole: self.hole.clone().map(|hole| hole.map_all(|p| p.map(|v| v * (1.0 + share)))) }
    }

    pub(super) fn mapped(&self, change: impl Fn(Point) -> Point) -> Self {
        Self { outer: self.outer.clone().map_all(&change), hole: self.hole.clone().map(|hole| hole.map_all(&change)) }
    }

    /// The edges, outer first.
    pub(super) fn edges(&self) -> Vec<&[Point]> {
        std::iter::once(&self.outer).chain(&self.hole).map(Vec::as_slice).collect()
    }

    /// The covered area.
    pub(super) fn area(&self) -> f32 {
        area(&self.outer) - self.hole.as_deref().map_or(0.0, area)
    }
}

trait MapAll {
    fn map_all(self, change: impl Fn(Point) -> Point) -> Self;
}

impl MapAll for Vec<Point> {
    fn map_all(mut self, change: impl Fn(Point) -> Point) -> Self {
        self.iter_mut().for_each(|point| *point = change(*point));
        self
    }
}

fn turn([x, y]: Point, angle: f32) -> Point {
    let (sin, cos) = angle.sin_cos();
    [x * cos - y * sin, x * sin + y * cos]
}

/// Points at equal distances on the circle of radius 1.
fn regular(points: usize) -> Vec<Point> {
    (0..points).map(|i| turn([1.0, 0.0], TAU * i as f32 / points as f32)).collect()
}

fn triangle(random: &mut Random) -> Vec<Point> {
    (0..3)
        .map(|i| {
            let angle = TAU * i as f32 / 3.0 + random.between(-0.3, 0.3);
            turn([random.between(1.0, 1.2), 0.0], angle)
        })
        .collect()
}

/// Five points out, five at `inner` of their distance.
fn star(inner: f32) -> Vec<Point> {
    (0..10).map(|i| turn([if i % 2 == 0 { 1.1 } else { 1.1 * inner }, 0.0], PI * i as f32 / 5.0)).collect()
}

/// Area of a polygon by the shoelace formula, in squares of its unit.
pub(crate) fn area(polygon: &[Point]) -> f32 {
    let next = polygon.iter().cycle().skip(1);
    let double: f64 = polygon
        .iter()
        .zip(next)
        .map(|(a, b)| f64::from(a[0]) * f64::from(b[1]) - f64::from(b[0]) * f64::from(a[1]))
        .sum();
    (double / 2.0).abs() as f32
}

/// The part of a polygon in the rectangle from the origin to `(width, height)`, after Sutherland and Hodgman, "Reentrant
/// polygon clipping" (1974); empty where they do not meet. Parts of a concave polygon stay joined along the rectangle's side.
pub(super) fn clip(polygon: &[Point], width: f32, height: f32) -> Vec<Point> {
    // A side keeps the points whose coordinate `axis` is at least (or at most) `limit`.
    let sides = [(0, 0.0, 1.0), (1, 0.0, 1.0), (0, width, -1.0), (1, height, -1.0)];
    let mut points = polygon.to_vec();
    for (axis, limit, sign) in sides {
        let depth = |point: Point| (point[axis] - limit) * sign;
        let mut kept = Vec::with_capacity(points.len() + 4);
        for (index, &point) in points.iter().enumerate() {
            let before = points[(index + points.len() - 1) % points.len()];
            let (from, to) = (depth(before), depth(point));
            if (from < 0.0) != (to < 0.0) {
                let share = from / (from - to);
                let mut crossing = [0, 1].map(|i| before[i] + (point[i] - before[i]) * share);
                crossing[axis] = limit;
                kept.push(crossing);
            }
            if to >= 0.0 {
                kept.push(point);
            }
        }
        points = kept;
    }
    points.dedup();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_polygon_is_cut_at_the_sides() {
        let square = [[-2.0, 1.0], [2.0, 1.0], [2.0, 5.0], [-2.0, 5.0]];
        let cut = clip(&square, 10.0, 4.0);
        assert_eq!(area(&cut), 6.0);
        assert!(cut.iter().all(|&[x, y]| (0.0..=2.0).contains(&x) && (1.0..=4.0).contains(&y)), "{cut:?}");
        assert_eq!(clip(&square, 1.0, 0.5), Vec::<Point>::new());
        assert_eq!(clip(&square, 1.0, 3.0).len(), 4);
    }

    #[test]
    fn shapes_have_the_size_they_promise() {
        let mut random = Random::new(3, 0);
        for class in 0..NAMES.len() {
            for _ in 0..50 {
                let shape = Outline::random(class, &mut random);
                let reach = shape.outer.iter().map(|[x, y]| x.hypot(*y)).fold(0.0, f32::max);
                assert!((0.78..=1.21).contains(&reach), "{} {reach}", NAMES[class]);
                assert!(shape.area() > 0.5 && shape.area() < PI * 1.01, "{} {}", NAMES[class], shape.area());
                let placed = shape.placed(10.0, [100.0, 50.0]);
                assert!((placed.area() / shape.area() - 100.0).abs() < 0.1);
                assert_eq!(shape.hole.is_some(), NAMES[class] == "ring");
            }
        }
    }
}
