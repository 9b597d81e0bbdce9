//! From polygons to pixels with smooth edges.

use super::outline::Point;

/// Rows a pixel is looked at in; along a row, coverage is exact.
const ROWS: usize = 5;

/// How much of every pixel of a rectangle a shape covers.
pub(super) struct Coverage {
    /// Left column and upper row.
    pub(super) origin: [usize; 2],
    /// Columns.
    pub(super) width: usize,
    /// Row by row, 0 to 1.
    pub(super) data: Vec<f32>,
}

impl Coverage {
    /// Every covered pixel as `(x, y, coverage)`.
    pub(super) fn pixels(&self) -> impl Iterator<Item = (usize, usize, f32)> {
        self.data.iter().enumerate().filter(|(_, share)| **share > 0.0).map(|(index, &share)| {
            (self.origin[0] + index % self.width, self.origin[1] + index / self.width, share.min(1.0))
        })
    }
}

/// Coverage of the area between `edges` (inside of an odd number of them) in a picture of `width` x `height`.
pub(super) fn cover(edges: &[&[Point]], width: usize, height: usize) -> Coverage {
    let range = |axis: usize, limit: usize| {
        let values = || edges.iter().flat_map(|edge| edge.iter()).map(|point| point[axis]);
        let low = values().fold(f32::INFINITY, f32::min).floor().clamp(0.0, limit as f32);
        let high = values().fold(f32::NEG_INFINITY, f32::max).ceil().clamp(low, limit as f32);
        low as usize..high as usize
    };
    let (columns, rows) = (range(0, width), range(1, height));
    let mut data = vec![0.0; columns.len() * rows.len()];
    let mut crossings = Vec::new();
    for (line, row) in rows.clone().zip(data.chunks_exact_mut(columns.len().max(1))) {
        for part in 0..ROWS {
            let y = line as f32 + (part as f32 + 0.5) / ROWS as f32;
            crossings.clear();
            for edge in edges {
                let mut before = edge[edge.len() - 1];
                for &point in *edge {
                    if (before[1] <= y) != (point[1] <= y) {
                        crossings.push(before[0] + (point[0] - before[0]) * (y - before[1]) / (point[1] - before[1]));
                    }
                    before = point;
                }
            }
            crossings.sort_by(f32::total_cmp);
            for pair in crossings.chunks_exact(2) {
                add_span(row, pair[0] - columns.start as f32, pair[1] - columns.start as f32);
            }
        }
    }
    Coverage { origin: [columns.start, rows.start], width: columns.len(), data }
}

/// Adds a span's share of every pixel of a row.
fn add_span(row: &mut [f32], from: f32, to: f32) {
    const SHARE: f32 = 1.0 / ROWS as f32;
    let limit = row.len() as f32;
    let (from, to) = (from.clamp(0.0, limit), to.clamp(0.0, limit));
    let (first, last) = (from as usize, to as usize);
    if first == last {
        if let Some(pixel) = row.get_mut(first) {
            *pixel += (to - from) * SHARE;
        }
        return;
    }
    row[first] += (first as f32 + 1.0 - from) * SHARE;
    row[first + 1..last].iter_mut().for_each(|pixel| *pixel += SHARE);
    if let Some(pixel) = row.get_mut(last) {
        *pixel += (to - last as f32) * SHARE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shapes::outline::{Outline, area};
    use crate::data::shapes::random::Random;

    #[test]
    fn coverage_adds_up_to_the_area() {
        let mut random = Random::new(1, 2);
        for class in 0..5 {
            let shape = Outline::random(class, &mut random).placed(12.3, [20.4, 17.8]);
            let covered: f32 = cover(&shape.edges(), 40, 40).pixels().map(|(_, _, share)| share).sum();
            assert!((covered / shape.area() - 1.0).abs() < 0.01, "{class}: {covered} of {}", shape.area());
        }
    }

    #[test]
    fn what_leaves_the_picture_is_cut_off() {
        let square: &[Point] = &[[-5.0, -5.0], [2.5, -5.0], [2.5, 50.0], [-5.0, 50.0]];
        let pixels: Vec<_> = cover(&[square], 8, 3).pixels().collect();
        assert_eq!(pixels.len(), 9);
        assert!(
            pixels.iter().all(|&(x, _, share)| (share - if x == 2 { 0.5 } else { 1.0 }).abs() < 1e-5),
            "{pixels:?}"
        );
        assert!(area(square) > 9.0);
        let outside: &[Point] = &[[-5.0, -5.0], [-2.5, -5.0], [-2.5, 50.0]];
        assert_eq!(cover(&[outside], 8, 3).pixels().count(), 0);
    }
}
