//! Third pass: how each convolution is computed, and what has to be copied for it.

use std::collections::BTreeSet;

use dyconv_kernels::cpu::channels_last::Algorithm;

use super::Precision;
use super::item::{Conv, Item, Kind, Piece};
use super::pieces::Pieces;
use crate::graph::{NodeId, Shape};

/// The most maps that a convolution reads as one.
const MAX_PIECES: usize = 8;
/// Channels from which Winograd's transforms cost less than they save.
const WINOGRAD_CHANNELS: usize = 12;

/// Chooses the algorithm of each convolution.
pub(super) fn choose(items: &mut [Item], shapes: &[Shape], precision: Precision) {
    for item in items {
        if let Kind::Head { conv, .. } = &mut item.kind {
            conv.algorithm = direct(precision);
        }
        if let Kind::Conv(conv) = &mut item.kind {
            let size = match shapes[item.outputs[0]] {
                Shape::Map(_, height, width) => (height, width),
                _ => (1, 1),
            };
            conv.algorithm = algorithm(conv, size, precision);
        }
    }
}

fn direct(precision: Precision) -> Algorithm {
    match precision {
        Precision::F32 => Algorithm::Direct,
        Precision::Bf16 => Algorithm::DirectBf16,
    }
}

fn algorithm(conv: &Conv, (height, width): (usize, usize), precision: Precision) -> Algorithm {
    let geometry = &conv.geometry;
    if geometry.groups > 1 && geometry.groups == geometry.in_channels && geometry.out_channels == geometry.groups {
        return Algorithm::Depthwise;
    }
    let plain =
        geometry.groups == 1 && (geometry.kernel, geometry.stride, geometry.dilation) == ((3, 3), (1, 1), (1, 1));
    // Tiles that reach over the edge are computed whole.
    let waste = (height.next_multiple_of(4) * width.next_multiple_of(4)) as f64 / (height * width) as f64;
    if plain && geometry.in_channels.min(geometry.out_channels) >= WINOGRAD_CHANNELS && waste < 2.0 {
        return Algorithm::Winograd;
    }
    direct(precision)
}

/// Inserts copies of values that lie in several pieces where a step wants them in one, and of those in `kept`.
pub(super) fn settle(items: Vec<Item>, pieces: &mut Pieces<'_>, kept: &[NodeId]) -> Vec<Item> {
    let is_whole = |pieces: &Pieces<'_>, value: NodeId| matches!(pieces.of(value).as_slice(), [Piece { shift: 0, value: own, first: 0, .. }] if *own == value);
    for item in &items {
        let wants_one = match &item.kind {
            Kind::Conv(conv) => !conv.algorithm.is_direct() || conv.geometry.groups > 1,
            Kind::Pools(_) => true,
            _ => false,
        };
        for &input in &item.inputs {
            let of = pieces.of(input);
            let one = matches!(of.as_slice(), [Piece { shift: 0, .. }]);
            if (wants_one && !one) || of.len() > MAX_PIECES {
                pieces.settle(input);
            }
        }
        if let Some(residual) = item.residual
            && !is_whole(pieces, residual)
        {
            pieces.settle(residual);
        }
    }
    for &value in kept {
        if !is_whole(pieces, value) {
            pieces.settle(value);
        }
    }
    // Each copy stands before the first step that reads it.
    let mut settled: Vec<Item> = Vec::new();
    let mut copied: BTreeSet<NodeId> = BTreeSet::new();
    for item in items {
        for &value in item.inputs.iter().chain(&item.residual) {
            copy(value, pieces, &mut copied, &mut settled);
        }
        settled.push(item);
    }
    kept.iter().for_each(|&value| copy(value, pieces, &mut copied, &mut settled));
    settled
}

/// Copies whatever of a value's pieces has to be.
fn copy(value: NodeId, pieces: &Pieces<'_>, copied: &mut BTreeSet<NodeId>, settled: &mut Vec<Item>) {
    for piece in pieces.of(value) {
        let value = piece.value;
        if pieces.is_settled(value) && copied.insert(value) {
            for inner in pieces.through(value) {
                copy(inner.value, pieces, copied, settled);
            }
            settled.push(Item { kind: Kind::Copy, inputs: vec![value], outputs: vec![value], residual: None });
        }
    }
}
