//! Tiles of bf16 (AMX) on x86-64: sixteen rows of pairs times sixteen columns, summed in f32, in one instruction.
//!
//! The compiler knows nothing of tile registers: they are set up, used and stored within one block of assembly, but for their
//! shapes, which a thread keeps between [`Amx::begin`] and the drop of what it returns.

/// Rows of a tile, and columns of one of sums.
pub(super) const SIDE: usize = 16;
/// Values of bf16 in a row of a tile.
pub(super) const DEPTH: usize = 32;

/// Neighbouring taps of pixels: for two times [`SIDE`] pixels where the first one's lie, from a pixel to the next the same way.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Run {
    /// First tap of the first pixel of each tile.
    pub(super) pixels: [*const u16; 2],
    /// Bytes from a pixel to the next.
    pub(super) stride: usize,
    /// Taps in steps of [`DEPTH`].
    pub(super) steps: usize,
}

// SAFETY: what it points to is read only during the step that made it.
unsafe impl Send for Run {}

/// Token of a CPU that has the instructions, and a system that lets this process use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amx(());

/// Shapes of tiles, set on this thread.
pub(super) struct Tiles {
    /// Shapes are a thread's own.
    _not_send: std::marker::PhantomData<*const ()>,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;
    use std::sync::OnceLock;

    use super::{Amx, DEPTH, Run, SIDE, Tiles};

    impl Amx {
        /// The token, where CPU and system have it.
        pub(in super::super) fn detect() -> Option<Self> {
            static FOUND: OnceLock<bool> = OnceLock::new();
            let found = *FOUND.get_or_init(|| {
                let features = __cpuid_count(7, 0).edx;
                let (bf16, tiles) = (features >> 22 & 1, features >> 24 & 1);
                bf16 == 1 && tiles == 1 && permitted()
            });
            found.then_some(Self(()))
        }

        /// Sets the shapes of all tiles to whole ones on this thread.
        pub(in super::super) fn begin(self) -> Tiles {
            /// Palette 1, bytes of a row of each tile at 16, rows at 48.
            #[repr(align(64))]
            struct Shapes(#[allow(dead_code, reason = "read by the instruction")] [u8; 64]);
            static SHAPES: Shapes = {
                let mut shapes = [0; 64];
                shapes[0] = 1;
                let mut tile = 0;
                while tile < 8 {
                    shapes[16 + 2 * tile] = (DEPTH * size_of::<u16>()) as u8;
                    shapes[48 + tile] = SIDE as u8;
                    tile += 1;
                }
                Shapes(shapes)
            };
            // SAFETY: the token proves the instruction; it reads the 64 bytes. No code of the compiler's depends on tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, preserves_flags, readonly)) };
            Tiles { _not_send: std::marker::PhantomData }
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: that there are tiles proves the instruction.
            unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
        }
    }

    /// Asks the system to keep tiles when it switches threads, which it does for those only that ask.
    fn permitted() -> bool {
        const REQUEST_PERMISSION: libc::c_int = 0x1023;
        const TILE_DATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }

    /// The sums of `$m` tiles of pixels and `$n` of output channels, as assembly.
    macro_rules! product {
        ($zero:literal, $step:literal, $store:literal, $($operand:tt)*) => {
            asm!(
                $zero,
                "2:",
                "mov {a0}, qword ptr [{runs}]",
                "mov {a1}, qword ptr [{runs} + 8]",
                "mov {pixel}, qword ptr [{runs} + 16]",
                "mov {steps}, qword ptr [{runs} + 24]",
                "3:",
                $step,
                "add {a0}, 64",
                "add {a1}, 64",
                "dec {steps}",
                "jnz 3b",
                "add {runs}, 32",
                "dec {count}",
                "jnz 2b",
                $store,
                a0 = out(reg) _,
                a1 = out(reg) _,
                pixel = out(reg) _,
                steps = out(reg) _,
                $($operand)*
                options(nostack),
            )
        };
    }

