//! Starting values of a new network, the same for the same seed.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::{Graph, Init, Param};
use crate::Result;

/// A small generator of random numbers (splitmix64), so that a seed means the same weights everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn uniform(&mut self, bound: f64) -> f32 {
        ((2.0 * self.unit() - 1.0) * bound) as f32
    }

    /// Standard normal, by Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

impl Graph {
    /// Starting values for every parameter and buffer, by name, in f32.
    ///
    /// They follow PyTorch's and YOLOv5's rules (uniform by fan-in, detection biases by stride), not their random numbers.
    ///
    /// # Errors
    /// Where `device` has no room.
    pub fn init(&self, seed: u64, device: &Device) -> Result<HashMap<String, Tensor>> {
        let mut random = Random(seed);
        let tensor = |param: &Param| {
            let values = values(param, &mut random);
            Ok((param.name.clone(), Tensor::from_vec(values, param.shape.as_slice(), device)?))
        };
        self.params.iter().map(tensor).collect()
    }
}

fn values(param: &Param, random: &mut Random) -> Vec<f32> {
    let count = param.shape.iter().product();
    match &param.init {
        Init::Zeros => vec![0.0; count],
        Init::Ones => vec![1.0; count],
        Init::Uniform(bound) => (0..count).map(|_| random.uniform(*bound)).collect(),
        Init::Normal(deviation) => (0..count).map(|_| (random.normal() * deviation) as f32).collect(),
        Init::Values(values) => values.clone(),
        Init::DetectBias { bound, stride, classes, outputs } => {
            // About eight objects a picture of 640 pixels, and classes equally likely.
            let objectness = (8.0 / (640.0 / stride).powi(2)).ln() as f32;
            let class = (0.6 / (*classes as f64 - 0.99999)).ln() as f32;
            let shift = |column: usize| match column {
                4 => objectness,
                column if (5..5 + classes).contains(&column) => class,
                _ => 0.0,
            };
            (0..count).map(|i| random.uniform(*bound) + shift(i % outputs)).collect()
        }
    }
}
