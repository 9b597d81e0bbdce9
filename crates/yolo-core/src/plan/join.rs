//! Second pass: 1x1 convolutions of one input become one, such as `cv1` and `cv2` of a C3: the map is read once.

use super::item::{Item, Kind};
use crate::graph::NodeId;

/// Joins them; each keeps its value, which becomes a part of the common map.
pub(super) fn join(items: Vec<Item>) -> Vec<Item> {
    let mut joined: Vec<Item> = Vec::new();
    for item in items {
        match joined.iter_mut().find(|earlier| joins(earlier, &item)) {
            Some(earlier) => {
                let (Kind::Conv(conv), Kind::Conv(other)) = (&mut earlier.kind, item.kind) else { unreachable!() };
                conv.geometry.out_channels += other.geometry.out_channels;
                conv.sources.extend(other.sources);
                earlier.outputs.extend(item.outputs);
            }
            None => joined.push(item),
        }
    }
    joined
}

fn joins(a: &Item, b: &Item) -> bool {
    let (Kind::Conv(first), Kind::Conv(second)) = (&a.kind, &b.kind) else { return false };
    let mut geometry = second.geometry;
    geometry.out_channels = first.geometry.out_channels;
    a.inputs == b.inputs
        && a.residual.or(b.residual).is_none()
        && first.routing.or(second.routing).is_none()
        && first.act == second.act
        && first.geometry == geometry
        && (geometry.kernel, geometry.groups) == ((1, 1), 1)
}

/// Where a value stands among the outputs of its item: its first channel, with those before it.
pub(super) fn first_channel(item: &Item, value: NodeId, channels: impl Fn(NodeId) -> usize) -> usize {
    item.outputs.iter().take_while(|output| **output != value).map(|output| channels(*output)).sum()
}
