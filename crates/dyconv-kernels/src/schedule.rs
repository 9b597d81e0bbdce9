//! The temperature of softmax routing over a training run.

use crate::Routing;
use crate::error::{Operation, Result};

/// Lowers the temperature of [`Routing::Softmax`] from epoch to epoch.
///
/// At a high temperature all experts get about the same weight, so all of them learn from the start; at one, each sample can
/// choose (DY-CNN, arXiv 1912.03458, section 3.2).
///
/// ```
/// use dyconv_kernels::{Routing, TemperatureSchedule};
/// let schedule = TemperatureSchedule::default();
/// assert_eq!(schedule.at(0), 30.0);
/// assert_eq!(schedule.routing(10), Routing::Softmax { temperature: 1.0 });
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TemperatureSchedule {
    start: f64,
    end: f64,
    /// Until the end is reached.
    epochs: f64,
}

impl TemperatureSchedule {
    /// From `start` in epoch 0 along a straight line to `end` in epoch `epochs`, and `end` from then on.
    ///
    /// # Errors
    /// Where a temperature is not positive and finite.
    pub fn linear(start: f64, end: f64, epochs: usize) -> Result<Self> {
        for (argument, value) in [("start", start), ("end", end)] {
            if !(value > 0.0 && value.is_finite()) {
                let operation = Operation("TemperatureSchedule::linear");
                return Err(operation.wrong(argument, "positive and finite", value.to_string()));
            }
        }
        Ok(Self { start, end, epochs: epochs as f64 })
    }

    /// From `start` in epoch 0, less by `step` in each epoch, down to 1: the rule of the usual PyTorch code for DY-CNN, whose
    /// step is 3 and whose start is 34 (or any 3 n + 1).
    ///
    /// # Errors
    /// Where `start` is not finite and at least 1, or `step` not finite and above 0.
    pub fn steps(start: f64, step: f64) -> Result<Self> {
        let operation = Operation("TemperatureSchedule::steps");
        if !(start >= 1.0 && start.is_finite()) {
            return Err(operation.wrong("start", "finite and at least 1", start.to_string()));
        }
        if !(step > 0.0 && step.is_finite()) {
            return Err(operation.wrong("step", "finite and above 0", step.to_string()));
        }
        Ok(Self { start, end: 1.0, epochs: (start - 1.0) / step })
    }

    /// The temperature in an epoch, counted from 0.
    pub fn at(&self, epoch: usize) -> f64 {
        let epoch = epoch as f64;
        if epoch >= self.epochs { self.end } else { self.start + (self.end - self.start) * (epoch / self.epochs) }
    }

    /// The routing of an epoch, counted from 0.
    pub fn routing(&self, epoch: usize) -> Routing {
        Routing::Softmax { temperature: self.at(epoch) }
    }
}

/// As the paper: from 30 to 1 over the first ten epochs.
impl Default for TemperatureSchedule {
    fn default() -> Self {
        Self { start: 30.0, end: 1.0, epochs: 10.0 }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;

    fn first(schedule: TemperatureSchedule, count: usize) -> Vec<f64> {
        (0..count).map(|epoch| (schedule.at(epoch) * 1e9).round() / 1e9).collect()
    }

    #[test]
    fn temperatures_by_hand() {
        let paper = [30.0, 27.1, 24.2, 21.3, 18.4, 15.5, 12.6, 9.7, 6.8, 3.9, 1.0, 1.0];
        assert_eq!(first(TemperatureSchedule::default(), 12), paper);
        assert_eq!(first(TemperatureSchedule::linear(30.0, 1.0, 10).unwrap(), 12), paper);
        assert_eq!(first(TemperatureSchedule::linear(8.0, 0.5, 3).unwrap(), 5), [8.0, 5.5, 3.0, 0.5, 0.5]);
        assert_eq!(first(TemperatureSchedule::linear(1.0, 3.0, 2).unwrap(), 4), [1.0, 2.0, 3.0, 3.0]);
        assert_eq!(first(TemperatureSchedule::linear(30.0, 1.0, 0).unwrap(), 2), [1.0, 1.0]);
        let usual = [34.0, 31.0, 28.0, 25.0, 22.0, 19.0, 16.0, 13.0, 10.0, 7.0, 4.0, 1.0, 1.0];
        assert_eq!(first(TemperatureSchedule::steps(34.0, 3.0).unwrap(), 13), usual);
        // A start that the steps do not divide ends at 1 all the same.
        assert_eq!(first(TemperatureSchedule::steps(6.0, 3.0).unwrap(), 4), [6.0, 3.0, 1.0, 1.0]);
        assert_eq!(TemperatureSchedule::default().at(usize::MAX), 1.0);
    }

    #[test]
    fn temperatures_are_positive() {
        for (start, end) in [(0.0, 1.0), (30.0, -1.0), (f64::NAN, 1.0), (30.0, f64::INFINITY)] {
            assert!(TemperatureSchedule::linear(start, end, 10).is_err(), "{start} {end}");
        }
        for (start, step) in [(0.5, 3.0), (34.0, 0.0), (34.0, f64::NAN), (f64::INFINITY, 3.0)] {
            assert!(TemperatureSchedule::steps(start, step).is_err(), "{start} {step}");
        }
        let text = TemperatureSchedule::linear(30.0, -1.0, 10).unwrap_err().to_string();
        assert_eq!(text, "TemperatureSchedule::linear: `end` must be positive and finite, it is -1");
        let text = TemperatureSchedule::steps(34.0, 0.0).unwrap_err().to_string();
        assert_eq!(text, "TemperatureSchedule::steps: `step` must be finite and above 0, it is 0");
    }

    /// Whatever the logits and the temperature are, the weights sum to one.
    #[test]
    fn weights_sum_to_one() {
        let rows = [
            [0.3f32, -0.1, 2.0, 1.0],
            [1e4, 1e4 - 1.0, -1e4, 0.0],
            [3e38, -3e38, 3e38, 1.0],
            [-3e38, -3e38, -3e38, -3e38],
            [f32::MAX, f32::MIN, 0.0, 1e-45],
        ];
        for temperature in [1e-300, 1e-30, 1e-3, 1.0, 30.0, 1e30] {
            for dtype in [DType::F32, DType::F64] {
                let logits = Tensor::new(&rows, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                let weights = Routing::Softmax { temperature }.activate(&logits).unwrap();
                for row in weights.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap() {
                    assert!(row.iter().all(|weight| (0.0..=1.0).contains(weight)), "{row:?} at {temperature}");
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-6, "{row:?} at {temperature}");
                }
            }
        }
        let logits = Tensor::new(&rows, &Device::Cpu).unwrap();
        for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let text = Routing::Softmax { temperature }.activate(&logits).unwrap_err().to_string();
            assert!(text.contains("temperature"), "{text}");
        }
        let whole = Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap();
        let none = Tensor::new(1f32, &Device::Cpu).unwrap();
        for (logits, expected) in [(whole, "of a floating type, it is u32"), (none, "[B, K], it is []")] {
            for routing in [Routing::Sigmoid, Routing::Softmax { temperature: 1.0 }] {
                let text = routing.activate(&logits).unwrap_err().to_string();
                assert!(text.starts_with(&format!("activate: `logits` must be {expected}")), "{text}");
            }
        }
    }
}
