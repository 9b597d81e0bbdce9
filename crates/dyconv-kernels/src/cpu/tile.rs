//! The register tile: some rows of packed kernels times some vectors of pixels.

use super::channels_last::LINE;
use super::isa::{Isa, WIDEST};

/// The most values of a register tile on any instruction set.
pub(super) const MAX_VALUES: usize = 8 * 3 * WIDEST;

/// What a tile leaves behind: rows of as many vectors as [`Isa::PRODUCT`] says.
pub(super) type Sums = [f32; MAX_VALUES];

/// Where the pixels of each tap lie, seen from a tile's first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offsets<'a> {
    values: &'a [u32],
    /// The largest of them.
    reach: usize,
}

impl<'a> Offsets<'a> {
    pub(super) fn new(values: &'a [u32]) -> Self {
        Self { values, reach: values.iter().max().map_or(0, |max| *max as usize) }
    }
}

/// What will be read soon, from beyond a level-2 cache: a product asks for it line by line while it multiplies.
pub(super) trait Ask {
    /// Asks for what belongs to tap `k` of the `index`th vector of taps.
    fn ask<I: Isa>(&self, isa: I, index: usize, k: usize);
}

/// Nothing.
impl Ask for () {
    #[inline(always)]
    fn ask<I: Isa>(&self, _: I, _: usize, _: usize) {}
}

/// Rows of values, as long as a product is deep. Where there are fewer, some stand there more than once.
pub(super) struct Rows(pub(super) [*const f32; 2 * LINE]);

impl Ask for Rows {
    #[inline(always)]
    fn ask<I: Isa>(&self, isa: I, index: usize, k: usize) {
        // Of each row, a line while so many taps are multiplied.
        let (line, tap) = (index * I::LANES / LINE * LINE, (index * I::LANES + k) % LINE);
        isa.fetch_ahead(self.0[2 * tap].wrapping_add(line));
        isa.fetch_ahead(self.0[2 * tap + 1].wrapping_add(line));
    }
}

/// `sums[i][j] = sum over k of kernels[k][i] * pixels[offsets[k] + j]` for `rows` rows and `vectors` vectors.
///
/// `kernels` is packed as [`super::pack`] says, as many taps as there are `offsets`.
#[inline(always)]
pub(super) fn product<I: Isa>(
    isa: I,
    (rows, vectors): (usize, usize),
    kernels: &[f32],
    pixels: (&Offsets<'_>, &[f32]),
    ahead: &impl Ask,
    sums: &mut Sums,
) {
    macro_rules! by_rows {
        ($($n:literal)*) => {
            match (rows, vectors) {
                $(($n, 1) if $n <= I::PRODUCT.0 => fixed::<I, $n, 1>(isa, kernels, pixels, ahead, sums),
                ($n, 2) if $n <= I::PRODUCT.0 => fixed::<I, $n, 2>(isa, kernels, pixels, ahead, sums),
                ($n, 3) if $n <= I::PRODUCT.0 && I::PRODUCT.1 > 2 => fixed::<I, $n, 3>(isa, kernels, pixels, ahead, sums),)*
                size => unreachable!("no tile has {size:?} rows and vectors"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8);
}

#[inline(always)]
fn fixed<I: Isa, const ROWS: usize, const VECTORS: usize>(
    isa: I,
    kernels: &[f32],
    (offsets, pixels): (&Offsets<'_>, &[f32]),
    ahead: &impl Ask,
    sums: &mut Sums,
) {
    let Offsets { values, reach } = *offsets;
    assert!(reach <= pixels.len() && pixels.len() - reach >= VECTORS * I::LANES);
    let mut registers = [[isa.splat(0.0); VECTORS]; ROWS];
    let mut blocks = kernels.chunks_exact(ROWS * I::LANES);
    let whole = values.chunks_exact(I::LANES);
    let rest = whole.remainder();
    for (index, (offsets, block)) in whole.zip(blocks.by_ref()).enumerate() {
        for k in 0..I::LANES {
            ahead.ask(isa, index, k);
            // SAFETY: no offset is beyond `reach`, which leaves as many values as a row of the tile has.
            let line = unsafe { line::<VECTORS, I>(pixels, offsets[k]) };
            add(isa, &mut registers, block, k, line);
        }
    }
    if let (Some(block), false) = (blocks.next(), rest.is_empty()) {
        for (k, offset) in rest.iter().enumerate() {
            // SAFETY: as above.
            let line = unsafe { line::<VECTORS, I>(pixels, *offset) };
            add(isa, &mut registers, block, k, line);
        }
    }
    let columns = I::PRODUCT.1 * I::LANES;
    for i in 0..ROWS {
        for j in 0..VECTORS {
            isa.store(&mut sums[i * columns + j * I::LANES..][..I::LANES], registers[i][j]);
        }
    }
}

/// The pixels of one tap, unchecked: the check would cost as much as the multiplications.
///
/// # Safety
/// `VECTORS` vectors must lie in `pixels` from `offset` on.
#[inline(always)]
unsafe fn line<const VECTORS: usize, I: Isa>(pixels: &[f32], offset: u32) -> &[f32] {
    // SAFETY: the caller promises it.
    unsafe { std::slice::from_raw_parts(pixels.as_ptr().add(offset as usize), VECTORS * I::LANES) }
}

/// `registers[i][j] += weight of row i at tap k * line[j]`
#[inline(always)]
fn add<I: Isa, const ROWS: usize, const VECTORS: usize>(
    isa: I,
    registers: &mut [[I::F32; VECTORS]; ROWS],
    block: &[f32],
    k: usize,
    line: &[f32],
) {
    // A loop, not a closure: what the compiler does not inline would lose the instruction set.
    let mut vectors = [isa.splat(0.0); VECTORS];
    for j in 0..VECTORS {
        vectors[j] = isa.load(&line[j * I::LANES..][..I::LANES]);
    }
    let line = vectors;
    for i in 0..ROWS {
        let weight = isa.splat(block[i * I::LANES + k]);
        for j in 0..VECTORS {
            registers[i][j] = isa.fma(weight, line[j], registers[i][j]);
        }
    }
}
