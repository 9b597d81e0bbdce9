//! Sigmoid and SiLU over slices, on all threads.

use super::isa::Isa;
use super::phases::share_chunks;

/// Values a task: worth its start, and in a level-1 cache.
const CHUNK: usize = 4096;

/// `y = 1 / (1 + exp(-x))`
pub(super) fn sigmoid<I: Isa>(isa: I, x: &[f32], y: &mut [f32]) {
    map(isa, x, y, sigmoid_of);
}

/// `y = x / (1 + exp(-x))`
pub(super) fn silu<I: Isa>(isa: I, x: &[f32], y: &mut [f32]) {
    map(isa, x, y, silu_of);
}

/// `dx = dy * d silu(x) / dx`, which is `dy * (s + x s (1 - s))` with `s = sigmoid(x)`.
pub(super) fn silu_backward<I: Isa>(isa: I, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    share_chunks(dx, CHUNK, |number, dx| {
        let (x, dy) = (&x[number * CHUNK..], &dy[number * CHUNK..]);
        isa.run(
            #[inline(always)]
            || {
                dx.iter_mut().zip(x).zip(dy).for_each(|((dx, x), dy)| {
                    let s = sigmoid_of(*x);
                    *dx = dy * (s + x * s * (1.0 - s));
                });
            },
        );
    });
}

/// `sums[i] += values[i]`
pub(super) fn add_to<I: Isa>(isa: I, sums: &mut [f32], values: &[f32]) {
    share_chunks(sums, 4 * CHUNK, |number, sums| {
        let values = &values[4 * number * CHUNK..];
        isa.run(
            #[inline(always)]
            || sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
        );
    });
}

/// The sigmoid of one value, without a branch.
#[inline(always)]
pub(super) fn sigmoid_of(x: f32) -> f32 {
    let sigmoid = 1.0 / (1.0 + exp(-x));
    if x.is_nan() { x } else { sigmoid }
}

/// SiLU of one value, without a branch.
#[inline(always)]
pub(super) fn silu_of(x: f32) -> f32 {
    // Below, the value is zero but for the last of the denormals; a huge `x` must not make it more.
    let x = if x < -88.0 { -88.0 } else { x };
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn map<I: Isa>(isa: I, x: &[f32], y: &mut [f32], f: impl Fn(f32) -> f32 + Copy + Sync) {
    share_chunks(y, CHUNK, |number, y| {
        let x = &x[number * CHUNK..];
        isa.run(
            #[inline(always)]
            || y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x)),
        );
    });
}

/// The exponential without a branch, so that a loop over it becomes vectors: `2^n * exp(r)` with `n` whole.
///
/// The remainder `r = x - n ln 2` is within 0.35, where seven terms of the series leave an error below 2e-7.
/// Arguments beyond those of finite results are clamped. Of NaN it makes any number.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let t = x * std::f32::consts::LOG2_E;
    let shifted = t + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, the first with few bits, so that the product with n is exact.
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let series = 1.0 / 720.0;
    let series = series * r + 1.0 / 120.0;
    let series = series * r + 1.0 / 24.0;
    let series = series * r + 1.0 / 6.0;
    let series = series * r + 0.5;
    let series = series * r + 1.0;
    let power = series * r + 1.0;
    f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23))
}

#[cfg(test)]
mod tests {
    use super::super::{Unary, available, unary_on};

    #[test]
    fn both_agree_with_f64_everywhere() {
        let mut x: Vec<f32> = (-120_000..120_000).map(|i| i as f32 * 1e-3 + 1e-4).collect();
        x.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-30, -1e-30, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY]);
        for isa in available() {
            for (kind, exact) in [
                (Unary::Sigmoid, (|x: f64| 1.0 / (1.0 + (-x).exp())) as fn(f64) -> f64),
                (Unary::Silu, |x| if x == f64::NEG_INFINITY { 0.0 } else { x / (1.0 + (-x).exp()) }),
            ] {
                let mut y = vec![f32::NAN; x.len()];
                unary_on(isa, kind, &x, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let expected = exact(f64::from(*x));
                    let error = (f64::from(*y) - expected).abs();
                    // Where the value is next to nothing, exp is clamped: 1e-35 is under any confidence that is asked for.
                    let close = error <= 4e-7 * expected.abs() + 1e-35 || *y == expected as f32;
                    assert!(close, "{kind:?} of {x} on {}: {y} instead of {expected}", isa.name());
                }
            }
            // With its low bits set, too: those are where exp puts its power of two.
            let nans = [f32::NAN, -f32::NAN, f32::from_bits(0x7FC0_0001), f32::from_bits(u32::MAX)];
            for kind in [Unary::Silu, Unary::Sigmoid] {
                let mut y = [0.0; 4];
                unary_on(isa, kind, &nans, &mut y);
                assert!(y.iter().all(|y| y.is_nan()), "{kind:?} on {}: {y:?}", isa.name());
            }
        }
    }
}
