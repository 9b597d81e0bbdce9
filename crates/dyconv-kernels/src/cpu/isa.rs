//! Instruction sets as values: what a kernel may use is what it holds a token for.

/// Vectors of f32 on one instruction set.
///
/// # Safety
/// A value of an implementing type must exist only on a CPU that has the instructions which its methods use.
pub(crate) unsafe trait Isa: Copy + Send + Sync {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of the register tile of the matrix product: with two vectors a row, accumulators fill the registers but for
    /// the two vectors of the right side and a broadcast value of the left.
    const TILE_ROWS: usize;
    /// Rows and vectors a row of the register tile of [`super::conv`].
    const PRODUCT: (usize, usize) = (Self::TILE_ROWS, 2);
    /// A vector.
    type F32: Copy;
    /// The same set with what it has for bf16, of vectors as long.
    type Bf16: Isa;
    /// The same set on vectors half as long, where shorter ones are worth having; else the same.
    type Half: Isa;
    /// Whether [`Isa::fma_pairs`] is one instruction.
    const MULTIPLIES_BF16: bool = false;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F32;
    /// The first [`Isa::LANES`] values of `x`, which must have as many.
    fn load(self, x: &[f32]) -> Self::F32;
    /// Writes the first [`Isa::LANES`] values of `y`, which must have as many.
    fn store(self, y: &mut [f32], v: Self::F32);
    /// `a * b + c`
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a + b`
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b`
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b`
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b`
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a / b` to one part in ten thousand, where that takes less; `b` must be normal, and at most 2^126.
    #[inline(always)]
    fn div_near(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.div(a, b)
    }
    /// The larger of each pair; `x` where it is NaN.
    fn at_least(self, x: Self::F32, low: Self::F32) -> Self::F32;
    /// The smaller of each pair; `x` where it is NaN.
    fn at_most(self, x: Self::F32, high: Self::F32) -> Self::F32;
    /// The larger of each pair; NaN where either is.
    fn largest(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `power` with the lowest bits of `exponent`, as bits, added to its exponent.
    fn scale_by_bits(self, power: Self::F32, exponent: Self::F32) -> Self::F32;
    /// [`Isa::LANES`] values from `x` on.
    ///
    /// # Safety
    /// They must be readable.
    unsafe fn load_at(self, x: *const f32) -> Self::F32;
    /// Writes [`Isa::LANES`] values from `y` on.
    ///
    /// # Safety
    /// They must be writable.
    unsafe fn store_at(self, y: *mut f32, v: Self::F32);
    /// Turns eight rows of eight values: value `j` of row `i` of `from` becomes value `i` of row `j` of `to`; rows begin so
    /// many values apart as the pairs say.
    ///
    /// # Safety
    /// They must be readable and writable.
    unsafe fn turn8(self, from: (*const f32, usize), to: (*mut f32, usize));
    /// The token of the set with bf16, where the CPU has it.
    fn bf16(self) -> Option<Self::Bf16>;
    /// The lanes 0, 2, 4 and so on of `a`, and behind them those of `b`.
    #[inline(always)]
    fn evens(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        let mut lanes = [0.0; 2 * WIDEST];
        self.store(&mut lanes, a);
        self.store(&mut lanes[Self::LANES..], b);
        for i in 0..Self::LANES {
            lanes[i] = lanes[2 * i];
        }
        self.load(&lanes)
    }
    /// A lane of `a` and one of `b` in turn, as two vectors.
    #[inline(always)]
    fn weave(self, a: Self::F32, b: Self::F32) -> (Self::F32, Self::F32) {
        let (mut even, mut odd, mut lanes) = ([0.0; WIDEST], [0.0; WIDEST], [0.0; 2 * WIDEST]);
        self.store(&mut even, a);
        self.store(&mut odd, b);
        for i in 0..Self::LANES {
            (lanes[2 * i], lanes[2 * i + 1]) = (even[i], odd[i]);
        }
        (self.load(&lanes), self.load(&lanes[Self::LANES..]))
    }
    /// The token of the set on shorter vectors.
    fn half(self) -> Self::Half;
    /// `c` and the products of two pairs of bf16, which lie in each lane of `a` and `b`, the first in the lower bits.
    #[inline(always)]
    fn fma_pairs(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        let (mut left, mut right, mut sums) = ([0.0; WIDEST], [0.0; WIDEST], [0.0; WIDEST]);
        self.store(&mut left, a);
        self.store(&mut right, b);
        self.store(&mut sums, c);
        for i in 0..Self::LANES {
            let (a, b) = (f32::to_bits(left[i]), f32::to_bits(right[i]));
            let half = |bits: u32| f32::from_bits(bits & 0xFFFF_0000);
            sums[i] += half(a) * half(b) + half(a << 16) * half(b << 16);
        }
        self.load(&sums)
    }
    /// Rounds to bf16, to the nearest and of two to the even one, and writes [`Isa::LANES`] of them from `y` on.
    ///
    /// # Safety
    /// They must be writable.
    #[inline(always)]
    unsafe fn store_bf16_at(self, y: *mut u16, v: Self::F32) {
        let mut values = [0.0; WIDEST];
        self.store(&mut values, v);
        for i in 0..Self::LANES {
            // SAFETY: the caller proves the room.
            unsafe { *y.add(i) = bf16_bits(values[i]) };
        }
    }
    /// Rounds [`Isa::LANES`] values of each row of `x` and writes them from `y` on, one of each row in turn.
    ///
    /// # Safety
    /// Three times as many must be writable.
    #[inline(always)]
    unsafe fn weave_bf16_at(self, x: [&[f32]; 3], y: *mut u16) {
        let mut bits = [0; WIDEST];
        for (row, x) in x.iter().enumerate() {
            // SAFETY: there are as many places as the widest vector has lanes; the caller proves the room.
            unsafe {
                self.store_bf16_at(bits.as_mut_ptr(), self.load(x));
                for i in 0..Self::LANES {
                    *y.add(3 * i + row) = bits[i];
                }
            }
        }
    }
    /// [`Isa::LANES`] values of bf16 from `x` on.
    ///
    /// # Safety
    /// They must be readable.
    #[inline(always)]
    unsafe fn load_bf16_at(self, x: *const u16) -> Self::F32 {
        let mut values = [0.0; WIDEST];
        for i in 0..Self::LANES {
            // SAFETY: the caller proves the values.
            values[i] = f32::from_bits(u32::from(unsafe { *x.add(i) }) << 16);
        }
        self.load(&values)
    }
    /// Asks for the cache line of the first value of `x` to be read.
    fn prefetch(self, x: &[f32]);
    /// Asks for the cache line of `x` to be brought into a level-2 cache; it need not be one that may be read.
    fn fetch_ahead(self, x: *const f32);
    /// Runs `body` with this instruction set enabled, so that what is inlined into it compiles to it.
    fn run<R>(self, body: impl FnOnce() -> R) -> R;
    /// As [`Isa::run`], as a function of its own: inlined into a large one, an inner loop would have to share its registers.
    fn apart<R>(self, body: impl FnOnce() -> R) -> R;
}

/// The widest vector there is.
pub(super) const WIDEST: usize = 16;

/// The bits of the nearest bf16; of two the even one.
#[inline(always)]
pub(super) const fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = if value.is_nan() { bits | 1 << 22 } else { bits + 0x7FFF + (bits >> 16 & 1) };
    (rounded >> 16) as u16
}

/// Copies, for rows so short that a call of the C library's copy would cost more.
#[inline(always)]
pub(super) fn copy<I: Isa>(isa: I, from: &[f32], to: &mut [f32]) {
    let count = to.len();
    let from = &from[..count];
    let mut at = 0;
    while at + I::LANES <= count {
        isa.store(&mut to[at..][..I::LANES], isa.load(&from[at..][..I::LANES]));
        at += I::LANES;
    }
    if at == count {
        return;
    }
    if count >= I::LANES {
        // The last vector overlaps the one before.
        let at = count - I::LANES;
        isa.store(&mut to[at..][..I::LANES], isa.load(&from[at..][..I::LANES]));
    } else {
        to.copy_from_slice(from);
    }
}

/// The instruction sets that there are kernels for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IsaName {
    /// No vector instructions beyond what the compiler takes by itself.
    Scalar,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F and VL, besides AVX2 and FMA.
    Avx512,
    /// AArch64.
    Neon,
}

impl IsaName {
    /// All of them, the widest first.
    pub const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Scalar];

    /// As `DYCONV_ISA` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}
