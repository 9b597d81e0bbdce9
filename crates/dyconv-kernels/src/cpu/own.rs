//! 1x1 convolutions of which each thread mixes what it multiplies: its kernels stay in its own caches, and nobody waits in between.
//!
//! A task is some samples, or where there are fewer samples than threads some blocks of output channels of one.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::conv::{self, Job};
use super::isa::Isa;
use super::pack;
use super::phases::share;
use super::planes::Piece;
use super::shared::Shared;
use super::{ConvShape, Epilogue, Kernels, route, with_kept};

/// Values of mixed kernels that a task holds at a time, about: experts that are read once serve several samples.
const MIXED_VALUES: usize = 256 * 1024;
/// Values of a sample's maps that several threads may read: with more, each takes pixels of its own instead.
const COMMON_VALUES: usize = 256 * 1024;
/// Tasks a thread that make up for unequal ones.
const MANY: usize = 4;

thread_local! {
    static MIXED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static ROUTING: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// What a task takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Division {
    /// Samples at a time.
    samples: usize,
    /// Parts that the output channels come in.
    parts: usize,
}

/// How a convolution is divided, where it is one that is done this way.
pub(super) fn division<I: Isa>(kernels: &Kernels<'_>, shape: &ConvShape) -> Option<Division> {
    divided::<I>(kernels, shape, rayon::current_num_threads())
}

fn divided<I: Isa>(kernels: &Kernels<'_>, shape: &ConvShape, threads: usize) -> Option<Division> {
    let flat = conv::flattened(shape);
    if shape.config.groups > 1 || !conv::in_place(&flat) {
        return None;
    }
    let blocks = conv::packing::<I>(shape).blocks();
    let even = |parts: &usize| (shape.batch * parts).is_multiple_of(threads) || shape.batch * parts >= MANY * threads;
    let parts = (1..=threads).find(even)?;
    let at_once = match kernels {
        Kernels::Packed(_) => return None,
        // Packed once for all samples, unless there are few.
        Kernels::Shared(_) if shape.batch > 1 && shape.batch >= threads => return None,
        Kernels::Shared(_) | Kernels::PerSample(_) => 1,
        Kernels::Mixed { .. } | Kernels::Routed { .. } => MIXED_VALUES / shape.kernel_len().max(1),
    };
    if parts == 1 {
        return Some(Division { samples: at_once.clamp(1, shape.batch.div_ceil(threads)), parts });
    }
    let common = shape.in_channels * flat.input.1;
    (parts <= blocks && common <= COMMON_VALUES).then_some(Division { samples: 1, parts })
}

/// Runs the convolution on all threads of the pool.
pub(super) fn conv2d<I: Isa>(
    isa: I,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    (shape, division): (&ConvShape, Division),
) {
    // Parts of a sample would each sum all its maps.
    if let (Kernels::Routed { router, experts }, true) = (kernels, division.parts > 1) {
        return with_kept(&ROUTING, |weights| {
            let count = shape.batch * router.bias.len();
            weights.resize(count.max(weights.len()), 0.0);
            route::by_router(isa, x, router, &mut weights[..count]);
            let kernels = Kernels::Mixed { weights: &weights[..count], experts };
            conv2d(isa, x, &kernels, epilogue, y, (shape, division));
        });
    }
    let Division { samples, parts } = division;
    let out = Shared::new(y);
    share(shape.batch.div_ceil(samples) * parts, |task| {
        let (first, part) = (task / parts * samples, task % parts);
        let task = Task { x, kernels, epilogue, shape, samples: (first, samples.min(shape.batch - first)) };
        with_kept(&MIXED, |mixed| with_kept(&ROUTING, |weights| task.run(isa, (part, parts), (mixed, weights), &out)));
    });
}

struct Task<'a> {
    x: &'a [f32],
    kernels: &'a Kernels<'a>,
    epilogue: &'a Epilogue<'a>,
    shape: &'a ConvShape,
    /// First and number.
    samples: (usize, usize),
}

impl Task<'_> {
    fn run<I: Isa>(
        &self,
        isa: I,
        (part, parts): (usize, usize),
        (mixed, weights): (&mut Vec<f32>, &mut Vec<f32>),
        out: &Shared<'_>,
    ) {
        let shape = &conv::flattened(self.shape);
        let packing = conv::packing::<I>(shape);
        let (first, count) = self.samples;
        let maps = self.x.len() / shape.batch;
        let share = packing.blocks().div_ceil(parts);
        let blocks = ((part * share).min(packing.blocks()), ((part + 1) * share).min(packing.blocks()));
        if let Kernels::Routed { router, .. } = self.kernels {
            let experts = router.bias.len();
            weights.resize((count * experts).max(weights.len()), 0.0);
            for (r, x) in weights.chunks_exact_mut(experts).zip(self.x[first * maps..].chunks_exact(maps)).take(count) {
                route::alone(isa, x, router, r);
            }
        }
        let own = (blocks.1 - blocks.0) * packing.block_len();
        mixed.resize((own * count).max(mixed.len()), 0.0);
        let len = shape.kernel_len();
        for block in blocks.0..blocks.1 {
            let rows = block * packing.height * packing.taps..len;
            for sample in 0..count {
                let (weights, experts) = self.source(first + sample, weights);
                let packed =
                    &mut mixed[sample * own + (block - blocks.0) * packing.block_len()..][..packing.block_len()];
                isa.run(
                    #[inline(always)]
                    || pack::mix(isa, &packing, weights, experts, len, rows.clone(), packed),
                );
            }
        }
        for sample in 0..count {
            let job = Job {
                shape,
                packing,
                maps: &self.x[(first + sample) * maps..][..maps],
                packed: &mixed[sample * own..][..own],
                epilogue: self.epilogue,
                sample: first + sample,
                group: 0,
                piece: Piece { rows: (0, 1), columns: (0, shape.output.1) },
                blocks,
                chunk: conv::chunk_channels::<I>(shape),
            };
            job.go(isa, out);
        }
    }

    /// Weights of a sample, and the experts that they belong to; `routed` are those of the task's samples.
    fn source<'a>(&'a self, sample: usize, routed: &'a [f32]) -> (&'a [f32], &'a [f32]) {
        let len = self.shape.kernel_len();
        match *self.kernels {
            Kernels::Shared(kernels) => (&[1.0], kernels),
            Kernels::PerSample(kernels) => (&[1.0], &kernels[sample * len..][..len]),
            Kernels::Mixed { weights, experts } => {
                let count = experts.len() / len;
                (&weights[sample * count..][..count], experts)
            }
            Kernels::Routed { ref router, experts } => {
                let count = router.bias.len();
                (&routed[(sample - self.samples.0) * count..][..count], experts)
            }
            Kernels::Packed(_) => unreachable!("what is packed already is not divided this way"),
        }
    }
}
