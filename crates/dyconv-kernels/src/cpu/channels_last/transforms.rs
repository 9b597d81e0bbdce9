//! The transforms of Winograd's algorithm along one axis of a tile.
//!
//! **Stride 1**, F(4, 3): six inputs and three taps to six points each, 0, 1, -1, 2, -2 and infinity.
//!
//! **Stride 2.** An output is `k0 d[2i] + k1 d[2i + 1] + k2 d[2i + 2]`: a convolution of the even inputs with two taps, and a product of
//! the odd ones with the third. The first is F(4, 2) with the points 0, 1, -1, 2 and infinity, five products for four outputs;
//! the second takes four. So nine inputs make nine slots, of which the last four hold odd inputs as they are and share one kernel:
//! 9 products an axis instead of 12, 81 a tile instead of 144, and six kernels an axis as with stride 1.

use super::super::isa::Isa;

/// Outputs of a tile along an axis.
pub(super) const OUT: usize = 4;
/// Kernels of a tile along an axis.
pub(super) const KERNELS: usize = 6;

/// Transformed kernels of three taps.
pub(super) fn kernels(stride: usize, [a, b, c]: [f64; 3]) -> [f64; KERNELS] {
    if stride == 1 {
        [a, a + b + c, a - b + c, a + 2.0 * b + 4.0 * c, a - 2.0 * b + 4.0 * c, c]
    } else {
        [a / 2.0, -(a + c) / 2.0, (c - a) / 6.0, (a + 2.0 * c) / 6.0, c, b]
    }
}

/// The slots of `N` inputs: 6 with stride 1, 9 with stride 2.
#[inline(always)]
pub(super) fn forward<I: Isa, const N: usize>(isa: I, d: &[I::F32; N]) -> [I::F32; N] {
    let mut slots = *d;
    if N == 6 {
        slots.copy_from_slice(&forward6(isa, [d[0], d[1], d[2], d[3], d[4], d[5]]));
    } else {
        slots[..5].copy_from_slice(&forward5(isa, [d[0], d[2], d[4], d[6], d[8]]));
        slots[5..].copy_from_slice(&[d[1], d[3], d[5], d[7]]);
    }
    slots
}

/// The outputs of the products of `N` slots.
#[inline(always)]
pub(super) fn backward<I: Isa, const N: usize>(isa: I, m: &[I::F32; N]) -> [I::F32; OUT] {
    if N == 6 {
        backward6(isa, [m[0], m[1], m[2], m[3], m[4], m[5]])
    } else {
        let even = backward5(isa, [m[0], m[1], m[2], m[3], m[4]]);
        [isa.add(even[0], m[5]), isa.add(even[1], m[6]), isa.add(even[2], m[7]), isa.add(even[3], m[8])]
    }
}

/// `B^T d` of F(4, 2), without the factors 1/2, -1/2, -1/6, 1/6 and 1 of its rows: [`kernels`] has them.
#[inline(always)]
fn forward5<I: Isa>(isa: I, d: [I::F32; 5]) -> [I::F32; 5] {
    let (two, minus_two, minus_three) = (isa.splat(2.0), isa.splat(-2.0), isa.splat(-3.0));
    let (a, b) = (isa.sub(d[0], d[2]), isa.sub(d[3], d[1]));
    [
        isa.fma(a, two, b),
        isa.fma(d[1], minus_two, isa.sub(d[3], d[2])),
        isa.fma(d[1], two, isa.fma(d[2], minus_three, d[3])),
        b,
        isa.fma(b, minus_two, isa.sub(d[4], d[2])),
    ]
}

/// `A^T m` of F(4, 2).
#[inline(always)]
fn backward5<I: Isa>(isa: I, m: [I::F32; 5]) -> [I::F32; OUT] {
    let (sum, difference) = (isa.add(m[1], m[2]), isa.sub(m[1], m[2]));
    [
        isa.add(isa.add(m[0], m[3]), sum),
        isa.fma(m[3], isa.splat(2.0), difference),
        isa.fma(m[3], isa.splat(4.0), sum),
        isa.add(isa.fma(m[3], isa.splat(8.0), difference), m[4]),
    ]
}

/// `G g` of three vectors, without the factors 1/4, -1/6, -1/6, 1/24, 1/24 and 1 of its rows: [`backward6`] has them, which runs
/// less often where each sample has kernels of its own.
#[inline(always)]
pub(super) fn kernel_forward<I: Isa>(isa: I, [a, b, c]: [I::F32; 3]) -> [I::F32; 6] {
    let (sum, four) = (isa.add(a, c), isa.fma(c, isa.splat(4.0), a));
    [a, isa.add(sum, b), isa.sub(sum, b), isa.fma(b, isa.splat(2.0), four), isa.fma(b, isa.splat(-2.0), four), c]
}

/// `B^T d` of six vectors.
#[inline(always)]
fn forward6<I: Isa>(isa: I, d: [I::F32; 6]) -> [I::F32; 6] {
    let (two, four, five) = (isa.splat(2.0), isa.splat(4.0), isa.splat(-5.0));
    let minus_four = isa.splat(-4.0);
    let (a, b) = (isa.fma(d[2], minus_four, d[4]), isa.fma(d[1], minus_four, d[3]));
    let (c, e) = (isa.sub(d[4], d[2]), isa.mul(isa.sub(d[3], d[1]), two));
    [
        isa.fma(d[0], four, isa.fma(d[2], five, d[4])),
        isa.add(a, b),
        isa.sub(a, b),
        isa.add(c, e),
        isa.sub(c, e),
        isa.fma(d[1], four, isa.fma(d[3], five, d[5])),
    ]
}

/// `A^T m` of six vectors, with the factors that [`kernel_forward`] leaves out.
#[inline(always)]
fn backward6<I: Isa>(isa: I, m: [I::F32; 6]) -> [I::F32; OUT] {
    let sixth = isa.splat(-1.0 / 6.0);
    let (a, b) = (isa.mul(isa.add(m[1], m[2]), sixth), isa.mul(isa.sub(m[1], m[2]), sixth));
    let (c, e) = (isa.add(m[3], m[4]), isa.sub(m[3], m[4]));
    [
        isa.fma(m[0], isa.splat(0.25), isa.fma(c, isa.splat(1.0 / 24.0), a)),
        isa.fma(e, isa.splat(1.0 / 12.0), b),
        isa.fma(c, isa.splat(1.0 / 6.0), a),
        isa.add(isa.fma(e, isa.splat(1.0 / 3.0), b), m[5]),
    ]
}
