//! NEON on AArch64, where every CPU has it.

use std::arch::aarch64::*;

use super::isa::Isa;

/// Token of NEON. A vector is two registers, so that the tile is as wide as on AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, where the CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

// SAFETY: `detect` is the only constructor.
unsafe impl Isa for Neon {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    type F32 = float32x4x2_t;
    type Bf16 = Self;
    type Half = Self;

    #[inline(always)]
    fn bf16(self) -> Option<Self> {
        Some(self)
    }

    #[inline(always)]
    fn half(self) -> Self {
        self
    }

    #[inline(always)]
    fn evens(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vuzp1q_f32(a.0, a.1), vuzp1q_f32(b.0, b.1)) }
    }

    #[inline(always)]
    fn weave(self, a: float32x4x2_t, b: float32x4x2_t) -> (float32x4x2_t, float32x4x2_t) {
        // SAFETY: the token proves NEON.
        unsafe {
            (
                float32x4x2_t(vzip1q_f32(a.0, b.0), vzip2q_f32(a.0, b.0)),
                float32x4x2_t(vzip1q_f32(a.1, b.1), vzip2q_f32(a.1, b.1)),
            )
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> float32x4x2_t {
        assert!(x.len() >= 8);
        // SAFETY: the token proves NEON; eight values are there.
        unsafe { float32x4x2_t(vld1q_f32(x.as_ptr()), vld1q_f32(x.as_ptr().add(4))) }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: float32x4x2_t) {
        assert!(y.len() >= 8);
        // SAFETY: the token proves NEON; there is room for eight values.
        unsafe {
            vst1q_f32(y.as_mut_ptr(), v.0);
            vst1q_f32(y.as_mut_ptr().add(4), v.1);
        }
    }

    #[inline(always)]
    fn fma(self, a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
    }

    #[inline(always)]
    fn add(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn sub(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vsubq_f32(a.0, b.0), vsubq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn mul(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn div(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vdivq_f32(a.0, b.0), vdivq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn at_least(self, x: float32x4x2_t, low: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vmaxq_f32(x.0, low.0), vmaxq_f32(x.1, low.1)) }
    }

    #[inline(always)]
    fn at_most(self, x: float32x4x2_t, high: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON.
        unsafe { float32x4x2_t(vminq_f32(x.0, high.0), vminq_f32(x.1, high.1)) }
    }

    #[inline(always)]
    fn largest(self, a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        // SAFETY: the token proves NEON, whose maximum is NaN where either operand is.
        unsafe { float32x4x2_t(vmaxq_f32(a.0, b.0), vmaxq_f32(a.1, b.1)) }
    }

    #[inline(always)]
    fn scale_by_bits(self, power: float32x4x2_t, exponent: float32x4x2_t) -> float32x4x2_t {
        #[inline(always)]
        fn half(power: float32x4_t, exponent: float32x4_t) -> float32x4_t {
            // SAFETY: the token of the caller proves NEON.
            unsafe {
                let exponent = vshlq_n_s32::<23>(vreinterpretq_s32_f32(exponent));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(power), exponent))
            }
        }
        float32x4x2_t(half(power.0, exponent.0), half(power.1, exponent.1))
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> float32x4x2_t {
        // SAFETY: the token proves NEON; the caller proves the values.
        unsafe { float32x4x2_t(vld1q_f32(x), vld1q_f32(x.add(4))) }
    }

    #[inline(always)]
    unsafe fn store_at(self, y: *mut f32, v: float32x4x2_t) {
        // SAFETY: the token proves NEON; the caller proves the room.
        unsafe {
            vst1q_f32(y, v.0);
            vst1q_f32(y.add(4), v.1);
        }
    }

    #[inline(always)]
    unsafe fn turn8(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        for (row, column) in [(0, 0), (0, 4), (4, 0), (4, 4)] {
            // SAFETY: the token proves NEON; the caller proves the values and the room.
            unsafe {
                let line = |i: usize| vld1q_f32(from.0.add((row + i) * from.1 + column));
                let (a, b, c, d) = (line(0), line(1), line(2), line(3));
                let (even, odd) = (vtrnq_f32(a, b), vtrnq_f32(c, d));
                let out = |i: usize, low: float32x2_t, high: float32x2_t| {
                    vst1q_f32(to.0.add((column + i) * to.1 + row), vcombine_f32(low, high));
                };
                out(0, vget_low_f32(even.0), vget_low_f32(odd.0));
                out(1, vget_low_f32(even.1), vget_low_f32(odd.1));
                out(2, vget_high_f32(even.0), vget_high_f32(odd.0));
                out(3, vget_high_f32(even.1), vget_high_f32(odd.1));
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, _: &[f32]) {}
    #[inline(always)]
    fn fetch_ahead(self, _: *const f32) {}

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves NEON.
        unsafe { entry(body) }
    }

    #[inline(always)]
    fn apart<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        #[inline(never)]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves NEON.
        unsafe { entry(body) }
    }
}
