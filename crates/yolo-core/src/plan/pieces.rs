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
    ///
    /// Without recursion: a file may nest them deeper than a thread's stack is.
    pub(super) fn through(&self, value: NodeId) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut open = vec![Open::Value(value, 0)];
        while let Some(next) = open.pop() {
            let (id, shift) = match next {
                Open::Value(id, shift) => (id, shift),
                Open::Narrow { first, channels } => {
                    let mut left = channels;
                    for piece in &mut pieces[first..] {
                        piece.channels = piece.channels.min(left);
                        left -= piece.channels;
                    }
                    while pieces.len() > first && pieces.last().is_some_and(|piece| piece.channels == 0) {
                        pieces.pop();
                    }
                    continue;
                }
            };
            let node = &self.graph.nodes()[id];
            match &node.op {
                _ if id != value && self.settled.contains(&id) => pieces.push(Piece { shift, ..self.whole(id) }),
                Op::Concat => open.extend(node.inputs.iter().rev().map(|&input| Open::Value(input, shift))),
                Op::Upsample { scale } if scale.is_power_of_two() => {
                    open.push(Open::Value(node.inputs[0], shift + scale.trailing_zeros()));
                }
                Op::Narrow { channels } => {
                    open.push(Open::Narrow { first: pieces.len(), channels: *channels });
                    open.push(Open::Value(node.inputs[0], shift));
                }
                _ => pieces.push(Piece { shift, ..self.whole(id) }),
            }
        }
        pieces
    }
}

/// What is still to be done to find the pieces of a value.
enum Open {
    /// The pieces of a value that is read enlarged by `1 << shift`.
    Value(NodeId, u32),
    /// Of the pieces from `first` on, only so many channels.
    Narrow { first: usize, channels: usize },
}
