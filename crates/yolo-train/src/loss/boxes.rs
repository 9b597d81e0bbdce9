//! Losses of a predicted box against the labelled one.

use std::fmt;
use std::str::FromStr;

use super::dual::Dual;

/// Keeps divisions from zero, as YOLOv5 has it.
const EPS: f64 = 1e-7;
/// Exponent of IoU in Focal-EIoU (arXiv 2101.08158, section 4).
const FOCAL_GAMMA: f64 = 0.5;

/// What a box's loss measures besides the overlap (IoU). All are zero (`ciou`, to within 1e-7) for equal boxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum BoxLoss {
    /// Centres' distance over the hull's diagonal, and the difference of the aspect ratios (arXiv 1911.08287). The weight of
    /// the latter is held fixed in the gradient, as the paper's authors do.
    #[default]
    Ciou,
    /// Centres' distance over the hull's diagonal (arXiv 1911.08287).
    Diou,
    /// The part of the hull that neither box covers (arXiv 1902.09630).
    Giou,
    /// Centres' distance over the hull's diagonal, and differences of width and height over the hull's (arXiv 2101.08158).
    Eiou,
    /// Distance weighed by the angle between the centres, and shape (arXiv 2205.12740, theta 4).
    Siou,
    /// IoU weighed by the exponential of the centres' distance (arXiv 2301.10051, version 1, which needs no running mean). The
    /// hull's size is held fixed in the gradient, as the paper demands.
    Wiou,
    /// EIoU weighed by the root of IoU, so that boxes far off count less (arXiv 2101.08158, gamma 0.5). The weight is held
    /// fixed in the gradient: else the loss of a bad box would fall as its overlap vanishes.
    FocalEiou,
}

impl BoxLoss {
    /// All of them, by the names of the command line.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("ciou", Self::Ciou),
        ("diou", Self::Diou),
        ("giou", Self::Giou),
        ("eiou", Self::Eiou),
        ("siou", Self::Siou),
        ("wiou", Self::Wiou),
        ("focal-eiou", Self::FocalEiou),
    ];

    /// The loss and its derivatives for the predicted box; boxes are centre x, centre y, width, height, in any unit.
    pub fn evaluate(self, predicted: [f64; 4], target: [f64; 4]) -> (f64, [f64; 4]) {
        let variables = std::array::from_fn(|i| Dual::variable(predicted[i], i));
        let (loss, _) = self.of(variables, target);
        (loss.value, loss.slope)
    }

    /// The loss, and the overlap that the objectness learns: 1 minus the loss where the loss is such a difference (for CIoU that
    /// is YOLOv5's choice), IoU itself where it is weighed.
    pub(super) fn of(self, predicted: [Dual; 4], target: [f64; 4]) -> (Dual, f64) {
        let pair = Pair::new(predicted, target.map(Dual::constant));
        let one = Dual::constant(1.0);
        let iou = pair.iou;
        let loss = match self {
            Self::Ciou => one - iou + pair.distance() + pair.aspect(),
            Self::Diou => one - iou + pair.distance(),
            Self::Giou => {
                let hull = pair.hull_width * pair.hull_height + EPS;
                one - iou + (hull - pair.union) / hull
            }
            Self::Eiou => one - iou + pair.distance() + pair.sides(),
            Self::Siou => one - iou + (pair.angled_distance() + pair.shape()) * 0.5,
            Self::Wiou => {
                let diagonal = Dual::constant(pair.diagonal().value);
                return ((one - iou) * (pair.between_centres() / diagonal).exp(), iou.value);
            }
            Self::FocalEiou => {
                let weight = iou.value.max(0.0).powf(FOCAL_GAMMA);
                return ((one - iou + pair.distance() + pair.sides()) * weight, iou.value);
            }
        };
        (loss, 1.0 - loss.value)
    }
}

