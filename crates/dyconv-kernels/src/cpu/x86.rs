//! AVX2 and AVX-512 on x86-64.

use std::arch::x86_64::*;

use super::isa::Isa;

/// Token of AVX2 with FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

/// Token of AVX-512F with its instructions on shorter vectors (VL), which have as many registers; or of AVX512-BF16 besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl Avx2 {
    /// The token, where the CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }
}

impl<const BF16: bool> Avx512<BF16> {
    /// The token, where the CPU has the instructions.
    pub(crate) fn detect() -> Option<Self> {
        let shorter = is_x86_feature_detected!("avx512vl") && Avx2::detect().is_some();
        let plain = is_x86_feature_detected!("avx512f") && shorter;
        let bf16 = is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
        (plain && (bf16 || !BF16)).then_some(Self(()))
    }
}

// SAFETY: `detect` is the only constructor.
unsafe impl Isa for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    type F32 = __m256;
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
    fn evens(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe {
            // The even lanes of each half: two of `a`, two of `b`.
            let pairs = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0xD8>(pairs))
        }
    }

    #[inline(always)]
    fn weave(self, a: __m256, b: __m256) -> (__m256, __m256) {
        // SAFETY: the token proves AVX2.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            (_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, x: *const u16) -> __m256 {
        // SAFETY: the token proves AVX2; the caller proves the values.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(x.cast())))) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m256 {
        assert!(x.len() >= 8);
        // SAFETY: the token proves AVX2; eight values are there.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: __m256) {
        assert!(y.len() >= 8);
        // SAFETY: the token proves AVX2; there is room for eight values.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the token proves FMA.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn at_least(self, x: __m256, low: __m256) -> __m256 {
        // Of two operands of which one is NaN the instruction gives the second.
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_max_ps(low, x) }
    }

    #[inline(always)]
    fn at_most(self, x: __m256, high: __m256) -> __m256 {
        // Of two operands of which one is NaN the instruction gives the second.
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_min_ps(high, x) }
    }

    #[inline(always)]
    fn largest(self, a: __m256, b: __m256) -> __m256 {
        // Of two operands of which one is NaN the instruction gives the second: `b`, so that only a NaN of `a` is lost.
        // SAFETY: the token proves AVX2.
        unsafe { _mm256_blendv_ps(_mm256_max_ps(a, b), a, _mm256_cmp_ps::<_CMP_UNORD_Q>(a, a)) }
    }

    #[inline(always)]
    fn scale_by_bits(self, power: __m256, exponent: __m256) -> __m256 {
        // SAFETY: the token proves AVX2.
        unsafe {
            _mm256_castsi256_ps(_mm256_add_epi32(
                _mm256_castps_si256(power),
                _mm256_slli_epi32::<23>(_mm256_castps_si256(exponent)),
            ))
        }
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m256 {
        // SAFETY: the token proves AVX2; the caller proves the values.
        unsafe { _mm256_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store_at(self, y: *mut f32, v: __m256) {
        // SAFETY: the token proves AVX2; the caller proves the room.
        unsafe { _mm256_storeu_ps(y, v) }
    }

    #[inline(always)]
    unsafe fn turn8(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        // SAFETY: the token proves AVX; the caller proves the values and the room.
        unsafe { turn8(from, to) }
    }

    #[inline(always)]
    fn prefetch(self, x: &[f32]) {
        // SAFETY: a prefetch reads nothing; x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn fetch_ahead(self, x: *const f32) {
        // SAFETY: a prefetch reads nothing and takes any address; x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) }
    }

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves AVX2 and FMA.
        unsafe { entry(body) }
    }

    #[inline(always)]
    fn apart<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        #[inline(never)]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves AVX2 and FMA.
        unsafe { entry(body) }
    }
}

// SAFETY: `detect` is the only constructor.
unsafe impl<const BF16: bool> Isa for Avx512<BF16> {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 14;
    /// Where two vectors are multiplied at a time, as many are loaded: 11 loads for 24 products come easier than 16 for 28.
    const PRODUCT: (usize, usize) = (8, 3);
    type F32 = __m512;
    type Bf16 = Avx512<true>;
    type Half = Avx2;
    const MULTIPLIES_BF16: bool = BF16;

