//! Masks from prototypes and coefficients: YOLOv5's `process_mask`, `process_mask_native` and `scale_image`.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::detection::Mask;
use crate::picture::{MAX_PIXELS, Placement, Tap, resize_plane, taps};
use crate::{Error, Result};

/// Masks at the prototypes' resolution, or upsampled to the network's input.
///
/// # Shapes
/// `proto` is `[nm, mh, mw]` (one picture's), `coefficients` one list of `nm` for each box, `boxes` in pixels of the network's
/// input of `shape` = (height, width). Each mask is `shape` where `upsample` is set, else (mh, mw).
///
/// # Errors
/// [`Error::Shape`] where the counts do not agree, a side is 0, or `shape` has more than [`MAX_PIXELS`] pixels.
pub fn process_mask(
    proto: &Tensor,
    coefficients: &[&[f32]],
    boxes: &[[f32; 4]],
    shape: (u32, u32),
    upsample: bool,
) -> Result<Vec<Mask>> {
    let prototypes = Prototypes::new(proto, coefficients, boxes, shape)?;
    let (mh, mw) = (prototypes.height, prototypes.width);
    let scale_x = (mw as f64 / f64::from(shape.1)) as f32;
    let scale_y = (mh as f64 / f64::from(shape.0)) as f32;
    let zoom = Zoom::new((mh, mw), shape);
    let mask = |(coefficients, bbox): (&&[f32], &[f32; 4])| {
        let [x1, y1, x2, y2] = *bbox;
        let crop = Window::of_box([x1 * scale_x, y1 * scale_y, x2 * scale_x, y2 * scale_y], mh, mw);
        let plane = prototypes.plane(coefficients, &crop);
        if upsample { zoom.resized(&plane, &zoom.reached(&crop)) } else { plane.thresholded() }
    };
    Ok(coefficients.par_iter().zip(boxes).map(mask).collect())
}

/// Masks at the picture's own resolution, finer at the edges: YOLOv5's `--retina-masks`.
///
/// # Shapes
/// `proto` is `[nm, mh, mw]`, `coefficients` one list of `nm` for each box, `boxes` in pixels of the picture (scaled and rounded)
/// of `shape` = (height, width); each mask is `shape`.
///
/// # Errors
/// [`Error::Shape`] where the counts do not agree, a side is 0, or `shape` has more than [`MAX_PIXELS`] pixels.
pub fn process_mask_native(
    proto: &Tensor,
    coefficients: &[&[f32]],
    boxes: &[[f32; 4]],
    shape: (u32, u32),
) -> Result<Vec<Mask>> {
    let prototypes = Prototypes::new(proto, coefficients, boxes, shape)?.cut(shape);
    let zoom = Zoom::new((prototypes.height, prototypes.width), shape);
    let mask = |(coefficients, bbox): (&&[f32], &[f32; 4])| {
        let crop = Window::of_box(*bbox, shape.0 as usize, shape.1 as usize);
        zoom.resized(&prototypes.plane(coefficients, &zoom.read_by(&crop)), &crop)
    };
    Ok(coefficients.par_iter().zip(boxes).map(mask).collect())
}

/// Clears what lies outside a box in the mask's own pixels: column `c` stays where `x1 <= c < x2`, rows likewise.
pub fn crop_mask(mask: &mut Mask, bbox: [f32; 4]) {
    let (height, width) = (mask.height as usize, mask.width as usize);
    let keep = Window::of_box(bbox, height, width);
    for (y, row) in mask.data.chunks_exact_mut(width.max(1)).enumerate() {
        if (keep.top..keep.bottom).contains(&y) {
            row[..keep.left].fill(0);
            row[keep.right..].fill(0);
        } else {
            row.fill(0);
        }
    }
}

/// Brings a mask from the network's input to a picture of `shape` = (height, width): the padding is cut off and the rest resized
/// as OpenCV resizes bytes, which is YOLOv5's `scale_image`.
///
/// # Errors
/// As [`unpad_mask`].
pub fn scale_mask(mask: &Mask, shape: (u32, u32)) -> Result<Mask> {
    let sides = [mask.height, mask.width, shape.0, shape.1];
    let pad = if sides.contains(&0) { (0.0, 0.0) } else { Placement::centred((mask.height, mask.width), shape).pad };
    unpad_mask(mask, pad, shape)
}

