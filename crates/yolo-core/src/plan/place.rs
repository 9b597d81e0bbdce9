//! Fourth pass: memory. Every map gets a place, and places are used again once their maps have been read for the last time.

use std::collections::{BTreeMap, BTreeSet};

use dyconv_kernels::cpu::channels_last::{LINE, Part, View};

use super::item::{Item, Kind, Piece};
use super::join::first_channel;
use super::pieces::Pieces;
use crate::graph::{NodeId, Shape};

/// Where values lie.
#[derive(Debug, Default)]
pub(super) struct Places {
    views: BTreeMap<NodeId, View>,
    /// Border of the input's map.
    pub(super) border: (usize, usize),
    /// Values of memory.
    pub(super) memory: usize,
}

/// A map that several values may share, until it has been laid out.
struct Buffer {
    values: Vec<(NodeId, View)>,
    len: usize,
    /// First item that writes it, and last one that reads it.
    life: (usize, usize),
}

/// A value's map: height, width, channels. What is no map is one pixel.
pub(super) fn extent(shape: Shape) -> (usize, usize, usize) {
    match shape {
        Shape::Map(channels, height, width) => (height, width, channels),
        other => (1, 1, other.elements()),
    }
}

impl Places {
    /// Lays out the values of `items` for `batch` samples; those in `kept` stay to the end, those in `rounded` lie in bf16.
    pub(super) fn new(
        items: &[Item],
        pieces: &Pieces<'_>,
        shapes: &[Shape],
        batch: usize,
        (kept, rounded): (&[NodeId], &BTreeSet<NodeId>),
    ) -> Self {
        let mut last_read: BTreeMap<NodeId, usize> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let of = |&value: &NodeId| if item.kind == Kind::Copy { pieces.through(value) } else { pieces.of(value) };
            for piece in item.inputs.iter().chain(&item.residual).flat_map(of) {
                last_read.insert(piece.value, index);
            }
        }
        for piece in kept.iter().flat_map(|&value| pieces.of(value)) {
            last_read.insert(piece.value, items.len());
        }
        let border = input_border(items, pieces, kept);
        let mut buffers = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let mut groups: Vec<Vec<NodeId>> = match item.kind {
                Kind::Conv(_) => vec![item.outputs.clone()],
                Kind::Head { .. } => Vec::new(),
                _ => item.outputs.iter().map(|output| vec![*output]).collect(),
            };
            for group in groups.drain(..) {
                let (mut height, mut width, _) = extent(shapes[group[0]]);
                if item.kind == Kind::Input {
                    (height, width) = (height + 2 * border.0, width + 2 * border.1);
                }
                let channels_of = |value: NodeId| extent(shapes[value]).2;
                let pixel: usize = group.iter().map(|value| channels_of(*value)).sum();
                let own = Item { outputs: group.clone(), ..item.clone() };
                let view = |&value: &NodeId| {
                    let first = first_channel(&own, value, channels_of);
                    let bf16 = rounded.contains(&value);
                    let whole = View { offset: 0, height, width, channels: pixel, pixel, bf16 };
                    (value, whole.channels(first, channels_of(value)))
                };
                let values: Vec<_> = group.iter().map(view).collect();
                let last = group.iter().filter_map(|value| last_read.get(value)).max().copied().unwrap_or(index);
                buffers.push(Buffer {
                    // Places begin at cache lines.
                    len: (batch * values[0].1.sample()).next_multiple_of(LINE),
                    values,
                    life: (index, last.max(index)),
                });
            }
        }
        let memory = lay_out(&mut buffers);
        let views = buffers.into_iter().flat_map(|buffer| buffer.values).collect();
        Self { views, border, memory }
    }

    /// The view of a value that some step writes.
    pub(super) fn view(&self, value: NodeId) -> View {
        self.views[&value]
    }

    /// Where pieces lie; neighbours in one map become one.
    pub(super) fn parts(&self, pieces: &[Piece]) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for piece in pieces {
            let view = self.views[&piece.value].channels(piece.first, piece.channels);
            if let Some(Part { view: before, shift }) = parts.last_mut()
                && *shift == piece.shift
                && before.bf16 == view.bf16
                && (before.pixel, before.height, before.width) == (view.pixel, view.height, view.width)
                && before.channels + view.channels <= view.pixel
                && !(before.bf16 && before.channels % 2 == 1)
                && (View { channels: view.pixel, ..*before }).channels(before.channels, view.channels) == view
            {
                before.channels += view.channels;
                continue;
            }
            parts.push(Part { view, shift: piece.shift });
        }
        parts
    }
}

/// The padding of the one convolution that reads the input, which then finds zeros around the map.
fn input_border(items: &[Item], pieces: &Pieces<'_>, kept: &[NodeId]) -> (usize, usize) {
    let Some(input) = items.iter().find(|item| item.kind == Kind::Input).map(|item| item.outputs[0]) else {
        return (0, 0);
    };
    if kept.iter().flat_map(|&value| pieces.of(value)).any(|piece| piece.value == input) {
        return (0, 0);
    }
    let reads = |item: &&Item| {
        let of = |&value: &NodeId| pieces.through(value);
        item.inputs.iter().chain(&item.residual).flat_map(of).any(|piece| piece.value == input)
    };
    let mut readers = items.iter().filter(reads);
    match (readers.next(), readers.next()) {
        (Some(Item { kind: Kind::Conv(conv), inputs, .. }), None)
            if inputs == &[input] && conv.routing.is_none() && conv.algorithm.is_direct() =>
        {
            conv.geometry.padding
        }
        _ => (0, 0),
    }
}

/// Gives each buffer the lowest place that is free while it lives, the largest first; the memory that all take.
fn lay_out(buffers: &mut [Buffer]) -> usize {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(buffers[index].len));
    let mut placed: Vec<(usize, usize, (usize, usize))> = Vec::new();
    let mut memory = 0;
    for index in order {
        let Buffer { len, life, .. } = buffers[index];
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|(_, _, other)| other.0 <= life.1 && life.0 <= other.1)
            .map(|(start, len, _)| (*start, *len))
            .collect();
        taken.sort_unstable();
        let mut start = 0;
        for (other, other_len) in taken {
            if start + len <= other {
                break;
            }
            start = start.max(other + other_len);
        }
        placed.push((start, len, life));
        memory = memory.max(start + len);
        buffers[index].values.iter_mut().for_each(|(_, view)| view.offset += start);
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again_but_never_at_once() {
        let buffer =
            |len: usize, life: (usize, usize)| Buffer { values: vec![(0, View::dense(0, 1, 1, len))], len, life };
        let mut buffers = vec![buffer(32, (0, 1)), buffer(64, (1, 2)), buffer(32, (2, 3)), buffer(16, (0, 3))];
        let memory = lay_out(&mut buffers);
        assert_eq!(memory, 64 + 32 + 16);
        for (i, a) in buffers.iter().enumerate() {
            for b in &buffers[..i] {
                let (start, other) = (a.values[0].1.offset, b.values[0].1.offset);
                let apart = start + a.len <= other || other + b.len <= start;
                assert!(apart || a.life.1 < b.life.0 || b.life.1 < a.life.0);
            }
        }
        assert_eq!(buffers[0].values[0].1.offset, buffers[2].values[0].1.offset);
    }
}
