//! Convolution with one kernel a channel: every output vector is a sum of shifted vectors of the padded map, in registers.

use std::cell::RefCell;

use rayon::prelude::*;

use super::isa::{Isa, copy};
use super::planes::{Piece, Planes};
use super::{ConvShape, Epilogue, Kernels, mix, with_taken};

/// Vectors of outputs that are summed at a time.
const VECTORS: usize = 4;
/// Values of padded map that a step works on, about: half of a level-1 cache.
const PLANE_VALUES: usize = 4096;
/// Outputs of a task, about: worth its start.
const TASK_VALUES: usize = 8192;

/// What a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    plane: Vec<f32>,
    sums: Vec<f32>,
    offsets: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Mixed kernels, kept by the thread that called.
    static MIXED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs the convolution on all threads of the pool.
pub(super) fn conv2d<I: Isa>(
    isa: I,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
    shape: &ConvShape,
) {
    match *kernels {
        Kernels::Packed(packed) => convolve(isa, x, packed.values(), epilogue, y, shape),
        Kernels::Shared(kernels) | Kernels::PerSample(kernels) => convolve(isa, x, kernels, epilogue, y, shape),
        Kernels::Mixed { weights, experts } => with_taken(&MIXED, |mixed| {
            let len = shape.batch * shape.kernel_len();
            mixed.resize(len.max(mixed.len()), 0.0);
            mix::mix_experts(isa, weights, experts, &mut mixed[..len], shape.kernel_len());
            convolve(isa, x, &mixed[..len], epilogue, y, shape);
        }),
    }
}

fn convolve<I: Isa>(isa: I, x: &[f32], kernels: &[f32], epilogue: &Epilogue<'_>, y: &mut [f32], shape: &ConvShape) {
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let sets = kernels.len() / window;
    let map = shape.input.0 * shape.input.1;
    let plane = shape.output.0 * shape.output.1;
    let least = (TASK_VALUES / plane).max(1);
    y.par_chunks_exact_mut(plane).with_min_len(least).enumerate().for_each(|(index, out)| {
        let (sample, channel) = (index / shape.out_channels, index % shape.out_channels);
        let kernel = &kernels[index % sets * window..][..window];
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(
                #[inline(always)]
                || {
                    self::channel(isa, &x[index * map..][..map], kernel, out, shape, scratch);
                    epilogue.apply(out, sample, channel, shape.out_channels);
                },
            );
        });
    });
}

/// One channel of one sample, some rows at a time.
#[inline(always)]
fn channel<I: Isa>(isa: I, x: &[f32], kernel: &[f32], y: &mut [f32], shape: &ConvShape, scratch: &mut Scratch) {
    let (rows, width) = shape.output;
    let row_values = Planes::new(shape, Piece { rows: (0, 1), columns: (0, width) }).row() * shape.config.stride.0;
    let step = (PLANE_VALUES / row_values).clamp(1, rows);
    for (index, y) in y.chunks_mut(step * width).enumerate() {
        let planes = Planes::new(shape, Piece { rows: (index * step, y.len() / width), columns: (0, width) });
        let numbers = planes.numbers();
        let padded = numbers.next_multiple_of(VECTORS * I::LANES);
        let needed = planes.channel_len() + VECTORS * I::LANES;
        scratch.plane.resize(needed.max(scratch.plane.len()), 0.0);
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
