//! The matrix product of Winograd's algorithm: some rows times a panel of packed kernels, in a register tile.

use super::super::isa::Isa;
use super::tile::by_size;

/// `out[i] = start[i] + sum over k of rows[i][k] * weights[k]`, without an epilogue. With `AHEAD` it asks with every `k` for two cache
/// lines of values that come later: the first ones, and how many values apart the others are.
///
/// # Safety
/// `size.0` rows of `depth` values must be readable, as many of whole vectors at `start` readable and at `out` writable, and the
/// panel readable.
#[inline(always)]
pub(super) unsafe fn product<I: Isa, const AHEAD: bool>(
    isa: I,
    (size, depth): ((usize, usize), usize),
    (rows, row_in): (*const f32, usize),
    weights: *const f32,
    (start, row_start): (*const f32, usize),
    (out, row_out): (*mut f32, usize),
    ahead: [(*const f32, usize); 2],
) {
    macro_rules! run {
        ($m:literal, $n:literal) => {{
            isa.apart(
                #[inline(always)]
                // SAFETY: the caller proves all of it.
                || unsafe {
                    let mut sums = [[isa.splat(0.0); $n]; $m];
                    let mut starts = [rows; $m];
                    for i in 0..$m {
                        starts[i] = rows.wrapping_add(i * row_in);
                        for j in 0..$n {
                            sums[i][j] = isa.load_at(start.wrapping_add(i * row_start + j * I::LANES));
                        }
                    }
                    let mut weights = weights;
                    for k in 0..depth {
                        if AHEAD {
                            isa.fetch_ahead(ahead[0].0.wrapping_add(k * ahead[0].1));
                            isa.fetch_ahead(ahead[1].0.wrapping_add(k * ahead[1].1));
                        }
                        let mut row = [sums[0][0]; $n];
                        for j in 0..$n {
                            row[j] = isa.load_at(weights.add(j * I::LANES));
                        }
                        for i in 0..$m {
                            let value = isa.splat(*starts[i].add(k));
                            for j in 0..$n {
                                sums[i][j] = isa.fma(value, row[j], sums[i][j]);
                            }
                        }
                        weights = weights.add($n * I::LANES);
                    }
                    for i in 0..$m {
                        for j in 0..$n {
                            isa.store_at(out.add(i * row_out + j * I::LANES), sums[i][j]);
                        }
                    }
                },
            )
        }};
    }
    by_size!(I, size, run);
}

/// Where sums begin that have none before them: two vectors of zeros.
pub(super) static ZEROS: [f32; 32] = [0.0; 32];
