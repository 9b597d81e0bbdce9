//! The gradient of a convolution for its kernels: `dk[o][tap] = sum over outputs of dy[o][output] * x[input under the tap]`.
//!
//! Outputs are numbered along rows of a padded copy of the input, cut into phases by the stride as for the convolution itself, so
//! that a tap of all outputs is one run of values; the gradient is copied to the same numbering, with zeros where a number
//! belongs to no output. What remains is products of runs: a tile of some rows of the gradient and some taps, whose sums stay in
//! registers along a piece of the numbers and in vectors from piece to piece, and are added up across lanes once at the end.
//! Small maps of several samples are stacked in one piece. Neighbouring rows and samples share their padding.
//!
//! The order of all sums depends on sizes only, not on the number of threads.

use std::cell::RefCell;

use super::isa::{Isa, copy};
use super::phases::share_runs;
use super::shared::Shared;
use super::strided::gather;
use super::{ConvShape, IsaName, Job, chosen, conv, with};
use crate::ConvConfig;

/// Numbers of a piece, about: a run of each of a tile's rows and taps stays in a level-1 cache.
const NUMBERS: usize = 512;
/// Values of the padded copies that tiles go over, about: most of a level-1 cache.
const PLANE_VALUES: usize = 6 * 1024;
/// Values of the sums of a task: a level-2 cache of 512 KiB.
const SUM_VALUES: usize = 96 * 1024;
/// Rows of a task: their gradients of a piece stay in a level-2 cache.
const TASK_ROWS: usize = 64;
/// Rows of a tile.
const TILE_ROWS: usize = 4;
/// Multiplications of a task, about: worth its start.
const TASK_WORK: usize = 64 * 1024;

/// What a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    planes: Vec<f32>,
    rows: Vec<f32>,
    sums: Vec<f32>,
    offsets: Vec<usize>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The gradient for the kernels: of `batch * kernel_len` values where each sample has its own, else of `kernel_len`.
///
/// # Panics
/// Where a slice is not as long as `shape` says, or its groups do not divide its channels.
pub fn conv2d_kernel_gradient(x: &[f32], dy: &[f32], per_sample: bool, shape: &ConvShape) -> Vec<f32> {
    gradient_on(chosen(), x, dy, per_sample, shape)
}

pub(super) fn gradient_on(isa: IsaName, x: &[f32], dy: &[f32], per_sample: bool, shape: &ConvShape) -> Vec<f32> {
    assert_eq!(x.len(), shape.batch * shape.in_channels * shape.input.0 * shape.input.1);
    assert_eq!(dy.len(), shape.batch * shape.out_channels * shape.output.0 * shape.output.1);
    shape.check();
    let len = shape.kernel_len() * if per_sample { shape.batch } else { 1 };
    if x.is_empty() || dy.is_empty() {
        return vec![0.0; len];
    }
    let mut dk = Vec::with_capacity(len);
    let out = Shared::new(&mut dk.spare_capacity_mut()[..len]);
    if with(isa, Gradient { x, dy, per_sample, shape, out }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
    // SAFETY: there is room for `len` values, and the tasks have written all of them.
    unsafe { dk.set_len(len) };
    dk
}

struct Gradient<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    per_sample: bool,
    shape: &'a ConvShape,
    out: Shared<'a>,
}

impl Job for Gradient<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let shape = &conv::flattened(self.shape);
        let config = &shape.config;
        let window = config.kernel.0 * config.kernel.1;
        let (groups, sets) = (config.groups, if self.per_sample { shape.batch } else { 1 });
        let (rows, channels) = (shape.out_channels / groups, shape.in_channels / groups);
        let threads = rayon::current_num_threads();
        let parts = rows.div_ceil(TASK_ROWS).max(threads.div_ceil(sets * groups).min(rows.div_ceil(TILE_ROWS)));
        let task_rows = rows.div_ceil(parts).next_multiple_of(TILE_ROWS).min(rows);
        let row_parts = rows.div_ceil(task_rows);
        let fitting = (SUM_VALUES / (task_rows * window * I::LANES)).clamp(1, channels);
        let wanted = threads.div_ceil(sets * groups * row_parts).min(channels);
        let channel_parts = channels.div_ceil(fitting).max(wanted);
        let task_channels = channels.div_ceil(channel_parts);
        let channel_parts = channels.div_ceil(task_channels);
        let tasks = sets * groups * row_parts * channel_parts;
        let work = shape.batch / sets * shape.output.0 * shape.output.1 * task_rows * task_channels * window;
        let run = |task: usize| {
            let (rest, channel_part) = (task / channel_parts, task % channel_parts);
            let (rest, row_part) = (rest / row_parts, rest % row_parts);
            let (set, group) = (rest / groups, rest % groups);
            let (row, channel) = (row_part * task_rows, channel_part * task_channels);
            let task = Task {
                x: self.x,
                dy: self.dy,
                shape,
                samples: if self.per_sample { (set, 1) } else { (0, shape.batch) },
                rows: (group * rows + row, task_rows.min(rows - row)),
                channels: (group * channels + channel, task_channels.min(channels - channel)),
            };
            SCRATCH.with_borrow_mut(|scratch| {
                isa.run(
                    #[inline(always)]
                    || {
                        task.run(isa, scratch);
                        let taps = task.channels.1 * window;
                        for (i, sums) in scratch.sums.chunks_exact(taps * I::LANES).take(task.rows.1).enumerate() {
                            let start = (set * shape.out_channels + task.rows.0 + i) * channels * window;
                            // SAFETY: each task has its own taps of its own rows, which lie apart, and writes them here.
                            let out = unsafe { self.out.part(start + channel * window, taps) };
                            for (out, lanes) in out.iter_mut().zip(sums.chunks_exact(I::LANES)) {
                                *out = total(lanes);
                            }
                        }
                    },
                );
            });
        };
        share_runs(tasks, (TASK_WORK / work.max(1)).max(1), |tasks| tasks.for_each(run));
    }
}

