//! 3x3 kernels of Winograd's algorithm from experts `[K, out, in, 3, 3]`: mixed, turned to channels last and transformed, a block at a
//! time.

use super::super::isa::Isa;
use super::super::phases::share;
use super::direct::{PANEL_VECTORS, Packing};
use super::finish::{load_part, store_part};
use super::memory::Lines;
use super::planar::WritePointer;
use super::turn::turn;
use super::winograd::{self, SKEW};

/// Input channels of a block: transformed kernels of a panel take about a seventh of a level-2 cache of 512 KiB.
pub(super) const BLOCK: usize = 32;

/// Vectors of a row that are mixed at a time: a block's rows are three times as many, or a multiple.
const VECTORS: usize = 6;

/// Some input channels of a panel of output channels.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) panel: usize,
    /// The first of the channels.
    pub(super) first: usize,
    pub(super) channels: usize,
}

impl Block {
    /// Of a panel, that which begins with channel `first`.
    pub(super) fn new(packing: &Packing, panel: usize, first: usize) -> Self {
        Self { panel, first, channels: BLOCK.min(packing.taps - first) }
    }

    /// The block that a thread wants next; `None` behind the last one.
    pub(super) fn next(&self, packing: &Packing) -> Option<Self> {
        let first = self.first + self.channels;
        let (panel, first) = if first < packing.taps { (self.panel, first) } else { (self.panel + 1, 0) };
        (panel < packing.panels()).then(|| Self::new(packing, panel, first))
    }

    /// Where its rows of taps begin in an expert, and from one to the next.
    pub(super) fn rows<I: Isa>(&self, packing: &Packing) -> (usize, usize) {
        let stride = 9 * packing.taps;
        (self.panel * PANEL_VECTORS * I::LANES * stride + 9 * self.first, stride)
    }

    /// Where it lies among the turned blocks of `count` experts, and how many values it is.
    pub(super) fn turned<I: Isa>(&self, packing: &Packing, count: usize) -> (usize, usize) {
        let width = packing.vectors(self.panel) * I::LANES;
        (9 * count * (packing.panel(self.panel) + self.first * width), 9 * count * self.channels * width)
    }
}

/// Values of an expert.
pub(super) fn kernel_len(packing: &Packing) -> usize {
    9 * packing.out * packing.taps
}

/// Values of all turned blocks of `count` experts.
pub(super) fn turned_len(packing: &Packing, count: usize) -> usize {
    9 * count * packing.len()
}

/// Turns all blocks, on all threads, one behind the other as [`Block::turned`] says.
pub(super) fn turn_all<I: Isa>(isa: I, packing: &Packing, experts: &[f32], to: &mut Lines) {
    let count = experts.len() / kernel_len(packing);
    to.grow(turned_len(packing, count));
    let to = WritePointer(to.as_mut_ptr());
    let blocks = packing.taps.div_ceil(BLOCK);
    share(packing.panels() * blocks, |index| {
        let block = Block::new(packing, index / blocks, index % blocks * BLOCK);
        isa.run(
            #[inline(always)]
            || turn_block(isa, packing, &block, experts, to.at(block.turned::<I>(packing, count).0)),
        );
    });
}

/// Mixes a block of experts in their own order, `[width, in, 9]`.
#[inline(always)]
pub(super) fn mix_rows<I: Isa>(
    isa: I,
    packing: &Packing,
    block: &Block,
    (weights, experts): (&[f32], &[f32]),
    to: *mut f32,
) {
    let rows = (packing.vectors(block.panel) * I::LANES).min(packing.out - block.panel * PANEL_VECTORS * I::LANES);
    let len = 9 * block.channels;
    let (first, stride) = block.rows::<I>(packing);
    let apart = kernel_len(packing);
    assert!(rows == 0 || (weights.len() - 1) * apart + first + (rows - 1) * stride + len <= experts.len());
    for lane in 0..rows {
        let from = experts.as_ptr().wrapping_add(first + lane * stride);
        let to = to.wrapping_add(lane * len);
        let mut at = 0;
        // SAFETY: each expert has `len` values of the row, as asserted; there is room for the rows of a panel.
        unsafe {
            while at + VECTORS * I::LANES <= len {
                let from = (from.wrapping_add(at), apart);
                mix_vectors::<I, VECTORS>(isa, weights, from, to.wrapping_add(at), VECTORS * I::LANES);
                at += VECTORS * I::LANES;
            }
            while at < len {
                mix_vectors::<I, 1>(isa, weights, (from.wrapping_add(at), apart), to.wrapping_add(at), len - at);
                at += I::LANES;
            }
        }
    }
}

