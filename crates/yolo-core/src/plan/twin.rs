//! Operations without a kernel of their own, run inside a program as the model runs them.

use candle_core::{DType, Device, Tensor};
use dyconv_kernels::cpu::channels_last::Twin;

use super::pack::values;
use crate::Result;
use crate::graph::{Graph, NodeId, Op, Shape};
use crate::model::Model;
use crate::weights::Weights;

/// What a profile calls it.
pub(super) fn name(op: &Op) -> String {
    let debug = format!("{op:?}");
    let end = debug.find([' ', '(', '{']).unwrap_or(debug.len());
    format!("twin: {}", &debug[..end])
}

/// The operation of node `id` for `batch` samples.
pub(super) fn new(graph: &Graph, weights: &Weights, shapes: &[Shape], batch: usize, id: NodeId) -> Result<Twin> {
    let model = Model::for_node(graph, weights, id)?;
    let dims = |shape: Shape| match shape {
        Shape::Map(channels, height, width) => vec![batch, channels, height, width],
        Shape::Tokens(tokens, features) | Shape::Rows(tokens, features) => vec![batch, tokens, features],
        Shape::Vector(values) => vec![batch, values],
    };
    let inputs: Vec<Vec<usize>> = graph.nodes()[id].inputs.iter().map(|&input| dims(shapes[input])).collect();
    Ok(Box::new(move |maps, result| {
        let mut run = || -> candle_core::Result<()> {
            let tensor = |(map, dims): (&&[f32], &Vec<usize>)| Tensor::from_slice(map, dims.as_slice(), &Device::Cpu);
            let tensors = maps.iter().zip(&inputs).map(tensor).collect::<candle_core::Result<Vec<_>>>()?;
            let output = model.run_node(id, &tensors.iter().collect::<Vec<_>>())?;
            result.copy_from_slice(&values(&output.to_dtype(DType::F32)?)?);
            Ok(())
        };
        run().map_err(|error| error.to_string())
    }))
}