/// The sum of some lanes, in halves.
#[inline(always)]
fn total(lanes: &[f32]) -> f32 {
    let mut halves = [0.0f32; 16];
    halves[..lanes.len()].copy_from_slice(lanes);
    let mut count = lanes.len();
    while count > 1 {
        count /= 2;
        for i in 0..count {
            halves[i] += halves[i + count];
        }
    }
    halves[0]
}

/// How one axis of a padded copy is cut into phases.
#[derive(Debug, Clone, Copy)]
struct Axis {
    stride: usize,
    padding: usize,
    /// Values of the map.
    size: usize,
    /// Phases that taps use.
    phases: usize,
    /// What the last tap reaches beyond the first, in a phase.
    reach: usize,
    /// Values at the end of a phase that the next one's beginning can stand for: zeros at both.
    shared: usize,
}

impl Axis {
    fn new(size: usize, outputs: usize, (kernel, stride, padding, dilation): (usize, usize, usize, usize)) -> Self {
        let window = dilation * (kernel - 1);
        let mut axis = Self {
            stride,
            padding,
            size,
            phases: stride.min(window + 1),
            reach: window / stride,
            shared: window / stride,
        };
        for phase in 0..axis.phases {
            let (first, last) = axis.inside(phase, 0, outputs + axis.reach);
            axis.shared = axis.shared.min(first).min(outputs + axis.reach - last);
        }
        axis
    }

    /// Of `count` values of a phase from output `start` on, those that the map gives: `first..last`.
    #[inline(always)]
    fn inside(&self, phase: usize, start: usize, count: usize) -> (usize, usize) {
        let from = start * self.stride + phase;
        let first = self.padding.saturating_sub(from).div_ceil(self.stride).min(count);
        let last = (self.size + self.padding).saturating_sub(from).div_ceil(self.stride).clamp(first, count);
        (first, last)
    }

    /// Where in the map value `index` of a phase lies, which must be inside.
    #[inline(always)]
    fn place(&self, phase: usize, index: usize) -> usize {
        index * self.stride + phase - self.padding
    }
}

/// One thread's share: some taps of some rows, over some samples.
struct Task<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    shape: &'a ConvShape,
    /// First and number, here as below.
    samples: (usize, usize),
    /// Channels of the gradient.
    rows: (usize, usize),
    /// Channels of the input.
    channels: (usize, usize),
}

/// Some outputs, numbered.
struct Piece {
    /// First sample and their number.
    samples: (usize, usize),
    /// First output row and their number.
    rows: (usize, usize),
    /// First output column and their number.
    columns: (usize, usize),
    /// Numbers from row to row.
    width: usize,
    /// Rows from sample to sample.
    height: usize,
    /// Numbers, in whole vectors.
    numbers: usize,
    /// Values of a phase.
    phase_len: usize,
}

