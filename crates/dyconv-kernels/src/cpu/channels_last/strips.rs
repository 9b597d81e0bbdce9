//! Winograd's algorithm for kernels that stay in a level-2 cache: a task is a strip of a sample, some rows of tiles, which it turns to
//! channels last, convolves, and turns back, all in the memory of its thread.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::super::isa::Isa;
use super::super::phases::share;
use super::super::{ConvShape, Epilogue, Kernels, route};
use super::memory::{Arena, LINE, Lines, View};
use super::planar::{ReadPointer, WritePointer, mix, mix_alone};
use super::transforms::OUT;
use super::turn::turn;
use super::winograd::{self, POINTS, Winograd};

/// Values of a strip's transformed inputs and products, about and at most.
const STRIP_VALUES: (usize, usize) = (96 * 1024, 256 * 1024);
/// Strips a thread that make up for unequal ones.
const MANY: usize = 8;
/// Pixels that are turned at a time.
const TURNED: usize = 64;

thread_local! {
    /// Maps, products and epilogue of a strip, kernels of a sample.
    static OWN: RefCell<(Lines, Lines, Vec<f32>)> = RefCell::default();
    /// Kernels of all samples, and routing weights, kept by the thread that called.
    static KEPT: RefCell<(Lines, Vec<f32>)> = RefCell::default();
}

/// Whether a convolution is one that is done in strips.
pub(super) fn suits(conv: &Winograd) -> bool {
    let (_, columns) = conv.tiles();
    conv.near() && columns * of_tile(conv) <= STRIP_VALUES.1
}

/// Values of a tile's transformed inputs and products.
fn of_tile(conv: &Winograd) -> usize {
    POINTS * (conv.packing.taps + conv.packing.out)
}

/// Rows of tiles of a strip, so that threads have equal shares.
fn rows_of(conv: &Winograd, batch: usize, threads: usize) -> usize {
    let (rows, columns) = conv.tiles();
    let most = (STRIP_VALUES.0 / (columns * of_tile(conv)).max(1)).clamp(1, rows);
    let even = |count: &usize| {
        let strips = batch * rows.div_ceil(*count);
        strips >= MANY * threads || (strips.is_multiple_of(threads) && rows.is_multiple_of(*count))
    };
    (1..=most).rev().find(even).unwrap_or(1)
}

/// Kernels that are there before strips are worked on.
#[derive(Clone, Copy)]
struct Ready {
    kernels: ReadPointer,
    /// Values from a sample's to the next one's.
    step: usize,
}

struct Strips<'a> {
    conv: &'a Winograd,
    shape: &'a ConvShape,
    epilogue: &'a Epilogue<'a>,
    /// Rows of tiles of a strip.
    rows: usize,
    out: WritePointer,
}

/// Convolution; writes every value of `y`.
pub(super) fn conv2d<I: Isa>(
    isa: I,
    conv: &Winograd,
    (x, kernels, epilogue): (&[f32], &Kernels<'_>, &Epilogue<'_>),
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let threads = rayon::current_num_threads();
    let rows = rows_of(conv, shape.batch, threads);
    let strips = Strips { conv, shape, epilogue, rows, out: WritePointer(y.as_mut_ptr().cast()) };
    let len = (POINTS * winograd::point_len(&conv.packing)).next_multiple_of(LINE);
    let (mut own_kernels, mut routing) = KEPT.take();
    let one_set = matches!(kernels, Kernels::Shared(_));
    if !one_set && shape.batch.is_multiple_of(threads) {
        // A sample a thread: it finds in its cache what it has mixed.
        let sample = x.len() / shape.batch;
        share(shape.batch, |index| {
            let x = &x[index * sample..][..sample];
            let (mut memory, mut kernels_of_sample, mut weights) = OWN.take();
            kernels_of_sample.grow(len);
            strips.mix(isa, (kernels, index, x), &mut weights, kernels_of_sample.as_mut_ptr());
            for strip in 0..strips.count() {
                strips.strip(isa, (index, x), strip, kernels_of_sample.as_ptr(), &mut memory);
            }
            OWN.set((memory, kernels_of_sample, weights));
        });
        return KEPT.set((own_kernels, routing));
    }
    let ready = match *kernels {
        Kernels::Shared(kernels) => {
            own_kernels.grow(len);
            mix(isa, shape, &[1.0], kernels, own_kernels.as_mut_ptr());
            Ready { kernels: ReadPointer(own_kernels.as_ptr()), step: 0 }
        }
        Kernels::PerSample(_) | Kernels::Mixed { .. } | Kernels::Routed { .. } => {
            own_kernels.grow(len * shape.batch);
            let kernels = if let Kernels::Routed { ref router, experts } = *kernels {
                routing.resize(shape.batch * router.bias.len(), 0.0);
                route::by_router(isa, x, router, &mut routing);
                &Kernels::Mixed { weights: &routing, experts }
            } else {
                kernels
            };
            for sample in 0..shape.batch {
                let (weights, experts) = mixture(kernels, sample, shape);
                mix(isa, shape, weights, experts, own_kernels.as_mut_ptr().wrapping_add(sample * len));
            }
            Ready { kernels: ReadPointer(own_kernels.as_ptr()), step: len }
        }
    };
    let sample = x.len() / shape.batch;
    share(shape.batch * strips.count(), |task| {
        let (index, strip) = (task / strips.count(), task % strips.count());
        let kernels = ready.kernels.get().wrapping_add(index * ready.step);
        let (mut memory, other, weights) = OWN.take();
        strips.strip(isa, (index, &x[index * sample..][..sample]), strip, kernels, &mut memory);
        OWN.set((memory, other, weights));
    });
    KEPT.set((own_kernels, routing));
}

