//! NEON on AArch64, where every CPU has it.

use std::arch::aarch64::{float32x4x2_t, vdupq_n_f32, vfmaq_f32, vld1q_f32, vst1q_f32};

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
    fn prefetch(self, _: &[f32]) {}

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "neon")]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves NEON.
        unsafe { entry(body) }
    }
}
