//! Third pass: how each convolution is computed, and what has to be copied for it.

use std::collections::BTreeSet;

use dyconv_kernels::cpu::channels_last::Algorithm;

use super::Precision;
use super::item::{Conv, Item, Kind, Piece};
use super::pieces::Pieces;
use super::place::extent;
use crate::Result;
use crate::graph::{NodeId, Shape};

/// The most maps that a convolution reads as one.
const MAX_PIECES: usize = 8;
/// Where a convolution is, for who chooses its algorithm.
pub(super) struct Place<'a> {
    pub(super) conv: &'a Conv,
    /// Height and width of what it reads and of what it writes.
    pub(super) input: (usize, usize),
    pub(super) output: (usize, usize),
}

/// Chooses the algorithm of each convolution: of those that can compute it the one that `fastest` says.
pub(super) fn choose(
    items: &mut [Item],
    shapes: &[Shape],
    precision: Precision,
    mut fastest: impl FnMut(&Place<'_>, &[Algorithm]) -> Result<Algorithm>,
) -> Result<()> {
    for item in items {
        let size = |value: NodeId| {
            let (height, width, _) = extent(shapes[value]);
            (height, width)
        };
        let place = |conv| Place { conv, input: size(item.inputs[0]), output: size(item.outputs[0]) };
        match &mut item.kind {
            Kind::Head { conv, .. } => conv.algorithm = direct(precision),
            Kind::Conv(conv) => {
                let candidates = candidates(conv, precision);
                let best = if let [only] = candidates.as_slice() { *only } else { fastest(&place(conv), &candidates)? };
                conv.algorithm = best;
            }
            _ => {}
        }
    }
    Ok(())
}

fn direct(precision: Precision) -> Algorithm {
    match precision {
        Precision::F32 => Algorithm::Direct,
        Precision::Bf16 => Algorithm::DirectBf16,
    }
}

/// The algorithms that can compute it, the most general first.
fn candidates(conv: &Conv, precision: Precision) -> Vec<Algorithm> {
    let geometry = &conv.geometry;
    if geometry.groups > 1 && geometry.groups == geometry.in_channels && geometry.out_channels == geometry.groups {
        return vec![Algorithm::Depthwise];
    }
    // Mixtures of experts are transformed for stride 1 only.
    let stride = geometry.stride == (1, 1) || (geometry.stride == (2, 2) && conv.routing.is_none());
    let winograd = geometry.groups == 1 && (geometry.kernel, geometry.dilation) == ((3, 3), (1, 1)) && stride;
    let mut all = vec![direct(precision)];
    all.extend(winograd.then_some(Algorithm::Winograd));
    all
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