impl Task<'_> {
    /// Leaves the sums of each row and tap, a vector each, in `scratch.sums`.
    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, scratch: &mut Scratch) {
        let shape = self.shape;
        let config = &shape.config;
        let window = config.kernel.0 * config.kernel.1;
        let ConvConfig { kernel, stride, padding, dilation, .. } = *config;
        let vertical = Axis::new(shape.input.0, shape.output.0, (kernel.0, stride.0, padding.0, dilation.0));
        let horizontal = Axis::new(shape.input.1, shape.output.1, (kernel.1, stride.1, padding.1, dilation.1));
        let sums_len = self.rows.1 * self.channels.1 * window * I::LANES;
        scratch.sums.clear();
        scratch.sums.resize(sums_len, 0.0);
        let width = shape.output.1 + horizontal.reach - horizontal.shared;
        let height = shape.output.0 + vertical.reach - vertical.shared;
        let piece = |samples: (usize, usize), rows: (usize, usize), columns: (usize, usize)| {
            let width = columns.1 + horizontal.reach - if columns.1 == shape.output.1 { horizontal.shared } else { 0 };
            let numbers = ((samples.1 - 1) * height + rows.1 - 1) * width + columns.1;
            let numbers = numbers.next_multiple_of(I::LANES);
            let end = numbers + vertical.reach * width + horizontal.reach;
            let rows_end = ((samples.1 - 1) * height + rows.1 + vertical.reach) * width + horizontal.reach;
            Piece { samples, rows, columns, width, height, numbers, phase_len: end.max(rows_end) }
        };
        let axes = (&vertical, &horizontal);
        let (first, count) = self.samples;
        if width * height <= NUMBERS {
            let step = (NUMBERS / (width * height)).min(count);
            for sample in (first..first + count).step_by(step) {
                let samples = (sample, step.min(first + count - sample));
                self.piece(isa, axes, &piece(samples, (0, shape.output.0), (0, shape.output.1)), scratch);
            }
            return;
        }
        let (row_step, column_step) = if shape.output.0 == 1 {
            (1, NUMBERS)
        } else {
            ((NUMBERS / width).clamp(1, shape.output.0), shape.output.1)
        };
        for sample in first..first + count {
            for row in (0..shape.output.0).step_by(row_step) {
                for column in (0..shape.output.1).step_by(column_step) {
                    let rows = (row, row_step.min(shape.output.0 - row));
                    let columns = (column, column_step.min(shape.output.1 - column));
                    self.piece(isa, axes, &piece((sample, 1), rows, columns), scratch);
                }
            }
        }
    }

    /// Adds the products of a piece.
    #[inline(always)]
    fn piece<I: Isa>(&self, isa: I, axes: (&Axis, &Axis), piece: &Piece, scratch: &mut Scratch) {
        let config = &self.shape.config;
        let phases = axes.0.phases * axes.1.phases;
        let channel_len = phases * piece.phase_len;
        let step = (PLANE_VALUES / channel_len).clamp(1, self.channels.1);
        let Scratch { planes, rows, sums, offsets } = scratch;
        planes.resize((step * channel_len).max(planes.len()), 0.0);
        let row_len = piece.numbers;
        rows.resize((self.rows.1 * row_len).max(rows.len()), 0.0);
        let planes = &mut planes[..step * channel_len];
        let rows = &mut rows[..self.rows.1 * row_len];
        self.copy_gradient(isa, piece, rows);
        offsets.clear();
        for channel in 0..step {
            for y in (0..config.kernel.0).map(|k| k * config.dilation.0) {
                for x in (0..config.kernel.1).map(|k| k * config.dilation.1) {
                    let phase = (y % axes.0.stride) * axes.1.phases + x % axes.1.stride;
                    let place = y / axes.0.stride * piece.width + x / axes.1.stride;
                    offsets.push(channel * channel_len + phase * piece.phase_len + place);
                }
            }
        }
        let window = config.kernel.0 * config.kernel.1;
        let taps_len = self.channels.1 * window * I::LANES;
        let tile_taps = if I::TILE_ROWS > 6 { 6 } else { 3 };
        planes.fill(0.0);
        for first in (0..self.channels.1).step_by(step) {
            let count = step.min(self.channels.1 - first);
            for channel in 0..count {
                let planes = &mut planes[channel * channel_len..][..channel_len];
                self.copy_channel(isa, axes, piece, self.channels.0 + first + channel, planes);
            }
            let offsets = &offsets[..count * window];
            for (block, rows) in rows.chunks(TILE_ROWS * row_len).enumerate() {
                let sums = &mut sums[block * TILE_ROWS * taps_len..];
                for (tile, offsets) in offsets.chunks(tile_taps).enumerate() {
                    let sums = &mut sums[(first * window + tile * tile_taps) * I::LANES..];
                    products(isa, rows, row_len, planes, offsets, sums, taps_len);
                }
            }
        }
    }

    /// The gradient's rows in the piece's numbering.
    #[inline(always)]
    fn copy_gradient<I: Isa>(&self, isa: I, piece: &Piece, rows: &mut [f32]) {
        let (height, width) = self.shape.output;
        rows.fill(0.0);
        for (i, numbers) in rows.chunks_exact_mut(piece.numbers).enumerate() {
            for sample in 0..piece.samples.1 {
                let map = (piece.samples.0 + sample) * self.shape.out_channels + self.rows.0 + i;
                for row in 0..piece.rows.1 {
                    let from = (map * height + piece.rows.0 + row) * width + piece.columns.0;
                    let to = (sample * piece.height + row) * piece.width;
                    copy(isa, &self.dy[from..][..piece.columns.1], &mut numbers[to..][..piece.columns.1]);
                }
            }
        }
    }

    /// A channel of the input, padded and cut into phases. Zeros are there already, at the same places for all channels.
    #[inline(always)]
    fn copy_channel<I: Isa>(
        &self,
        isa: I,
        (vertical, horizontal): (&Axis, &Axis),
        piece: &Piece,
        channel: usize,
        planes: &mut [f32],
    ) {
        let (height, width) = self.shape.input;
        for (index, plane) in planes.chunks_exact_mut(piece.phase_len).enumerate() {
            let (upper, left) = (index / horizontal.phases, index % horizontal.phases);
            let rows = vertical.inside(upper, piece.rows.0, piece.rows.1 + vertical.reach);
            let columns = horizontal.inside(left, piece.columns.0, piece.columns.1 + horizontal.reach);
            if columns.0 == columns.1 {
                continue;
            }
            let start = horizontal.place(left, piece.columns.0 + columns.0);
            for sample in 0..piece.samples.1 {
                let map = ((piece.samples.0 + sample) * self.shape.in_channels + channel) * height;
                for row in rows.0..rows.1 {
                    let from = (map + vertical.place(upper, piece.rows.0 + row)) * width + start;
                    let to = (sample * piece.height + row) * piece.width;
                    let line = &mut plane[to + columns.0..to + columns.1];
                    // Up to the row's end, where there is more than is needed.
                    let source = &self.x[from..(map + vertical.place(upper, piece.rows.0 + row) + 1) * width];
                    match horizontal.stride {
                        1 => copy(isa, source, line),
                        step => gather(isa, source, line, step),
                    }
                }
            }
        }
    }
}

