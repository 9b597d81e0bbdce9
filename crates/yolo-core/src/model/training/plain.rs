//! The training pass operation by operation, recorded by Candle: the twin of the tape.

use candle_core::Tensor;
use dyconv_kernels::batch_norm_training;

use super::super::{BATCH_NORM_EPS, Model, exec};
use super::{Notes, fuse};
use crate::Result;
use crate::graph::{NodeId, Op};

/// Runs the network and gives the results of the `wanted` nodes.
pub(super) fn run(model: &Model, x: &Tensor, wanted: &[NodeId]) -> Result<(Vec<Tensor>, Notes)> {
    let with_silu = fuse::with_silu(&model.graph, wanted);
    let mut notes = Notes::default();
    let results = model.walk(x, wanted, |id, inputs| {
        let node = &model.graph.nodes()[id];
        match (&node.op, inputs) {
            (Op::BatchNorm { weight, bias, mean, var }, [x]) => {
                let [weight, bias] = [weight, bias].map(|id| &model.params[*id]);
                let done = batch_norm_training(x, weight, bias, BATCH_NORM_EPS, with_silu[id])?;
                notes.statistics(model, (*mean, *var), done.mean, done.var);
                Ok(done.y)
            }
            (Op::Activation(_), [x]) if node.inputs.iter().all(|input| with_silu[*input]) => Ok((*x).clone()),
            (Op::Route { route, .. }, _) => {
                let weights = exec::run(model, id, inputs)?;
                notes.routing(model, route, weights.detach());
                Ok(weights)
            }
            _ => exec::run(model, id, inputs),
        }
    })?;
    Ok((results, notes))
}
