//! How fast this machine multiplies and adds at most: what kernels are measured by.

use std::hint::black_box;
use std::time::Instant;

use super::super::isa::Isa;
use super::super::{Job, chosen, with};
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
