//! Random numbers that depend on a key and on nothing else.
//!
//! Every picture of every epoch has a generator of its own, so that it is drawn the same whichever thread draws it and whatever
//! was drawn before. The generator is xoshiro256++ (Blackman and Vigna, "Scrambled linear pseudorandom number generators",
//! 2021), filled by SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

/// A small, fast generator; not for secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rng {
    state: [u64; 4],
}

/// The finaliser of SplitMix64: neighbouring numbers come out unrelated.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Rng {
    /// The generator of a key: a run's seed, an epoch, a place in the epoch.
    #[must_use]
    pub fn keyed(seed: u64, epoch: u64, index: u64) -> Self {
        // One by one: a sum would give (seed 1, epoch 2) and (seed 2, epoch 1) the same numbers.
        let mut key = [epoch, index].iter().fold(mix(seed.wrapping_add(GOLDEN)), |key, part| {
            mix((key ^ part.wrapping_mul(0xD1B5_4A32_D192_ED03)).wrapping_add(GOLDEN))
        });
        let state = std::array::from_fn(|_| {
            key = key.wrapping_add(GOLDEN);
            mix(key)
        });
        Self { state }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// A number in 0..1.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in `low..high`, which may be given the wrong way round.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// An index below `count`; 0 where there is none.
    pub fn below(&mut self, count: usize) -> usize {
        ((u128::from(self.bits()) * count as u128) >> 64) as usize
    }

    /// True with this probability; draws no number where the answer is certain.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && (probability >= 1.0 || self.unit() < probability)
    }

    /// Brings a list into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }

    /// A share with the distribution Beta(n, n): the middle one of 2n - 1 uniform numbers, which is an equivalent definition
    /// for whole n.
    pub fn beta(&mut self, n: usize) -> f64 {
        let mut draws: Vec<f64> = (0..(2 * n).saturating_sub(1).max(1)).map(|_| self.unit()).collect();
        let middle = draws.len() / 2;
        *draws.select_nth_unstable_by(middle, f64::total_cmp).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unrelated_and_repeatable() {
        let first = |seed, epoch, index| Rng::keyed(seed, epoch, index).bits();
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
        let mut seen = std::collections::HashSet::new();
        for seed in 0..10 {
            for epoch in 0..10 {
                assert!((0..10).all(|index| seen.insert(first(seed, epoch, index))));
            }
        }
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut rng = Rng::keyed(7, 0, 0);
        let count = 20_000;
        let moments = |draw: &mut dyn FnMut() -> f64| {
            let values: Vec<f64> = (0..count).map(|_| draw()).collect();
            let mean = values.iter().sum::<f64>() / f64::from(count);
            (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / f64::from(count))
        };
        let (mean, variance) = moments(&mut || rng.unit());
        assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.002, "{mean} {variance}");
        // The variance of Beta(32, 32) is 1 / (4 * 65).
        let (mean, variance) = moments(&mut || rng.beta(32));
        assert!((mean - 0.5).abs() < 0.002 && (variance - 1.0 / 260.0).abs() < 2e-4, "{mean} {variance}");
        let (mean, _) = moments(&mut || rng.below(5) as f64);
        assert!((mean - 2.0).abs() < 0.05, "{mean}");
        assert!((0..count).all(|_| rng.below(3) < 3) && rng.below(0) == 0);
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut list: Vec<usize> = (0..100).collect();
        Rng::keyed(0, 0, 0).shuffle(&mut list);
        assert_ne!(list, (0..100).collect::<Vec<_>>());
        list.sort_unstable();
        assert_eq!(list, (0..100).collect::<Vec<_>>());
    }
}
