//! Learning rates, momentum and accumulation over a training run.

/// Batches for which YOLOv5 warms up at least.
const MIN_WARMUP: f64 = 100.0;
/// The batch size that YOLOv5 gathers gradients for.
pub const NOMINAL_BATCH: usize = 64;

/// YOLOv5's schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Learning rate after the warm-up.
    pub lr0: f64,
    /// Learning rate at the end, as a share of `lr0`.
    pub lrf: f64,
    /// Epochs of the run.
    pub epochs: usize,
    /// Falls along a half-wave of the cosine instead of a straight line.
    pub cosine: bool,
    /// Batches an epoch.
    pub batches: usize,
    /// Batches of the warm-up.
    pub warmup: usize,
    /// Learning rate of the biases at the start of the warm-up; the others start at 0.
    pub warmup_bias_lr: f64,
    /// Momentum at the start of the warm-up.
    pub warmup_momentum: f64,
    /// Momentum after the warm-up.
    pub momentum: f64,
    /// Pictures a batch.
    pub batch: usize,
    /// Pictures that gradients are gathered for before a step; [`NOMINAL_BATCH`] in YOLOv5.
    pub nominal: usize,
}

/// What a batch is trained with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rates of biases, weights, and batch normalisations' scales.
    pub learning_rates: [f64; 3],
    /// Momentum.
    pub momentum: f64,
    /// Batches whose gradients are summed up before a step.
    pub accumulate: usize,
}

impl Schedule {
    /// Batches of a warm-up of `epochs` epochs with `batches` batches each.
    #[must_use]
    pub fn warmup_batches(epochs: f64, batches: usize) -> usize {
        (epochs * batches as f64).round_ties_even().max(MIN_WARMUP) as usize
    }

    /// Batches of `batch` pictures whose gradients make up the nominal batch.
    #[must_use]
    pub fn accumulation(batch: usize, nominal: usize) -> usize {
        (nominal as f64 / batch.max(1) as f64).round_ties_even().max(1.0) as usize
    }

    /// The learning rate of an epoch as a share of `lr0`.
    #[must_use]
    pub fn factor(&self, epoch: usize) -> f64 {
        let done = epoch as f64 / self.epochs.max(1) as f64;
        if self.cosine {
            (1.0 - (done * std::f64::consts::PI).cos()) / 2.0 * (self.lrf - 1.0) + 1.0
        } else {
            (1.0 - done) * (1.0 - self.lrf) + self.lrf
        }
    }

