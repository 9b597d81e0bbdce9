//! Direct convolution in bf16: pixels of a block are unfolded and rounded once for all panels of output channels, and multiplied
//! pair by pair with sums in f32. Maps stay in f32.

use super::super::super::isa::{Isa, bf16_bits};
use super::super::finish::load_part;
use super::super::memory::LINE;
use super::super::tile::Sums;
use super::{BLOCK_VALUES, Chunk, Job, PANEL_VECTORS, Packing, Pointer, Table, tap_of};

/// Pairs of taps in portions; as many of them as `pairs` says, at most `most` in one.
pub(super) fn chunks(pairs: usize, most: usize) -> Vec<Chunk> {
    let step = pairs.div_ceil(pairs.div_ceil(most * 3 / 2).max(1)).max(1);
    let chunk = |first| Chunk { taps: (0, 0), parts: (0, 0), cut: (first, step.min(pairs - first)), before: first };
    (0..pairs).step_by(step).map(chunk).collect()
}

/// Values from a pixel to the next: an odd number of cache lines, for powers of two would meet in a few sets of the cache.
fn row(pairs: usize) -> usize {
    (pairs.div_ceil(LINE) | 1) * LINE
}

/// Tiles of a block, of `all` that there are: unfolded pixels in a level-2 cache, and blocks for all threads.
pub(super) fn tiles(pairs: usize, all: usize) -> usize {
    const BLOCKS: usize = 24;
    (BLOCK_VALUES / (pairs.max(1) * TILE)).min(all / BLOCKS).clamp(2, 24)
}

/// Pixels of a tile, about.
const TILE: usize = 14;

/// Values that a block of pixels takes, with room for a vector behind.
pub(super) fn values(pairs: usize, pixels: usize) -> usize {
    pixels * row(pairs) + LINE
}

impl Packing {
    /// For pairs of `taps`.
    pub(in super::super) fn of_pairs<I: Isa>(out: usize, taps: usize) -> Self {
        Self::new::<I>(out, taps.div_ceil(2))
    }

    /// Packs kernels `[out, in, kh, kw]` of a group, with `taps` a channel, as pairs of bf16.
    pub(in super::super) fn pack_pairs(&self, kernels: &[f32], (taps, window): (usize, usize), packed: &mut [f32]) {
        self.fill(packed, |out, pair| {
            let [low, high] = pair_of(kernels, (taps, window), out, pair).map(|tap| u32::from(bf16_bits(tap)));
            f32::from_bits(high << 16 | low)
        });
    }

    /// The same not yet rounded, twice as many values: so that mixtures of such come out in order.
    pub(in super::super) fn pack_unrounded(&self, kernels: &[f32], (taps, window): (usize, usize), packed: &mut [f32]) {
        self.fill(packed.as_chunks_mut::<2>().0, |out, pair| pair_of(kernels, (taps, window), out, pair));
    }
}

fn pair_of(kernels: &[f32], (taps, window): (usize, usize), out: usize, pair: usize) -> [f32; 2] {
    [2 * pair, 2 * pair + 1].map(|tap| if tap < taps { tap_of(kernels, (taps, window), out, tap) } else { 0.0 })
}

impl Job<'_> {
    /// All tiles of the block, whose pointers are in the table; `lengths` are those of the runs of a tap.
    #[inline(always)]
    pub(super) fn run_bf16<I: Isa>(&self, isa: I, table: &mut Table, lengths: &[usize]) {
        let conv = self.conv;
        let row = row(conv.packing.taps);
        let merged_length = [conv.inputs_of_group() * conv.window.kernel.1];
        let runs = conv.window.taps() * lengths.len();
        for (tile, at) in (0..self.count).step_by(I::TILE_ROWS).enumerate() {
            let merged = table.merged[tile];
            let (lengths, count) = if merged { (&merged_length[..], conv.window.kernel.0) } else { (lengths, runs) };
            for pixel in 0..(self.count - at).min(I::TILE_ROWS) {
                let pointers = &table.pointers[tile * runs * I::TILE_ROWS + pixel..];
                let to = table.rows.as_mut_ptr().wrapping_add((at + pixel) * row).cast();
                // SAFETY: each run is as long as its length says; there is a row for each pixel of the block.
                unsafe { unfold(isa, pointers, (lengths, count), to) };
            }
        }
        let rows = table.rows.as_ptr();
        let taps = |tile: usize, chunk: &Chunk| Rows {
            start: rows.wrapping_add(tile * I::TILE_ROWS * row + chunk.cut.0),
            row,
            pairs: chunk.cut.1,
        };
        self.tiles(isa, taps, table.sums.as_mut_ptr());
    }
}

/// Rounds the values of a pixel's runs, of which there are `count`, one after the other.
///
/// # Safety
/// The runs, to which every [`Isa::TILE_ROWS`]-th pointer leads, must be readable, and all their values writable behind `to` with a
/// vector more.
#[inline(always)]
unsafe fn unfold<I: Isa>(isa: I, pointers: &[Pointer], (lengths, count): (&[usize], usize), to: *mut u16) {
    let mut done = 0;
    for first in (0..count).step_by(lengths.len()) {
        for (run, length) in (first..).zip(lengths) {
            let from = pointers[run * I::TILE_ROWS].0;
            // SAFETY: the caller proves the values and the room.
            unsafe { round(isa, from, to.add(done), *length) };
            done += length;
        }
    }
    // SAFETY: as above. The last pair may lack its second.
    unsafe { *to.add(done) = 0 };
}

/// Rounds `count` values.
///
/// # Safety
/// They must be readable; `count` values and a vector must be writable.
#[inline(always)]
unsafe fn round<I: Isa>(isa: I, from: *const f32, to: *mut u16, count: usize) {
    // SAFETY: the caller proves the values and the room.
    unsafe {
        for at in (0..count - count % I::LANES).step_by(I::LANES) {
            isa.store_bf16_at(to.add(at), isa.load_at(from.add(at)));
        }
        let rest = count % I::LANES;
        if rest > 0 && count > I::LANES {
            // The last vector overlaps the one before.
            let at = count - I::LANES;
            isa.store_bf16_at(to.add(at), isa.load_at(from.add(at)));
        } else if rest > 0 {
            isa.store_bf16_at(to, load_part(isa, from, rest));
        }
    }
}

/// Unfolded pixels of a tile, in pairs.
struct Rows {
    start: *const f32,
    /// Values from a pixel to the next.
    row: usize,
    pairs: usize,
}

impl Sums for Rows {
    #[inline(always)]
    unsafe fn sums<I: Isa, const M: usize, const N: usize>(
        &self,
        isa: I,
        weights: *const f32,
        start: [[I::F32; N]; M],
    ) -> [[I::F32; N]; M] {
        const { assert!(N <= PANEL_VECTORS) };
        let mut sums = start;
        for k in 0..self.pairs {
            // SAFETY: each pixel has as many pairs, and the weights a row for each.
            unsafe {
                let mut row = [sums[0][0]; N];
                for j in 0..N {
                    row[j] = isa.load_at(weights.add((k * N + j) * I::LANES));
                }
                for i in 0..M {
                    let pair = isa.splat(*self.start.add(i * self.row + k));
                    for j in 0..N {
                        sums[i][j] = isa.fma_pairs(pair, row[j], sums[i][j]);
                    }
                }
            }
        }
        sums
    }
}
