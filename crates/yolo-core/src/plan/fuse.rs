//! First pass: from the graph's operations to items; convolutions take along what follows them.

use dyconv_kernels::cpu::channels_last::{Act, Algorithm, Pool};

use super::item::{Conv, Item, Kind, Source};
use crate::config::Activation;
use crate::graph::{Graph, NodeId, Op};

/// The kernels' form of an activation; none where there is only the twin.
pub(super) fn act_of(activation: Activation) -> Option<Act> {
    match activation {
        Activation::Identity => Some(Act::Identity),
        Activation::SiLU => Some(Act::Silu),
        Activation::ReLU => Some(Act::Leaky(0.0)),
        Activation::ReLU6 => Some(Act::Relu6),
        Activation::LeakyReLU(slope) => Some(Act::Leaky(slope as f32)),
        Activation::Hardswish => Some(Act::Hardswish),
        Activation::Sigmoid => Some(Act::Sigmoid),
        Activation::Mish | Activation::GELU | Activation::Tanh => None,
    }
}

/// Whether an operation moves nothing: its result is read where its inputs lie.
pub(super) fn is_virtual(op: &Op) -> bool {
    match op {
        Op::Concat | Op::Narrow { .. } | Op::Route { .. } => true,
        Op::Upsample { scale } => scale.is_power_of_two(),
        _ => false,
    }
}

/// Items in an order in which they can run. Values in `kept` are wanted as they are, though others follow.
pub(super) fn fuse(graph: &Graph, kept: &[NodeId]) -> Vec<Item> {
    let nodes = graph.nodes();
    let mut readers: Vec<Vec<NodeId>> = vec![Vec::new(); nodes.len()];
    for (id, node) in nodes.iter().enumerate() {
        node.inputs.iter().for_each(|&input| readers[input].push(id));
    }
    // The one node that reads a value, where the value itself is not wanted.
    let only_reader = |id: NodeId| match readers[id].as_slice() {
        [reader] if !kept.contains(&id) => Some(*reader),
        _ => None,
    };
    // The head that a convolution is a level of, and which one.
    let head = |id: NodeId| {
        let detect = only_reader(id).filter(|&next| matches!(nodes[next].op, Op::Detect { .. }))?;
        Some((detect, nodes[detect].inputs.iter().position(|input| *input == id)?))
    };
    let mut done = vec![false; nodes.len()];
    // Each item stands where the last node stands that it takes along.
    let mut items: Vec<(NodeId, Item)> = Vec::new();
    for (id, node) in nodes.iter().enumerate() {
        if done[id] || is_virtual(&node.op) {
            continue;
        }
        let inputs = node.inputs.clone();
        let plain = |kind: Kind| Item { kind, inputs: inputs.clone(), outputs: vec![id], residual: None };
        let mut last = id;
        let item = match &node.op {
            Op::Conv2d { geometry, .. } if head(id).is_some() => {
                let conv = Conv {
                    geometry: *geometry,
                    sources: vec![Source { node: id, norm: None }],
                    routing: None,
                    act: Act::Identity,
                    algorithm: Algorithm::Direct,
                };
                let (detect, level) = head(id).unwrap_or_default();
                let mut item = plain(Kind::Head { conv, level });
                item.outputs = vec![detect];
                items.push((id, item));
                continue;
            }
            Op::Input => plain(Kind::Input),
            // Each level is decoded where its convolution is.
            Op::Detect { .. } => continue,
            Op::MaxPool2d { kernel, stride, padding } => {
                plain(Kind::Pools(vec![Pool { kernel: *kernel, stride: *stride, padding: *padding }]))
            }
            Op::Conv2d { geometry, .. } | Op::DynamicConv2d { geometry, .. } => {
                let norm = only_reader(id).filter(|&next| matches!(nodes[next].op, Op::BatchNorm { .. }));
                last = norm.unwrap_or(id);
                let act = take_activation(graph, only_reader(last), &mut last);
                let routing = matches!(node.op, Op::DynamicConv2d { .. }).then(|| inputs[1]);
                let residual = only_reader(last).and_then(|next| residual_of(graph, next, last, &done));
                let mut item = plain(Kind::Conv(Conv {
                    geometry: *geometry,
                    sources: vec![Source { node: id, norm }],
                    routing,
                    act,
                    algorithm: Algorithm::Direct,
                }));
                item.inputs.truncate(1);
                // What the routing averages is read too.
                item.inputs.extend(routing.map(|routing| nodes[routing].inputs[0]));
                if let Some((next, other)) = residual {
                    item.residual = Some(other);
                    last = next;
                }
                item
            }
            Op::BatchNorm { .. } => {
                let act = take_activation(graph, only_reader(id), &mut last);
                plain(Kind::Pointwise { norm: Some(id), act })
            }
            Op::Activation(activation) => match act_of(*activation) {
                Some(act) => plain(Kind::Pointwise { norm: None, act }),
                None => plain(Kind::Twin),
            },
            Op::Add if matches!(inputs.as_slice(), [a, b] if a != b) => {
                let mut item = plain(Kind::Pointwise { norm: None, act: Act::Identity });
                item.residual = item.inputs.pop();
                item
            }
            _ => plain(Kind::Twin),
        };
        // Everything between the first node and the last is done with it.
        let mut at = id;
        while at != last {
            let Some(next) = only_reader(at) else { break };
            done[next] = true;
            at = next;
        }
        items.push((last, Item { outputs: vec![last], ..item }));
    }
    items.sort_by_key(|(last, _)| *last);
    let items = items.into_iter().map(|(_, item)| item).collect();
    chain_pools(items, kept)
}

/// The activation that `next` is, if it can be taken along.
fn take_activation(graph: &Graph, next: Option<NodeId>, last: &mut NodeId) -> Act {
    if let Some(next) = next
        && let Op::Activation(activation) = graph.nodes()[next].op
        && let Some(act) = act_of(activation)
    {
        *last = next;
        return act;
    }
    Act::Identity
}

/// Where `next` adds another map to `value`: that node, and the other map.
fn residual_of(graph: &Graph, next: NodeId, value: NodeId, done: &[bool]) -> Option<(NodeId, NodeId)> {
    let node = &graph.nodes()[next];
    let (Op::Add, [a, b]) = (&node.op, node.inputs.as_slice()) else { return None };
    let other = if *a == value { *b } else { *a };
    // A map in several pieces would have to be copied first.
    let whole = other != value && !is_virtual(&graph.nodes()[other].op);
    (whole && !done[next]).then_some((next, other))
}

/// Joins pools that read what the pool before them gave.
fn chain_pools(items: Vec<Item>, kept: &[NodeId]) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::new();
    for item in items {
        if let (Kind::Pools(more), Some(Item { kind: Kind::Pools(pools), outputs, .. })) =
            (&item.kind, joined.last_mut())
            && outputs.last() == item.inputs.first()
            && !kept.contains(&item.inputs[0])
        {
            pools.extend(more);
            outputs.extend(item.outputs);
            continue;
        }
        joined.push(item);
    }
    joined
}
