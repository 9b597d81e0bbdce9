//! Mixtures of experts, in the experts' own order.

use super::isa::Isa;
use super::phases::share;
use super::shared::Shared;

/// Values of a task: worth its start, and in a level-1 cache with some experts beside them.
const PART: usize = 4096;
/// Vectors that are mixed at a time.
const VECTORS: usize = 4;

/// `mixed[b][i] = sum over e of weights[b][e] * experts[e][i]`, rows of `len` values.
pub(super) fn mix_experts<I: Isa>(isa: I, weights: &[f32], experts: &[f32], mixed: &mut [f32], len: usize) {
    let count = experts.len() / len;
    // Tasks over the parts of all rows, though a part is no fixed piece of the whole: the last one of a row is shorter.
    if mixed.len() <= PART {
        let rows = mixed.chunks_exact_mut(len).zip(weights.chunks_exact(count));
        return isa.run(
            #[inline(always)]
            || rows.for_each(|(out, weights)| mix(isa, weights, experts, len, 0, out)),
        );
    }
    let (rows, parts) = (mixed.len() / len, len.div_ceil(PART));
    let mixed = Shared::filled(mixed);
    share(rows * parts, |task| {
        let (row, part) = (task / parts, task % parts);
        // SAFETY: each task has its own part of a row.
        let out = unsafe { mixed.part(row * len + part * PART, PART.min(len - part * PART)) };
        let weights = &weights[row * count..][..count];
        isa.run(
            #[inline(always)]
            || mix(isa, weights, experts, len, part * PART, out),
        );
    });
}

/// A part of the mixture of one sample, which has `len` values, from the value `first` on.
pub(super) fn mix_part<I: Isa>(
    isa: I,
    weights: &[f32],
    (experts, len): (&[f32], usize),
    first: usize,
    out: &mut [f32],
) {
    isa.run(
        #[inline(always)]
        || mix(isa, weights, experts, len, first, out),
    );
}

/// `out[i] = sum over e of weights[e] * experts[e * len + first + i]`
#[inline(always)]
fn mix<I: Isa>(isa: I, weights: &[f32], experts: &[f32], len: usize, first: usize, out: &mut [f32]) {
    let block = VECTORS * I::LANES;
    let blocks = out.len() / block * block;
    for at in (0..blocks).step_by(block) {
        vectors::<I, VECTORS>(isa, weights, &experts[first + at..], len, &mut out[at..]);
    }
    let whole = out.len() / I::LANES * I::LANES;
    for at in (blocks..whole).step_by(I::LANES) {
        vectors::<I, 1>(isa, weights, &experts[first + at..], len, &mut out[at..]);
    }
    for at in whole..out.len() {
        out[at] = weights.iter().zip(experts.chunks_exact(len)).map(|(w, e)| w * e[first + at]).sum();
    }
}

/// The first `V` vectors of `out`, from experts that begin `len` values apart.
#[inline(always)]
fn vectors<I: Isa, const V: usize>(isa: I, weights: &[f32], experts: &[f32], len: usize, out: &mut [f32]) {
    let mut sums = [isa.splat(0.0); V];
    for (expert, weight) in weights.iter().enumerate() {
        let values = &experts[expert * len..][..V * I::LANES];
        let weight = isa.splat(*weight);
        for j in 0..V {
            sums[j] = isa.fma(weight, isa.load(&values[j * I::LANES..][..I::LANES]), sums[j]);
        }
    }
    for j in 0..V {
        isa.store(&mut out[j * I::LANES..][..I::LANES], sums[j]);
    }
}
