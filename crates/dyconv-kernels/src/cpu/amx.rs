//! Tiles of bf16 (AMX) on x86-64: sixteen rows of pairs times sixteen columns, summed in f32, in one instruction.
//!
//! The compiler knows nothing of tile registers, and no code but this uses them: between [`Amx::begin`] and the drop of what it
//! returns a thread keeps their shapes, and sums in four of them from one block of assembly to the next. For one tile of
//! pixels `a` and one of output channels `b` the sums are in register 0; those of the second of each lie in 1 (a, second b), 2
//! (second a, b) and 3.

/// Rows of a tile, and columns of one of sums.
pub(super) const SIDE: usize = 16;
/// Values of bf16 in a row of a tile.
pub(super) const DEPTH: usize = 32;

/// Neighbouring taps of pixels: for two times [`SIDE`] pixels where the first one's lie, from a pixel to the next the same way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// First tap of the first pixel of each tile.
    pub(super) pixels: [*const u16; 2],
    /// Bytes from a pixel to the next.
    pub(super) stride: usize,
    /// Taps in steps of [`DEPTH`], or as many as tiles were set to.
    pub(super) steps: usize,
}

// SAFETY: what it points to is read only during the step that made it.
unsafe impl Send for Run {}

/// Token of a CPU that has the instructions, and a system that lets this process use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Amx(());