impl FromStr for BoxLoss {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("`{name}` is no box loss, expected one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for BoxLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

/// Two boxes and what the losses share.
struct Pair {
    a: [Dual; 4],
    b: [Dual; 4],
    union: Dual,
    iou: Dual,
    hull_width: Dual,
    hull_height: Dual,
}

impl Pair {
    fn new(a: [Dual; 4], b: [Dual; 4]) -> Self {
        // Lower and upper end on an axis: 0 is x, 1 is y.
        let ends = |c: &[Dual; 4], axis: usize| (c[axis] - c[axis + 2] * 0.5, c[axis] + c[axis + 2] * 0.5);
        let common = |axis: usize| {
            let ((a0, a1), (b0, b1)) = (ends(&a, axis), ends(&b, axis));
            ((a1.min(b1) - a0.max(b0)).positive(), a1.max(b1) - a0.min(b0))
        };
        let ((width, hull_width), (height, hull_height)) = (common(0), common(1));
        let intersection = width * height;
        let union = a[2] * a[3] + b[2] * b[3] - intersection + EPS;
        Self { a, b, union, iou: intersection / union, hull_width, hull_height }
    }

    /// Squared diagonal of the hull.
    fn diagonal(&self) -> Dual {
        self.hull_width.powi(2) + self.hull_height.powi(2) + EPS
    }

    /// Squared distance of the centres.
    fn between_centres(&self) -> Dual {
        (self.b[0] - self.a[0]).powi(2) + (self.b[1] - self.a[1]).powi(2)
    }

    fn distance(&self) -> Dual {
        self.between_centres() / self.diagonal()
    }

    /// CIoU's term of the aspect ratios, with its weight.
    fn aspect(&self) -> Dual {
        let angle = |c: &[Dual; 4]| (c[2] / c[3]).atan();
        let v = (angle(&self.b) - angle(&self.a)).powi(2) * (4.0 / std::f64::consts::PI.powi(2));
        v * (v.value / (v.value - self.iou.value + 1.0 + EPS))
    }

    /// EIoU's term of widths and heights.
    fn sides(&self) -> Dual {
        (self.a[2] - self.b[2]).powi(2) / (self.hull_width.powi(2) + EPS)
            + (self.a[3] - self.b[3]).powi(2) / (self.hull_height.powi(2) + EPS)
    }

    /// SIoU's distance: the nearer the line between the centres comes to 45 degrees, the less the distance counts.
    fn angled_distance(&self) -> Dual {
        let (dx, dy) = (self.b[0] - self.a[0], self.b[1] - self.a[1]);
        // The paper's 1 - 2 sin^2(arcsin(x) - pi/4) is the sine of twice the angle.
        let angle = (dx * dy).abs() * 2.0 / (self.between_centres() + EPS);
        let gamma = Dual::constant(2.0) - angle;
        let along = |offset: Dual, hull: Dual| {
            let ratio = offset / (hull + EPS);
            Dual::constant(1.0) - (gamma * ratio.powi(2) * -1.0).exp()
        };
        along(dx, self.hull_width) + along(dy, self.hull_height)
    }

    /// SIoU's shape.
    fn shape(&self) -> Dual {
        let side = |a: Dual, b: Dual| (Dual::constant(1.0) - ((a - b).abs() / a.max(b) * -1.0).exp()).powi(4);
        side(self.a[2], self.b[2]) + side(self.a[3], self.b[3])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A box, and one of twice its height that lies two to the right: they share 2 x 4 of 16 and 32, the hull is 6 x 8.
    const A: [f64; 4] = [2.0, 4.0, 4.0, 4.0];
    const B: [f64; 4] = [4.0, 4.0, 4.0, 8.0];

    /// The values were worked out with pencil and paper from the papers' formulas: IoU = 8 / 40, centres 2 apart.
    #[test]
    fn losses_of_two_boxes_by_hand() {
        let iou = 0.2;
        let distance = 4.0 / 100.0;
        let v = 4.0 / std::f64::consts::PI.powi(2) * (1f64.atan() - 0.5f64.atan()).powi(2);
        let eiou = 1.0 - iou + distance + 16.0 / 64.0;
        let expected = [
            (BoxLoss::Ciou, 1.0 - iou + distance + v * v / (1.0 - iou + v)),
            (BoxLoss::Diou, 0.84),
            (BoxLoss::Giou, 1.0 - iou + (48.0 - 40.0) / 48.0),
            (BoxLoss::Eiou, 1.09),
            // The centres lie level: the angle costs nothing, gamma is 2. Heights differ by half of the larger.
            (BoxLoss::Siou, 1.0 - iou + ((1.0 - (-2.0 / 9.0f64).exp()) + (1.0 - (-0.5f64).exp()).powi(4)) / 2.0),
            (BoxLoss::Wiou, (1.0 - iou) * (4.0 / 100.0f64).exp()),
            (BoxLoss::FocalEiou, iou.sqrt() * eiou),
        ];
        for (kind, expected) in expected {
            let (loss, _) = kind.evaluate(A, B);
            assert!((loss - expected).abs() < 1e-6, "{kind}: {loss}, expected {expected}");
        }
    }

    /// At 45 degrees SIoU's gamma is 1: two squares of side 2, one apart on both axes, share 1 of 7 in a hull of 3 x 3.
    #[test]
    fn siou_of_a_diagonal_offset_by_hand() {
        let (loss, _) = BoxLoss::Siou.evaluate([1.0, 1.0, 2.0, 2.0], [2.0, 2.0, 2.0, 2.0]);
        let expected = 1.0 - 1.0 / 7.0 + (1.0 - (-1.0 / 9.0f64).exp());
        assert!((loss - expected).abs() < 1e-6, "{loss}, expected {expected}");
    }

    #[test]
    fn equal_boxes_lose_nothing_and_distant_ones_more() {
        for (name, kind) in BoxLoss::NAMES {
            let (equal, slope) = kind.evaluate(A, A);
            assert!(equal.abs() < 1e-6 && slope.iter().all(|s| s.is_finite()), "{name}: {equal} {slope:?}");
            let (apart, slope) = kind.evaluate(A, [40.0, 4.0, 4.0, 4.0]);
            assert!(slope.iter().all(|s| s.is_finite()), "{name}: {slope:?}");
            if kind != BoxLoss::FocalEiou {
                assert!(apart > 0.99, "{name}: {apart}");
            }
        }
    }

    /// Central differences, where nothing is held fixed.
    #[test]
    fn slopes_are_those_of_the_values() {
        let (a, b) = ([2.2, 3.7, 4.4, 3.1], [3.1, 4.3, 3.6, 5.2]);
        for kind in [BoxLoss::Diou, BoxLoss::Giou, BoxLoss::Eiou, BoxLoss::Siou] {
            let (_, slope) = kind.evaluate(a, b);
            for i in 0..4 {
                let shifted =
                    |by: f64| kind.evaluate(std::array::from_fn(|j| a[j] + if i == j { by } else { 0.0 }), b).0;
                let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
                assert!((slope[i] - difference).abs() < 1e-7, "{kind} {i}: {} and {difference}", slope[i]);
            }
        }
    }

    /// What is held fixed is a factor: the slopes are those of the other factor.
    #[test]
    fn weights_are_held_fixed() {
        let (a, b) = ([2.2, 3.7, 4.4, 3.1], [3.1, 4.3, 3.6, 5.2]);
        let (eiou, plain) = BoxLoss::Eiou.evaluate(a, b);
        let (focal, weighed) = BoxLoss::FocalEiou.evaluate(a, b);
        for i in 0..4 {
            assert!((weighed[i] - plain[i] * focal / eiou).abs() < 1e-9);
        }
        // CIoU's second term is the squared v over a number that is held fixed at (1 - IoU + v).
        let (ciou, with_aspect) = BoxLoss::Ciou.evaluate(a, b);
        let (diou, without) = BoxLoss::Diou.evaluate(a, b);
        let v =
            |c: [f64; 4]| 4.0 / std::f64::consts::PI.powi(2) * ((b[2] / b[3]).atan() - (c[2] / c[3]).atan()).powi(2);
        let alpha = (ciou - diou) / v(a);
        for i in 2..4 {
            let shifted = |by: f64| v(std::array::from_fn(|j| a[j] + if i == j { by } else { 0.0 }));
            let difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5;
            assert!((with_aspect[i] - without[i] - alpha * difference).abs() < 1e-7);
        }
    }

    #[test]
    fn names_are_read_and_others_told() {
        for (name, kind) in BoxLoss::NAMES {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        let error = "iou".parse::<BoxLoss>().unwrap_err();
        assert!(error.contains("focal-eiou"), "{error}");
    }
}
