//! Random numbers that a seed fixes everywhere.

/// Splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) struct Random(u64);

impl Random {
    /// The numbers of one picture: every `stream` of a seed has its own, whatever thread asks first.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut start = Self(seed);
        let base = start.next();
        let mut own = Self(base ^ stream.wrapping_mul(0xd6e8_feb8_6659_fd93));
        Self(own.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
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
        ((self.next() >> 32) * count as u64 >> 32) as usize
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
        let (a, b) = (self.next(), self.next());
        let sum = |bits: u64| bits.to_le_bytes()[..4].iter().map(|&byte| f32::from(byte)).sum::<f32>();
        [a, a >> 32, b].map(|bits| (sum(bits) - 510.0) / DEVIATION)
    }
}
