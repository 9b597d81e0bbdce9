//! Which maps lie in memory as bf16: those that only convolutions in bf16 read, add, or average. What they multiply they would
//! round anyway; and half as much goes through the caches.

use std::collections::BTreeSet;

use dyconv_kernels::cpu::channels_last::Algorithm;

use super::item::{Conv, Item, Kind};
use super::pieces::Pieces;
use crate::graph::NodeId;

/// The values of `items` that lie in bf16; those in `kept` leave the program as they are.
pub(super) fn rounded(
    items: &[Item],
    pieces: &Pieces<'_>,
    kept: &[NodeId],
    channels: impl Fn(NodeId) -> usize,
) -> BTreeSet<NodeId> {
    let candidates = items.iter().filter(|item| may_round(item, &channels));
    let mut rounded: BTreeSet<NodeId> = candidates.flat_map(|item| item.outputs.iter().copied()).collect();
    for item in items {
        if let Kind::Conv(conv) | Kind::Head { conv, .. } = &item.kind
            && in_bf16(conv)
        {
            continue;
        }
        for &value in item.inputs.iter().chain(&item.residual) {
            let of = if item.kind == Kind::Copy { pieces.through(value) } else { pieces.of(value) };
            of.iter().for_each(|piece| _ = rounded.remove(&piece.value));
        }
    }
    for piece in kept.iter().flat_map(|&value| pieces.of(value)) {
        rounded.remove(&piece.value);
    }
    // What lies in one map is of one type.
    for item in items {
        if !item.outputs.iter().all(|value| rounded.contains(value)) {
            item.outputs.iter().for_each(|value| _ = rounded.remove(value));
        }
    }
    rounded
}

fn in_bf16(conv: &Conv) -> bool {
    conv.algorithm == Algorithm::DirectBf16 && conv.geometry.groups == 1
}

/// Whether it could write its results in bf16: in a map of several, none begins in the middle of a pair.
fn may_round(item: &Item, channels: &impl Fn(NodeId) -> usize) -> bool {
    match &item.kind {
        Kind::Input => true,
        Kind::Conv(conv) => {
            in_bf16(conv) && item.outputs.iter().rev().skip(1).all(|value| channels(*value).is_multiple_of(2))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use dyconv_kernels::cpu::channels_last::Act;

    use super::*;
    use crate::Graph;
    use crate::config::NetworkConfig;
    use crate::plan::place::{Places, extent};
    use crate::plan::{Precision, choose, fuse, join};

    /// A convolution each of: two that are read by convolutions, one that is added, one that is pooled.
    const YAML: &str = "
nc: 2
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 13, 16, 30]]
backbone:
  - [-1, 1, Conv, [16, 6, 2, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Bottleneck, [32]]
  - [-1, 1, SPPF, [32, 5]]
head:
  - [[3], 1, Detect, [nc, anchors]]
";

    #[test]
    fn maps_that_only_convolutions_read_are_rounded() {
        let config = NetworkConfig::parse("test", YAML).unwrap();
        let graph = Graph::new(&config).unwrap();
        let shapes = graph.shapes(64, 64).unwrap();
        let rounded_in = |precision: Precision| {
            let mut items = join::join(fuse::fuse(&graph, &[]));
            choose::choose(&mut items, &shapes, precision, |_, all| Ok(all[0])).unwrap();
            let mut pieces = crate::plan::pieces::Pieces::new(&graph, &shapes);
            let items = choose::settle(items, &mut pieces, &[]);
            let rounded = rounded(&items, &pieces, &[], |value| extent(shapes[value]).2);
            let places = Places::new(&items, &pieces, &shapes, 1, (&[], &rounded));
            let of = |value: NodeId| {
                let Some(source) = items.iter().find(|item| item.outputs.contains(&value)) else { unreachable!() };
                match &source.kind {
                    Kind::Conv(conv) => {
                        assert_eq!(conv.act, Act::Silu);
                        graph.nodes()[conv.sources[0].node].layer
                    }
                    Kind::Input => None,
                    other => unreachable!("{other:?} writes bf16"),
                }
            };
            (rounded.iter().map(|value| of(*value)).collect::<Vec<_>>(), places.memory)
        };
        let (none, all) = rounded_in(Precision::F32);
        assert!(none.is_empty());
        // The input and all layers, those of the bottleneck and of the pooling layer; not what is pooled.
        let (some, fewer) = rounded_in(Precision::Bf16);
        assert_eq!(some, [None, Some(0), Some(1), Some(2), Some(2), Some(3)]);
        assert!(fewer < all, "{fewer} of {all}");
    }
}