    impl Tiles {
        /// `out[i][j] = sum over taps k of pixel i's value at k * weights[k][j]`, for `size.0` tiles of pixels and `size.1` of
        /// output channels, one or two each. Rows of `out` are `size.1` tiles long, those of pairs of `weights` too.
        ///
        /// # Safety
        /// Each pixel of each run must be readable over all its steps, `weights` for all of them together; `out` must be
        /// writable.
        pub(in super::super) unsafe fn product(
            &self,
            size: (usize, usize),
            runs: &[Run],
            weights: *const f32,
            out: *mut f32,
        ) {
            let count = runs.len();
            if count == 0 || runs.iter().any(|run| run.steps == 0) {
                // SAFETY: the caller proves the room.
                unsafe { out.write_bytes(0, size.0 * size.1 * SIDE * SIDE) };
                return;
            }
            let runs = runs.as_ptr();
            // SAFETY: the caller proves all that is read and written. What the registers of tiles hold is written before it is
            // used, and nobody expects them to be kept.
            unsafe {
                match size {
                    (1, 1) => product!(
                        "tilezero tmm0",
                        "tileloadd tmm6, [{b} + {row}*1]
                         tileloadd tmm4, [{a0} + {pixel}*1]
                         tdpbf16ps tmm0, tmm4, tmm6
                         add {b}, 1024",
                        "tilestored [{out} + {row}*1], tmm0",
                        runs = inout(reg) runs => _, count = inout(reg) count => _, b = inout(reg) weights => _,
                        row = in(reg) 64usize, out = in(reg) out,
                    ),
                    (1, _) => product!(
                        "tilezero tmm0
                         tilezero tmm1",
                        "tileloadd tmm6, [{b} + {row}*1]
                         tileloadd tmm4, [{a0} + {pixel}*1]
                         tdpbf16ps tmm0, tmm4, tmm6
                         tileloadd tmm7, [{b} + {row}*1 + 64]
                         tdpbf16ps tmm1, tmm4, tmm7
                         add {b}, 2048",
                        "tilestored [{out} + {row}*1], tmm0
                         tilestored [{out} + {row}*1 + 64], tmm1",
                        runs = inout(reg) runs => _, count = inout(reg) count => _, b = inout(reg) weights => _,
                        row = in(reg) 128usize, out = in(reg) out,
                    ),
                    (_, 1) => product!(
                        "tilezero tmm0
                         tilezero tmm2",
                        "tileloadd tmm6, [{b} + {row}*1]
                         tileloadd tmm4, [{a0} + {pixel}*1]
                         tdpbf16ps tmm0, tmm4, tmm6
                         tileloadd tmm5, [{a1} + {pixel}*1]
                         tdpbf16ps tmm2, tmm5, tmm6
                         add {b}, 1024",
                        "tilestored [{out} + {row}*1], tmm0
                         tilestored [{out} + {row}*1 + 1024], tmm2",
                        runs = inout(reg) runs => _, count = inout(reg) count => _, b = inout(reg) weights => _,
                        row = in(reg) 64usize, out = in(reg) out,
                    ),
                    _ => product!(
                        "tilezero tmm0
                         tilezero tmm1
                         tilezero tmm2
                         tilezero tmm3",
                        "tileloadd tmm6, [{b} + {row}*1]
                         tileloadd tmm4, [{a0} + {pixel}*1]
                         tdpbf16ps tmm0, tmm4, tmm6
                         tileloadd tmm7, [{b} + {row}*1 + 64]
                         tdpbf16ps tmm1, tmm4, tmm7
                         tileloadd tmm5, [{a1} + {pixel}*1]
                         tdpbf16ps tmm2, tmm5, tmm6
                         tdpbf16ps tmm3, tmm5, tmm7
                         add {b}, 2048",
                        "tilestored [{out} + {row}*1], tmm0
                         tilestored [{out} + {row}*1 + 64], tmm1
                         tilestored [{out} + {row}*1 + 2048], tmm2
                         tilestored [{out} + {row}*1 + 2112], tmm3",
                        runs = inout(reg) runs => _, count = inout(reg) count => _, b = inout(reg) weights => _,
                        row = in(reg) 128usize, out = in(reg) out,
                    ),
                }
            }
        }
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
mod other {
    use super::{Amx, Run, Tiles};

    impl Amx {
        pub(in super::super) fn detect() -> Option<Self> {
            None
        }

        pub(in super::super) fn begin(self) -> Tiles {
            unreachable!("there is no token of what this CPU lacks")
        }
    }

    impl Tiles {
        /// # Safety
        /// There are no tiles.
        pub(in super::super) unsafe fn product(&self, _: (usize, usize), _: &[Run], _: *const f32, _: *mut f32) {
            unreachable!("there are no tiles")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::isa::bf16_bits;
    use super::*;

    fn value(bits: u16) -> f64 {
        f64::from(f32::from_bits(u32::from(bits) << 16))
    }

    #[test]
    fn products_of_tiles_are_sums_of_products() {
        let Some(amx) = Amx::detect() else { return };
        for size in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let (pixels, channels) = (size.0 * SIDE, size.1 * SIDE);
            // Two runs of different lengths, pixels apart by more than a run takes.
            let (taps, stride) = (3 * DEPTH, 4 * DEPTH);
            let number = |i: usize| bf16_bits(((i * 7919 + 13) % 257) as f32 / 64.0 - 2.0);
            let map: Vec<u16> = (0..pixels * stride).map(number).collect();
            let weights: Vec<u16> = (0..taps * channels).map(|i| number(i * 31 + 5)).collect();
            let run = |first: usize, steps: usize| Run {
                pixels: [0, (size.0 - 1) * SIDE].map(|pixel| map[pixel * stride + first..].as_ptr()),
                stride: stride * size_of::<u16>(),
                steps,
            };
            let runs = [run(0, 1), run(DEPTH + 6, 2)];
            let mut out = vec![f32::NAN; pixels * channels + 1];
            let tiles = amx.begin();
            // SAFETY: rows of the map are four steps long, the weights three, the output is as large as the tiles.
            unsafe { tiles.product(size, &runs, weights.as_ptr().cast(), out.as_mut_ptr()) };
            drop(tiles);
            assert!(out[pixels * channels].is_nan());
            for pixel in 0..pixels {
                for channel in 0..channels {
                    let expected: f64 = (0..taps)
                        .map(|tap| {
                            let at = if tap < DEPTH { tap } else { tap + 6 };
                            let weight = weights[(tap / 2 * channels + channel) * 2 + tap % 2];
                            value(map[pixel * stride + at]) * value(weight)
                        })
                        .sum();
                    let got = f64::from(out[pixel * channels + channel]);
                    assert!((got - expected).abs() < 1e-4, "{size:?} at {pixel}, {channel}: {got}, not {expected}");
                }
            }
        }
    }
}
