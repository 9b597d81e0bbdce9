//! What happens to sums while they are in registers: activation, residual, storing.

use super::super::isa::{Isa, WIDEST};

/// Elementwise function behind a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Act {
    /// None.
    #[default]
    Identity,
    /// `v / (1 + exp(-v))`
    Silu,
    /// `v`, or `slope * v` where `v` is negative. A slope of 0 is ReLU.
    Leaky(f32),
    /// `v` within 0 and 6.
    Relu6,
    /// `1 / (1 + exp(-v))`
    Sigmoid,
    /// `v * clamp(v + 3, 0, 6) / 6`
    Hardswish,
}

/// `exp(-x)` to 2e-7 for values within 20; `x` must be at least -87. Of NaN it makes any number.
#[inline(always)]
fn exp_of_negative<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    /// Adding it rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// `2^f` for f within a half, to 7.5e-8: the polynomial of degree 5 of the least largest error, by Remez' algorithm.
    const POWER: [f32; 5] = [9.675_541e-3, 5.550_713_3e-2, 2.402_212e-1, 6.931_469_7e-1, 1.000_000_1];
    let t = isa.at_least(isa.mul(x, isa.splat(-std::f32::consts::LOG2_E)), isa.splat(-126.0));
    let shifted = isa.add(t, isa.splat(ROUND));
    let f = isa.sub(t, isa.sub(shifted, isa.splat(ROUND)));
    let mut power = isa.splat(1.327_647_2e-3);
    for coefficient in POWER {
        power = isa.fma(power, f, isa.splat(coefficient));
    }
    isa.scale_by_bits(power, shifted)
}

/// `exp(-x)` to one part in ten thousand, under the same conditions.
#[inline(always)]
fn exp_of_negative_near<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    const ROUND: f32 = 12_582_912.0;
    /// The polynomial of degree 3 of the least largest relative error, by Remez' algorithm: 7.5e-5.
    const POWER: [f32; 3] = [2.426_111_4e-1, 6.932_61e-1, 9.999_280_7e-1];
    let t = isa.at_least(isa.mul(x, isa.splat(-std::f32::consts::LOG2_E)), isa.splat(-126.0));
    let shifted = isa.add(t, isa.splat(ROUND));
    let f = isa.sub(t, isa.sub(shifted, isa.splat(ROUND)));
    let mut power = isa.splat(5.517_167e-2);
    for coefficient in POWER {
        power = isa.fma(power, f, isa.splat(coefficient));
    }
    isa.scale_by_bits(power, shifted)
}

impl Act {
    /// What a profile calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::Silu => "silu",
            Self::Leaky(_) => "leaky",
            Self::Relu6 => "relu6",
            Self::Sigmoid => "sigmoid",
            Self::Hardswish => "hardswish",
        }
    }

    /// Applies it to all vectors of a tile that are about to be rounded to bf16: to one part in five thousand, where a half of
    /// the last digit is one in 512 at best.
    #[inline(always)]
    pub(super) fn apply_near<I: Isa, const M: usize, const N: usize>(self, isa: I, tile: &mut [[I::F32; N]; M]) {
        if self != Self::Silu {
            return self.apply_all(isa, tile);
        }
        for row in tile.iter_mut() {
            for v in row.iter_mut() {
                // As in `silu`; what would be divided by more than 2^126 is less than any bf16.
                let x = isa.at_least(*v, isa.splat(-87.0));
                *v = isa.div_near(x, isa.add(isa.splat(1.0), exp_of_negative_near(isa, x)));
            }
        }
    }

    /// Applies it to a vector.
    #[inline(always)]
    pub(super) fn apply<I: Isa>(self, isa: I, v: I::F32) -> I::F32 {
        let mut v = [[v]];
        self.apply_all(isa, &mut v);
        v[0][0]
    }

    /// Applies it to all vectors of a tile.
    #[inline(always)]
    pub(super) fn apply_all<I: Isa, const M: usize, const N: usize>(self, isa: I, tile: &mut [[I::F32; N]; M]) {
        // The choice is made once, not for each vector.
        macro_rules! each {
            ($f:expr) => {
                for row in tile.iter_mut() {
                    for v in row.iter_mut() {
                        *v = $f(isa, *v);
                    }
                }
            };
        }
        match self {
            Self::Identity => {}
            Self::Silu => each!(silu),
            // Without a product: of minus infinity it would be NaN.
            Self::Leaky(0.0) => each!(relu),
            Self::Leaky(slope) => {
                let (zero, slope) = (isa.splat(0.0), isa.splat(slope));
                for row in tile.iter_mut() {
                    for v in row.iter_mut() {
                        *v = isa.fma(isa.at_most(*v, zero), slope, isa.at_least(*v, zero));
                    }
                }
            }
            Self::Relu6 => each!(relu6),
            Self::Sigmoid => each!(sigmoid),
            Self::Hardswish => each!(hardswish),
        }
    }
}

#[inline(always)]
fn silu<I: Isa>(isa: I, v: I::F32) -> I::F32 {
    // Below, the result is nothing; infinity must not become NaN.
    let v = isa.at_least(v, isa.splat(-87.0));
    isa.div(v, isa.add(isa.splat(1.0), exp_of_negative(isa, v)))
}

#[inline(always)]
fn sigmoid<I: Isa>(isa: I, v: I::F32) -> I::F32 {
    // Beyond these it is 0 and 1 anyway; finite, so that the sum below adds nothing but NaN.
    let v = isa.at_most(isa.at_least(v, isa.splat(-87.0)), isa.splat(87.0));
    let sum = isa.add(isa.splat(1.0), exp_of_negative(isa, v));
    isa.div(isa.splat(1.0), isa.fma(v, isa.splat(0.0), sum))
}

