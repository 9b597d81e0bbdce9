//! Outlines of masks, as OpenCV's `findContours(RETR_EXTERNAL, CHAIN_APPROX_SIMPLE)` and YOLOv5's `masks2segments` give them.
//!
//! Border following after Suzuki and Abe, "Topological structural analysis of digitized binary images by border following"
//! (1985), with OpenCV's choices where the paper leaves some: which points of a straight run are kept, and the order.

use crate::detection::Mask;
use crate::picture::Placement;

/// The eight neighbours, anticlockwise from the right (y grows downwards).
const STEPS: [(isize, isize); 8] = [(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)];

/// Marks in the working copy: background, an unvisited pixel, a pixel of a border, and a border pixel that closes its row
/// on the right.
const EMPTY: i8 = 0;
const INSIDE: i8 = 1;
const BORDER: i8 = 2;
const RIGHT_BORDER: i8 = -2;

/// The outer outline of every connected part (8 neighbours) of a mask, as `[x, y]` pixels; only the ends of straight runs are
/// kept. OpenCV's points in OpenCV's order: the part met last, reading row by row, comes first.
pub fn contours(mask: &Mask) -> Vec<Vec<[i32; 2]>> {
    let (width, height) = (mask.width as usize, mask.height as usize);
    if width == 0 || height == 0 || mask.data.len() != width * height {
        return Vec::new();
    }
    // A frame of background spares every bounds check of the walk.
    let stride = width + 2;
    let mut marks = vec![EMPTY; stride * (height + 2)];
    for (row, source) in marks.chunks_exact_mut(stride).skip(1).zip(mask.data.chunks_exact(width)) {
        for (mark, &inside) in row[1..].iter_mut().zip(source) {
            *mark = if inside != 0 { INSIDE } else { EMPTY };
        }
    }
    let mut found = Vec::new();
    for y in 1..=height {
        let mut outside = true;
        for at in y * stride + 1..=y * stride + width {
            if outside && marks[at] == INSIDE && marks[at - 1] == EMPTY {
                found.push(follow(&mut marks, stride, at));
            }
            match marks[at] {
                BORDER => outside = false,
                RIGHT_BORDER => outside = true,
                _ => {}
            }
        }
    }
    found.reverse();
    found
}

/// Walks round the part whose first pixel is `start`, marks its border and gives its outline.
fn follow(marks: &mut [i8], stride: usize, start: usize) -> Vec<[i32; 2]> {
    let step = |at: usize, direction: usize| {
        let (dx, dy) = STEPS[direction % 8];
        at.wrapping_add_signed(dx + dy * stride as isize)
    };
    let point = |at: usize| [(at % stride) as i32 - 1, (at / stride) as i32 - 1];

    // Clockwise from the left, the empty side, to the first neighbour: the walk ends when it comes from there again.
    let Some(mut from) = (1..8).map(|turn| (4 + 8 - turn) % 8).find(|&d| marks[step(start, d)] != EMPTY) else {
        marks[start] = RIGHT_BORDER;
        return vec![point(start)];
    };
    let last = step(start, from);
    let mut outline = Vec::new();
    let mut heading = (from + 4) % 8;
    let mut at = start;
    loop {
        // Anticlockwise from where we came; the neighbour we came from ends the search at the latest.
        let turn = (1..=8).find(|turn| marks[step(at, from + turn)] != EMPTY).unwrap_or(8);
        let direction = (from + turn) % 8;
        if (1..=from).contains(&direction) {
            // The search passed over the right neighbour and found it empty.
            marks[at] = RIGHT_BORDER;
        } else if marks[at] == INSIDE {
            marks[at] = BORDER;
        }
        if direction != heading {
            outline.push(point(at));
            heading = direction;
        }
        let next = step(at, direction);
        if next == start && at == last {
            return outline;
        }
        at = next;
        from = (direction + 4) % 8;
    }
}

/// The outline with the most points among a mask's [`contours`], the first of them where several have as many; empty for
/// an empty mask. What YOLOv5 writes to its label files.
pub fn largest_contour(mask: &Mask) -> Vec<[f32; 2]> {
    let largest = contours(mask).into_iter().reduce(|best, next| if next.len() > best.len() { next } else { best });
    largest.unwrap_or_default().into_iter().map(|[x, y]| [x as f32, y as f32]).collect()
}

/// Moves an outline from the network's input to the picture and clips it to it; where `normalize` is set, as fractions of the
/// picture's width and height. YOLOv5's `scale_segments`.
pub fn scale_segments(points: &[[f32; 2]], placement: &Placement, normalize: bool) -> Vec<[f32; 2]> {
    let pad = [placement.pad.0 as f32, placement.pad.1 as f32];
    let gain = [placement.gain.0 as f32, placement.gain.1 as f32];
    let limit = [placement.picture.1 as f32, placement.picture.0 as f32];
    let scale = |point: &[f32; 2]| {
        std::array::from_fn(|axis| {
            let value = ((point[axis] - pad[axis]) / gain[axis]).clamp(0.0, limit[axis]);
            if normalize { value / limit[axis] } else { value }
        })
    };
    points.iter().map(scale).collect()
}