    #[inline(always)]
    fn bf16(self) -> Option<Avx512<true>> {
        Avx512::detect()
    }

    #[inline(always)]
    fn half(self) -> Avx2 {
        // `detect` has found AVX2 and FMA too.
        Avx2(())
    }

    #[inline(always)]
    fn evens(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            let places = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(a, places, b)
        }
    }

    #[inline(always)]
    fn weave(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            (_mm512_permutex2var_ps(a, low, b), _mm512_permutex2var_ps(a, high, b))
        }
    }

    #[inline(always)]
    fn fma_pairs(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        assert!(BF16);
        // SAFETY: the token proves AVX512-BF16; the vectors are as long.
        unsafe {
            _mm512_dpbf16_ps(c, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_at(self, y: *mut u16, v: __m512) {
        assert!(BF16);
        // SAFETY: the token proves AVX512-BF16; the caller proves the room; the vectors are as long.
        unsafe { _mm256_storeu_si256(y.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }

    #[inline(always)]
    unsafe fn weave_bf16_at(self, x: [&[f32]; 3], y: *mut u16) {
        /// Value `i` of row `r` lies at `16 * r + i`.
        const PLACES: [u16; 64] = {
            let mut places = [0; 64];
            let mut at = 0;
            while at < 48 {
                places[at] = (at % 3 * 16 + at / 3) as u16;
                at += 1;
            }
            places
        };
        assert!(BF16);
        let [first, second, third] = x.map(|row| self.load(row));
        // SAFETY: the token proves AVX512-BF16 and AVX-512BW; the caller proves the room; the vectors are as long.
        unsafe {
            let rows = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            let row = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(third));
            let row = _mm512_castsi256_si512(row);
            let (low, high) = PLACES.split_at(32);
            let low = _mm512_permutex2var_epi16(rows, _mm512_loadu_si512(low.as_ptr().cast()), row);
            let high = _mm512_permutex2var_epi16(rows, _mm512_loadu_si512(high.as_ptr().cast()), row);
            _mm512_storeu_si512(y.cast(), low);
            _mm256_storeu_si256(y.add(32).cast(), _mm512_castsi512_si256(high));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_at(self, x: *const u16) -> __m512 {
        // SAFETY: the token proves AVX-512F; the caller proves the values.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(x.cast())))) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn load(self, x: &[f32]) -> __m512 {
        assert!(x.len() >= 16);
        // SAFETY: the token proves AVX-512F; sixteen values are there.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, y: &mut [f32], v: __m512) {
        assert!(y.len() >= 16);
        // SAFETY: the token proves AVX-512F; there is room for sixteen values.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), v) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn div_near(self, a: __m512, b: __m512) -> __m512 {
        if cfg!(miri) {
            // The interpreter lacks the instruction.
            return self.div(a, b);
        }
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mul_ps(a, _mm512_rcp14_ps(b)) }
    }

    #[inline(always)]
    fn at_least(self, x: __m512, low: __m512) -> __m512 {
        if cfg!(miri) {
            // The interpreter lacks the instruction.
            return lane_by_lane(self, x, low, |x, low| if x < low { low } else { x });
        }
        // Of two operands of which one is NaN the instruction gives the second.
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_max_ps(low, x) }
    }

    #[inline(always)]
    fn at_most(self, x: __m512, high: __m512) -> __m512 {
        if cfg!(miri) {
            // The interpreter lacks the instruction.
            return lane_by_lane(self, x, high, |x, high| if x > high { high } else { x });
        }
        // Of two operands of which one is NaN the instruction gives the second.
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_min_ps(high, x) }
    }

    #[inline(always)]
    fn largest(self, a: __m512, b: __m512) -> __m512 {
        if cfg!(miri) {
            // The interpreter lacks the instruction.
            return lane_by_lane(self, a, b, |a, b| if a > b || a.is_nan() { a } else { b });
        }
        // As on AVX2.
        // SAFETY: the token proves AVX-512F.
        unsafe { _mm512_mask_mov_ps(_mm512_max_ps(a, b), _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a), a) }
    }

    #[inline(always)]
    fn scale_by_bits(self, power: __m512, exponent: __m512) -> __m512 {
        // SAFETY: the token proves AVX-512F.
        unsafe {
            _mm512_castsi512_ps(_mm512_add_epi32(
                _mm512_castps_si512(power),
                _mm512_slli_epi32::<23>(_mm512_castps_si512(exponent)),
            ))
        }
    }

    #[inline(always)]
    unsafe fn load_at(self, x: *const f32) -> __m512 {
        // SAFETY: the token proves AVX-512F; the caller proves the values.
        unsafe { _mm512_loadu_ps(x) }
    }

    #[inline(always)]
    unsafe fn store_at(self, y: *mut f32, v: __m512) {
        // SAFETY: the token proves AVX-512F; the caller proves the room.
        unsafe { _mm512_storeu_ps(y, v) }
    }

    #[inline(always)]
    unsafe fn turn8(self, from: (*const f32, usize), to: (*mut f32, usize)) {
        // SAFETY: the token proves AVX; the caller proves the values and the room.
        unsafe { turn8(from, to) }
    }

    #[inline(always)]
    fn prefetch(self, x: &[f32]) {
        // SAFETY: a prefetch reads nothing; x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn fetch_ahead(self, x: *const f32) {
        // SAFETY: a prefetch reads nothing and takes any address; x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(x.cast()) }
    }

    #[inline(always)]
    fn run<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512vl,fma")]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        #[target_feature(enable = "avx512f,avx512vl,fma,avx512bw,avx512bf16")]
        fn entry_bf16<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves what they need.
        unsafe { if BF16 { entry_bf16(body) } else { entry(body) } }
    }

    #[inline(always)]
    fn apart<R>(self, body: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512vl,fma")]
        #[inline(never)]
        fn entry<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        #[target_feature(enable = "avx512f,avx512vl,fma,avx512bw,avx512bf16")]
        #[inline(never)]
        fn entry_bf16<R>(body: impl FnOnce() -> R) -> R {
            body()
        }
        // SAFETY: the token proves what they need.
        unsafe { if BF16 { entry_bf16(body) } else { entry(body) } }
    }
}

