//! Convolution with one kernel a channel: every output vector is a sum of shifted vectors of the padded map, in registers.
//!
//! Windows of 3x3 and 5x5 of stride 1 go along the rows of the map; others use the phases of [`super::planes`]. Where there are
//! samples enough for all threads, a thread takes a sample from its averages to its result, while its maps are in a near cache;
//! else all threads sum the maps, and go on with the convolution without being woken again.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::channels_last::LINE;
use super::isa::{Isa, copy};
use super::phases::{phases, share, share_runs};
use super::planes::{Piece, Planes};
use super::shared::Shared;
use super::{ConvShape, Epilogue, Kernels, Router, mix, route, with_kept};

/// Vectors of outputs that are summed at a time.
const VECTORS: usize = 4;
/// Values of padded map that a step works on, about: half of a level-1 cache.
const PLANE_VALUES: usize = 4096;
/// Rows of outputs that are summed at a time.
const ROWS: usize = 4;
/// Outputs of a task, about: worth its start.
const TASK_VALUES: usize = 8192;
/// Values of maps that a thread takes at a time where it need not be woken for them.
const STEP_VALUES: usize = 4096;

/// What a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    plane: Vec<f32>,
    /// For which lines the sides of the plane are zeros: their number, their length, and where in them the map begins and ends.
    lines: (usize, usize, usize, usize),
    sums: Vec<f32>,
    offsets: Vec<u32>,
    /// A sample's averages, routing weights and kernels.
    sample: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Mixed kernels, kept by the thread that called.
    static MIXED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Averages and routing weights, kept likewise.
    static ROUTING: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs the convolution on all threads of the pool.
pub(super) fn conv2d<I: Isa>(
    isa: I,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    match *kernels {
        Kernels::Shared(kernels) | Kernels::PerSample(kernels) => convolve(isa, x, kernels, epilogue, y, shape),
        Kernels::Mixed { weights, experts } => with_kept(&MIXED, |mixed| {
            let len = shape.batch * shape.kernel_len();
            mixed.resize(len.max(mixed.len()), 0.0);
            mix::mix_experts(isa, weights, experts, &mut mixed[..len], shape.kernel_len());
            convolve(isa, x, &mixed[..len], epilogue, y, shape);
        }),
        Kernels::Routed { ref router, experts } if by_samples(shape) => {
            routed(isa, x, (router, experts), epilogue, y, shape);
        }
        Kernels::Routed { ref router, experts } => together(isa, x, (router, experts), epilogue, y, shape),
    }
}

/// Whether threads take whole samples.
fn by_samples(shape: &ConvShape) -> bool {
    let threads = rayon::current_num_threads();
    shape.batch.is_multiple_of(threads) || shape.batch >= 4 * threads
}

