//! Maximum pooling: along the rows, then along the columns, so that a window of `kh x kw` costs `kh + kw` comparisons.
//!
//! Both passes take whole rows at a time, which the compiler turns into vectors. The gradient goes to the first maximum of
//! a window in reading order, or to its last NaN, as in PyTorch.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::isa::{Isa, IsaName};
use super::{Job, chosen, with};

/// Values a task: worth its start.
const TASK_VALUES: usize = 4096;

thread_local! {
    /// The thread's maxima along the rows of a map, and where they stand.
    static SCRATCH: RefCell<(Vec<f32>, Vec<u32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Sizes of a pooling of one map; pairs are (vertical, horizontal).
///
/// The padding is less than the kernel and a map has at least one pixel, so that every window sees one; a map has less than
/// 2^32 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Height and width of the input.
    pub input: (usize, usize),
    /// Height and width of the output.
    pub output: (usize, usize),
    /// Size of the window.
    pub kernel: (usize, usize),
    /// Step between windows.
    pub stride: (usize, usize),
    /// Rows and columns of negative infinity on each side.
    pub padding: (usize, usize),
}

/// The maxima of all windows of the maps in `x`. Writes every value of `y`.
///
/// # Panics
/// Where a slice is not as long as `shape` says, or `shape` contradicts itself.
pub fn max_pool2d(x: &[f32], y: &mut [f32], shape: &PoolShape) {
    max_pool2d_on(chosen(), x, y, shape);
}

pub(super) fn max_pool2d_on(isa: IsaName, x: &[f32], y: &mut [f32], shape: &PoolShape) {
    shape.check(x.len(), y.len());
    if with(isa, Forward { x, y, shape }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

/// The gradient for `x` from that for the maxima, `dy`. Writes every value of `dx`.
///
/// # Panics
/// As [`max_pool2d`].
pub fn max_pool2d_backward(x: &[f32], dy: &[f32], dx: &mut [f32], shape: &PoolShape) {
    max_pool2d_backward_on(chosen(), x, dy, dx, shape);
}

pub(super) fn max_pool2d_backward_on(isa: IsaName, x: &[f32], dy: &[f32], dx: &mut [f32], shape: &PoolShape) {
    shape.check(x.len(), dy.len());
    assert_eq!(x.len(), dx.len());
    if with(isa, Backward { x, dy, dx, shape }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

struct Forward<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    shape: &'a PoolShape,
}

impl Job for Forward<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { x, y, shape } = self;
        let maps = y.par_chunks_exact_mut(shape.outputs()).zip(x.par_chunks_exact(shape.inputs()));
        maps.with_min_len(shape.maps_per_task()).for_each(|(y, x)| {
            SCRATCH.with_borrow_mut(|(rows, _)| {
                isa.run(
                    #[inline(always)]
                    || shape.forward(x, y, rows),
                );
            });
        });
    }
}

struct Backward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    shape: &'a PoolShape,
}

impl Job for Backward<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { x, dy, dx, shape } = self;
        let maps = dx.par_chunks_exact_mut(shape.inputs()).zip(x.par_chunks_exact(shape.inputs()));
        let maps = maps.zip(dy.par_chunks_exact(shape.outputs()));
        maps.with_min_len(shape.maps_per_task()).for_each(|((dx, x), dy)| {
            SCRATCH.with_borrow_mut(|(rows, places)| {
                isa.run(
                    #[inline(always)]
                    || shape.backward(x, dy, dx, rows, places),
                );
            });
        });
    }
}

impl PoolShape {
    fn inputs(&self) -> usize {
        self.input.0 * self.input.1
    }

    fn outputs(&self) -> usize {
        self.output.0 * self.output.1
    }

    fn maps_per_task(&self) -> usize {
        (TASK_VALUES / self.inputs()).max(1)
    }

    fn check(&self, inputs: usize, outputs: usize) {
        let Self { kernel, stride, padding, .. } = *self;
        assert!(padding.0 < kernel.0 && padding.1 < kernel.1 && stride.0 > 0 && stride.1 > 0);
        assert!(self.inputs() > 0 && u32::try_from(self.inputs()).is_ok() && self.outputs() > 0);
        let last = |outputs: usize, stride: usize| (outputs - 1) * stride;
        assert!(last(self.output.0, stride.0) < self.input.0 + padding.0);
        assert!(last(self.output.1, stride.1) < self.input.1 + padding.1);
        assert!(inputs.is_multiple_of(self.inputs()) && outputs == inputs / self.inputs() * self.outputs());
    }