/// Shapes of tiles, set on this thread, and sums.
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
        /// The token, where CPU and system have it and `DYCONV_ISA` asks for no other instruction set.
        pub(in super::super) fn detect() -> Option<Self> {
            static FOUND: OnceLock<bool> = OnceLock::new();
            let found = *FOUND.get_or_init(|| {
                let features = __cpuid_count(7, 0).edx;
                let (bf16, tiles) = (features >> 22 & 1, features >> 24 & 1);
                bf16 == 1
                    && tiles == 1
                    && std::env::var_os("DYCONV_ISA").is_none_or(|isa| isa.is_empty())
                    && permitted()
            });
            found.then_some(Self(()))
        }

        /// Sets the shapes of tiles on this thread: whole ones but for as many taps a step as `depth` says, an even number, at
        /// most [`DEPTH`].
        pub(in super::super) fn begin(self, depth: usize) -> Tiles {
            /// Palette 1, bytes of a row of each tile at 16, rows at 48.
            #[repr(align(64))]
            struct Shapes([u8; 64]);
            assert!(depth <= DEPTH && depth.is_multiple_of(2) && depth > 0);
            let mut shapes = Shapes([0; 64]);
            shapes.0[0] = 1;
            for tile in 0..8 {
                shapes.0[16 + 2 * tile] = (SIDE * size_of::<f32>()) as u8;
                shapes.0[48 + tile] = SIDE as u8;
            }
            for pixels in [4, 5] {
                shapes.0[16 + 2 * pixels] = (depth * size_of::<u16>()) as u8;
            }
            for weights in [6, 7] {
                shapes.0[48 + weights] = (depth / 2) as u8;
            }
            // SAFETY: the token proves the instruction; it reads the 64 bytes. No code of the compiler's depends on tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) &shapes, options(nostack, preserves_flags, readonly)) };
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

    /// A block of assembly by how many tiles of pixels and of output channels there are: `$macro!($args, bytes of a row of both, lines
    /// for the second tile of channels, for that of pixels, for both of them)`.
    macro_rules! by_size {
        ($size:expr, $macro:ident, $args:tt, $wide:tt, $high:tt, $both:tt) => {
            match $size {
                (1, 1) => $macro!($args, 64, [], [], []),
                (1, _) => $macro!($args, 128, $wide, [], []),
                (_, 1) => $macro!($args, 64, [], $high, []),
                _ => $macro!($args, 128, $wide, $high, $both),
            }
        };
    }

    /// Products of all steps of a run, added to the sums.
    macro_rules! add {
        (($run:ident, $weights:ident), $row:literal, [$($wide:literal),*], [$($high:literal),*], [$($both:literal),*]) => {
            asm!(
                "2:",
                "tileloadd tmm6, [{b} + {row}*1]",
                "tileloadd tmm4, [{a0} + {pixel}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                $($wide,)*
                $($high,)*
                $($both,)*
                "add {a0}, 64",
                "add {a1}, 64",
                "add {b}, {rows}",
                "dec {steps}",
                "jnz 2b",
                a0 = inout(reg) $run.pixels[0] => _,
                a1 = inout(reg) $run.pixels[1] => _,
                pixel = in(reg) $run.stride,
                steps = inout(reg) $run.steps => _,
                b = inout(reg) $weights => _,
                row = in(reg) $row as usize,
                rows = const SIDE * $row,
                options(nostack, readonly),
            )
        };
    }

    /// Sums to memory; the second tile of pixels lies [`SIDE`] rows behind the first.
    macro_rules! store {
        (($out:ident), $row:literal, [$($wide:literal),*], [$($high:literal),*], [$($both:literal),*]) => {
            asm!(
                "tilestored [{out} + {row}*1], tmm0",
                $($wide,)*
                "add {out}, {rows}",
                $($high,)*
                $($both,)*
                out = inout(reg) $out => _,
                row = in(reg) $row as usize,
                rows = const SIDE * $row,
                options(nostack),
            )
        };
    }

    impl Tiles {
        /// Sets all sums to zero.
        pub(in super::super) fn clear(&mut self) {
            // SAFETY: that there are tiles proves the instructions.
            unsafe {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags),
                );
            }
        }

        /// `sums[i][j] += sum over the run's taps k of pixel i's value at k * weights[k][j]`. Rows of pairs of `weights` are
        /// `size.1` tiles long.
        ///
        /// # Safety
        /// Each pixel of the run must be readable over all its steps, `weights` too.
        pub(in super::super) unsafe fn add(&mut self, size: (usize, usize), run: &Run, weights: *const f32) {
            if run.steps == 0 {
                return;
            }
            // SAFETY: the caller proves all that is read. Tile registers hold the sums from block to block, for nothing but these
            // functions uses them.
            unsafe {
                by_size!(
                    size,
                    add,
                    (run, weights),
                    ["tileloadd tmm7, [{b} + {row}*1 + 64]", "tdpbf16ps tmm1, tmm4, tmm7"],
                    ["tileloadd tmm5, [{a1} + {pixel}*1]", "tdpbf16ps tmm2, tmm5, tmm6"],
                    ["tdpbf16ps tmm3, tmm5, tmm7"]
                );
            }
        }

        /// Writes the sums, rows of `size.1` tiles.
        ///
        /// # Safety
        /// `out` must be writable.
        pub(in super::super) unsafe fn store(&mut self, size: (usize, usize), out: *mut f32) {
            // SAFETY: the caller proves the room; the sums are in the registers.
            unsafe {
                by_size!(
                    size,
                    store,
                    (out),
                    ["tilestored [{out} + {row}*1 + 64], tmm1"],
                    ["tilestored [{out} + {row}*1], tmm2"],
                    ["tilestored [{out} + {row}*1 + 64], tmm3"]
                );
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

        pub(in super::super) fn begin(self, _: usize) -> Tiles {
            unreachable!("there is no token of what this CPU lacks")
        }
    }

    impl Tiles {
        pub(in super::super) fn clear(&mut self) {
            unreachable!("there are no tiles")
        }

        /// # Safety
        /// There are no tiles.
        pub(in super::super) unsafe fn add(&mut self, _: (usize, usize), _: &Run, _: *const f32) {
            unreachable!("there are no tiles")
        }

        /// # Safety
        /// There are no tiles.
        pub(in super::super) unsafe fn store(&mut self, _: (usize, usize), _: *mut f32) {
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
    #[allow(clippy::print_stderr, reason = "whoever reads the results shall know what did not run")]
    fn products_of_tiles_are_sums_of_products() {
        let Some(amx) = Amx::detect() else {
            eprintln!("tiles: this machine has none, or may not use them; not run");
            return;
        };
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
            let mut tiles = amx.begin(DEPTH);
            tiles.clear();
            // SAFETY: rows of the map are four steps long, the weights three, the output is as large as the tiles.
            unsafe {
                tiles.add(size, &runs[0], weights.as_ptr().cast());
                tiles.add(size, &runs[1], weights[DEPTH * channels..].as_ptr().cast());
                tiles.store(size, out.as_mut_ptr());
            }
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
