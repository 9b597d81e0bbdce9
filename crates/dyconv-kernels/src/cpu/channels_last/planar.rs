//! Winograd's algorithm on maps `[batch, channels, height, width]`, for callers without a program: maps are turned to channels
//! last and back, and experts are mixed and transformed in one go. Runs on the pool of the caller.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::super::isa::Isa;
use super::super::{ConvShape, Epilogue, Kernels, route};
use super::direct::{PANEL_VECTORS, Packing};
use super::finish::Act;
use super::memory::{Arena, LINE, Lines, View};
use super::panels;
use super::turn::turn;
use super::winograd::{self, POINTS, Winograd};

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
    kernels: Lines,
    bias: Lines,
    /// Routing weights.
    routing: Vec<f32>,
}

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
    /// Scratch of a chunk that a thread works on alone.
    static OWN: RefCell<Lines> = RefCell::default();
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

/// Kernels that are the same for all samples, ready for [`conv2d`].
pub(in super::super) fn pack<I: Isa>(isa: I, kernels: &[f32], shape: &ConvShape) -> Vec<f32> {
    let mut packed = vec![0.0; POINTS * winograd::point_len(&packing::<I>(shape))];
    mix(isa, shape, &[1.0], kernels, packed.as_mut_ptr());
    packed
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
    let Kept { mut maps, kernels: mut own_kernels, mut bias, mut routing } = KEPT.take();
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
    conv.choose_chunk::<I>(rayon::current_num_threads());
    if conv.together {
        panels::conv2d(isa, conv, (x, kernels, epilogue), y, shape, (&mut maps, &mut own_kernels, &mut routing));
        return KEPT.set(Kept { maps, kernels: own_kernels, bias, routing });
    }
    maps.grow(output.end(1).next_multiple_of(LINE));
    // Biases, and behind them factors.
    let padded = (shape.out_channels + 2 * LINE).next_multiple_of(LINE);
    bias.grow(2 * padded);
    bias.values_mut()[padded..][..epilogue.scale.len()].copy_from_slice(epilogue.scale);
    let len = POINTS * winograd::point_len(&conv.packing);
    let experts = match *kernels {
        Kernels::Packed(_) => None,
        Kernels::Shared(kernels) => Some((kernels, 0)),
        Kernels::PerSample(kernels) => Some((kernels, shape.kernel_len())),
        Kernels::Mixed { experts, .. } | Kernels::Routed { experts, .. } => Some((experts, 0)),
    };
    if experts.is_some() {
        own_kernels.grow(len + LINE);
    }
    let planes = (shape.in_channels * height * width, shape.out_channels * shape.output.0 * shape.output.1);
    let samples = x.chunks_exact(planes.0).zip(y.chunks_exact_mut(planes.1)).enumerate();
    for (sample, (x, y)) in samples {
        let arena = Arena::new(&mut maps);
        bias_of(bias.values_mut(), epilogue, sample, shape.out_channels);
        let to = own_kernels.as_mut_ptr();
        match *kernels {
            Kernels::Shared(kernels) if sample == 0 => mix(isa, shape, &[1.0], kernels, to),
            Kernels::PerSample(kernels) => {
                let kernels = &kernels[sample * shape.kernel_len()..][..shape.kernel_len()];
                mix(isa, shape, &[1.0], kernels, to);
            }
            Kernels::Mixed { weights, experts } => {
                let count = experts.len() / shape.kernel_len();
                mix(isa, shape, &weights[sample * count..][..count], experts, to);
            }
            Kernels::Routed { ref router, experts } => {
                routing.resize(router.bias.len(), 0.0);
                route::by_router(isa, x, router, &mut routing);
                mix(isa, shape, &routing, experts, to);
            }
            _ => {}
        }
        turn_in(isa, &arena, &input, x);
        let packed = match kernels {
            Kernels::Packed(packed) => packed.values().as_ptr(),
            _ => own_kernels.as_ptr(),
        };
        let scale = if epilogue.scale.is_empty() { std::ptr::null() } else { bias.as_ptr().wrapping_add(padded) };
        multiply(isa, &conv, &arena, packed, (bias.as_ptr(), scale));
        turn_out(isa, &arena, &output, y);
    }
    KEPT.set(Kept { maps, kernels: own_kernels, bias, routing });
}

