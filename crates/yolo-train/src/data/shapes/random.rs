//! The draws that shapes are made of.

use crate::data::rng::Rng;

/// Random numbers of one picture, in the types of pixels.
pub(super) struct Random(Rng);

impl Random {
    /// The numbers of one picture of a seed, whatever thread asks for them.
    pub(super) fn new(seed: u64, picture: u64) -> Self {
        Self(Rng::keyed(seed, 0, picture))
    }

    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.0.bits() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Uniform in `low..high`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// In `low..high`, every doubling as likely as any other.
    pub(super) fn between_log(&mut self, low: f32, high: f32) -> f32 {
        low * (high / low).powf(self.unit())
    }

    /// One of `0..count`.
    pub(super) fn below(&mut self, count: usize) -> usize {
        self.0.below(count)
    }

    /// True with this probability.
    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.unit() < probability
    }

    /// A direction of length 1.
    pub(super) fn direction(&mut self) -> [f32; 2] {
        let (sin, cos) = self.between(0.0, std::f32::consts::TAU).sin_cos();
        [cos, sin]
    }

    /// Three numbers that are nearly standard normal: sums of four bytes each, for noise of many pixels.
    pub(super) fn noise(&mut self) -> [f32; 3] {
        // The standard deviation of the sum of four numbers of 0..=255 with equal chances.
        const DEVIATION: f32 = 147.8;
        let (a, b) = (self.0.bits(), self.0.bits());
        let sum = |bits: u64| bits.to_le_bytes()[..4].iter().map(|&byte| f32::from(byte)).sum::<f32>();
        [a, a >> 32, b].map(|bits| (sum(bits) - 510.0) / DEVIATION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_their_ranges_and_moments() {
        let mut random = Random::new(1, 1);
        let count = 20_000;
        let (mut sums, mut squares, mut product) = ([0.0; 3], [0.0; 3], 0.0);
        for _ in 0..count {
            let noise = random.noise();
            product += noise[0] * noise[1];
            for i in 0..3 {
                sums[i] += noise[i];
                squares[i] += noise[i] * noise[i];
            }
        }
        let mean = |sum: f32| sum / count as f32;
        assert!(sums.iter().all(|&sum| mean(sum).abs() < 0.03), "{sums:?}");
        assert!(squares.iter().all(|&sum| (mean(sum) - 1.0).abs() < 0.05) && mean(product).abs() < 0.03, "{squares:?}");
        let logs: Vec<f32> = (0..2000).map(|_| random.between_log(1.0, 16.0)).collect();
        let below = logs.iter().filter(|&&value| value < 4.0).count();
        assert!((900..1100).contains(&below) && logs.iter().all(|value| (1.0..16.0).contains(value)), "{below}");
        let [x, y] = random.direction();
        assert!((x.hypot(y) - 1.0).abs() < 1e-5);
    }
}