/// `sums[r][t] += rows[r] * pixels from offsets[t] on`, lane by lane; a row of sums is `sums_len` values long.
#[inline(always)]
fn products<I: Isa>(
    isa: I,
    rows: &[f32],
    row_len: usize,
    pixels: &[f32],
    offsets: &[usize],
    sums: &mut [f32],
    sums_len: usize,
) {
    macro_rules! tile {
        ($(($rows:literal, $taps:literal))*) => {
            match (rows.len() / row_len, offsets.len()) {
                $(($rows, $taps) => tile::<I, $rows, $taps>(isa, rows, row_len, pixels, offsets, sums, sums_len),)*
                (rows, taps) => unreachable!("no tile has {rows} rows and {taps} taps"),
            }
        };
    }
    tile!(
        (1, 1)(1, 2)(1, 3)(1, 4)(1, 5)(1, 6)(2, 1)(2, 2)(2, 3)(2, 4)(2, 5)(2, 6)(3, 1)(3, 2)(3, 3)(3, 4)(3, 5)(3, 6)(
            4, 1
        )(4, 2)(4, 3)(4, 4)(4, 5)(4, 6)
    );
}

#[inline(always)]
fn tile<I: Isa, const ROWS: usize, const TAPS: usize>(
    isa: I,
    rows: &[f32],
    row_len: usize,
    pixels: &[f32],
    offsets: &[usize],
    sums: &mut [f32],
    sums_len: usize,
) {
    // Loops, not closures, here and below: what the compiler does not inline would lose the instruction set.
    let mut places = [0; TAPS];
    places.copy_from_slice(offsets);
    let offsets = places;
    assert!(row_len.is_multiple_of(I::LANES) && rows.len() == ROWS * row_len);
    assert!(offsets.iter().all(|offset| *offset <= pixels.len() && pixels.len() - offset >= row_len));
    let mut registers = [[isa.splat(0.0); TAPS]; ROWS];
    for at in (0..row_len).step_by(I::LANES) {
        let mut line = [isa.splat(0.0); TAPS];
        for t in 0..TAPS {
            // SAFETY: a run of `row_len` pixels lies there, which is whole vectors.
            line[t] = unsafe { isa.load_at(pixels.as_ptr().add(offsets[t] + at)) };
        }
        for r in 0..ROWS {
            // SAFETY: there are so many rows of `row_len` values.
            let row = unsafe { isa.load_at(rows.as_ptr().add(r * row_len + at)) };
            for t in 0..TAPS {
                registers[r][t] = isa.fma(row, line[t], registers[r][t]);
            }
        }
    }
    for r in 0..ROWS {
        let sums = &mut sums[r * sums_len..][..TAPS * I::LANES];
        for t in 0..TAPS {
            let sum = &mut sums[t * I::LANES..][..I::LANES];
            let value = isa.add(isa.load(sum), registers[r][t]);
            isa.store(sum, value);
        }
    }
}