/// What is added to each channel of a sample.
fn bias_of(bias: &mut [f32], epilogue: &Epilogue<'_>, sample: usize, channels: usize) {
    let bias = &mut bias[..channels];
    match epilogue.shift.len() {
        0 => bias.fill(0.0),
        one if one == channels => bias.copy_from_slice(epilogue.shift),
        _ => bias.copy_from_slice(&epilogue.shift[sample * channels..][..channels]),
    }
}

/// Chunk by chunk on all threads; `bias` and `scale` are of whole vectors, `scale` may be null.
fn multiply<I: Isa>(
    isa: I,
    conv: &Winograd,
    arena: &Arena,
    packed: *const f32,
    (bias, scale): (*const f32, *const f32),
) {
    let jobs = conv.jobs::<I>();
    let (weights, bias, scale) = (From(packed), From(bias), From(scale));
    (0..jobs.chunks).into_par_iter().for_each(|index| {
        let mut scratch = OWN.take();
        scratch.grow(conv.scratch::<I>());
        let mut chunk = jobs.chunk(arena, index, weights.get(), bias.get(), scratch.as_mut_ptr());
        chunk.scale = scale.get();
        isa.run(
            #[inline(always)]
            || chunk.all(isa),
        );
        OWN.set(scratch);
    });
}

/// A pointer that is only read through.
#[derive(Clone, Copy)]
pub(super) struct From(pub(super) *const f32);

// SAFETY: nothing writes what it points to while it is used.
unsafe impl Send for From {}
// SAFETY: as above.
unsafe impl Sync for From {}

impl From {
    pub(super) fn get(self) -> *const f32 {
        self.0
    }
}

/// A pointer to what tasks write, each its own part.
#[derive(Clone, Copy)]
pub(super) struct To(pub(super) *mut f32);

// SAFETY: tasks write disjoint parts.
unsafe impl Send for To {}
// SAFETY: as above.
unsafe impl Sync for To {}

impl To {
    pub(super) fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Mixes experts `[K, out, in, 3, 3]`, and transforms and packs the mixture.
pub(super) fn mix<I: Isa>(isa: I, shape: &ConvShape, weights: &[f32], experts: &[f32], to: *mut f32) {
    let packing = packing::<I>(shape);
    let (inputs, out) = (shape.in_channels, shape.out_channels);
    let to = To(to);
    let blocks = inputs.div_ceil(MIXED);
    (0..packing.panels() * blocks).into_par_iter().for_each(|task| {
        let (panel, block) = (task / blocks, task % blocks);
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
    });
}

/// Copies a sample's map to channels last.
pub(super) fn turn_in<I: Isa>(isa: I, arena: &Arena, view: &View, map: &[f32]) {
    let pixels = view.height * view.width;
    let channels = view.channels;
    assert_eq!(map.len(), pixels * channels);
    strips(pixels, |first, count| {
        let to = arena.at(view.offset + first * channels);
        let from = map[first..].as_ptr();
        isa.run(
            #[inline(always)]
            // SAFETY: the view has a place for each channel of each pixel, the map a value; each task has its own pixels.
            || unsafe { turn(isa, (channels, count), (from, pixels), (to, channels)) },
        );
    });
}

/// Copies a sample's result from channels last; writes all of `map`.
fn turn_out<I: Isa>(isa: I, arena: &Arena, view: &View, map: &mut [MaybeUninit<f32>]) {
    let pixels = view.height * view.width;
    let channels = view.channels;
    assert_eq!(map.len(), pixels * channels);
    let to = To(map.as_mut_ptr().cast());
    strips(pixels, |first, count| {
        let from = arena.at(view.offset + first * channels).cast_const();
        isa.run(
            #[inline(always)]
            // SAFETY: as above, the other way round.
            || unsafe { turn(isa, (count, channels), (from, channels), (to.at(first), pixels)) },
        );
    });
}

/// Calls `f` with the first pixel and the number of pixels of each strip of a map, on all threads.
fn strips(pixels: usize, f: impl Fn(usize, usize) + Sync) {
    (0..pixels.div_ceil(STRIP)).into_par_iter().for_each(|strip| f(strip * STRIP, STRIP.min(pixels - strip * STRIP)));
}
