//! Channels of maps `[batch, channels, pixels]`: joined, cut apart, added up.

use super::phases::{share, share_chunks};
use super::shared::Shared;

/// Values that are added up side by side.
const LANES: usize = 16;
/// Values of a task, about: worth its start.
const TASK_VALUES: usize = 4096;

/// Joins maps of one batch along their channels: each part is a map with its values a sample.
///
/// # Panics
/// Where a part does not have `batch` samples.
pub fn join_channels(parts: &[(&[f32], usize)], batch: usize) -> Vec<f32> {
    let sample: usize = parts.iter().map(|(_, len)| len).sum();
    assert!(parts.iter().all(|(values, len)| values.len() == batch * len));
    let mut joined = Vec::with_capacity(batch * sample);
    let out = Shared::new(&mut joined.spare_capacity_mut()[..batch * sample]);
    share(batch * parts.len(), |task| {
        let (index, part) = (task / parts.len(), task % parts.len());
        let before: usize = parts[..part].iter().map(|(_, len)| len).sum();
        let (values, len) = parts[part];
        // SAFETY: each part of each sample has a place of its own.
        let to = unsafe { out.part(index * sample + before, len) };
        to.copy_from_slice(&values[index * len..][..len]);
    });
    // SAFETY: there is room for as many values, and all parts have been written.
    unsafe { joined.set_len(batch * sample) };
    joined
}

/// Of maps with `sample` values a sample, `len` values of each from `first` on.
///
/// # Panics
/// Where the maps are not of whole samples, or a sample has less values.
pub fn cut_channels(x: &[f32], sample: usize, first: usize, len: usize) -> Vec<f32> {
    assert!(sample > 0 && x.len().is_multiple_of(sample) && first <= sample && len <= sample - first);
    let batch = x.len() / sample;
    let mut cut = Vec::with_capacity(batch * len);
    let out = Shared::new(&mut cut.spare_capacity_mut()[..batch * len]);
    share(batch, |index| {
        // SAFETY: each sample has a place of its own.
        let to = unsafe { out.part(index * len, len) };
        to.copy_from_slice(&x[index * sample + first..][..len]);
    });
    // SAFETY: there is room for as many values, and all samples have been written.
    unsafe { cut.set_len(batch * len) };
    cut
}

/// The sum of each plane of `pixels` values.
///
/// # Panics
/// Where there are no whole planes.
pub fn plane_sums(x: &[f32], pixels: usize) -> Vec<f32> {
    assert!(pixels > 0 && x.len().is_multiple_of(pixels));
    let mut sums = vec![0.0; x.len() / pixels];
    let run = (TASK_VALUES / pixels).max(1);
    share_chunks(&mut sums, run, |number, sums| {
        for (sum, plane) in sums.iter_mut().zip(x[number * run * pixels..].chunks_exact(pixels)) {
            *sum = plane_sum(plane);
        }
    });
    sums
}

fn plane_sum(plane: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let mut chunks = plane.chunks_exact(LANES);
    for chunk in chunks.by_ref() {
        for j in 0..LANES {
            sums[j] += chunk[j];
        }
    }
    let rest: f64 = chunks.remainder().iter().map(|x| f64::from(*x)).sum();
    (sums.iter().map(|sum| f64::from(*sum)).sum::<f64>() + rest) as f32
}

/// Adds a value to each plane of `pixels` values.
///
/// # Panics
/// Where there are not as many planes as `values`.
pub fn add_to_planes(x: &mut [f32], values: &[f32], pixels: usize) {
    assert_eq!(x.len(), values.len() * pixels);
    if let Some(run) = TASK_VALUES.checked_div(pixels) {
        let run = run.max(1);
        share_chunks(x, run * pixels, |number, planes| {
            for (plane, value) in planes.chunks_exact_mut(pixels).zip(&values[number * run..]) {
                plane.iter_mut().for_each(|x| *x += value);
            }
        });
    }
}

/// `x * scale[c] + shift[c]` on planes of `pixels` values, in the order of their channels c, sample by sample.
///
/// # Panics
/// Where there are not as many shifts as scales, or `x` is not whole samples.
pub fn scale_shift(x: &[f32], scale: &[f32], shift: &[f32], pixels: usize) -> Vec<f32> {
    assert_eq!(scale.len(), shift.len());
    assert!(x.len().is_multiple_of(pixels * scale.len()));
    let mut y = vec![0.0; x.len()];
    if let Some(run) = TASK_VALUES.checked_div(pixels) {
        let run = run.max(1);
        share_chunks(&mut y, run * pixels, |number, y| {
            let x = &x[number * run * pixels..];
            for (index, (y, x)) in y.chunks_exact_mut(pixels).zip(x.chunks_exact(pixels)).enumerate() {
                let channel = (number * run + index) % scale.len();
                let (scale, shift) = (scale[channel], shift[channel]);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale + shift);
            }
        });
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_by_hand() {
        let (a, b) = ([1.0, 2.0, 5.0, 6.0], [3.0, 4.0, 0.5, 7.0, 8.0, 0.25]);
        let joined = join_channels(&[(&a, 2), (&b, 3)], 2);
        assert_eq!(joined, [1.0, 2.0, 3.0, 4.0, 0.5, 5.0, 6.0, 7.0, 8.0, 0.25]);
        assert_eq!(cut_channels(&joined, 5, 0, 2), a);
        assert_eq!(cut_channels(&joined, 5, 2, 3), b);
        assert_eq!(plane_sums(&joined, 5), [10.5, 26.25]);
        let scaled = scale_shift(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], &[2.0, 0.5], &[1.0, 0.0], 2);
        assert_eq!(scaled, [3.0, 5.0, 1.5, 2.0, 11.0, 13.0, 3.5, 4.0]);
        assert!(scale_shift(&[], &[1.0], &[0.0], 0).is_empty());
        let long: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(plane_sums(&long, 37), [666.0]);
        let mut sums = joined;
        add_to_planes(&mut sums, &[1.0, -1.0], 5);
        assert_eq!(sums, [2.0, 3.0, 4.0, 5.0, 1.5, 4.0, 5.0, 6.0, 7.0, -0.75]);
    }
}
