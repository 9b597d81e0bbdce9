//! SGD with Nesterov's momentum, Adam and AdamW, as PyTorch computes them.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};
use yolo_core::graph::ParamKind;
use yolo_core::weights::Weights;

use super::elementwise::{squared_norm, update2, update3};
use crate::{Error, Result};

/// Decay of Adam's second moment, and what keeps its root from zero (arXiv 1412.6980).
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

/// The rule by which gradients change weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OptimizerKind {
    /// Stochastic gradient descent with Nesterov's momentum.
    #[default]
    #[serde(rename = "SGD")]
    Sgd,
    /// Adam (arXiv 1412.6980); weight decay is part of the gradient.
    Adam,
    /// Adam with weight decay of its own (arXiv 1711.05101).
    AdamW,
}

impl FromStr for OptimizerKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "SGD" => Ok(Self::Sgd),
            "Adam" => Ok(Self::Adam),
            "AdamW" => Ok(Self::AdamW),
            _ => Err(format!("`{name}` is no optimizer, expected SGD, Adam or AdamW")),
        }
    }
}

impl fmt::Display for OptimizerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sgd => "SGD",
            Self::Adam => "Adam",
            Self::AdamW => "AdamW",
        })
    }
}

/// YOLOv5's groups of parameters; each has a learning rate of its own while the training warms up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Biases: no weight decay.
    Bias = 0,
    /// Weights, with weight decay.
    Weight = 1,
    /// Scales of batch normalisations: no weight decay.
    Norm = 2,
}

impl Group {
    /// The group of a kind of parameter; none for what is not trained.
    #[must_use]
    pub fn of(kind: ParamKind) -> Option<Self> {
        match kind {
            ParamKind::Bias => Some(Self::Bias),
            ParamKind::Weight => Some(Self::Weight),
            ParamKind::NormWeight => Some(Self::Norm),
            ParamKind::Buffer => None,
        }
    }
}

/// A tensor to be trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// State-dict name.
    pub name: String,
    /// Its values, f32.
    pub var: Var,
    /// Its group.
    pub group: Group,
}

/// What is kept of a parameter between steps.
struct Slot {
    parameter: Parameter,
    /// Momentum; Adam's first moment.
    first: Var,
    /// Adam's second moment.
    second: Option<Var>,
    /// Sum of the gradients since the last step.
    gradient: Var,
    /// Whether there is anything in it.
    pending: bool,
}

/// An optimiser over a network's parameters, which sums up gradients until it is told to take a step.
pub struct Optimizer {
    kind: OptimizerKind,
    slots: Vec<Slot>,
    weight_decay: f64,
    /// By [`Group`].
    learning_rates: [f64; 3],
    momentum: f64,
    steps: u64,
}