/// Routing, mixing and convolution, a sample a task.
fn routed<I: Isa>(
    isa: I,
    x: &[f32],
    (router, experts): (&Router<'_>, &[f32]),
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let channels = shape.in_channels;
    let (map, plane) = (shape.input.0 * shape.input.1, shape.output.0 * shape.output.1);
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let (count, len) = (router.bias.len(), shape.kernel_len());
    let y = Shared::new(y);
    share(shape.batch, |sample| {
        let maps = &x[sample * channels * map..][..channels * map];
        // SAFETY: each task has its own sample, and the values are written by `channel`, row by row, before anything reads them.
        let y = unsafe { y.part(sample * channels * plane, channels * plane) };
        let next = x.get((sample + 1) * channels * map..).unwrap_or_default();
        SCRATCH.with_borrow_mut(|scratch| {
            let mut sample_scratch = std::mem::take(&mut scratch.sample);
            sample_scratch.resize((channels + count + len).max(sample_scratch.len()), 0.0);
            let (averages, rest) = sample_scratch.split_at_mut(channels);
            let (weights, mixed) = rest.split_at_mut(count);
            isa.run(
                #[inline(always)]
                || {
                    route::averages_of(isa, maps, averages);
                    route::weights(isa, averages, router, weights);
                },
            );
            mix::mix_part(isa, weights, (experts, len), 0, &mut mixed[..len]);
            for channel in 0..channels {
                let kernel = &mixed[channel * window..][..window];
                let out = &mut y[channel * plane..][..plane];
                isa.run(
                    #[inline(always)]
                    || {
                        // What the next sample's averages will read: summing alone would wait for it.
                        if let Some(next) = next.get(channel * map..(channel + 1) * map) {
                            for line in next.chunks(LINE) {
                                isa.prefetch(line);
                            }
                        }
                        self::channel(isa, &maps[channel * map..][..map], kernel, out, shape, scratch);
                        epilogue.apply(out, sample, channel, channels);
                    },
                );
            }
            scratch.sample = sample_scratch;
        });
    });
}

/// Routing, mixing and convolution, on all threads together.
fn together<I: Isa>(
    isa: I,
    x: &[f32],
    (router, experts): (&Router<'_>, &[f32]),
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let channels = shape.in_channels;
    let (map, plane) = (shape.input.0 * shape.input.1, shape.output.0 * shape.output.1);
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let (count, len) = (router.bias.len(), shape.kernel_len());
    let step = (STEP_VALUES / map).clamp(1, channels);
    let steps = channels.div_ceil(step);
    // The channels of a task.
    let piece = |task: usize| (task / steps, task % steps * step..(task % steps * step + step).min(channels));
    with_kept(&ROUTING, |kept| {
        kept.resize((shape.batch * (channels + count)).max(kept.len()), 0.0);
        let (averages, rest) = kept.split_at_mut(shape.batch * channels);
        let averages = Shared::filled(averages);
        let weights = Shared::filled(&mut rest[..shape.batch * count]);
        let y = Shared::new(y);
        let sum = |task: usize| {
            let (sample, piece) = piece(task);
            // SAFETY: no two tasks have a map in common.
            let averages = unsafe { averages.part(sample * channels + piece.start, piece.len()) };
            let maps = &x[(sample * channels + piece.start) * map..][..piece.len() * map];
            isa.run(
                #[inline(always)]
                || route::averages_of(isa, maps, averages),
            );
        };
        let weigh = || {
            for sample in 0..shape.batch {
                // SAFETY: all averages have been written, and nothing else runs meanwhile.
                let (a, w) =
                    unsafe { (averages.part(sample * channels, channels), weights.part(sample * count, count)) };
                isa.run(
                    #[inline(always)]
                    || route::weights(isa, a, router, w),
                );
            }
        };
        let convolve = |task: usize| {
            let (sample, piece) = piece(task);
            // SAFETY: nothing writes to the weights now; as for averages, no two tasks have a map in common, and its values are
            // written by `channel`, row by row, before anything reads them.
            let (weights, y) = unsafe {
                let first = (sample * channels + piece.start) * plane;
                (&*weights.part(sample * count, count), y.part(first, piece.len() * plane))
            };
            SCRATCH.with_borrow_mut(|scratch| {
                let mut mixed = std::mem::take(&mut scratch.sample);
                mixed.resize((step * window).max(mixed.len()), 0.0);
                let kernels = &mut mixed[..piece.len() * window];
                mix::mix_part(isa, weights, (experts, len), piece.start * window, kernels);
                for ((channel, kernel), out) in piece.zip(kernels.chunks_exact(window)).zip(y.chunks_exact_mut(plane)) {
                    isa.run(
                        #[inline(always)]
                        || {
                            let maps = &x[(sample * channels + channel) * map..][..map];
                            self::channel(isa, maps, kernel, out, shape, scratch);
                            epilogue.apply(out, sample, channel, channels);
                        },
                    );
                }
                scratch.sample = mixed;
            });
        };
        let task = |phase, task| if phase == 0 { sum(task) } else { convolve(task) };
        let between = |phase| {
            if phase == 0 {
                weigh()
            }
        };
        phases(2, shape.batch * steps, task, between);
    });
}

fn convolve<I: Isa>(
    isa: I,
    x: &[f32],
    kernels: &[f32],
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let sets = kernels.len() / window;
    let map = shape.input.0 * shape.input.1;
    let plane = shape.output.0 * shape.output.1;
    let (maps, least) = (shape.batch * shape.out_channels, (TASK_VALUES / plane).max(1));
    let y = Shared::new(y);
    share_runs(maps, least, |maps| {
        for index in maps {
            let (sample, channel) = (index / shape.out_channels, index % shape.out_channels);
            let kernel = &kernels[index % sets * window..][..window];
            // SAFETY: no two tasks have a map in common, and its values are written by `channel`, row by row, before anything reads
            // them.
            let out = unsafe { y.part(index * plane, plane) };
            SCRATCH.with_borrow_mut(|scratch| {
                isa.run(
                    #[inline(always)]
                    || {
                        self::channel(isa, &x[index * map..][..map], kernel, out, shape, scratch);
                        epilogue.apply(out, sample, channel, shape.out_channels);
                    },
                );
            });
        }
    });
}

/// One channel of one sample.
#[inline(always)]
fn channel<I: Isa>(isa: I, x: &[f32], kernel: &[f32], y: &mut [f32], shape: &ConvShape, scratch: &mut Scratch) {
    let config = &shape.config;
    let plain = config.stride == (1, 1) && config.dilation == (1, 1);
    // Lanes that the vectors of a row have, those counted twice that overlap.
    let lanes = |lanes: usize| shape.output.1.next_multiple_of(lanes);
    let shorter = shape.output.1 < I::LANES || lanes(I::Half::LANES) < lanes(I::LANES);
    let half = isa.half();
    match config.kernel {
        _ if !plain || shape.output.1 < I::Half::LANES => by_phases(isa, x, kernel, y, shape, scratch),
        (3, 3) if shorter => along_rows::<_, 3>(half, x, kernel, y, shape, scratch),
        (5, 5) if shorter => along_rows::<_, 5>(half, x, kernel, y, shape, scratch),
        (3, 3) => along_rows::<I, 3>(isa, x, kernel, y, shape, scratch),
        (5, 5) => along_rows::<I, 5>(isa, x, kernel, y, shape, scratch),
        _ => by_phases(isa, x, kernel, y, shape, scratch),
    }
}

/// A window of `K` x `K`, stride 1: some rows of a copy with zeros around them at a time.
#[inline(always)]
fn along_rows<I: Isa, const K: usize>(
    isa: I,
    x: &[f32],
    kernel: &[f32],
    y: &mut [f32],
    shape: &ConvShape,
    scratch: &mut Scratch,
) {
    let ((height, width), (rows, columns)) = (shape.input, shape.output);
    let (top, left) = shape.config.padding;
    let line = columns + K - 1;
    let band = (PLANE_VALUES / line).clamp(1, rows);
    let lines = band + K - 1;
    let count = width.min(line.saturating_sub(left));
    scratch.plane.resize((lines * line).max(scratch.plane.len()), 0.0);
    if scratch.lines != (lines, line, left, left + count) {
        scratch.lines = (lines, line, left, left + count);
        scratch.plane.fill(0.0);
    }
    let mut weights = [[isa.splat(0.0); K]; K];
    for ky in 0..K {
        for kx in 0..K {
            weights[ky][kx] = isa.splat(kernel[ky * K + kx]);
        }
    }
    let mut first = 0;
    while first < rows {
        let here = band.min(rows - first);
        let plane = &mut scratch.plane[..(here + K - 1) * line];
        for (row, values) in plane.chunks_exact_mut(line).enumerate() {
            let from = (first + row).wrapping_sub(top);
            if from >= height {
                values.fill(0.0);
            } else if count > 0 {
                copy(isa, &x[from * width..][..count], &mut values[left..][..count]);
            }
        }
        let y = &mut y[first * columns..][..here * columns];
        for row in (0..here).step_by(ROWS) {
            if here >= ROWS {
                // The last rows overlap those before.
                let row = row.min(here - ROWS);
                rows_at_once::<I, K, ROWS>(isa, &plane[row * line..], line, &weights, &mut y[row * columns..], columns);
            } else {
                for row in row..here {
                    rows_at_once::<I, K, 1>(
                        isa,
                        &plane[row * line..],
                        line,
                        &weights,
                        &mut y[row * columns..],
                        columns,
                    );
                }
            }
        }
        first += here;
    }
}

/// `R` rows of outputs from rows of `line` values: what is loaded of a row serves all outputs that it lies under.
#[inline(always)]
fn rows_at_once<I: Isa, const K: usize, const R: usize>(
    isa: I,
    plane: &[f32],
    line: usize,
    weights: &[[I::F32; K]; K],
    y: &mut [f32],
    columns: usize,
) {
    for column in (0..columns).step_by(I::LANES) {
        // The last vector overlaps the one before.
        let column = column.min(columns - I::LANES);
        let mut sums = [isa.splat(0.0); R];
        for from in 0..R + K - 1 {
            let values = &plane[from * line + column..][..K - 1 + I::LANES];
            let mut shifted = [sums[0]; K];
            for kx in 0..K {
                shifted[kx] = isa.load(&values[kx..]);
            }
            for row in 0..R {
                if let Some(ky) = from.checked_sub(row)
                    && ky < K
                {
                    for kx in 0..K {
                        sums[row] = isa.fma(weights[ky][kx], shifted[kx], sums[row]);
                    }
                }
            }
        }
        for row in 0..R {
            isa.store(&mut y[row * columns + column..], sums[row]);
        }
    }
}

/// Any window, some rows at a time.
#[inline(always)]
fn by_phases<I: Isa>(isa: I, x: &[f32], kernel: &[f32], y: &mut [f32], shape: &ConvShape, scratch: &mut Scratch) {
    let (rows, width) = shape.output;
    let row_values = Planes::new(shape, Piece { rows: (0, 1), columns: (0, width) }).row() * shape.config.stride.0;
    let step = (PLANE_VALUES / row_values).clamp(1, rows);
    for (index, y) in y.chunks_mut(step * width).enumerate() {
        let planes = Planes::new(shape, Piece { rows: (index * step, y.len() / width), columns: (0, width) });
        let numbers = planes.numbers();
        let padded = numbers.next_multiple_of(VECTORS * I::LANES);
        let needed = planes.channel_len() + VECTORS * I::LANES;
        scratch.plane.resize(needed.max(scratch.plane.len()), 0.0);
        scratch.lines = Default::default();
        scratch.sums.resize(padded.max(scratch.sums.len()), 0.0);
        if planes.bordered(shape) {
            scratch.plane[..planes.channel_len()].fill(0.0);
        }
        planes.fill(isa, shape, x, &mut scratch.plane[..planes.channel_len()]);
        planes.offsets(shape, 1, &mut scratch.offsets);
        for (number, sums) in scratch.sums[..padded].chunks_exact_mut(VECTORS * I::LANES).enumerate() {
            let pixels = &scratch.plane[number * VECTORS * I::LANES..];
            let mut registers = [isa.splat(0.0); VECTORS];
            for (weight, offset) in kernel.iter().zip(&scratch.offsets) {
                let weight = isa.splat(*weight);
                let line = &pixels[*offset as usize..][..VECTORS * I::LANES];
                for j in 0..VECTORS {
                    registers[j] = isa.fma(weight, isa.load(&line[j * I::LANES..][..I::LANES]), registers[j]);
                }
            }
            for j in 0..VECTORS {
                isa.store(&mut sums[j * I::LANES..][..I::LANES], registers[j]);
            }
        }
        for (row, sums) in y.chunks_exact_mut(width).zip(scratch.sums.chunks(planes.row())) {
            copy(isa, sums, row);
        }
    }
}
