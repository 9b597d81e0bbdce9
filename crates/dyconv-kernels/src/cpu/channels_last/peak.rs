//! How fast this machine multiplies and adds at most: what kernels are measured by.

use std::hint::black_box;
use std::time::Instant;

use super::super::amx::{Amx, DEPTH, Run, SIDE};
use super::super::isa::Isa;
use super::super::{Job, chosen, with};
use super::build::multiplies_on_tiles;
use super::memory::Lines;
use super::team::Team;

/// Sums that run beside each other: as many as a register tile has.
const SUMS: usize = 12;
/// Multiplications of each sum, some milliseconds in all.
const STEPS: usize = 400_000;
/// Rounds of which the fastest counts.
const ROUNDS: usize = 5;

/// Multiplications and additions a second, counting both, of `threads` threads at once, on values that lie in registers.
///
/// # Errors
/// Where the system gives no threads.
pub fn peak_operations_per_second(threads: usize) -> std::io::Result<f64> {
    let mut team = Team::new(threads)?;
    Ok(with(chosen(), Peak { team: &mut team, threads }).unwrap_or(0.0))
}

/// The same of bf16 on tiles, on values that lie in the level-1 cache; none where there are no tiles.
///
/// # Errors
/// Where the system gives no threads.
pub fn peak_on_tiles(threads: usize) -> std::io::Result<Option<f64>> {
    const PASSES: usize = 8_000;
    const DEEP: usize = 4;
    let Some(amx) = Amx::detect().filter(|_| multiplies_on_tiles()) else { return Ok(None) };
    let mut team = Team::new(threads)?;
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        team.run(&|_| {
            // Numbers near one, of both signs: zeros take less power.
            let number = |i: usize| [0x3F80_BF90, 0xBFA0_3F70, 0x3F85_3F95_u32][i * 7919 % 3];
            let mut values = Lines::zeros(2 * SIDE * DEPTH * DEEP);
            for (i, value) in values.values_mut().iter_mut().enumerate() {
                *value = f32::from_bits(number(i));
            }
            let (pixels, weights) = values.values().split_at(SIDE * DEPTH * DEEP);
            let pixel = |index: usize| pixels[index * SIDE * DEPTH / 2 * DEEP..].as_ptr().cast::<u16>();
            let run =
                Run { pixels: [pixel(0), pixel(1)], stride: DEPTH * DEEP * size_of::<u16>(), steps: black_box(DEEP) };
            let mut tiles = amx.begin(DEPTH);
            tiles.clear();
            let mut sums = Lines::zeros(4 * SIDE * SIDE);
            // SAFETY: each pixel has so many steps, and there are as many rows of weights; the sums are four tiles.
            unsafe {
                for _ in 0..PASSES {
                    tiles.add((2, 2), &run, weights.as_ptr());
                }
                tiles.store((2, 2), sums.as_mut_ptr());
            }
            black_box(sums.values());
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(Some((2 * 4 * SIDE * SIDE * DEPTH * DEEP * PASSES * threads) as f64 / best))
}

struct Peak<'a> {
    team: &'a mut Team,
    threads: usize,
}

impl Job for Peak<'_> {
    type Output = f64;
    fn run<I: Isa>(self, isa: I) -> f64 {
        let mut best = f64::INFINITY;
        for _ in 0..ROUNDS {
            let start = Instant::now();
            self.team.run(&|_| {
                isa.run(
                    #[inline(always)]
                    || {
                        let (a, b) = (isa.splat(black_box(0.5)), isa.splat(black_box(0.25)));
                        let mut sums = [b; SUMS];
                        for _ in 0..STEPS {
                            for sum in &mut sums {
                                *sum = isa.fma(*sum, a, b);
                            }
                        }
                        let mut out = [0.0; 16];
                        for sum in sums {
                            isa.store(&mut out, sum);
                            black_box(&out);
                        }
                    },
                );
            });
            best = best.min(start.elapsed().as_secs_f64());
        }
        (2 * STEPS * SUMS * I::LANES * self.threads) as f64 / best
    }
}
