//! How often pictures come, by how badly their classes do.

use crate::data::Labels;

/// Weights of the classes by rarity, on average 1: the inverse of the number of their objects.
pub(super) fn class_weights(counts: &[usize]) -> Vec<f64> {
    let inverse: Vec<f64> = counts.iter().map(|&count| 1.0 / count.max(1) as f64).collect();
    let sum: f64 = inverse.iter().sum();
    inverse.iter().map(|weight| weight / sum * counts.len() as f64).collect()
}

/// Weights of the pictures: the sum over their objects of the class's weight times the square of what its average precision
/// (`maps`, by class) lacks.
pub(super) fn image_weights(labels: &[Labels], class_weights: &[f64], maps: &[f64]) -> Vec<f64> {
    let lack = |class: usize| (1.0 - maps.get(class).copied().unwrap_or(0.0)).powi(2) / class_weights.len() as f64;
    let of_class = |class: &usize| class_weights.get(*class).map_or(0.0, |weight| weight * lack(*class));
    labels.iter().map(|picture| picture.classes.iter().map(of_class).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_and_bad_classes_come_more_often() {
        let weights = class_weights(&[1, 3, 0]);
        let expected = [3.0 / (1.0 + 1.0 / 3.0 + 1.0), 1.0 / (7.0 / 3.0), 3.0 / (7.0 / 3.0)];
        assert!(weights.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{weights:?}");
        let picture = |classes: &[usize]| Labels { classes: classes.to_vec(), ..Labels::default() };
        let pictures = [picture(&[0]), picture(&[1, 1]), picture(&[])];
        let images = image_weights(&pictures, &[1.5, 0.5], &[0.5, 0.0]);
        assert_eq!(images, [1.5 * 0.25 / 2.0, 2.0 * 0.5 / 2.0, 0.0]);
    }
}
