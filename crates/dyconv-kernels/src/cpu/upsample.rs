//! Nearest neighbours: every pixel becomes a block.

use super::isa::{Isa, IsaName};
use super::phases::share_chunks;
use super::{Job, chosen, with};

/// Values a task: worth its start.
const TASK_VALUES: usize = 16_384;

/// Repeats each value of `x`, rows of `width`, in a block of `factor` (rows, columns). Writes every value of `y`.
///
/// # Panics
/// Where the lengths do not fit, or a factor is zero.
pub fn upsample_nearest2d(x: &[f32], y: &mut [f32], width: usize, factor: (usize, usize)) {
    upsample_nearest2d_on(chosen(), x, y, width, factor);
}

pub(super) fn upsample_nearest2d_on(isa: IsaName, x: &[f32], y: &mut [f32], width: usize, factor: (usize, usize)) {
    check(x.len(), y.len(), width, factor);
    if !y.is_empty() && with(isa, Spread { x, y, width, factor }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

/// The gradient for `x` from that for its blocks, `dy`: their sums. Writes every value of `dx`.
///
/// # Panics
/// As [`upsample_nearest2d`].
pub fn upsample_nearest2d_backward(dy: &[f32], dx: &mut [f32], width: usize, factor: (usize, usize)) {
    upsample_nearest2d_backward_on(chosen(), dy, dx, width, factor);
}

pub(super) fn upsample_nearest2d_backward_on(
    isa: IsaName,
    dy: &[f32],
    dx: &mut [f32],
    width: usize,
    factor: (usize, usize),
) {
    check(dx.len(), dy.len(), width, factor);
    if !dx.is_empty() && with(isa, Gather { dy, dx, width, factor }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

fn check(inputs: usize, outputs: usize, width: usize, factor: (usize, usize)) {
    assert!(factor.0 > 0 && factor.1 > 0 && outputs == inputs * factor.0 * factor.1);
    assert!(inputs == 0 || (width > 0 && inputs.is_multiple_of(width)));
}

struct Spread<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    width: usize,
    factor: (usize, usize),
}

impl Job for Spread<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { x, y, width, factor } = self;
        let block = width * factor.0 * factor.1;
        let one = |x: &[f32], y: &mut [f32]| {
            isa.run(
                #[inline(always)]
                || {
                    let (first, others) = y.split_at_mut(width * factor.1);
                    match factor.1 {
                        1 => first.copy_from_slice(x),
                        // By far the most frequent, and a length that the compiler knows makes vectors.
                        2 => first.as_chunks_mut::<2>().0.iter_mut().zip(x).for_each(|(y, x)| *y = [*x; 2]),
                        n => first.chunks_exact_mut(n).zip(x).for_each(|(y, x)| y.fill(*x)),
                    }
                    others.chunks_exact_mut(first.len()).for_each(|other| other.copy_from_slice(first));
                },
            );
        };
        let run = (TASK_VALUES / block).max(1);
        share_chunks(y, run * block, |number, y| {
            y.chunks_exact_mut(block).zip(x[number * run * width..].chunks_exact(width)).for_each(|(y, x)| one(x, y));
        });
    }
}

struct Gather<'a> {
    dy: &'a [f32],
    dx: &'a mut [f32],
    width: usize,
    factor: (usize, usize),
}

impl Job for Gather<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { dy, dx, width, factor } = self;
        let block = width * factor.0 * factor.1;
        let one = |dy: &[f32], dx: &mut [f32]| {
            isa.run(
                #[inline(always)]
                || {
                    dx.fill(0.0);
                    for dy in dy.chunks_exact(width * factor.1) {
                        match factor.1 {
                            1 => dx.iter_mut().zip(dy).for_each(|(sum, dy)| *sum += dy),
                            2 => dx.iter_mut().zip(dy.as_chunks::<2>().0).for_each(|(sum, [a, b])| *sum += a + b),
                            n => dx
                                .iter_mut()
                                .zip(dy.chunks_exact(n))
                                .for_each(|(sum, dy)| *sum += dy.iter().sum::<f32>()),
                        }
                    }
                },
            );
        };
        let run = (TASK_VALUES / block).max(1);
        share_chunks(dx, run * width, |number, dx| {
            dx.chunks_exact_mut(width)
                .zip(dy[number * run * block..].chunks_exact(block))
                .for_each(|(dx, dy)| one(dy, dx));
        });
    }
}
