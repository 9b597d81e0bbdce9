//! Objects cut out along their outlines and pasted mirrored (Ghiasi et al., "Simple copy-paste", 2021).

use super::{Object, Sample};
use crate::data::fill::Bitmap;
use crate::data::rng::Rng;

/// A copy that would cover this share of another object is not pasted.
const MAX_COVER: f32 = 0.3;

/// Pastes the mirror image of a share of the outlined objects onto the picture, where they cover little of the others.
pub fn copy_paste(sample: &mut Sample, share: f64, rng: &mut Rng) {
    let mut outlined: Vec<usize> =
        (0..sample.objects.len()).filter(|&index| !sample.objects[index].segment.is_empty()).collect();
    // As in YOLOv5, halves go to the even number.
    let count = (share.clamp(0.0, 1.0) * outlined.len() as f64).round_ties_even() as usize;
    if count == 0 {
        return;
    }
    rng.shuffle(&mut outlined);
    let (width, height) = sample.picture.dimensions();
    let mut pasted = Bitmap::new(width as usize, height as usize);
    for &index in &outlined[..count] {
        let object = &sample.objects[index];
        let [left, top, right, bottom] = object.bbox;
        let bbox = [width as f32 - right, top, width as f32 - left, bottom];
        if sample.objects.iter().any(|other| cover(bbox, other.bbox) >= MAX_COVER) {
            continue;
        }
        let points: Vec<[i32; 2]> = object.segment.iter().map(|point| point.map(|value| value as i32)).collect();
        pasted.fill_polygon(&points);
        let segment = object.segment.iter().map(|&[x, y]| [width as f32 - x, y]).collect();
        let copy = Object { class: object.class, bbox, segment };
        sample.objects.push(copy);
    }
    let original = sample.picture.clone();
    let row_bytes = width as usize * 3;
    for (y, (to, from)) in
        sample.picture.chunks_exact_mut(row_bytes).zip(original.as_raw().chunks_exact(row_bytes)).enumerate()
    {
        let (to, from) = (to.as_chunks_mut::<3>().0, from.as_chunks::<3>().0);
        for (x, &inside) in pasted.row(y).iter().enumerate() {
            if inside != 0 {
                to[width as usize - 1 - x] = from[x];
            }
        }
    }
}

/// The share of `of` that `bbox` covers.
fn cover(bbox: [f32; 4], of: [f32; 4]) -> f32 {
    let side = |axis: usize| (bbox[2 + axis].min(of[2 + axis]) - bbox[axis].max(of[axis])).max(0.0);
    side(0) * side(1) / ((of[2] - of[0]) * (of[3] - of[1]) + 1e-16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Rgb, RgbImage};

    fn square(x: f32, y: f32, side: f32) -> Object {
        let segment = vec![[x, y], [x + side, y], [x + side, y + side], [x, y + side]];
        Object { class: 2, bbox: [x, y, x + side, y + side], segment }
    }

    #[test]
    fn a_copy_is_the_mirror_image() {
        let picture = RgbImage::from_fn(100, 40, |x, y| Rgb([x as u8, y as u8, 7]));
        let mut sample = Sample { picture: picture.clone(), objects: vec![square(10.0, 10.0, 20.0)] };
        copy_paste(&mut sample, 1.0, &mut Rng::keyed(0, 0, 0));
        assert_eq!(sample.objects.len(), 2);
        assert_eq!(sample.objects[1].bbox, [70.0, 10.0, 90.0, 30.0]);
        assert_eq!(sample.objects[1].segment[0], [90.0, 10.0]);
        for (x, y, pixel) in sample.picture.enumerate_pixels() {
            let inside = (69..=89).contains(&x) && (10..=30).contains(&y);
            let expected = if inside { picture.get_pixel(99 - x, y) } else { picture.get_pixel(x, y) };
            assert_eq!(pixel, expected, "({x}, {y})");
        }
    }

    #[test]
    fn nothing_is_pasted_over_others() {
        let objects = || vec![square(10.0, 10.0, 20.0), Object { segment: Vec::new(), ..square(72.0, 12.0, 10.0) }];
        let mut sample = Sample { picture: RgbImage::new(100, 40), objects: objects() };
        copy_paste(&mut sample, 1.0, &mut Rng::keyed(0, 0, 0));
        assert_eq!(sample.objects, objects());
        let mut few = Sample { picture: RgbImage::new(100, 40), objects: vec![square(10.0, 10.0, 20.0)] };
        copy_paste(&mut few, 0.5, &mut Rng::keyed(0, 0, 0));
        assert_eq!(few.objects.len(), 1);
    }
}
