//! Kernels as the register tile reads them, packed from a mixture of experts without a copy between.
//!
//! Rows (output channels) of a group come in blocks of as many as a tile has. A block holds, for each vector's worth of taps,
//! the taps of its first row, of its second row and so on: a vector that was mixed is stored as it is, and the tile finds what
//! it needs next at fixed distances. Rows beyond the last are zero; taps beyond the last are never read.

use std::ops::Range;

use super::isa::Isa;

/// How the kernels of one convolution are laid out for an instruction set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    /// Rows of a group.
    pub(super) rows: usize,
    /// Values of a row.
    pub(super) taps: usize,
    /// Rows of a block.
    pub(super) height: usize,
    /// Taps that lie together.
    lanes: usize,
}

impl Packing {
    /// For groups of `rows` output channels that depend on `taps` inputs each.
    pub(super) fn new<I: Isa>(rows: usize, taps: usize) -> Self {
        // Blocks of equal height waste least.
        let height = rows.div_ceil(rows.div_ceil(I::PRODUCT.0).max(1)).max(1);
        Self { rows, taps, height, lanes: I::LANES }
    }

    /// Blocks of a group.
    pub(super) fn blocks(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// Values of a block.
    pub(super) fn block_len(&self) -> usize {
        self.taps.next_multiple_of(self.lanes) * self.height
    }

    /// Taps `first..` of a packed block; `first` is a multiple of a vector.
    pub(super) fn since<'a>(&self, block: &'a [f32], first: usize) -> &'a [f32] {
        &block[first * self.height..]
    }
}

/// Mixes one block of rows into its packed form: `weights[e]` times values `rows` of expert `e`. The experts have `len` values
/// each; `rows` begins with the block's first row and ends with its group.
#[inline(always)]
pub(super) fn mix<I: Isa>(
    isa: I,
    packing: &Packing,
    weights: &[f32],
    experts: &[f32],
    len: usize,
    rows: Range<usize>,
    packed: &mut [f32],
) {
    /// Vectors that are mixed at a time.
    const VECTORS: usize = 4;
    let Packing { taps, height, .. } = *packing;
    let count = (rows.len() / taps).min(height);
    if count < height {
        packed.fill(0.0);
    }
    let step = height * I::LANES;
    // Along the rows, so that each expert is read as one stream.
    for row in 0..count {
        let start = rows.start + row * taps;
        let mut first = 0;
        while first + VECTORS * I::LANES <= taps {
            let mut sums = [isa.splat(0.0); VECTORS];
            for (expert, weight) in weights.iter().enumerate() {
                let values = &experts[expert * len + start + first..][..VECTORS * I::LANES];
                let weight = isa.splat(*weight);
                for j in 0..VECTORS {
                    sums[j] = isa.fma(weight, isa.load(&values[j * I::LANES..][..I::LANES]), sums[j]);
                }
            }
            for j in 0..VECTORS {
                isa.store(&mut packed[(first / I::LANES + j) * step + row * I::LANES..][..I::LANES], sums[j]);
            }
            first += VECTORS * I::LANES;
        }
        while first < taps {
            let length = I::LANES.min(taps - first);
            let out = &mut packed[first / I::LANES * step + row * I::LANES..][..I::LANES];
            out.fill(0.0);
            for (expert, weight) in weights.iter().enumerate() {
                let values = &experts[expert * len + start + first..][..length];
                out.iter_mut().zip(values).for_each(|(sum, value)| *sum += weight * value);
            }
            first += length;
        }
    }
}
