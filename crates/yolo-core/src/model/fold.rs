//! Batch normalisation folded into the convolutions before it, static and dynamic.

use candle_core::Tensor;
use dyconv_kernels::{BatchNorm, Epilogue, fold_batch_norm};

use super::Model;
use super::exec::BATCH_NORM_EPS;
use crate::Result;
use crate::graph::{NodeId, Op, ParamId};

impl Model {
    /// The same network for deployment: convolutions that do the work of the batch normalisation behind them.
    ///
    /// The results agree with the network's own to rounding. The experts of dynamic convolutions are folded too, which is
    /// exact: a mixture of scaled kernels is the scaled mixture.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn fold_batch_norm(&self) -> Result<Self> {
        let mut model = self.clone();
        for (id, node) in self.graph.nodes().iter().enumerate() {
            let (Op::BatchNorm { weight, bias, mean, var }, [input]) = (&node.op, node.inputs.as_slice()) else {
                continue;
            };
            let (kernels, biases) = match self.graph.nodes()[*input].op {
                Op::Conv2d { weight, bias, .. } => (weight, bias),
                Op::DynamicConv2d { experts, bias, .. } => (experts, bias),
                _ => continue,
            };
            if self.folded.contains(&id) || self.readers(*input) != 1 || self.users(kernels) != 1 {
                continue;
            }
            let single = matches!(self.graph.nodes()[*input].op, Op::Conv2d { .. });
            let expert = |id: ParamId| if single { self.params[id].unsqueeze(0) } else { Ok(self.params[id].clone()) };
            let own = |tensor: Tensor| if single { tensor.squeeze(0) } else { Ok(tensor) };
            let [weight, bias, mean, var] = [weight, bias, mean, var].map(|id| &self.params[*id]);
            let norm = BatchNorm { weight, bias, mean, var, eps: BATCH_NORM_EPS };
            let experts_bias = biases.map(expert).transpose()?;
            let folded =
                fold_batch_norm(&expert(kernels)?, experts_bias.as_ref(), &norm).map_err(candle_core::Error::from)?;
            model.params[kernels] = own(folded.experts)?;
            if let (Some(id), Some(bias)) = (biases, folded.bias) {
                model.params[id] = own(bias)?;
            }
            model.shifts.insert(*input, folded.shift);
            model.folded.insert(id);
        }
        Ok(model)
    }

    /// What a convolution adds to its channels.
    pub(super) fn epilogue(&self, id: NodeId) -> Epilogue<'_> {
        Epilogue { shift: self.shifts.get(&id), ..Epilogue::default() }
    }

    fn readers(&self, id: NodeId) -> usize {
        let inputs = self.graph.nodes().iter().flat_map(|node| &node.inputs);
        inputs.filter(|input| **input == id).count()
            + usize::from(self.graph.layers().iter().any(|layer| layer.node == id))
    }

    fn users(&self, param: ParamId) -> usize {
        let uses = |op: &Op| match op {
            Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } => *weight == param,
            Op::DynamicConv2d { experts, .. } => *experts == param,
            _ => false,
        };
        self.graph.nodes().iter().filter(|node| uses(&node.op)).count()
    }
}
