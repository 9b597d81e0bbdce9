//! The register tile of the direct convolution: some pixels, found through pointers, times two vectors of output channels.

use super::super::isa::Isa;
use super::direct::PANEL_VECTORS;
use super::finish::{Act, load_part, load_rounded, put_rounded, store_part};

/// Runs of taps: for each of `rows`, one after the other, runs as long as `lengths` say; pointers of a run lie `stride` apart
/// from those of the next.
#[derive(Clone, Copy)]
pub(super) struct Taps<'a> {
    pub(super) lengths: &'a [usize],
    pub(super) rows: usize,
    pub(super) pointers: *const *const f32,
    pub(super) stride: usize,
    /// Values of each run that are left out at its beginning.
    pub(super) skip: usize,
}

/// What a tile is summed over.
pub(super) trait Sums {
    /// `start[i] + sum over taps k of pixel i's value at k * weights[k]`
    ///
    /// # Safety
    /// As of [`tile_of`].
    unsafe fn sums<I: Isa, const M: usize, const N: usize>(
        &self,
        isa: I,
        weights: *const f32,
        start: [[I::F32; N]; M],
    ) -> [[I::F32; N]; M];
}

/// Where a tile's sums come from and go.
pub(super) struct Place {
    /// Bias, the same for all pixels, or the sums so far.
    pub(super) start: *const f32,
    pub(super) start_pixel: usize,
    /// Where sums wait for the next portion of taps; null if this was the last.
    pub(super) between: *mut f32,
    /// First value; as all pointers to maps that of f32, whatever is there.
    pub(super) out: *mut f32,
    pub(super) pixel: usize,
    /// Whether the output is in bf16.
    pub(super) rounded: bool,
    /// Null if there is none.
    pub(super) residual: *const f32,
    /// Bytes from a pixel of it to the next.
    pub(super) residual_pixel: usize,
    /// Whether it is in bf16.
    pub(super) residual_rounded: bool,
    pub(super) act: Act,
    /// Channels that there are from the tile's first on.
    pub(super) channels: usize,
}

/// Calls a function that is generic over the tile's size: `$run!(PIXELS, VECTORS)`.
macro_rules! by_size {
    ($isa:ident, $size:expr, $run:ident) => {
        match $size {
            (1, 1) => $run!(1, 1),
            (2, 1) => $run!(2, 1),
            (3, 1) => $run!(3, 1),
            (4, 1) => $run!(4, 1),
            (5, 1) if $isa::TILE_ROWS > 4 => $run!(5, 1),
            (6, 1) if $isa::TILE_ROWS > 4 => $run!(6, 1),
            (7, 1) if $isa::TILE_ROWS > 6 => $run!(7, 1),
            (8, 1) if $isa::TILE_ROWS > 6 => $run!(8, 1),
            (9, 1) if $isa::TILE_ROWS > 6 => $run!(9, 1),
            (10, 1) if $isa::TILE_ROWS > 6 => $run!(10, 1),
            (11, 1) if $isa::TILE_ROWS > 6 => $run!(11, 1),
            (12, 1) if $isa::TILE_ROWS > 6 => $run!(12, 1),
            (13, 1) if $isa::TILE_ROWS > 12 => $run!(13, 1),
            (14, 1) if $isa::TILE_ROWS > 12 => $run!(14, 1),
            (1, _) => $run!(1, 2),
            (2, _) => $run!(2, 2),
            (3, _) => $run!(3, 2),
            (4, _) => $run!(4, 2),
            (5, _) if $isa::TILE_ROWS > 4 => $run!(5, 2),
            (6, _) if $isa::TILE_ROWS > 4 => $run!(6, 2),
            (7, _) if $isa::TILE_ROWS > 6 => $run!(7, 2),
            (8, _) if $isa::TILE_ROWS > 6 => $run!(8, 2),
            (9, _) if $isa::TILE_ROWS > 6 => $run!(9, 2),
            (10, _) if $isa::TILE_ROWS > 6 => $run!(10, 2),
            (11, _) if $isa::TILE_ROWS > 6 => $run!(11, 2),
            (12, _) if $isa::TILE_ROWS > 6 => $run!(12, 2),
            (13, _) if $isa::TILE_ROWS > 12 => $run!(13, 2),
            (14, _) if $isa::TILE_ROWS > 12 => $run!(14, 2),
            (size, _) => unreachable!("no tile has {size} pixels"),
        }
    };
}
pub(super) use by_size;

