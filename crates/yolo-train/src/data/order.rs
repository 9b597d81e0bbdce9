//! Which pictures make up which batch of an epoch, and of what size.

use std::cmp::Ordering;

use super::labels::Labels;
use super::rng::Rng;

/// Keys the order of an epoch, apart from the pictures in it.
const ORDER_KEY: u64 = u64::MAX;

/// The pictures of an epoch in their order, batch by batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order {
    /// Indices of pictures.
    pub(super) pictures: Vec<usize>,
    /// Height and width of each batch.
    pub(super) shapes: Vec<(u32, u32)>,
}

/// The order of an epoch of square batches: as it is, shuffled, or drawn with weights.
pub(super) fn square(
    count: usize,
    batch: usize,
    size: u32,
    shuffle: bool,
    weights: Option<&[f64]>,
    (seed, epoch): (u64, u64),
) -> Order {
    let mut rng = Rng::keyed(seed, epoch, ORDER_KEY);
    let mut pictures: Vec<usize> = match weights {
        Some(weights) => draw(weights, count, &mut rng),
        None => (0..count).collect(),
    };
    if shuffle && weights.is_none() {
        rng.shuffle(&mut pictures);
    }
    Order { pictures, shapes: vec![(size, size); count.div_ceil(batch)] }
}

/// As many indices as wanted, each by its weight.
fn draw(weights: &[f64], count: usize, rng: &mut Rng) -> Vec<usize> {
    let mut total = 0.0;
    let sums: Vec<f64> = weights
        .iter()
        .map(|weight| {
            total += weight;
            total
        })
        .collect();
    (0..count)
        .map(|_| {
            let at = rng.unit() * total;
            // The sums are rounded: the last picture with a weight takes what is left over.
            sums.partition_point(|sum| *sum <= at).min(sums.partition_point(|sum| *sum < total))
        })
        .collect()
}

/// Batches of pictures of like proportions, each as small as its pictures, fitted into `size`, allow: a multiple of `stride`
/// with `pad` strides to spare.
pub(super) fn rectangular(labels: &[Labels], batch: usize, size: u32, stride: u32, pad: f64) -> Order {
    let ratio = |index: usize| f64::from(labels[index].size.0) / f64::from(labels[index].size.1);
    let mut pictures: Vec<usize> = (0..labels.len()).collect();
    pictures.sort_by(|&a, &b| ratio(a).partial_cmp(&ratio(b)).unwrap_or(Ordering::Equal));
    let shapes = pictures
        .chunks(batch)
        .map(|batch| {
            let least = batch.iter().map(|&index| ratio(index)).fold(f64::INFINITY, f64::min);
            let most = batch.iter().map(|&index| ratio(index)).fold(0.0, f64::max);
            let (height, width) = if most < 1.0 {
                (most, 1.0)
            } else if least > 1.0 {
                (1.0, 1.0 / least)
            } else {
                (1.0, 1.0)
            };
            let side = |share: f64| (share * f64::from(size) / f64::from(stride) + pad).ceil().max(1.0) as u32 * stride;
            (side(height), side(width))
        })
        .collect();
    Order { pictures, shapes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_fit_their_pictures() {
        let labels: Vec<Labels> = [(480, 640), (640, 480), (500, 500), (427, 640), (640, 320), (100, 400)]
            .map(|size| Labels { size, ..Labels::default() })
            .to_vec();
        let order = rectangular(&labels, 2, 640, 32, 0.5);
        assert_eq!(order.pictures, [5, 3, 0, 2, 1, 4]);
        // 427/640 * 20 + .5 is 13.84; 20.5; 480/640 * 20 + .5 is 15.5.
        assert_eq!(order.shapes, [(448, 672), (672, 672), (672, 512)]);
        assert_eq!(rectangular(&labels, 6, 320, 32, 0.0).shapes, [(320, 320)]);
        assert_eq!(rectangular(&labels[5..], 1, 32, 32, 0.0).shapes, [(32, 32)]);
    }

    #[test]
    fn weights_decide_how_often_a_picture_comes() {
        let order = square(10_000, 8, 64, true, Some(&[1.0, 0.0, 3.0, 0.0]), (1, 2));
        let count = |picture| order.pictures.iter().filter(|&&index| index == picture).count();
        assert_eq!((count(1), count(3)), (0, 0));
        assert!((2300..2700).contains(&count(0)), "{}", count(0));
        assert_eq!(order.shapes.len(), 1250);
    }

    #[test]
    fn epochs_are_shuffled_each_in_its_way() {
        let order = |epoch, shuffle| square(50, 8, 64, shuffle, None, (5, epoch)).pictures;
        assert_eq!(order(0, false), (0..50).collect::<Vec<_>>());
        assert_eq!(order(1, true), order(1, true));
        assert_ne!(order(1, true), order(2, true));
    }
}
