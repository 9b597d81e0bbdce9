//! Filled polygons, as OpenCV's `fillPoly` draws them: what is inside by the even-odd rule, and the outline itself.

/// A rectangle of pixels with 0 or 1 in each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

impl Bitmap {
    /// A bitmap of zeros.
    #[must_use]
    pub fn new(width: usize, height: usize) -> Self {
        Self { width, height, data: vec![0; width * height] }
    }

    /// Makes it a bitmap of zeros of another size, in the memory it has.
    pub fn reset(&mut self, width: usize, height: usize) {
        self.width = width;
        self.height = height;
        self.data.clear();
        self.data.resize(width * height, 0);
    }

    /// Pixels in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// All pixels, row by row.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// A row of pixels.
    ///
    /// # Panics
    /// Where there is no such row.
    #[must_use]
    pub fn row(&self, y: usize) -> &[u8] {
        &self.data[y * self.width..][..self.width]
    }

    /// Sets what lies in a closed polygon to 1. Points are whole pixels (a point at a pixel's centre) and may lie outside.
    pub fn fill_polygon(&mut self, points: &[[i32; 2]]) {
        if self.width == 0 || self.height == 0 {
            return;
        }
        let Some(last) = points.last() else { return };
        let edges = || std::iter::once((*last, points[0])).chain(points.windows(2).map(|pair| (pair[0], pair[1])));
        for (from, to) in edges() {
            self.line(from, to);
        }
        self.interior(edges());
    }

    /// Fills between crossings of each row's centre line with the edges.
    fn interior(&mut self, edges: impl Iterator<Item = ([i32; 2], [i32; 2])>) {
        let mut edges: Vec<Edge> = edges.filter_map(|(from, to)| Edge::new(from, to)).collect();
        edges.sort_unstable_by_key(|edge| edge.top);
        let (Some(first), Some(bottom)) =
            (edges.first().map(|edge| edge.top), edges.iter().map(|edge| edge.bottom).max())
        else {
            return;
        };
        let mut crossings: Vec<i64> = Vec::new();
        let mut next = 0;
        let mut active: Vec<Edge> = Vec::new();
        for y in first.max(0)..bottom.min(self.height as i64) {
            while let Some(edge) = edges.get(next).filter(|edge| edge.top <= y) {
                active.push(*edge);
                next += 1;
            }
            active.retain(|edge| y < edge.bottom);
            crossings.clear();
            crossings.extend(active.iter().map(|edge| edge.at(y)));
            crossings.sort_unstable();
            for pair in crossings.chunks_exact(2) {
                let from = ((pair[0] + ONE - 1) >> SHIFT).max(0);
                let to = (pair[1] >> SHIFT).min(self.width as i64 - 1);
                if from <= to {
                    self.data[y as usize * self.width..][from as usize..=to as usize].fill(1);
                }
            }
        }
    }

    /// Bresenham's line from left to right, each pixel touching the next by a side or a corner.
    fn line(&mut self, from: [i32; 2], to: [i32; 2]) {
        let Some((from, to)) = clip(from, to, self.width as i64 - 1, self.height as i64 - 1) else { return };
        let (from, to) = if to[0] < from[0] { (to, from) } else { (from, to) };
        let (across, down) = (to[0] - from[0], (to[1] - from[1]).abs());
        let step = if to[1] < from[1] { -1 } else { 1 };
        let steep = down > across;
        let (long, short) = if steep { (down, across) } else { (across, down) };
        let mut error = long - 2 * short;
        let [mut x, mut y] = from;
        for _ in 0..=long {
            if (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y) {
                self.data[y as usize * self.width + x as usize] = 1;
            }
            let aside = error < 0;
            error += if aside { 2 * (long - short) } else { -2 * short };
            if steep || aside {
                y += step;
            }
            if !steep || aside {
                x += 1;
            }
        }
    }
}

/// Horizontal places have 16 fractional bits.
const SHIFT: u32 = 16;
const ONE: i64 = 1 << SHIFT;

/// An edge that is not level: rows `top..bottom`.
#[derive(Clone, Copy)]
struct Edge {
    top: i64,
    bottom: i64,
    x: i64,
    slope: i64,
}

impl Edge {
    fn new(from: [i32; 2], to: [i32; 2]) -> Option<Self> {
        let [from, to] = [from, to].map(|point| point.map(i64::from));
        let (upper, lower) = if from[1] < to[1] { (from, to) } else { (to, from) };
        let height = lower[1] - upper[1];
        // Divided with its sign, which cuts towards 0 both ways.
        (height > 0).then(|| Self {
            top: upper[1],
            bottom: lower[1],
            x: upper[0] << SHIFT,
            slope: ((lower[0] - upper[0]) << SHIFT) / height,
        })
    }

    fn at(&self, y: i64) -> i64 {
        self.x + (y - self.top) * self.slope
    }
}

/// The part of a line that is in the picture, by cutting at one side after the other (Cohen and Sutherland).
fn clip(from: [i32; 2], to: [i32; 2], right: i64, bottom: i64) -> Option<([i64; 2], [i64; 2])> {
    let [mut a, mut b] = [from, to].map(|point| point.map(i64::from));
    let code = |[x, y]: [i64; 2]| {
        u8::from(x < 0) | u8::from(x > right) << 1 | u8::from(y < 0) << 2 | u8::from(y > bottom) << 3
    };
    let (mut code_a, mut code_b) = (code(a), code(b));
    if code_a & code_b == 0 && code_a | code_b != 0 {
        let cut = |point: &mut [i64; 2], other: [i64; 2], axis: usize, edge: i64| {
            let (along, across) = (1 - axis, axis);
            let share = (edge - point[across]) as f64 / (other[across] - point[across]) as f64;
            point[along] += (share * (other[along] - point[along]) as f64) as i64;
            point[across] = edge;
        };
        if code_a & 12 != 0 {
            cut(&mut a, b, 1, if code_a < 8 { 0 } else { bottom });
            code_a = code(a) & 3;
        }
        if code_b & 12 != 0 {
            cut(&mut b, a, 1, if code_b < 8 { 0 } else { bottom });
            code_b = code(b) & 3;
        }
        if code_a & code_b == 0 && code_a | code_b != 0 {
            if code_a != 0 {
                cut(&mut a, b, 0, if code_a == 1 { 0 } else { right });
                code_a = 0;
            }
            if code_b != 0 {
                cut(&mut b, a, 0, if code_b == 1 { 0 } else { right });
                code_b = 0;
            }
        }
    }
    (code_a | code_b == 0).then_some((a, b))
}