#[inline(always)]
fn relu<I: Isa>(isa: I, v: I::F32) -> I::F32 {
    isa.at_least(v, isa.splat(0.0))
}

#[inline(always)]
fn relu6<I: Isa>(isa: I, v: I::F32) -> I::F32 {
    isa.at_most(isa.at_least(v, isa.splat(0.0)), isa.splat(6.0))
}

#[inline(always)]
fn hardswish<I: Isa>(isa: I, v: I::F32) -> I::F32 {
    let gate = isa.at_least(isa.add(v, isa.splat(3.0)), isa.splat(0.0));
    isa.mul(isa.mul(v, isa.at_most(gate, isa.splat(6.0))), isa.splat(1.0 / 6.0))
}

/// The first `count` values from `x` on, at most a vector; zeros behind.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn load_part<I: Isa>(isa: I, x: *const f32, count: usize) -> I::F32 {
    if count >= I::LANES {
        // SAFETY: the caller proves the values.
        return unsafe { isa.load_at(x) };
    }
    let mut values = [0.0; WIDEST];
    for i in 0..count {
        // SAFETY: as above.
        values[i] = unsafe { *x.add(i) };
    }
    isa.load(&values)
}

/// The same of values of bf16.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn load_rounded<I: Isa>(isa: I, x: *const u16, count: usize) -> I::F32 {
    if count >= I::LANES {
        // SAFETY: the caller proves the values.
        return unsafe { isa.load_bf16_at(x) };
    }
    let mut values = [0; WIDEST];
    for i in 0..count {
        // SAFETY: as above.
        values[i] = unsafe { *x.add(i) };
    }
    // SAFETY: there are as many as the widest vector has lanes.
    unsafe { isa.load_bf16_at(values.as_ptr()) }
}

/// Writes the first `count` values of a vector, at most all, from `y` on.
///
/// # Safety
/// They must be writable.
#[inline(always)]
pub(super) unsafe fn store_part<I: Isa>(isa: I, y: *mut f32, v: I::F32, count: usize) {
    if count >= I::LANES {
        // SAFETY: the caller proves the room.
        return unsafe { isa.store_at(y, v) };
    }
    let mut values = [0.0; WIDEST];
    isa.store(&mut values, v);
    for i in 0..count {
        // SAFETY: as above.
        unsafe { *y.add(i) = values[i] };
    }
}

/// Adds the residual from `add` unless null, and writes the first `count` values to `y`.
///
/// # Safety
/// `count` values must be writable at `y` and, unless it is null, readable at `add`; both may be the same.
#[inline(always)]
pub(super) unsafe fn put<I: Isa>(isa: I, mut v: I::F32, add: *const f32, y: *mut f32, count: usize) {
    // SAFETY: the caller proves both places.
    unsafe {
        if !add.is_null() {
            v = isa.add(v, load_part(isa, add, count));
        }
        store_part(isa, y, v, count);
    }
}

/// Rounds a vector to bf16 and writes its first `count` values to `y`.
///
/// # Safety
/// `count` values must be writable at `y`.
#[inline(always)]
pub(super) unsafe fn put_rounded<I: Isa>(isa: I, v: I::F32, y: *mut u16, count: usize) {
    if count >= I::LANES {
        // SAFETY: the caller proves the room.
        return unsafe { isa.store_bf16_at(y, v) };
    }
    let mut values = [0; WIDEST];
    // SAFETY: there are as many places as the widest vector has lanes.
    unsafe { isa.store_bf16_at(values.as_mut_ptr(), v) };
    for i in 0..count {
        // SAFETY: the caller proves the room.
        unsafe { *y.add(i) = values[i] };
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{Job, available, with};
    use super::*;

    struct Apply(Act, f32);

    impl Job for Apply {
        type Output = f32;
        fn run<I: Isa>(self, isa: I) -> f32 {
            let mut values = [0.0; WIDEST];
            isa.store(&mut values, self.0.apply(isa, isa.splat(self.1)));
            values[0]
        }
    }

    const ALL: [Act; 7] =
        [Act::Identity, Act::Silu, Act::Leaky(0.0), Act::Leaky(0.1), Act::Relu6, Act::Sigmoid, Act::Hardswish];

    #[test]
    fn infinities_are_what_the_definitions_make_of_them() {
        let (infinity, none) = (f32::INFINITY, f32::NEG_INFINITY);
        for isa in available() {
            let of = |act, value| with(isa, Apply(act, value)).unwrap();
            assert_eq!(ALL.map(|act| of(act, infinity)), [infinity, infinity, infinity, infinity, 6.0, 1.0, infinity]);
            assert_eq!([Act::Leaky(0.0), Act::Leaky(0.1), Act::Relu6].map(|act| of(act, none)), [0.0, none, 0.0]);
            assert!([Act::Silu, Act::Sigmoid].iter().all(|act| of(*act, none).abs() < 1e-35), "{}", isa.name());
        }
    }

    /// Whatever its low bits are: those are where exp puts its power of two.
    #[test]
    fn nan_stays() {
        for isa in available() {
            for bits in [0x7FC0_0000, 0x7FC0_0001, 0x7FC0_00FF, u32::MAX] {
                for act in ALL {
                    let got = with(isa, Apply(act, f32::from_bits(bits))).unwrap();
                    assert!(got.is_nan(), "{act:?} of NaN {bits:x} on {}: {got}", isa.name());
                }
            }
        }
    }
}
