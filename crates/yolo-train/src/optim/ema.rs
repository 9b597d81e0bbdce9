//! The running average of a network's weights, which is what is validated and kept.

use candle_core::{DType, Tensor, Var};
use yolo_core::weights::Weights;

use super::elementwise::{blend, same_device_copy};
use crate::{Error, Result};

/// The share of the old average once it is settled, and the steps in which it settles.
const DECAY: f64 = 0.9999;
const SETTLE: f64 = 2000.0;

/// An exponential moving average of every tensor of a network, running statistics included.
#[derive(Debug)]
pub struct Ema {
    tensors: Vec<(String, Var)>,
    updates: u64,
}

impl Ema {
    /// An average that starts as a copy of `tensors`.
    ///
    /// # Errors
    /// Where the device has no room.
    pub fn new<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<Self> {
        let copy =
            |(name, tensor): (&str, &Tensor)| Ok((name.to_owned(), Var::from_tensor(&same_device_copy(tensor)?)?));
        Ok(Self { tensors: tensors.into_iter().map(copy).collect::<Result<_>>()?, updates: 0 })
    }

    /// Takes in the network's tensors after a step, in the order in which [`Ema::new`] had them: `d * average + (1 - d) * new`
    /// with `d = 0.9999 (1 - exp(-updates / 2000))`.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn update<'a>(&mut self, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
        self.updates += 1;
        let keep = DECAY * (1.0 - (-(self.updates as f64) / SETTLE).exp());
        for ((_, average), tensor) in self.tensors.iter().zip(tensors) {
            blend(average, tensor, keep)?;
        }
        Ok(())
    }

    /// The averages by state-dict name. They change with every update.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.tensors.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Number of updates so far.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Takes up an average of `updates` updates from a file, where its tensors' names start with `prefix`.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape.
    pub fn restore(&mut self, weights: &Weights, prefix: &str, updates: u64) -> Result<()> {
        self.updates = updates;
        self.tensors.iter().try_for_each(|(name, var)| fill(var, weights, &format!("{prefix}{name}")))
    }
}

/// Copies a file's tensor into a variable.
pub(super) fn fill(var: &Var, weights: &Weights, name: &str) -> Result<()> {
    let shape = weights.shape(name);
    if shape != Some(var.dims()) {
        let got = shape.map_or_else(|| "has none".to_owned(), |shape| format!("has {shape:?}"));
        let problem =
            format!("expected a tensor `{name}` of shape {:?}, the file {got}: it belongs to another run", var.dims());
        return Err(Error::data(weights.path(), problem));
    }
    Ok(var.set(&weights.tensor(name, DType::F32, var.device())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_average_follows_slowly() {
        let tensor = Var::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let mut ema = Ema::new([("w", tensor.as_tensor())]).unwrap();
        tensor.set(&Tensor::new(&[3f32, 2.0], &Device::Cpu).unwrap()).unwrap();
        let mut expected = 1.0;
        for update in 1..=3 {
            ema.update([tensor.as_tensor()]).unwrap();
            let keep = 0.9999 * (1.0 - (-f64::from(update) / 2000.0).exp());
            expected = keep * expected + (1.0 - keep) * 3.0;
        }
        let (_, average) = ema.tensors().next().unwrap();
        let average: Vec<f32> = average.to_vec1().unwrap();
        assert!((f64::from(average[0]) - expected).abs() < 1e-6 && (average[1] - 2.0).abs() < 1e-6, "{average:?}");
        assert!(expected < 3.0 && ema.updates() == 3);
    }
}