/// One tile: sums and epilogue.
///
/// # Safety
/// Pointers of `taps` must lead to as many values as the runs have; `weights` to the panel; the places of `place` to `size.0`
/// pixels.
#[inline(always)]
pub(super) unsafe fn tile_of<I: Isa, S: Sums>(
    isa: I,
    size: (usize, usize),
    taps: &S,
    weights: *const f32,
    place: &Place,
) {
    macro_rules! run {
        ($m:literal, $n:literal) => {{
            isa.apart(
                #[inline(always)]
                // SAFETY: the caller proves all of it.
                || unsafe { tile::<I, S, $m, $n>(isa, taps, weights, place) },
            )
        }};
    }
    by_size!(I, size, run);
}

/// # Safety
/// As of [`tile_of`].
#[inline(always)]
unsafe fn tile<I: Isa, S: Sums, const M: usize, const N: usize>(isa: I, taps: &S, weights: *const f32, place: &Place) {
    // SAFETY: the caller proves all of it.
    unsafe {
        let mut start = [[isa.splat(0.0); N]; M];
        for i in 0..M {
            for j in 0..N {
                start[i][j] = isa.load_at(place.start.wrapping_add(i * place.start_pixel + j * I::LANES));
            }
        }
        let mut sums = taps.sums::<I, M, N>(isa, weights, start);
        if !place.between.is_null() {
            for i in 0..M {
                for j in 0..N {
                    isa.store_at(place.between.wrapping_add((i * PANEL_VECTORS + j) * I::LANES), sums[i][j]);
                }
            }
            return;
        }
        if place.rounded {
            place.act.apply_near(isa, &mut sums);
        } else {
            place.act.apply_all(isa, &mut sums);
        }
        if place.residual_rounded && !place.residual.is_null() {
            for i in 0..M {
                let residual = place.residual.wrapping_byte_add(i * place.residual_pixel).cast::<u16>();
                for j in 0..N {
                    let own = residual.wrapping_add(j * I::LANES);
                    sums[i][j] = isa.add(sums[i][j], load_rounded(isa, own, place.channels - j * I::LANES));
                }
            }
        } else if !place.residual.is_null() {
            for i in 0..M {
                let residual = place.residual.wrapping_byte_add(i * place.residual_pixel);
                for j in 0..N {
                    let own = residual.wrapping_add(j * I::LANES);
                    sums[i][j] = isa.add(sums[i][j], load_part(isa, own, place.channels - j * I::LANES));
                }
            }
        }
        if place.rounded {
            for i in 0..M {
                let out = place.out.cast::<u16>().wrapping_add(i * place.pixel);
                for j in 0..N {
                    put_rounded(isa, sums[i][j], out.wrapping_add(j * I::LANES), place.channels - j * I::LANES);
                }
            }
            return;
        }
        for i in 0..M {
            let out = place.out.wrapping_add(i * place.pixel);
            for j in 0..N {
                store_part(isa, out.wrapping_add(j * I::LANES), sums[i][j], place.channels - j * I::LANES);
            }
        }
    }
}

impl Sums for Taps<'_> {
    #[inline(always)]
    unsafe fn sums<I: Isa, const M: usize, const N: usize>(
        &self,
        isa: I,
        mut weights: *const f32,
        start: [[I::F32; N]; M],
    ) -> [[I::F32; N]; M] {
        let mut sums = start;
        let mut pointers = self.pointers;
        for _ in 0..self.rows {
            for length in self.lengths {
                // SAFETY: the table has a pointer for each pixel of each run, and the weights a row for each tap.
                unsafe {
                    let mut pixels = [std::ptr::null::<f32>(); M];
                    for i in 0..M {
                        pixels[i] = (*pointers.add(i)).add(self.skip);
                    }
                    for k in 0..*length {
                        let mut row = [sums[0][0]; N];
                        for j in 0..N {
                            row[j] = isa.load_at(weights.add(j * I::LANES));
                        }
                        for i in 0..M {
                            let value = isa.splat(*pixels[i].add(k));
                            for j in 0..N {
                                sums[i][j] = isa.fma(value, row[j], sums[i][j]);
                            }
                        }
                        weights = weights.add(N * I::LANES);
                    }
                    pointers = pointers.add(self.stride);
                }
            }
        }
        sums
    }
}
