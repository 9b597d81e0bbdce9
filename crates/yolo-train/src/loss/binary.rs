//! Binary cross-entropy with logits, and its focal form.

/// Share of the positives in the focal loss (arXiv 1708.02002).
const FOCAL_ALPHA: f32 = 0.25;

/// Binary cross-entropy of logits with a weight of the positives; with `gamma` above 0 the focal loss (arXiv 1708.02002).
#[derive(Debug, Clone, Copy)]
pub(super) struct Binary {
    pub(super) positive_weight: f32,
    pub(super) gamma: f32,
}

impl Binary {
    /// Loss and derivative for the logit `x`; `target` is in 0..=1.
    pub(super) fn of(self, x: f32, target: f32) -> (f32, f32) {
        let decay = (-x.abs()).exp();
        let sigmoid = if x >= 0.0 { 1.0 / (1.0 + decay) } else { decay / (1.0 + decay) };
        let weight = (self.positive_weight - 1.0) * target + 1.0;
        // ln(1 + exp(-x)), kept from overflowing.
        let softplus = decay.ln_1p() + (-x).max(0.0);
        let loss = (1.0 - target) * x + weight * softplus;
        let slope = (1.0 - target) - weight * (1.0 - sigmoid);
        if self.gamma <= 0.0 {
            return (loss, slope);
        }
        let share = target * FOCAL_ALPHA + (1.0 - target) * (1.0 - FOCAL_ALPHA);
        // The probability that is missing from the target.
        let missing = 1.0 - (target * sigmoid + (1.0 - target) * (1.0 - sigmoid));
        let missing_slope = (1.0 - 2.0 * target) * sigmoid * (1.0 - sigmoid);
        let factor = missing.powf(self.gamma);
        let factor_slope = if missing > 0.0 { self.gamma * factor / missing * missing_slope } else { 0.0 };
        (share * loss * factor, share * (slope * factor + loss * factor_slope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_definition() {
        for (positive_weight, gamma) in [(1.0, 0.0), (2.5, 0.0), (1.0, 1.5), (0.7, 2.0)] {
            for x in [-9.0f32, -1.3, 0.0, 0.4, 7.0] {
                for target in [0.0f32, 0.05, 0.6, 1.0] {
                    let p = 1.0 / (1.0 + (-f64::from(x)).exp());
                    let t = f64::from(target);
                    let cross = -(f64::from(positive_weight) * t * p.ln() + (1.0 - t) * (1.0 - p).ln());
                    let near = t * p + (1.0 - t) * (1.0 - p);
                    let focal = (t * 0.25 + (1.0 - t) * 0.75) * (1.0 - near).powf(f64::from(gamma));
                    let expected = if gamma > 0.0 { cross * focal } else { cross };
                    let (loss, _) = Binary { positive_weight, gamma }.of(x, target);
                    let error = (f64::from(loss) - expected).abs();
                    assert!(error < 2e-6 * (1.0 + expected.abs()), "{x} {target}: {loss}, {expected}");
                }
            }
        }
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for (positive_weight, gamma) in [(1.0, 0.0), (2.5, 0.0), (1.0, 1.5), (0.7, 2.0)] {
            let binary = Binary { positive_weight, gamma };
            for x in [-3.0f32, -0.4, 0.3, 2.0] {
                for target in [0.0f32, 0.3, 1.0] {
                    let difference = (binary.of(x + 0.01, target).0 - binary.of(x - 0.01, target).0) / 0.02;
                    let (_, slope) = binary.of(x, target);
                    assert!((slope - difference).abs() < 2e-4, "{x} {target}: {slope}, {difference}");
                }
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        for x in [-1e4f32, 1e4, f32::MAX, f32::MIN] {
            let (loss, slope) = Binary { positive_weight: 1.0, gamma: 1.5 }.of(x, 1.0);
            assert!(loss.is_finite() || x == f32::MIN, "{x}: {loss}");
            assert!(slope.is_finite() || x == f32::MIN, "{x}: {slope}");
        }
    }
}