/// The same where the padding left of and above the picture is known, as (x, y) in the mask's pixels.
///
/// # Errors
/// [`Error::Shape`] where the mask or the picture has a side of 0, the mask's data do not match its sides, or the picture has more
/// than [`MAX_PIXELS`] pixels.
pub fn unpad_mask(mask: &Mask, pad: (f64, f64), shape: (u32, u32)) -> Result<Mask> {
    let (height, width) = (mask.height as usize, mask.width as usize);
    if shape.0 == 0 || shape.1 == 0 || mask.data.is_empty() || mask.data.len() != height * width {
        return Err(Error::Shape {
            what: "mask".into(),
            expected: "sides of at least one pixel and a byte for each".into(),
            got: format!("{width}x{height} with {} bytes, for a {}x{} picture", mask.data.len(), shape.1, shape.0),
        });
    }
    check_pixels(shape)?;
    let inner = Window::inside((height, width), pad);
    let rows = mask.data.chunks_exact(width).take(inner.bottom).skip(inner.top);
    let data: Vec<u8> =
        rows.flat_map(|row| &row[inner.left..inner.right]).map(|&inside| u8::from(inside != 0)).collect();
    let from = (inner.bottom - inner.top, inner.right - inner.left);
    let data = resize_plane(&data, from, (shape.0 as usize, shape.1 as usize));
    Ok(Mask { width: shape.1, height: shape.0, data })
}

/// Refuses masks of (height, width) larger than any picture.
fn check_pixels((height, width): (u32, u32)) -> Result<()> {
    if u64::from(height) * u64::from(width) <= MAX_PIXELS {
        return Ok(());
    }
    let (expected, got) = (format!("at most {MAX_PIXELS} pixels"), format!("{width}x{height}"));
    Err(Error::Shape { what: "masks".into(), expected, got })
}

/// Rows `top..bottom` and columns `left..right` of a plane.
struct Window {
    top: usize,
    bottom: usize,
    left: usize,
    right: usize,
}

impl Window {
    /// The pixels `i` with `low <= i < high` of each axis; a box that is not a number has none.
    fn of_box(bbox: [f32; 4], height: usize, width: usize) -> Self {
        let span = |low: f32, high: f32, len: usize| {
            // `as` saturates, and makes 0 of NaN: an empty span, as all comparisons with it are false.
            let high = (high.ceil() as usize).min(len);
            let low = if low.is_nan() { high } else { (low.ceil() as usize).min(high) };
            (low, high)
        };
        let (left, right) = span(bbox[0], bbox[2], width);
        let (top, bottom) = span(bbox[1], bbox[3], height);
        Self { top, bottom, left, right }
    }

    /// The part of a letterboxed plane that the picture fills, at least one pixel of it.
    fn of_picture((height, width): (usize, usize), picture: (u32, u32)) -> Self {
        Self::inside((height, width), Placement::centred((height as u32, width as u32), picture).pad)
    }

    /// What the padding leaves, at least one pixel.
    fn inside((height, width): (usize, usize), pad: (f64, f64)) -> Self {
        let span = |pad: f64, len: usize| {
            let low = (pad as usize).min(len - 1);
            (low, ((len as f64 - pad) as usize).clamp(low + 1, len))
        };
        let (left, right) = span(pad.0, width);
        let (top, bottom) = span(pad.1, height);
        Self { top, bottom, left, right }
    }
}

/// One picture's prototypes, checked.
struct Prototypes {
    height: usize,
    width: usize,
    data: Vec<f32>,
}

