//! Masks of outlines, at the input's size over the mask ratio.

use super::fill::Bitmap;
use super::sample::Object;

/// The mask of one object: a window of ones and zeros in an empty plane.
pub(super) struct ObjectMask {
    left: usize,
    top: usize,
    width: usize,
    data: Vec<u8>,
    /// Pixels set.
    pub(super) area: usize,
}

/// Points further out than this are drawn as if they were here: far enough off any picture.
const FAR: f32 = 32_000.0;

/// Fills an object's outline in a picture of `width` x `height` pixels and shrinks that by `ratio`, which divides both: as
/// OpenCV's `fillPoly` and, for the shrinking, `resize(..., INTER_LINEAR)` on zeros and ones.
pub(super) fn object_mask(object: &Object, width: u32, height: u32, ratio: u32, bitmap: &mut Bitmap) -> ObjectMask {
    let (width, height, ratio) = (width as i32, height as i32, ratio as i32);
    // Cut towards 0, as a conversion to whole numbers does.
    let mut points: Vec<[i32; 2]> = if object.segment.is_empty() {
        let [left, top, right, bottom] = object.bbox.map(|value| value.clamp(-FAR, FAR) as i32);
        vec![[left, top], [right, top], [right, bottom], [left, bottom]]
    } else {
        object.segment.iter().map(|point| point.map(|value| value.clamp(-FAR, FAR) as i32)).collect()
    };
    // Only cells that the outline can touch.
    let range = |axis: usize, side: i32| {
        let low = points.iter().map(|point| point[axis]).min().unwrap_or(0).clamp(0, side);
        let high = points.iter().map(|point| point[axis]).max().unwrap_or(-1).clamp(-1, side - 1) + 1;
        let (first, end) = (low / ratio, (high + ratio - 1) / ratio);
        (first, end.max(first))
    };
    let (columns, rows) = (range(0, width), range(1, height));
    let (cells_across, cells_down) = ((columns.1 - columns.0) as usize, (rows.1 - rows.0) as usize);
    for point in &mut points {
        point[0] -= columns.0 * ratio;
        point[1] -= rows.0 * ratio;
    }
    let ratio = ratio as usize;
    bitmap.reset(cells_across * ratio, cells_down * ratio);
    bitmap.fill_polygon(&points);

    // A cell's value is interpolated at its centre: between the four pixels in the middle, or on the one of an odd ratio. Two
    // ones of the four are half, which rounds up.
    let (low, high) = ((ratio - 1) / 2, ratio / 2);
    let mut data = Vec::with_capacity(cells_across * cells_down);
    for y in 0..cells_down {
        let [upper, lower] = [low, high].map(|offset| bitmap.row(y * ratio + offset));
        for x in 0..cells_across {
            let (x1, x2) = (x * ratio + low, x * ratio + high);
            data.push(u8::from(upper[x1] + upper[x2] + lower[x1] + lower[x2] >= 2));
        }
    }
    let area = data.iter().map(|&value| usize::from(value)).sum();
    ObjectMask { left: columns.0 as usize, top: rows.0 as usize, width: cells_across, data, area }
}

impl ObjectMask {
    /// Writes `value` wherever the mask is set, into a plane of `width` columns.
    pub(super) fn paint(&self, plane: &mut [f32], width: usize, value: f32) {
        if self.width == 0 {
            return;
        }
        for (y, row) in self.data.chunks_exact(self.width).enumerate() {
            let start = (self.top + y) * width + self.left;
            for (out, &inside) in plane[start..start + self.width].iter_mut().zip(row) {
                if inside != 0 {
                    *out = value;
                }
            }
        }
    }
}

/// Mirrors a plane of `width` columns.
pub(super) fn flip_plane(plane: &mut [f32], width: usize, left_right: bool, up_down: bool) {
    if left_right {
        for row in plane.chunks_exact_mut(width) {
            row.reverse();
        }
    }
    if up_down {
        let height = plane.len() / width;
        for y in 0..height / 2 {
            let (upper, lower) = plane.split_at_mut((height - 1 - y) * width);
            upper[y * width..][..width].swap_with_slice(&mut lower[..width]);
        }
    }
}