    #[inline(always)]
    fn forward(&self, x: &[f32], y: &mut [f32], rows: &mut Vec<f32>) {
        let (width, out_width, step) = (self.input.1, self.output.1, self.stride.1);
        rows.clear();
        rows.resize(self.input.0 * out_width, f32::NEG_INFINITY);
        for (row, maxima) in x.chunks_exact(width).zip(rows.chunks_exact_mut(out_width)) {
            for tap in 0..self.kernel.1 {
                let seen = windows(tap, step, self.padding.1, width, out_width);
                if !seen.is_empty() {
                    let source = &row[seen.start * step + tap - self.padding.1..];
                    rise(&mut maxima[seen], source, step);
                }
            }
        }
        for (i, maxima) in y.chunks_exact_mut(out_width).enumerate() {
            let seen = self.rows_of(i);
            maxima.copy_from_slice(&rows[seen.start * out_width..][..out_width]);
            for row in seen.skip(1) {
                rise(maxima, &rows[row * out_width..][..out_width], 1);
            }
        }
    }

    #[inline(always)]
    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], rows: &mut Vec<f32>, places: &mut Vec<u32>) {
        let (width, out_width, step) = (self.input.1, self.output.1, self.stride.1);
        let count = (self.input.0 + 1) * out_width;
        rows.clear();
        rows.resize(count, f32::NEG_INFINITY);
        places.resize(count, 0);
        // One row more than the map has, for the maxima of a whole window.
        let (best, rows) = rows.split_at_mut(out_width);
        let (best_places, places) = places.split_at_mut(out_width);
        for (i, row) in x.chunks_exact(width).enumerate() {
            let maxima = &mut rows[i * out_width..][..out_width];
            let places = &mut places[i * out_width..][..out_width];
            // A window of nothing but negative infinity gives the gradient to its first pixel.
            let first = |j: usize| i * width + (j * step).saturating_sub(self.padding.1);
            places.iter_mut().enumerate().for_each(|(j, place)| *place = first(j) as u32);
            for tap in 0..self.kernel.1 {
                let seen = windows(tap, step, self.padding.1, width, out_width);
                if !seen.is_empty() {
                    let start = seen.start * step + tap - self.padding.1;
                    rise_from(&mut maxima[seen.clone()], &mut places[seen], &row[start..], step, i * width + start);
                }
            }
        }
        dx.fill(0.0);
        for (i, dy) in dy.chunks_exact(out_width).enumerate() {
            let seen = self.rows_of(i);
            best.copy_from_slice(&rows[seen.start * out_width..][..out_width]);
            best_places.copy_from_slice(&places[seen.start * out_width..][..out_width]);
            for row in seen.skip(1) {
                let (values, at) = (&rows[row * out_width..][..out_width], &places[row * out_width..][..out_width]);
                let candidates = values.iter().zip(at);
                for ((max, place), (value, at)) in best.iter_mut().zip(best_places.iter_mut()).zip(candidates) {
                    let higher = *value > *max || value.is_nan();
                    *place = if higher { *at } else { *place };
                    *max = if higher { *value } else { *max };
                }
            }
            for (place, dy) in best_places.iter().zip(dy) {
                dx[*place as usize] += dy;
            }
        }
    }

    /// Rows of the map that the windows of output row `i` see.
    #[inline(always)]
    fn rows_of(&self, i: usize) -> Range<usize> {
        let top = i * self.stride.0;
        top.saturating_sub(self.padding.0)..(top + self.kernel.0 - self.padding.0).min(self.input.0)
    }
}

/// Windows whose tap number `tap` is inside the map.
#[inline(always)]
fn windows(tap: usize, stride: usize, padding: usize, size: usize, outputs: usize) -> Range<usize> {
    let first = padding.saturating_sub(tap).div_ceil(stride);
    let last = (size + padding).saturating_sub(tap).div_ceil(stride).min(outputs);
    first..last.max(first)
}

/// `maxima[i] = max(maxima[i], source[i * step])`, where NaN is the largest of all.
#[inline(always)]
fn rise(maxima: &mut [f32], source: &[f32], step: usize) {
    #[inline(always)]
    fn larger(max: &mut f32, value: f32) {
        *max = if value > *max || value.is_nan() { value } else { *max };
    }
    if step == 1 {
        maxima.iter_mut().zip(source).for_each(|(max, value)| larger(max, *value));
    } else {
        maxima.iter_mut().zip(source.iter().step_by(step)).for_each(|(max, value)| larger(max, *value));
    }
}

/// As [`rise`], keeping places; `source[0]` stands at `first`.
#[inline(always)]
fn rise_from(maxima: &mut [f32], places: &mut [u32], source: &[f32], step: usize, first: usize) {
    let mut at = first as u32;
    for ((max, place), value) in maxima.iter_mut().zip(places).zip(source.iter().step_by(step)) {
        let higher = *value > *max || value.is_nan();
        *place = if higher { at } else { *place };
        *max = if higher { *value } else { *max };
        at = at.wrapping_add(step as u32);
    }
}