impl Prototypes {
    fn new(proto: &Tensor, coefficients: &[&[f32]], boxes: &[[f32; 4]], shape: (u32, u32)) -> Result<Self> {
        let wrong = |what: &str, expected: String, got: String| Err(Error::Shape { what: what.into(), expected, got });
        let Ok((count, height, width)) = proto.dims3() else {
            return wrong("prototypes", "[masks, height, width]".into(), format!("{:?}", proto.dims()));
        };
        if [height, width, shape.0 as usize, shape.1 as usize].contains(&0) {
            let got = format!("{height}x{width} prototypes for {}x{}", shape.0, shape.1);
            return wrong("masks", "sides of at least one pixel".into(), got);
        }
        check_pixels(shape)?;
        if coefficients.len() != boxes.len() {
            let expected = format!("one list for each of {} boxes", boxes.len());
            return wrong("mask coefficients", expected, format!("{} lists", coefficients.len()));
        }
        if let Some(other) = coefficients.iter().find(|list| list.len() != count) {
            return wrong("mask coefficients", format!("{count} a box"), format!("{}", other.len()));
        }
        let data = proto.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { height, width, data })
    }

    /// The part that a letterboxed picture of `shape` fills.
    fn cut(self, shape: (u32, u32)) -> Self {
        let inner = Window::of_picture((self.height, self.width), shape);
        let rows = inner.bottom - inner.top;
        let planes = self.data.chunks_exact(self.height * self.width);
        let plane =
            |data: &[f32]| Plane { height: self.height, width: self.width, data: data.to_vec() }.cut(&inner).data;
        Self { height: rows, width: inner.right - inner.left, data: planes.flat_map(plane).collect() }
    }

    /// The logistic of the mixed prototypes inside the window, 0 outside.
    fn plane(&self, coefficients: &[f32], window: &Window) -> Plane {
        let mut data = vec![0f32; self.height * self.width];
        for y in window.top..window.bottom {
            let span = y * self.width + window.left..y * self.width + window.right;
            let row = &mut data[span.clone()];
            for (coefficient, prototype) in coefficients.iter().zip(self.data.chunks_exact(self.height * self.width)) {
                for (sum, value) in row.iter_mut().zip(&prototype[span.clone()]) {
                    *sum += coefficient * value;
                }
            }
            row.iter_mut().for_each(|value| *value = 1.0 / (1.0 + (-*value).exp()));
        }
        Plane { height: self.height, width: self.width, data }
    }
}

/// Mask values in 0..=1, row-major.
struct Plane {
    height: usize,
    width: usize,
    data: Vec<f32>,
}

impl Plane {
    fn cut(&self, window: &Window) -> Self {
        let rows = self.data.chunks_exact(self.width).take(window.bottom).skip(window.top);
        let data = rows.flat_map(|row| &row[window.left..window.right]).copied().collect();
        Self { height: window.bottom - window.top, width: window.right - window.left, data }
    }

    fn thresholded(&self) -> Mask {
        let data = self.data.iter().map(|&value| u8::from(more_than_half(value))).collect();
        Mask { width: self.width as u32, height: self.height as u32, data }
    }
}

/// Where PyTorch's masks are cut.
fn more_than_half(value: f32) -> bool {
    value > 0.5
}

/// Bilinear interpolation as PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
struct Zoom {
    rows: Vec<Tap>,
    columns: Vec<Tap>,
}

impl Zoom {
    /// From planes of (height, width) to masks of `shape`; no side may be 0.
    fn new((height, width): (usize, usize), shape: (u32, u32)) -> Self {
        Self { rows: taps(height, shape.0 as usize), columns: taps(width, shape.1 as usize) }
    }

    /// The pixels of the mask that read something of a window of the plane.
    fn reached(&self, window: &Window) -> Window {
        let span = |taps: &[Tap], low: usize, high: usize| {
            let touched = |tap: &Tap| tap.low < high && tap.high >= low;
            let first = taps.iter().position(touched).unwrap_or(0);
            (first, taps.iter().rposition(touched).map_or(first, |last| last + 1))
        };
        let (top, bottom) = span(&self.rows, window.top, window.bottom);
        let (left, right) = span(&self.columns, window.left, window.right);
        Window { top, bottom, left, right }
    }

    /// The pixels of the plane that a window of the mask reads.
    fn read_by(&self, window: &Window) -> Window {
        let span = |taps: &[Tap]| taps.first().zip(taps.last()).map_or((0, 0), |(low, high)| (low.low, high.high + 1));
        let (top, bottom) = span(&self.rows[window.top..window.bottom]);
        let (left, right) = span(&self.columns[window.left..window.right]);
        Window { top, bottom, left, right }
    }

    /// The mask of a plane inside a window of the mask; the rest is 0.
    fn resized(&self, plane: &Plane, window: &Window) -> Mask {
        let (height, width) = (self.rows.len(), self.columns.len());
        let mut mask = Mask { width: width as u32, height: height as u32, data: vec![0; width * height] };
        let rows = mask.data.chunks_exact_mut(width).zip(&self.rows);
        for (out, row) in rows.take(window.bottom).skip(window.top) {
            let low = &plane.data[row.low * plane.width..][..plane.width];
            let high = &plane.data[row.high * plane.width..][..plane.width];
            let span = window.left..window.right;
            for (out, column) in out[span.clone()].iter_mut().zip(&self.columns[span]) {
                let along = |line: &[f32]| line[column.low] * (1.0 - column.part) + line[column.high] * column.part;
                *out = u8::from(more_than_half(along(low) * (1.0 - row.part) + along(high) * row.part));
            }
        }
        mask
    }
}
