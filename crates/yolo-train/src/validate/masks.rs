//! Masks side by side: resizing, and overlap.

use yolo_core::Mask;
use yolo_core::picture::taps;

/// Keeps the quotient a number where both masks are empty.
const EPSILON: f32 = 1e-7;

/// A mask, a bit a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitMask {
    words: Vec<u64>,
    area: u64,
}

impl BitMask {
    /// Of the pixels, in any order that is the same for all masks that are compared.
    pub fn new(pixels: impl IntoIterator<Item = bool>) -> Self {
        let mut words = Vec::new();
        let mut area = 0;
        for (index, inside) in pixels.into_iter().enumerate() {
            if index % 64 == 0 {
                words.push(0);
            }
            if let Some(word) = words.last_mut().filter(|_| inside) {
                *word |= 1 << (index % 64);
                area += 1;
            }
        }
        Self { words, area }
    }

    /// Pixels inside.
    pub fn area(&self) -> u64 {
        self.area
    }

    /// Pixels inside of both.
    pub fn intersection(&self, other: &Self) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }
}

impl From<&Mask> for BitMask {
    fn from(mask: &Mask) -> Self {
        Self::new(mask.data.iter().map(|&inside| inside != 0))
    }
}

/// Overlaps (intersection over union) of each label's mask with each detection's, labels x detections, row-major.
pub fn mask_iou(labels: &[BitMask], detections: &[BitMask]) -> Vec<f32> {
    let mut overlaps = Vec::with_capacity(labels.len() * detections.len());
    for label in labels {
        overlaps.extend(detections.iter().map(|detection| {
            let intersection = label.intersection(detection);
            let union = label.area + detection.area - intersection;
            intersection as f32 / (union as f32 + EPSILON)
        }));
    }
    overlaps
}

/// Resizes a plane of zeros and ones bilinearly and keeps what is greater than one half, as PyTorch's
/// `interpolate(mode="bilinear", align_corners=False)` followed by `> 0.5`. Shapes are (height, width).
///
/// A plane whose values do not match `from`, or a side of 0, gives zeros.
pub fn resize_mask(plane: &[f32], from: (usize, usize), to: (usize, usize)) -> Vec<bool> {
    if plane.is_empty() || plane.len() != from.0 * from.1 {
        return vec![false; to.0 * to.1];
    }
    let (rows, columns) = (taps(from.0, to.0), taps(from.1, to.1));
    let mut out = Vec::with_capacity(to.0 * to.1);
    for row in &rows {
        let [low, high] = [row.low, row.high].map(|y| &plane[y * from.1..][..from.1]);
        out.extend(columns.iter().map(|column| {
            let along = |line: &[f32]| line[column.low] * (1.0 - column.part) + line[column.high] * column.part;
            along(low) * (1.0 - row.part) + along(high) * row.part > 0.5
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(pixels: &[u8]) -> BitMask {
        BitMask::new(pixels.iter().map(|&pixel| pixel != 0))
    }

    #[test]
    fn overlaps_by_hand() {
        let (a, b, none) = (bits(&[1, 1, 0, 0]), bits(&[0, 1, 1, 1]), bits(&[0; 4]));
        let iou = mask_iou(&[a.clone(), none.clone()], &[a, b, none]);
        for (got, want) in iou.iter().zip([1.0, 0.25, 0.0, 0.0, 0.0, 0.0]) {
            assert!((got - want).abs() < 1e-6, "{iou:?}");
        }
    }

    #[test]
    fn masks_of_more_than_a_word() {
        let a = BitMask::new((0..1000).map(|i| i % 3 == 0));
        let b = BitMask::new((0..1000).map(|i| i % 2 == 0));
        assert_eq!((a.area(), b.area(), a.intersection(&b)), (334, 500, 167));
    }

    #[test]
    fn shrinking_by_four_reads_the_two_in_the_middle() {
        // A row of eight becomes two: each is the mean of its second and third.
        let halved = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(resize_mask(&halved, (4, 4), (2, 2)), [false, false, true, false]);
        let shrink = |row: [f32; 8]| resize_mask(&row.repeat(4), (4, 8), (1, 2));
        assert_eq!(shrink([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]), [false, true], "one half is not inside");
        assert_eq!(resize_mask(&[1.0, 0.0, 0.0, 1.0], (2, 2), (2, 2)), [true, false, false, true]);
        assert_eq!(resize_mask(&[1.0, 0.0], (1, 2), (1, 4)), [true, true, false, false]);
        assert_eq!(resize_mask(&[1.0], (2, 2), (1, 2)), [false, false], "values that do not match");
        assert_eq!(resize_mask(&[1.0; 4], (2, 2), (0, 2)), [] as [bool; 0]);
    }
}