impl Optimizer {
    /// An optimiser that has taken no step; `momentum` is Adam's first decay.
    ///
    /// # Errors
    /// Where the device has no room.
    pub fn new(kind: OptimizerKind, parameters: Vec<Parameter>, lr: f64, momentum: f64, decay: f64) -> Result<Self> {
        let slot = |parameter: Parameter| {
            let zeros = || Var::from_tensor(&parameter.var.zeros_like()?);
            let second = if kind == OptimizerKind::Sgd { None } else { Some(zeros()?) };
            Ok(Slot { first: zeros()?, second, gradient: zeros()?, pending: false, parameter })
        };
        let slots = parameters.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Self { kind, slots, weight_decay: decay, learning_rates: [lr; 3], momentum, steps: 0 })
    }

    /// The rule.
    #[must_use]
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// Number of parameters in each [`Group`].
    #[must_use]
    pub fn group_sizes(&self) -> [usize; 3] {
        let mut sizes = [0; 3];
        self.slots.iter().for_each(|slot| sizes[slot.parameter.group as usize] += 1);
        sizes
    }

    /// Learning rates by [`Group`].
    pub fn set_learning_rates(&mut self, rates: [f64; 3]) {
        self.learning_rates = rates;
    }

    /// Momentum of SGD; Adam keeps its own, as in YOLOv5.
    pub fn set_momentum(&mut self, momentum: f64) {
        if self.kind == OptimizerKind::Sgd {
            self.momentum = momentum;
        }
    }

    /// Adds the gradients of a batch. Parameters without one (frozen ones) stay as they are.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn accumulate(&mut self, gradients: &GradStore) -> Result<()> {
        for slot in &mut self.slots {
            let Some(gradient) = gradients.get(&slot.parameter.var) else { continue };
            if slot.pending {
                update2(&slot.gradient, gradient, |sum, g| sum + g, |sum, g| sum + g)?;
            } else {
                update2(&slot.gradient, gradient, |_, g| g, |_, g| Ok(g.clone()))?;
            }
            slot.pending = true;
        }
        Ok(())
    }

    /// Forgets the gradients since the last step.
    pub fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.pending = false);
    }

    /// Changes the parameters by the gradients since the last step, which are shortened to a common norm of at most
    /// `max_norm`, and forgets the gradients. Gives the norm before that.
    ///
    /// # Errors
    /// [`Error::Training`] where the norm is no finite number: nothing is changed then.
    pub fn step(&mut self, max_norm: f64) -> Result<f64> {
        let mut squares = 0.0;
        for slot in self.slots.iter().filter(|slot| slot.pending) {
            squares += squared_norm(&slot.gradient)?;
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Err(Error::Diverged(format!("the gradient's norm is {norm}")));
        }
        // PyTorch's clip_grad_norm_.
        let scale = (max_norm / (norm + 1e-6)).min(1.0);
        self.steps += 1;
        for slot in &mut self.slots {
            if std::mem::take(&mut slot.pending) {
                let group = slot.parameter.group;
                let decay = if group == Group::Weight { self.weight_decay } else { 0.0 };
                let rate = self.learning_rates[group as usize];
                match &slot.second {
                    None => sgd(slot, scale, rate, self.momentum, decay)?,
                    Some(second) => {
                        let apart = self.kind == OptimizerKind::AdamW;
                        adam(slot, second, scale, rate, self.momentum, decay, apart, self.steps)?;
                    }
                }
            }
        }
        Ok(norm)
    }

    /// What a later [`Optimizer::restore`] needs to go on as if there had been no break, by names that start with `optimizer.`.
    #[must_use]
    pub fn state(&self) -> HashMap<String, Tensor> {
        let mut state = HashMap::new();
        for slot in &self.slots {
            let mut add = |what: &str, var: &Var| {
                state.insert(format!("optimizer.{what}.{}", slot.parameter.name), var.as_detached_tensor());
            };
            add("first", &slot.first);
            if let Some(second) = &slot.second {
                add("second", second);
            }
            if slot.pending {
                add("gradient", &slot.gradient);
            }
        }
        state
    }

    /// Number of steps so far; goes with [`Optimizer::state`].
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Takes up what [`Optimizer::state`] gave after `steps` steps.
    ///
    /// # Errors
    /// Where a tensor is missing or of another shape: the state belongs to another network or optimiser.
    pub fn restore(&mut self, weights: &Weights, steps: u64) -> Result<()> {
        self.steps = steps;
        for slot in &mut self.slots {
            let name = &slot.parameter.name;
            super::ema::fill(&slot.first, weights, &format!("optimizer.first.{name}"))?;
            if let Some(second) = &slot.second {
                super::ema::fill(second, weights, &format!("optimizer.second.{name}"))?;
            }
            let gradient = format!("optimizer.gradient.{name}");
            slot.pending = weights.shape(&gradient).is_some();
            if slot.pending {
                super::ema::fill(&slot.gradient, weights, &gradient)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Optimizer({}, {} parameters, {} steps)", self.kind, self.slots.len(), self.steps)
    }
}

/// `v = m v + g; p -= rate (g + m v)` with `g` the scaled gradient plus decay times `p`.
fn sgd(slot: &Slot, scale: f64, rate: f64, momentum: f64, decay: f64) -> candle_core::Result<()> {
    let (s, r, m, w) = (scale as f32, rate as f32, momentum as f32, decay as f32);
    let parameter = slot.parameter.var.as_tensor();
    update3(
        &slot.first,
        &slot.gradient,
        parameter,
        |v, g, p| m * v + (s * g + w * p),
        |v, g, p| (v * momentum)? + ((g * scale)? + (p * decay)?)?,
    )?;
    update3(
        parameter,
        &slot.gradient,
        &slot.first,
        |p, g, v| p - r * ((s * g + w * p) + m * v),
        |p, g, v| p - ((((g * scale)? + (p * decay)?)? + (v * momentum)?)? * rate)?,
    )
}

/// Adam; with `apart`, the decay acts on the parameter and not on the moments.
#[allow(clippy::too_many_arguments, reason = "the numbers of one formula")]
fn adam(
    slot: &Slot,
    second: &Var,
    scale: f64,
    rate: f64,
    beta: f64,
    decay: f64,
    apart: bool,
    steps: u64,
) -> candle_core::Result<()> {
    let inside = if apart { 0.0 } else { decay };
    let keep = if apart { 1.0 - rate * decay } else { 1.0 };
    let steps = steps.min(i32::MAX as u64) as i32;
    let step = rate / (1.0 - beta.powi(steps));
    let root = (1.0 - BETA2.powi(steps)).sqrt();
    let (s, w, b) = (scale as f32, inside as f32, beta as f32);
    let parameter = slot.parameter.var.as_tensor();
    let full = |g: &Tensor, p: &Tensor| (g * scale)? + (p * inside)?;
    update3(
        &slot.first,
        &slot.gradient,
        parameter,
        |m, g, p| b * m + (1.0 - b) * (s * g + w * p),
        |m, g, p| (m * beta)? + (full(g, p)? * (1.0 - beta))?,
    )?;
    let b2 = BETA2 as f32;
    update3(
        second,
        &slot.gradient,
        parameter,
        |v, g, p| {
            let g = s * g + w * p;
            b2 * v + (1.0 - BETA2) as f32 * g * g
        },
        |v, g, p| (v * BETA2)? + (full(g, p)?.sqr()? * (1.0 - BETA2))?,
    )?;
    let (k, t, q, e) = (keep as f32, step as f32, root as f32, EPS as f32);
    update3(
        parameter,
        &slot.first,
        second,
        |p, m, v| k * p - t * m / (v.sqrt() / q + e),
        |p, m, v| (p * keep)? - ((m * step)? / ((v.sqrt()? / root)? + EPS)?)?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use yolo_core::weights::NetworkMetadata;

    const START: [f32; 3] = [0.5, -1.2, 2.0];
    const GRADIENTS: [[f32; 3]; 4] = [[0.3, -0.2, 0.9], [0.1, 0.4, -0.5], [-0.6, 0.2, 0.1], [0.2, 0.2, 0.2]];

    fn optimizer(kind: OptimizerKind, group: Group) -> (Optimizer, Var) {
        let var = Var::new(&START, &Device::Cpu).unwrap();
        let parameter = Parameter { name: "w".into(), var: var.clone(), group };
        let mut optimizer = Optimizer::new(kind, vec![parameter], 0.1, 0.9, 0.05).unwrap();
        optimizer.set_learning_rates([0.2, 0.1, 0.3]);
        (optimizer, var)
    }

    /// Gradients of a loss that is the sum of the parameter times fixed numbers.
    fn backward(var: &Var, gradient: [f32; 3]) -> GradStore {
        (var.as_tensor() * Tensor::new(&gradient, &Device::Cpu).unwrap())
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
    }

    fn values(var: &Var) -> Vec<f32> {
        var.to_vec1().unwrap()
    }

    /// PyTorch's formulas, one number at a time in f64.
    fn expected(kind: OptimizerKind, rate: f64, decay: f64) -> [f64; 3] {
        std::array::from_fn(|i| {
            let (mut p, mut m, mut v) = (f64::from(START[i]), 0.0, 0.0);
            for (step, gradient) in GRADIENTS.iter().enumerate() {
                let mut g = f64::from(gradient[i]);
                if kind == OptimizerKind::AdamW {
                    p -= rate * decay * p;
                } else {
                    g += decay * p;
                }
                if kind == OptimizerKind::Sgd {
                    m = if step == 0 { g } else { 0.9 * m + g };
                    p -= rate * (g + 0.9 * m);
                } else {
                    let n = step as i32 + 1;
                    m = 0.9 * m + 0.1 * g;
                    v = 0.999 * v + 0.001 * g * g;
                    let (m, v) = (m / (1.0 - 0.9f64.powi(n)), v / (1.0 - 0.999f64.powi(n)));
                    p -= rate * m / (v.sqrt() + 1e-8);
                }
            }
            p
        })
    }

    #[test]
    fn steps_follow_the_formulas() {
        check_formulas();
    }

    /// What other devices than the CPU run.
    #[test]
    fn steps_in_candles_operations_follow_them_too() {
        crate::optim::elementwise::PLAIN.set(true);
        check_formulas();
        crate::optim::elementwise::PLAIN.set(false);
    }

    fn check_formulas() {
        for kind in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::AdamW] {
            for (group, rate, decay) in [(Group::Bias, 0.2, 0.0), (Group::Weight, 0.1, 0.05), (Group::Norm, 0.3, 0.0)] {
                let (mut optimizer, var) = optimizer(kind, group);
                for gradient in GRADIENTS {
                    optimizer.accumulate(&backward(&var, gradient)).unwrap();
                    optimizer.step(10.0).unwrap();
                }
                for (got, expected) in values(&var).iter().zip(expected(kind, rate, decay)) {
                    assert!((f64::from(*got) - expected).abs() < 3e-6, "{kind} {group:?}: {got}, {expected}");
                }
            }
        }
    }

    #[test]
    fn gradients_add_up_until_the_step() {
        let (mut once, single) = optimizer(OptimizerKind::Sgd, Group::Weight);
        let sum = std::array::from_fn(|i| GRADIENTS[0][i] + GRADIENTS[1][i]);
        once.accumulate(&backward(&single, sum)).unwrap();
        once.step(10.0).unwrap();
        let (mut twice, var) = optimizer(OptimizerKind::Sgd, Group::Weight);
        twice.accumulate(&backward(&var, GRADIENTS[0])).unwrap();
        twice.accumulate(&backward(&var, GRADIENTS[1])).unwrap();
        twice.step(10.0).unwrap();
        assert_eq!(values(&var), values(&single));
    }

    #[test]
    fn gradients_that_were_forgotten_count_for_nothing() {
        let (mut once, single) = optimizer(OptimizerKind::Sgd, Group::Weight);
        once.accumulate(&backward(&single, GRADIENTS[1])).unwrap();
        once.step(10.0).unwrap();
        let (mut twice, var) = optimizer(OptimizerKind::Sgd, Group::Weight);
        twice.accumulate(&backward(&var, GRADIENTS[0])).unwrap();
        twice.forget();
        assert!(!twice.state().keys().any(|name| name.contains("gradient")));
        twice.accumulate(&backward(&var, GRADIENTS[1])).unwrap();
        twice.step(10.0).unwrap();
        assert_eq!(values(&var), values(&single));
    }

    #[test]
    fn long_gradients_are_shortened() {
        let (mut optimizer, var) = optimizer(OptimizerKind::Sgd, Group::Bias);
        optimizer.set_momentum(0.0);
        optimizer.accumulate(&backward(&var, [30.0, 0.0, 40.0])).unwrap();
        assert!((optimizer.step(10.0).unwrap() - 50.0).abs() < 1e-9);
        let expected = [START[0] - 0.2 * 6.0, START[1], START[2] - 0.2 * 8.0];
        assert!(values(&var).iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-5));
    }

    #[test]
    fn a_gradient_that_is_no_number_changes_nothing() {
        let (mut optimizer, var) = optimizer(OptimizerKind::Adam, Group::Bias);
        optimizer.accumulate(&backward(&var, [f32::NAN, 0.0, 1.0])).unwrap();
        assert!(optimizer.step(10.0).unwrap_err().to_string().contains("NaN"));
        assert_eq!(values(&var), START);
    }

    #[test]
    fn a_restored_optimizer_goes_on_the_same() {
        for kind in [OptimizerKind::Sgd, OptimizerKind::Adam, OptimizerKind::AdamW] {
            let (mut uncut, var) = optimizer(kind, Group::Weight);
            let (mut cut, cut_var) = optimizer(kind, Group::Weight);
            for optimizer_and_var in [(&mut uncut, &var), (&mut cut, &cut_var)] {
                let (optimizer, var) = optimizer_and_var;
                optimizer.accumulate(&backward(var, GRADIENTS[0])).unwrap();
                optimizer.step(10.0).unwrap();
                optimizer.accumulate(&backward(var, GRADIENTS[1])).unwrap();
            }
            let (mut restored, restored_var) = optimizer(kind, Group::Weight);
            restored_var.set(&cut_var.as_detached_tensor().copy().unwrap()).unwrap();
            let state = Weights::from_tensors(cut.state(), NetworkMetadata::default());
            restored.restore(&state, cut.steps()).unwrap();
            for (optimizer, var) in [(&mut uncut, &var), (&mut restored, &restored_var)] {
                optimizer.accumulate(&backward(var, GRADIENTS[2])).unwrap();
                optimizer.step(10.0).unwrap();
                optimizer.accumulate(&backward(var, GRADIENTS[3])).unwrap();
                optimizer.step(10.0).unwrap();
            }
            assert_eq!(values(&restored_var), values(&var), "{kind}");
        }
    }
}
