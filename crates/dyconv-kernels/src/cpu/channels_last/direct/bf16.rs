//! Direct convolution in bf16: values are multiplied pair by pair, with sums in f32. Where maps are in bf16 already, pairs are read
//! where they lie; else pixels of a block are unfolded and rounded once for all panels of output channels.

use super::super::super::isa::{Isa, bf16_bits};
use super::super::finish::load_part;
use super::super::memory::{LINE, Part};
use super::super::tile::{Sums, Taps};
use super::{BLOCK_VALUES, Chunk, Job, PANEL_VECTORS, Packing, Pointer, Reads, Table, Window};

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
    /// Packs kernels of a group as pairs of bf16; `tap` gives that of an output channel at a place, in the order in which
    /// they are multiplied.
    pub(in super::super) fn pack_pairs(&self, tap: impl Fn(usize, usize) -> f32 + Sync, packed: &mut [f32]) {
        self.fill(packed, |out, pair| {
            let [low, high] = [tap(out, 2 * pair), tap(out, 2 * pair + 1)].map(|tap| u32::from(bf16_bits(tap)));
            f32::from_bits(high << 16 | low)
        });
    }

    /// The same not yet rounded, twice as many values: so that mixtures of such come out in order.
    pub(in super::super) fn pack_unrounded(&self, tap: impl Fn(usize, usize) -> f32 + Sync, packed: &mut [f32]) {
        self.fill(packed.as_chunks_mut::<2>().0, |out, pair| [tap(out, 2 * pair), tap(out, 2 * pair + 1)]);
    }
}

/// Whether pairs can be multiplied where they lie: none is of two runs. Channels are even in number, or rows of the window are one run
/// everywhere, if all taps go in `one_portion`.
pub(super) fn in_pairs(window: &Window, inputs: &[Part], one_portion: bool) -> bool {
    let rows = || match inputs {
        [Part { view, shift: 0 }] => {
            let run = window.kernel.1 > 1 && window.dilation.1 == 1 && view.pixel == view.channels;
            run && window.padding == (0, 0) && (view.channels * window.kernel.1).is_multiple_of(2) && one_portion
        }
        _ => false,
    };
    let even = inputs.iter().all(|part| part.view.channels.is_multiple_of(2));
    inputs.iter().all(|part| part.view.bf16) && (even || rows())
}

impl<'a> Job<'a> {
    /// All tiles of the block, whose pointers are in the table.
    #[inline(always)]
    pub(super) fn run_bf16<I: Isa>(&self, isa: I, table: &mut Table) {
        let conv = self.conv;
        let row_length = conv.inputs_of_group() * conv.window.kernel.1;
        if conv.reads == Reads::Pairs {
            let (lengths, parts) = self.lengths(2);
            let lengths = (&lengths[..parts], &[row_length / 2]);
            let Table { pointers, merged, sums, .. } = table;
            let pairs = |tile: usize, chunk: &'a Chunk| Pairs(self.taps::<I>((pointers, merged), lengths, tile, chunk));
            return self.tiles(isa, pairs, sums.as_mut_ptr());
        }
        let (lengths, parts) = self.lengths(1);
        let lengths = &lengths[..parts];
        let row = row(conv.packing.taps);
        let runs = conv.window.taps() * lengths.len();
        for (tile, at) in (0..self.count).step_by(I::TILE_ROWS).enumerate() {
            let merged = table.merged[tile];
            let row_length = [row_length];
            let (lengths, count) = if merged { (&row_length[..], conv.window.kernel.0) } else { (lengths, runs) };
            for pixel in 0..(self.count - at).min(I::TILE_ROWS) {
                let pointers = &table.pointers[tile * runs * I::TILE_ROWS + pixel..];
                let to = table.rows.as_mut_ptr().wrapping_add((at + pixel) * row).cast();
                // SAFETY: each run is as long as its length says; there is a row for each pixel of the block.
                unsafe { unfold(isa, pointers, (lengths, count), &conv.inputs, to) };
            }
        }
        let rows = table.rows.as_ptr();
        let taps = |tile: usize, chunk: &'a Chunk| Rows {
            start: rows.wrapping_add(tile * I::TILE_ROWS * row + chunk.cut.0),
            row,
            pairs: chunk.cut.1,
        };
        self.tiles(isa, taps, table.sums.as_mut_ptr());
    }
}

/// Rounds the values of a pixel's runs, of which there are `count`, one after the other; those of `inputs` in bf16 are copied.
///
/// # Safety
/// The runs, to which every [`Isa::TILE_ROWS`]-th pointer leads, must be readable, and all their values writable behind `to` with a
/// vector more.
#[inline(always)]
unsafe fn unfold<I: Isa>(
    isa: I,
    pointers: &[Pointer],
    (lengths, count): (&[usize], usize),
    inputs: &[Part],
    to: *mut u16,
) {
    let mut done = 0;
    for first in (0..count).step_by(lengths.len()) {
        for ((run, length), part) in (first..).zip(lengths).zip(inputs) {
            let from = pointers[run * I::TILE_ROWS].0;
            // SAFETY: the caller proves the values and the room.
            unsafe {
                if part.view.bf16 {
                    copy(from.cast(), to.add(done), *length);
                } else {
                    round(isa, from, to.add(done), *length);
                }
            }
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
pub(super) unsafe fn round<I: Isa>(isa: I, from: *const f32, to: *mut u16, count: usize) {
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

/// Copies `count` values, in steps as long as they allow; a call of the C library's copy would cost more than most runs take.
///
/// # Safety
/// They must be readable and writable.
#[inline(always)]
pub(super) unsafe fn copy(from: *const u16, to: *mut u16, count: usize) {
    macro_rules! by {
        ($step:literal) => {
            if count >= $step {
                let mut done = 0;
                while done < count {
                    // The last step overlaps the one before.
                    let at = done.min(count - $step);
                    // SAFETY: the step ends within `count` values, which the caller proves.
                    unsafe {
                        let values = from.add(at).cast::<[u16; $step]>().read_unaligned();
                        to.add(at).cast::<[u16; $step]>().write_unaligned(values);
                    }
                    done += $step;
                }
                return;
            }
        };
    }
    by!(32);
    by!(16);
    by!(4);
    by!(1);
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

/// Runs of pairs where they lie.
struct Pairs<'a>(Taps<'a>);

impl Sums for Pairs<'_> {
    #[inline(always)]
    unsafe fn sums<I: Isa, const M: usize, const N: usize>(
        &self,
        isa: I,
        mut weights: *const f32,
        start: [[I::F32; N]; M],
    ) -> [[I::F32; N]; M] {
        let mut sums = start;
        let mut pointers = self.0.pointers;
        for _ in 0..self.0.rows {
            for length in self.0.lengths {
                // SAFETY: the table has a pointer for each pixel of each run, and the weights a row for each pair. A pair need not lie
                // at a multiple of its size.
                unsafe {
                    let mut pixels = [std::ptr::null::<f32>(); M];
                    for i in 0..M {
                        pixels[i] = (*pointers.add(i)).add(self.0.skip);
                    }
                    for k in 0..*length {
                        let mut row = [sums[0][0]; N];
                        for j in 0..N {
                            row[j] = isa.load_at(weights.add(j * I::LANES));
                        }
                        for i in 0..M {
                            let pair = isa.splat(pixels[i].add(k).read_unaligned());
                            for j in 0..N {
                                sums[i][j] = isa.fma_pairs(pair, row[j], sums[i][j]);
                            }
                        }
                        weights = weights.add(N * I::LANES);
                    }
                    pointers = pointers.add(self.0.stride);
                }
            }
        }
        sums
    }
}
