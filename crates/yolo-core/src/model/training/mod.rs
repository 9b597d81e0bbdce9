//! A forward pass in training mode: batch normalisation by the batch's own statistics, nothing folded or fused away, and the
//! head's maps as they are, before boxes are made of them.
//!
//! There are two ways. [`plain`] records every operation with Candle: any device, any type, gradients for the pictures too.
//! [`tape`] runs the whole network on a CPU as one operation of Candle, which knows what its backward pass needs: it keeps fewer
//! maps, and gradients change hands without a copy.

mod backward;
mod forward;
mod fuse;
mod plain;
mod tape;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{Model, Outputs, exec};
use crate::graph::{NodeId, Op, Output, ParamId, RouteOp};
use crate::{Error, Result};

/// What a forward pass in training mode gives.
#[derive(Debug, Clone)]
pub struct TrainingOutputs {
    /// The head's maps, level by level: `[B, anchors, ny, nx, 5 + classes (+ masks)]`, before any sigmoid.
    pub levels: Vec<Tensor>,
    /// Mask prototypes `[B, masks, H / 4, W / 4]` of a segmentation network.
    pub prototypes: Option<Tensor>,
    /// What the batch says about each batch normalisation's input; no gradient flows through it.
    pub statistics: Vec<BatchStatistics>,
    /// The routing weights `[B, K]` of each dynamic convolution with the name of its router; no gradient flows through them.
    pub routing: Vec<(String, Tensor)>,
}

/// Mean and variance of a batch, and the running statistics that they belong to.
///
/// With YOLOv5's momentum the running ones become `0.97 * running + 0.03 * batch`.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// Name of the parameter with the running mean.
    pub mean: String,
    /// Name of the parameter with the running variance.
    pub var: String,
    /// `[C]`
    pub batch_mean: Tensor,
    /// `[C]`, with `n - 1` for the divisor.
    pub batch_var_unbiased: Tensor,
}

impl Model {
    /// Runs the network in training mode.
    ///
    /// Gradients flow to every parameter that is a variable but for running statistics and anchors. The running statistics are
    /// not touched: the caller blends in what [`TrainingOutputs::statistics`] says.
    ///
    /// # Shapes
    /// As of [`Model::run`].
    ///
    /// # Errors
    /// Where the shape does not fit the network, the network has no detection head, its batch normalisation is folded, a batch
    /// normalisation sees a single value a channel, or the device fails.
    pub fn run_training(&self, x: &Tensor) -> Result<TrainingOutputs> {
        self.check_input(x)?;
        if !self.folded.is_empty() {
            let problem = "its batch normalisation is folded into the convolutions; train the network as it was loaded";
            return Err(Error::Argument { argument: "model", problem: problem.into() });
        }
        let head = self.head()?;
        let wanted: Vec<NodeId> = head.maps.iter().copied().chain(head.prototypes).collect();
        let (results, notes) =
            if self.takes_tape(x) { tape::run(self, x, &wanted)? } else { plain::run(self, x, &wanted)? };
        let (maps, prototypes) = results.split_at(head.maps.len());
        Ok(TrainingOutputs {
            levels: maps.iter().map(|map| head.level(map)).collect::<Result<_>>()?,
            prototypes: prototypes.first().cloned(),
            statistics: notes.statistics,
            routing: notes.routing,
        })
    }

    /// Whether the tape can run a batch: f32 on the CPU, and a gradient is wanted for parameters only.
    fn takes_tape(&self, x: &Tensor) -> bool {
        let plain = |t: &Tensor| matches!(t.device(), Device::Cpu) && t.dtype() == DType::F32;
        // As many pixels as a convolution on the CPU counts in 32 bits.
        let small = x.dims().iter().skip(2).try_fold(1usize, |all, n| all.checked_mul(*n)).is_some_and(|n| n < 1 << 24);
        let tracked = self.params.iter().any(Tensor::track_op);
        small && plain(x) && !x.track_op() && tracked && self.params.iter().all(plain)
    }

