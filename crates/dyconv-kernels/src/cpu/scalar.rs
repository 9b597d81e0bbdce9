//! Kernels for any CPU: a vector is an array, and the compiler makes of it what it can.

use super::isa::Isa;

/// Token of plain code; any CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

// SAFETY: nothing beyond the target's baseline is used.
unsafe impl Isa for Scalar {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;
    type F32 = [f32; 8];
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
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> [f32; 8] {
        let mut v = [0.0; 8];
        v.copy_from_slice(&x[..8]);
        v
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: [f32; 8]) {
        y[..8].copy_from_slice(&v);
    }

    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn at_least(self, x: [f32; 8], low: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] < low[i] { low[i] } else { x[i] })
    }

    #[inline(always)]
    fn at_most(self, x: [f32; 8], high: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] > high[i] { high[i] } else { x[i] })
    }

    #[inline(always)]
    fn largest(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] || a[i].is_nan() { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn scale_by_bits(self, power: [f32; 8], exponent: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits(power[i].to_bits().wrapping_add(exponent[i].to_bits() << 23)))
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> [f32; 8] {
        // SAFETY: the caller proves the values.
        unsafe { x.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_at(self, y: *mut f32, v: [f32; 8]) {
        // SAFETY: the caller proves the room.
        unsafe { y.cast::<[f32; 8]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn turn8(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller proves the values and the room.
                unsafe { *to.0.add(j * to.1 + i) = *from.0.add(i * from.1 + j) };
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, _: &[f32]) {}
    #[inline(always)]
    fn fetch_ahead(self, _: *const f32) {}

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        body()
    }

    #[inline(never)]
    fn apart<R>(self, body: impl FnOnce() -> R) -> R {
        body()
    }
}