/// As of [`Isa::turn8`].
///
/// # Safety
/// The CPU must have AVX; the values must be readable and writable.
#[inline(always)]
unsafe fn turn8(from: (*const f32, usize), to: (*mut f32, usize)) {
    // Loops, not closures: what the compiler does not inline would lose the instruction set.
    for half in 0..2 {
        // SAFETY: the caller proves all of it.
        unsafe {
            // Rows i and i + 4 side by side, so that no step crosses the halves of a register.
            let mut pairs = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let low = _mm_loadu_ps(from.0.add(i * from.1 + 4 * half));
                let high = _mm_loadu_ps(from.0.add((i + 4) * from.1 + 4 * half));
                pairs[i] = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high);
            }
            let [a, b, c, d] = pairs;
            let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
            let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
            let columns = [
                _mm256_shuffle_ps::<0x44>(ab, cd),
                _mm256_shuffle_ps::<0xEE>(ab, cd),
                _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
                _mm256_shuffle_ps::<0xEE>(ab_high, cd_high),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(to.0.add((4 * half + i) * to.1), column);
            }
        }
    }
}

/// A function of pairs of lanes, for an interpreter that lacks an instruction.
fn lane_by_lane<const BF16: bool>(isa: Avx512<BF16>, a: __m512, b: __m512, f: impl Fn(f32, f32) -> f32) -> __m512 {
    let (mut left, mut right) = ([0.0; 16], [0.0; 16]);
    isa.store(&mut left, a);
    isa.store(&mut right, b);
    left.iter_mut().zip(right).for_each(|(a, b)| *a = f(*a, b));
    isa.load(&left)
}
