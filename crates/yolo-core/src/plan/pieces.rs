//! Where values lie that no step writes: concatenations, enlargements and first channels of others.

use std::collections::BTreeSet;

use super::item::Piece;
use super::place::extent;
use crate::graph::{Graph, NodeId, Op, Shape};

/// Looks through operations that move nothing.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    graph: &'a Graph,
    shapes: &'a [Shape],
    /// Values that were copied into one piece after all.
    settled: BTreeSet<NodeId>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(graph: &'a Graph, shapes: &'a [Shape]) -> Self {
        Self { graph, shapes, settled: BTreeSet::new() }
    }

    /// From here on, `value` is one piece.
    pub(super) fn settle(&mut self, value: NodeId) {
        self.settled.insert(value);
    }

    /// Whether a value was copied into one piece.
    pub(super) fn is_settled(&self, value: NodeId) -> bool {
        self.settled.contains(&value)
    }

    /// The pieces of a value, each of a value that some step writes.
    pub(super) fn of(&self, value: NodeId) -> Vec<Piece> {
        if self.settled.contains(&value) {
            return vec![self.whole(value)];
        }
        self.through(value)
    }

    fn whole(&self, value: NodeId) -> Piece {
        Piece { value, first: 0, channels: extent(self.shapes[value]).2, shift: 0 }
    }

    /// As [`Pieces::of`], though the value itself be copied.
    pub(super) fn through(&self, value: NodeId) -> Vec<Piece> {
        let node = &self.graph.nodes()[value];
        match &node.op {
            Op::Concat => node.inputs.iter().flat_map(|&input| self.of(input)).collect(),
            Op::Upsample { scale } if scale.is_power_of_two() => {
                let enlarge = |piece: Piece| Piece { shift: piece.shift + scale.trailing_zeros(), ..piece };
                self.of(node.inputs[0]).into_iter().map(enlarge).collect()
            }
            Op::Narrow { channels } => {
                let mut left = *channels;
                let mut first = self.of(node.inputs[0]);
                first.retain_mut(|piece| {
                    piece.channels = piece.channels.min(left);
                    left -= piece.channels;
                    piece.channels > 0
                });
                first
            }
            _ => vec![self.whole(value)],
        }
    }
}
