//! One picture shining through another (Zhang et al., "mixup: beyond empirical risk minimization", 2018); the objects of both
//! count.

use super::Sample;
use crate::data::rng::Rng;

/// The shares of both pictures have the distribution Beta(32, 32): nearly halves.
const BETA: usize = 32;

/// Mixes `other` into `sample`; both are of one size.
pub fn mixup(sample: &mut Sample, other: Sample, rng: &mut Rng) {
    blend(sample, other, rng.beta(BETA));
}

/// Mixes with a given share of the first picture.
fn blend(sample: &mut Sample, other: Sample, share: f64) {
    // Sixteen bits of fraction; cut, not rounded, as a conversion to whole numbers does.
    let first = (share * 65536.0).round() as u32;
    let second = 65536 - first;
    for (a, b) in sample.picture.iter_mut().zip(other.picture.iter()) {
        *a = ((u32::from(*a) * first + u32::from(*b) * second) >> 16) as u8;
    }
    sample.objects.extend(other.objects);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::augment::Object;
    use image::{Rgb, RgbImage};

    #[test]
    fn pictures_mix_and_objects_add_up() {
        let sample = |level, class| Sample {
            picture: RgbImage::from_pixel(4, 3, Rgb([level; 3])),
            objects: vec![Object { class, bbox: [0.0, 0.0, 2.0, 2.0], segment: Vec::new() }],
        };
        let mut mixed = sample(200, 0);
        blend(&mut mixed, sample(100, 1), 0.25);
        assert!(mixed.picture.iter().all(|&value| value == 125));
        assert_eq!(mixed.objects.iter().map(|object| object.class).collect::<Vec<_>>(), [0, 1]);
        let mut same = sample(255, 0);
        mixup(&mut same, sample(255, 1), &mut Rng::keyed(0, 0, 0));
        assert!(same.picture.iter().all(|&value| value == 255));
    }
}