    /// What batch `step` (counted over all epochs) of epoch `epoch` is trained with.
    #[must_use]
    pub fn at(&self, step: usize, epoch: usize) -> Rates {
        let accumulate = Self::accumulation(self.batch, self.nominal);
        if step > self.warmup {
            // The warm-up's last rate stays until its epoch ends; YOLOv5's scheduler, which sets those of the epochs after it, is
            // an epoch behind.
            let ended = self.warmup / self.batches.max(1);
            let lr = self.lr0 * self.factor(if epoch > ended { epoch - 1 } else { epoch });
            return Rates { learning_rates: [lr; 3], momentum: self.momentum, accumulate };
        }
        let lr = self.lr0 * self.factor(epoch);
        let done = step as f64 / self.warmup.max(1) as f64;
        let between = |from: f64, to: f64| from + (to - from) * done;
        let others = between(0.0, lr);
        let batches = between(1.0, self.nominal as f64 / self.batch.max(1) as f64);
        Rates {
            learning_rates: [between(self.warmup_bias_lr, lr), others, others],
            momentum: between(self.warmup_momentum, self.momentum),
            accumulate: batches.round_ties_even().max(1.0) as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cosine: bool) -> Schedule {
        Schedule {
            lr0: 0.01,
            lrf: 0.1,
            epochs: 100,
            cosine,
            batches: 80,
            warmup: 200,
            warmup_bias_lr: 0.1,
            warmup_momentum: 0.8,
            momentum: 0.937,
            batch: 8,
            nominal: NOMINAL_BATCH,
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    #[test]
    fn rates_fall_from_one_to_lrf() {
        for cosine in [false, true] {
            let schedule = schedule(cosine);
            assert!(
                near(schedule.factor(0), 1.0) && near(schedule.factor(50), 0.55) && near(schedule.factor(100), 0.1)
            );
        }
        assert!(near(schedule(false).factor(25), 0.775));
        assert!(near(schedule(true).factor(25), 0.55 + 0.45 * 0.5f64.sqrt()));
    }

    #[test]
    fn the_warm_up_leads_to_the_schedule() {
        let schedule = schedule(false);
        let start = schedule.at(0, 0);
        assert_eq!(start, Rates { learning_rates: [0.1, 0.0, 0.0], momentum: 0.8, accumulate: 1 });
        let half = schedule.at(100, 1);
        let lr = 0.01 * schedule.factor(1);
        assert!(near(half.learning_rates[0], (0.1 + lr) / 2.0) && near(half.learning_rates[1], lr / 2.0));
        // Half-way from 1 to 8 is 4.5, rounded to even.
        assert!(near(half.momentum, 0.8685) && half.accumulate == 4);
        let end = schedule.at(200, 2);
        assert!(near(end.learning_rates[0], 0.01 * schedule.factor(2)) && end.accumulate == 8);
        assert_eq!(schedule.at(239, 2).learning_rates, [0.01 * schedule.factor(2); 3]);
        assert_eq!(schedule.at(240, 3).learning_rates, [0.01 * schedule.factor(2); 3]);
        assert_eq!(Schedule { warmup: 0, ..schedule }.at(1, 0).learning_rates, [0.01; 3]);
    }

    /// Batches an epoch, batches of the warm-up, the batch, its epoch; rates of biases and weights, momentum. The values are those
    /// of tests/data/schedule.py.
    #[test]
    fn rates_are_those_of_yolov5s_loop() {
        let values = [
            (125, 375, 187, 1, 0.0546712, 0.004537866666666667, 0.8683173333333334),
            (125, 375, 375, 3, 0.0073, 0.0073, 0.937),
            (125, 375, 376, 3, 0.0073, 0.0073, 0.937),
            (125, 375, 499, 3, 0.0073, 0.0073, 0.937),
            (125, 375, 500, 4, 0.0073, 0.0073, 0.937),
            (125, 375, 624, 4, 0.0073, 0.0073, 0.937),
            (125, 375, 625, 5, 0.0064, 0.0064, 0.937),
            (125, 375, 1249, 9, 0.0028, 0.0028, 0.937),
            (40, 100, 50, 1, 0.05455, 0.00455, 0.8685),
            (40, 100, 100, 2, 0.0082, 0.0082, 0.937),
            (40, 100, 101, 2, 0.0082, 0.0082, 0.937),
            (40, 100, 119, 2, 0.0082, 0.0082, 0.937),
            (40, 100, 120, 3, 0.0082, 0.0082, 0.937),
            (40, 100, 159, 3, 0.0082, 0.0082, 0.937),
            (40, 100, 160, 4, 0.0073, 0.0073, 0.937),
            (40, 100, 399, 9, 0.0028, 0.0028, 0.937),
            (400, 200, 100, 0, 0.055, 0.005, 0.8685),
            (400, 200, 200, 0, 0.01, 0.01, 0.937),
            (400, 200, 201, 0, 0.01, 0.01, 0.937),
            (400, 200, 399, 0, 0.01, 0.01, 0.937),
            (400, 200, 400, 1, 0.01, 0.01, 0.937),
            (400, 200, 799, 1, 0.01, 0.01, 0.937),
            (400, 200, 800, 2, 0.0091, 0.0091, 0.937),
            (400, 200, 3999, 9, 0.0028, 0.0028, 0.937),
        ];
        for (batches, warmup, step, epoch, bias, weight, momentum) in values {
            let schedule = Schedule { epochs: 10, batches, warmup, ..schedule(false) };
            let rates = schedule.at(step, epoch);
            let [b, w, n] = rates.learning_rates;
            assert!(near(b, bias) && near(w, weight) && near(n, weight), "{batches} {step}: {rates:?}");
            assert!(near(rates.momentum, momentum), "{batches} {step}: {rates:?}");
        }
    }

    #[test]
    fn lengths() {
        assert_eq!(Schedule::warmup_batches(3.0, 10), 100);
        assert_eq!(Schedule::warmup_batches(3.0, 125), 375);
        let sizes = [1, 8, 16, 40, 43, 64, 200];
        assert_eq!(sizes.map(|size| Schedule::accumulation(size, NOMINAL_BATCH)), [64, 8, 4, 2, 1, 1, 1]);
        assert_eq!(sizes.map(|size| Schedule::accumulation(size, 16)), [16, 2, 1, 1, 1, 1, 1]);
    }
}
