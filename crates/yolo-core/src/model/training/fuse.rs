//! Which operations of a network do the work of the one behind them in training.

use crate::config::Activation;
use crate::graph::{Graph, NodeId, Op};

/// For each node whether it is a batch normalisation that applies the SiLU behind it, being read by nothing else.
pub(super) fn with_silu(graph: &Graph, wanted: &[NodeId]) -> Vec<bool> {
    let nodes = graph.nodes();
    let mut readers = vec![0usize; nodes.len()];
    nodes.iter().flat_map(|node| &node.inputs).for_each(|&input| readers[input] += 1);
    let mut with_silu = vec![false; nodes.len()];
    for node in nodes {
        if let (Op::Activation(Activation::SiLU), [input]) = (&node.op, node.inputs.as_slice()) {
            let normalised = matches!(nodes[*input].op, Op::BatchNorm { .. });
            with_silu[*input] = normalised && readers[*input] == 1 && !wanted.contains(input);
        }
    }
    with_silu
}