    /// Runs the network in evaluation mode and gives the head's maps beside the boxes, as [`TrainingOutputs::levels`] has them:
    /// for losses of a validation.
    ///
    /// # Errors
    /// As of [`Model::run`]; and where the network has no detection head.
    pub fn run_with_levels(&self, x: &Tensor) -> Result<(Outputs, Vec<Tensor>)> {
        self.check_input(x)?;
        let head = self.head()?;
        let main = self.graph.output().main();
        let wanted: Vec<NodeId> = [main].into_iter().chain(head.maps.iter().copied()).chain(head.prototypes).collect();
        let results = self.walk(x, &wanted, |id, inputs| exec::run(self, id, inputs))?;
        let levels = results[1..=head.maps.len()].iter().map(|map| head.level(map)).collect::<Result<_>>()?;
        let prototypes = results.get(1 + head.maps.len()).cloned();
        Ok((Outputs { main: results[0].clone(), prototypes, features: Vec::new() }, levels))
    }

    /// Sets the temperature of every softmax routing; networks that route by sigmoids stay as they are.
    ///
    /// [`Temperature::at`](crate::config::Temperature::at) says which temperature an epoch has.
    ///
    /// # Errors
    /// Where the temperature is not positive and finite.
    pub fn set_temperature(&mut self, temperature: f64) -> Result<()> {
        if !(temperature > 0.0 && temperature.is_finite()) {
            let problem = format!("must be positive and finite, it is {temperature}");
            return Err(Error::Argument { argument: "temperature", problem });
        }
        Arc::make_mut(&mut self.graph).set_temperature(temperature);
        Ok(())
    }

    /// Where the maps that boxes are made of come from.
    fn head(&self) -> Result<Head> {
        let prototypes = match self.graph.output() {
            Output::Segment { prototypes, .. } => Some(prototypes),
            _ => None,
        };
        match self.graph.nodes().get(self.graph.output().main()) {
            Some(node) => match node.op {
                Op::Detect { per_level, .. } => Ok(Head { maps: node.inputs.clone(), prototypes, per_level }),
                _ => Err(Error::Argument {
                    argument: "model",
                    problem: format!(
                        "{} has no detection head: its last layer is neither Detect nor Segment",
                        self.graph.config().name
                    ),
                }),
            },
            None => Err(Error::Argument { argument: "model", problem: "the network has no layers".into() }),
        }
    }
}

/// The nodes of a detection head.
struct Head {
    maps: Vec<NodeId>,
    prototypes: Option<NodeId>,
    per_level: usize,
}

impl Head {
    /// `[B, anchors * outputs, ny, nx]` as `[B, anchors, ny, nx, outputs]`.
    fn level(&self, map: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = map.dims4()?;
        let map = map.reshape((batch, self.per_level, channels / self.per_level, height, width))?;
        Ok(map.permute((0, 1, 3, 4, 2))?.contiguous()?)
    }
}

/// What a pass notes on its way.
#[derive(Debug, Default)]
struct Notes {
    statistics: Vec<BatchStatistics>,
    routing: Vec<(String, Tensor)>,
}

impl Notes {
    fn statistics(&mut self, model: &Model, (mean, var): (ParamId, ParamId), batch_mean: Tensor, batch_var: Tensor) {
        let name = |id: ParamId| model.graph.params()[id].name.clone();
        let (mean, var) = (name(mean), name(var));
        self.statistics.push(BatchStatistics { mean, var, batch_mean, batch_var_unbiased: batch_var });
    }

    fn routing(&mut self, model: &Model, route: &RouteOp, weights: Tensor) {
        let (RouteOp::Linear { weight, .. } | RouteOp::Attention { weight, .. }) = route;
        let name = &model.graph.params()[*weight].name;
        let name = name.strip_suffix(".weight").unwrap_or(name);
        self.routing.push((name.strip_suffix(".fc2").unwrap_or(name).to_owned(), weights));
    }
}
