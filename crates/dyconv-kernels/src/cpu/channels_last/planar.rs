//! Winograd's algorithm on maps `[batch, channels, height, width]`, for callers without a program: maps are turned to channels
//! last and back, and experts are mixed and transformed in one go. Runs on the pool of the caller.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::Isa;
use super::super::phases::share;
use super::super::{ConvShape, Epilogue, Kernels};
use super::direct::{PANEL_VECTORS, Packing};
use super::finish::Act;
use super::memory::{Arena, LINE, Lines, View};
use super::turn::turn;
use super::winograd::{self, Winograd};
use super::{panels, strips};

/// Channels from which the turned maps and the transforms cost less than they save.
const CHANNELS: usize = 32;
/// Pixels along a side from which tiles that reach over the edge cost less than they save.
const SIDE: usize = 12;
/// Input channels whose kernels are mixed at a time: experts are read in runs so long that the processor foresees them, and
/// the mixture stays in a level-1 cache.
const MIXED: usize = 32;
/// The most lanes of a vector.
const LANES: usize = 16;
/// Pixels that are turned at a time.
const STRIP: usize = 64;

/// What the calling thread keeps from call to call.
#[derive(Default)]
struct Kept {
    /// Input, and output or transformed inputs.
    maps: Lines,
    kernels_of_all: Lines,
    /// Routing weights.
    routing: Vec<f32>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Whether a convolution is one that this is faster for.
pub(in super::super) fn suits(shape: &ConvShape) -> bool {
    let config = &shape.config;
    let plain = (config.kernel, config.stride, config.dilation, config.groups) == ((3, 3), (1, 1), (1, 1), 1);
    plain
        && shape.in_channels.min(shape.out_channels) >= CHANNELS
        && shape.output.0.min(shape.output.1) >= SIDE
        && config.padding.0.max(config.padding.1) <= 2
}

fn packing<I: Isa>(shape: &ConvShape) -> Packing {
    Packing::new::<I>(shape.out_channels, shape.in_channels)
}

/// Convolution; writes every value of `y`.
pub(in super::super) fn conv2d<I: Isa>(
    isa: I,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let (height, width) = shape.input;
    let input = View::dense(0, height, width, shape.in_channels);
    let output = View::dense(input.end(1).next_multiple_of(LINE), shape.output.0, shape.output.1, shape.out_channels);
    let mut conv = Winograd {
        input,
        output,
        padding: shape.config.padding,
        stride: 1,
        residual: None,
        act: if epilogue.silu { Act::Silu } else { Act::Identity },
        packing: packing::<I>(shape),
        chunk: 0,
        together: false,
    };
    if strips::suits(&conv) {
        return strips::conv2d(isa, &conv, (x, kernels, epilogue), y, shape);
    }
    conv.choose_chunk::<I>(rayon::current_num_threads());
    conv.together = true;
    let Kept { mut maps, mut kernels_of_all, mut routing } = KEPT.take();
    panels::conv2d(isa, conv, (x, kernels, epilogue), y, shape, (&mut maps, &mut kernels_of_all, &mut routing));
    KEPT.set(Kept { maps, kernels_of_all, routing });
}

/// A pointer that is only read through.
#[derive(Clone, Copy)]
pub(super) struct ReadPointer(pub(super) *const f32);

// SAFETY: nothing writes what it points to while it is used.
unsafe impl Send for ReadPointer {}
// SAFETY: as above.
unsafe impl Sync for ReadPointer {}

impl ReadPointer {
    pub(super) fn get(self) -> *const f32 {
        self.0
    }
}

/// A pointer to what tasks write, each its own part.
#[derive(Clone, Copy)]
pub(super) struct WritePointer(pub(super) *mut f32);

// SAFETY: tasks write disjoint parts.
unsafe impl Send for WritePointer {}
// SAFETY: as above.
unsafe impl Sync for WritePointer {}

impl WritePointer {
    pub(super) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Mixes experts `[K, out, in, 3, 3]`, and transforms and packs the mixture, on all threads.
pub(super) fn mix<I: Isa>(isa: I, shape: &ConvShape, weights: &[f32], experts: &[f32], to: *mut f32) {
    let to = WritePointer(to);
    share(blocks::<I>(shape), |block| mix_block(isa, shape, (weights, experts), to, block));
}

/// The same on this thread.
pub(super) fn mix_alone<I: Isa>(isa: I, shape: &ConvShape, weights: &[f32], experts: &[f32], to: *mut f32) {
    (0..blocks::<I>(shape)).for_each(|block| mix_block(isa, shape, (weights, experts), WritePointer(to), block));
}

/// Blocks that kernels are mixed in.
fn blocks<I: Isa>(shape: &ConvShape) -> usize {
    packing::<I>(shape).panels() * shape.in_channels.div_ceil(MIXED)
}

/// One of them.
fn mix_block<I: Isa>(isa: I, shape: &ConvShape, (weights, experts): (&[f32], &[f32]), to: WritePointer, block: usize) {
    let packing = packing::<I>(shape);
    let (inputs, out) = (shape.in_channels, shape.out_channels);
    let blocks = inputs.div_ceil(MIXED);
    let (panel, block) = (block / blocks, block % blocks);
    isa.run(
        #[inline(always)]
        || {
            let (first, channels) = (block * MIXED, MIXED.min(inputs - block * MIXED));
            let panel_rows = PANEL_VECTORS * I::LANES;
            let rows = panel * panel_rows..((panel + 1) * panel_rows).min(out);
            let len = 9 * channels;
            let mut lines = [0.0f32; PANEL_VECTORS * LANES * 9 * MIXED];
            for (line, row) in lines.chunks_exact_mut(len).zip(rows.clone()) {
                let start = (row * inputs + first) * 9;
                for (weight, expert) in weights.iter().zip(experts.chunks_exact(shape.kernel_len())) {
                    let values = &expert[start..start + len];
                    for tap in 0..len {
                        line[tap] += weight * values[tap];
                    }
                }
            }
            // A row of output channels for each tap.
            let mut mixed = [0.0f32; PANEL_VECTORS * LANES * 9 * MIXED];
            let (from, to_mixed) = ((lines.as_ptr(), len), (mixed.as_mut_ptr(), panel_rows));
            // SAFETY: both have room for all rows of a panel and taps of a block.
            unsafe { turn(isa, (rows.len(), len), from, to_mixed) };
            let vectors = packing.vectors(panel);
            let width = vectors * I::LANES;
            for channel in 0..channels {
                for vector in 0..vectors {
                    let mut nine = [isa.splat(0.0); 9];
                    for tap in 0..9 {
                        nine[tap] = isa.load(&mixed[(9 * channel + tap) * panel_rows + vector * I::LANES..]);
                    }
                    let to = to.at(packing.panel(panel) + (first + channel) * width + vector * I::LANES);
                    // SAFETY: each point has packed kernels of its own, and each task its rows in all of them.
                    unsafe { winograd::transform_packed(isa, &nine, to, winograd::point_len(&packing)) };
                }
            }
        },
    );
}

/// Copies some rows of a sample's map to channels last, on all threads.
pub(super) fn turn_in<I: Isa>(isa: I, arena: &Arena, view: &View, map: &[f32], rows: Range<usize>) {
    let plane = view.height * view.width;
    let channels = view.channels;
    assert!(map.len() == plane * channels && rows.end <= view.height);
    let pixels = rows.start * view.width..rows.end * view.width;
    share(pixels.len().div_ceil(STRIP), |strip| {
        let first = pixels.start + strip * STRIP;
        let count = STRIP.min(pixels.end - first);
        let to = arena.at(view.offset + first * channels);
        let from = map[first..].as_ptr();
        isa.run(
            #[inline(always)]
            // SAFETY: the view has a place for each channel of each pixel, the map a value; each task has its own pixels.
            || unsafe { turn(isa, (channels, count), (from, plane), (to, channels)) },
        );
    });
}