/// A sample's weights, and the experts that they belong to.
fn mixture<'a>(kernels: &Kernels<'a>, sample: usize, shape: &ConvShape) -> (&'a [f32], &'a [f32]) {
    let len = shape.kernel_len();
    match *kernels {
        Kernels::Shared(kernels) => (&[1.0], kernels),
        Kernels::PerSample(kernels) => (&[1.0], &kernels[sample * len..][..len]),
        Kernels::Mixed { weights, experts } => {
            let count = experts.len() / len;
            (&weights[sample * count..][..count], experts)
        }
        Kernels::Routed { .. } => unreachable!("routed before"),
    }
}

impl Strips<'_> {
    /// Strips of a sample.
    fn count(&self) -> usize {
        self.conv.tiles().0.div_ceil(self.rows)
    }

    /// Mixes and transforms the kernels of sample `index`, `x`, on this thread.
    fn mix<I: Isa>(
        &self,
        isa: I,
        (kernels, index, x): (&Kernels<'_>, usize, &[f32]),
        routed: &mut Vec<f32>,
        to: *mut f32,
    ) {
        if let Kernels::Routed { ref router, experts } = *kernels {
            routed.resize(router.bias.len(), 0.0);
            route::alone(isa, x, router, routed);
            return mix_alone(isa, self.shape, routed, experts, to);
        }
        let (weights, experts) = mixture(kernels, index, self.shape);
        mix_alone(isa, self.shape, weights, experts, to);
    }

    /// Convolves a strip of sample `index`, whose maps are `x`.
    fn strip<I: Isa>(
        &self,
        isa: I,
        (index, x): (usize, &[f32]),
        strip: usize,
        kernels: *const f32,
        memory: &mut Lines,
    ) {
        let shape = self.shape;
        let (height, width) = shape.input;
        let (rows, columns) = self.conv.tiles();
        let count = self.rows.min(rows - strip * self.rows);
        // Rows of the output, and of the input that they read.
        let first = strip * self.rows * OUT;
        let out_rows = (count * OUT).min(shape.output.0 - first);
        let padding = self.conv.padding;
        let top = first.saturating_sub(padding.0).min(height);
        let bottom = (first + count * OUT + 2).saturating_sub(padding.0).clamp(top, height);
        // Summands and factors of whole vectors come first.
        let channels = (shape.out_channels + 2 * LINE).next_multiple_of(LINE);
        let input = View::dense(2 * channels, bottom - top, width, shape.in_channels);
        let output = View::dense(input.end(1).next_multiple_of(LINE), out_rows, shape.output.1, shape.out_channels);
        let conv = Winograd {
            input,
            output,
            padding: (padding.0.saturating_sub(first), padding.1),
            chunk: count * columns,
            together: false,
            ..self.conv.clone()
        };
        let scratch = output.end(1).next_multiple_of(LINE);
        memory.grow(scratch + conv.scratch::<I>());
        let (shift, scale) = memory.values_mut()[..2 * channels].split_at_mut(channels);
        self.epilogue_of(index, &mut shift[..shape.out_channels], scale);
        let arena = Arena::new(memory);
        let jobs = conv.jobs::<I>();
        let mut chunk = jobs.chunk(&arena, 0, kernels, arena.at(0), arena.at(scratch));
        if !self.epilogue.scale.is_empty() {
            chunk.scale = arena.at(channels);
        }
        let plane = shape.output.0 * shape.output.1;
        let out = self.out.at(index * shape.out_channels * plane + first * shape.output.1);
        isa.run(
            #[inline(always)]
            || {
                let pixels = (bottom - top) * width;
                for at in (0..pixels).step_by(TURNED) {
                    let (from, count) = (x[top * width + at..].as_ptr(), TURNED.min(pixels - at));
                    let to = arena.at(input.offset + at * shape.in_channels);
                    // SAFETY: the sample has a map for each channel, the view a place for each channel of each pixel.
                    unsafe { turn(isa, (shape.in_channels, count), (from, height * width), (to, shape.in_channels)) };
                }
                chunk.all(isa);
                let pixels = out_rows * shape.output.1;
                for at in (0..pixels).step_by(TURNED) {
                    let count = TURNED.min(pixels - at);
                    let from = arena.at(output.offset + at * shape.out_channels).cast_const();
                    let to = out.wrapping_add(at);
                    // SAFETY: as above, the other way round; each strip has its own pixels of the result.
                    unsafe { turn(isa, (count, shape.out_channels), (from, shape.out_channels), (to, plane)) };
                }
            },
        );
    }

    /// What is added to each channel of a sample, and what it is multiplied by.
    fn epilogue_of(&self, sample: usize, shift: &mut [f32], scale: &mut [f32]) {
        let given = self.epilogue.shift;
        match given.len() {
            0 => shift.fill(0.0),
            one if one == shift.len() => shift.copy_from_slice(given),
            _ => shift.copy_from_slice(&given[sample * shift.len()..][..shift.len()]),
        }
        scale[..self.epilogue.scale.len()].copy_from_slice(self.epilogue.scale);
    }
}
