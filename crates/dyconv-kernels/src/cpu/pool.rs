//! Maximum pooling: along the rows, then along the columns, each by windows that double in size until they are the kernel's.
//!
//! A pass takes the whole padded map as one row, which the compiler turns into vectors; what it makes of windows that reach
//! over the end of a row is never read. The gradient goes to the first maximum of a window in reading order, or to its last
//! NaN, as in PyTorch.

use std::cell::RefCell;
use std::mem;

use super::isa::{Isa, IsaName};
use super::phases::share_chunks;
use super::{Job, chosen, with};

/// Values a task: worth its start.
const TASK_VALUES: usize = 4096;

thread_local! {
    /// The thread's padded maps.
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Largest values, where they stand, and the same again to write the next pass to.
struct Scratch {
    maxima: [Vec<f32>; 2],
    places: [Vec<u32>; 2],
}

impl Scratch {
    const fn new() -> Self {
        Self { maxima: [Vec::new(), Vec::new()], places: [Vec::new(), Vec::new()] }
    }
}

/// Sizes of a pooling of one map; pairs are (vertical, horizontal).
///
/// The padding is less than the kernel and a map has at least one pixel, so that every window sees one; with its padding, a map
/// has less than 2^32 pixels.
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
        let (run, inputs, outputs) = (shape.maps_per_task(), shape.inputs(), shape.outputs());
        share_chunks(y, run * outputs, |number, y| {
            let x = &x[number * run * inputs..];
            SCRATCH.with_borrow_mut(|scratch| {
                for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
                    isa.run(
                        #[inline(always)]
                        || shape.forward(x, y, scratch),
                    );
                }
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
        let (run, inputs, outputs) = (shape.maps_per_task(), shape.inputs(), shape.outputs());
        share_chunks(dx, run * inputs, |number, dx| {
            let (x, dy) = (&x[number * run * inputs..], &dy[number * run * outputs..]);
            SCRATCH.with_borrow_mut(|scratch| {
                let maps = x.chunks_exact(inputs).zip(dy.chunks_exact(outputs));
                for (dx, (x, dy)) in dx.chunks_exact_mut(inputs).zip(maps) {
                    isa.run(
                        #[inline(always)]
                        || shape.backward(x, dy, dx, scratch),
                    );
                }
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

    /// Height and width with padding.
    fn padded(&self) -> (usize, usize) {
        (self.input.0 + 2 * self.padding.0, self.input.1 + 2 * self.padding.1)
    }

    fn check(&self, inputs: usize, outputs: usize) {
        let Self { kernel, stride, padding, output, .. } = *self;
        assert!(padding.0 < kernel.0 && padding.1 < kernel.1 && stride.0 > 0 && stride.1 > 0);
        let (height, width) = self.padded();
        assert!(self.inputs() > 0 && u32::try_from(height * width).is_ok() && self.outputs() > 0);
        assert!((output.0 - 1) * stride.0 + kernel.0 <= height && (output.1 - 1) * stride.1 + kernel.1 <= width);
        assert!(inputs.is_multiple_of(self.inputs()) && outputs == inputs / self.inputs() * self.outputs());
    }

    /// How far apart the values are that each pass compares: first along the rows, then along the columns.
    #[inline(always)]
    fn passes(&self) -> impl Iterator<Item = usize> {
        let (_, width) = self.padded();
        growth(self.kernel.1).chain(growth(self.kernel.0).map(move |rows| rows * width))
    }

    /// The map with its padding.
    #[inline(always)]
    fn pad(&self, x: &[f32], padded: &mut Vec<f32>) {
        let (height, width) = self.padded();
        padded.clear();
        padded.resize(height * width, f32::NEG_INFINITY);
        let rows = padded[self.padding.0 * width..].chunks_exact_mut(width);
        for (row, from) in rows.zip(x.chunks_exact(self.input.1)) {
            row[self.padding.1..][..self.input.1].copy_from_slice(from);
        }
    }

    /// Where each value of the padded map stands in the map. Of the padding, the next pixel, so that a window of nothing but
    /// negative infinity gives its gradient to a pixel too.
    #[inline(always)]
    fn number(&self, places: &mut Vec<u32>) {
        let (height, width) = self.padded();
        let last = [self.input.0 - 1, self.input.1 - 1].map(|last| last as u32);
        places.resize(height * width, 0);
        for (i, row) in (0u32..).zip(places.chunks_exact_mut(width)) {
            let start = i.saturating_sub(self.padding.0 as u32).min(last[0]) * self.input.1 as u32;
            for (j, place) in (0u32..).zip(row) {
                *place = start + j.saturating_sub(self.padding.1 as u32).min(last[1]);
            }
        }
    }

    #[inline(always)]
    fn forward(&self, x: &[f32], y: &mut [f32], scratch: &mut Scratch) {
        let [maxima, next] = &mut scratch.maxima;
        self.pad(x, maxima);
        let mut count = maxima.len();
        next.resize(count, 0.0);
        for distance in self.passes() {
            count -= distance;
            let further = &maxima[distance..][..count];
            for ((to, max), value) in next[..count].iter_mut().zip(&maxima[..count]).zip(further) {
                *to = if higher(*value, *max) { *value } else { *max };
            }
            mem::swap(maxima, next);
        }
        for (i, y) in y.chunks_exact_mut(self.output.1).enumerate() {
            let row = &maxima[i * self.stride.0 * self.padded().1..];
            y.iter_mut().zip(row.iter().step_by(self.stride.1)).for_each(|(y, max)| *y = *max);
        }
    }

    #[inline(always)]
    fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32], scratch: &mut Scratch) {
        let [maxima, next] = &mut scratch.maxima;
        let [places, next_places] = &mut scratch.places;
        self.pad(x, maxima);
        self.number(places);
        let mut count = maxima.len();
        next.resize(count, 0.0);
        next_places.resize(count, 0);
        for distance in self.passes() {
            count -= distance;
            let old = maxima[..count].iter().zip(&places[..count]);
            let further = maxima[distance..][..count].iter().zip(&places[distance..][..count]);
            let targets = next[..count].iter_mut().zip(&mut next_places[..count]);
            for (((to, to_place), (max, place)), (value, at)) in targets.zip(old).zip(further) {
                let higher = higher(*value, *max);
                *to = if higher { *value } else { *max };
                *to_place = if higher { *at } else { *place };
            }
            mem::swap(maxima, next);
            mem::swap(places, next_places);
        }
        dx.fill(0.0);
        for (i, dy) in dy.chunks_exact(self.output.1).enumerate() {
            let row = &places[i * self.stride.0 * self.padded().1..];
            row.iter().step_by(self.stride.1).zip(dy).for_each(|(place, dy)| dx[*place as usize] += dy);
        }
    }
}

/// The steps by which a window of one value grows to `kernel`: by its own size, as long as that fits.
#[inline(always)]
fn growth(kernel: usize) -> impl Iterator<Item = usize> {
    let mut size = 1;
    std::iter::from_fn(move || {
        let step = size.min(kernel - size);
        size += step;
        (step > 0).then_some(step)
    })
}

/// Whether a later value takes the place of the largest so far: NaN is above all.
#[inline(always)]
fn higher(value: f32, max: f32) -> bool {
    value > max || value.is_nan()
}