/// Mixes `count` values, at most `V` vectors, of experts that begin so many values apart.
///
/// # Safety
/// They must be readable, and writable at `to`.
#[inline(always)]
unsafe fn mix_vectors<I: Isa, const V: usize>(
    isa: I,
    weights: &[f32],
    (from, apart): (*const f32, usize),
    to: *mut f32,
    count: usize,
) {
    let mut sums = [isa.splat(0.0); V];
    for (expert, weight) in weights.iter().enumerate() {
        let weight = isa.splat(*weight);
        for v in 0..V {
            let at = v * I::LANES;
            // SAFETY: the caller proves the values.
            let value = unsafe { load_part(isa, from.wrapping_add(expert * apart + at), count - at) };
            sums[v] = isa.fma(weight, value, sums[v]);
        }
    }
    for v in 0..V {
        let at = v * I::LANES;
        // SAFETY: the caller proves the room.
        unsafe { store_part(isa, to.wrapping_add(at), sums[v], count - at) };
    }
}

/// Turns a block of experts to `[K, in, 9, width]`.
#[inline(always)]
pub(super) fn turn_block<I: Isa>(isa: I, packing: &Packing, block: &Block, experts: &[f32], to: *mut f32) {
    let width = packing.vectors(block.panel) * I::LANES;
    let (first, stride) = block.rows::<I>(packing);
    for (index, expert) in experts.chunks_exact(kernel_len(packing)).enumerate() {
        let to = to.wrapping_add(index * block.channels * 9 * width);
        turn_rows(isa, packing, block, (expert[first..].as_ptr(), stride), to);
    }
}

/// Turns rows of the taps of a block, which begin so many values apart; zeros where there are no more channels.
#[inline(always)]
pub(super) fn turn_rows<I: Isa>(isa: I, packing: &Packing, block: &Block, from: (*const f32, usize), to: *mut f32) {
    let width = packing.vectors(block.panel) * I::LANES;
    let rows = width.min(packing.out - block.panel * PANEL_VECTORS * I::LANES);
    // SAFETY: there are `rows` more rows of all taps; the memory has a row for each tap of the block.
    unsafe { turn(isa, (rows, 9 * block.channels), from, (to, width)) };
    for tap in 0..9 * block.channels {
        for lane in rows..width {
            // SAFETY: as above.
            unsafe { *to.add(tap * width + lane) = 0.0 };
        }
    }
}

/// Mixes and transforms the kernels of a block from turned experts, for as many samples as there are rows of weights.
#[inline(always)]
pub(super) fn mix_block<I: Isa, const N: usize>(
    isa: I,
    (channels, vectors): (usize, usize),
    weights: [&[f32]; N],
    experts: *const f32,
    kernels: [*mut f32; N],
) {
    let width = vectors * I::LANES;
    for channel in 0..channels {
        for vector in 0..vectors {
            let place = channel * width + vector * I::LANES;
            let mut nine = [[isa.splat(0.0); 9]; N];
            for expert in 0..weights[0].len() {
                let from = experts.wrapping_add((expert * channels + channel) * 9 * width + vector * I::LANES);
                for tap in 0..9 {
                    // SAFETY: the turned experts have a row for each tap of the block.
                    let value = unsafe { isa.load_at(from.add(tap * width)) };
                    for n in 0..N {
                        nine[n][tap] = isa.fma(isa.splat(weights[n][expert]), value, nine[n][tap]);
                    }
                }
            }
            for n in 0..N {
                let to = kernels[n].wrapping_add(place);
                // SAFETY: the kernels of each point have a row for each channel of the block.
                unsafe { winograd::transform_packed(isa, &nine[n], to, channels * width + SKEW) };
            }
        }
    }
}
