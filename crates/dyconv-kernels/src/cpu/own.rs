//! 1x1 convolutions of which each thread mixes what it multiplies: its kernels stay in its own caches, and nobody waits in between.
//!
//! A task is some samples, or where there are fewer samples than threads some blocks of output channels of one.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::conv::{self, Job, Source};
use super::isa::Isa;
use super::pack::{self, Packing};
use super::phases::share;
use super::planes::Piece;
use super::shared::Shared;
use super::tile::Rows;
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
        let blocks = conv::part_of(packing.blocks(), part, parts);
        if let Kernels::Routed { router, .. } = self.kernels {
            let experts = router.bias.len();
            weights.resize((count * experts).max(weights.len()), 0.0);
            for (r, x) in weights.chunks_exact_mut(experts).zip(self.x[first * maps..].chunks_exact(maps)).take(count) {
                route::alone(isa, x, router, r);
            }
        }
        let own = (blocks.1 - blocks.0) * packing.block_len();
        mixed.resize((own * count).max(mixed.len()), 0.0);
        let mut mixture = Mixture { task: self, packing, weights, mixed, own, first: blocks.0, sample: 0, ready: 0 };
        for sample in 0..count {
            mixture.sample = sample;
            let job = Job {
                shape,
                packing,
                maps: &self.x[(first + sample) * maps..][..maps],
                epilogue: self.epilogue,
                sample: first + sample,
                group: 0,
                piece: Piece { rows: (0, 1), columns: (0, shape.output.1) },
                blocks,
                chunk: conv::chunk_channels::<I>(shape),
            };
            job.go(isa, &mut mixture, out);
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
        }
    }
}

/// The kernels of a task's samples, mixed block by block as the first one asks for them: while a block is multiplied, the experts of
/// the next one come.
struct Mixture<'a> {
    task: &'a Task<'a>,
    packing: Packing,
    /// Routing weights of the task's samples.
    weights: &'a [f32],
    /// `own` values a sample.
    mixed: &'a mut [f32],
    own: usize,
    /// The task's first block.
    first: usize,
    /// The sample that is convolved, counted from the task's first.
    sample: usize,
    /// Blocks that are mixed.
    ready: usize,
}

impl Mixture<'_> {
    /// Values of an expert from a block's first row on.
    fn rows(&self, block: usize) -> Range<usize> {
        (self.first + block) * self.packing.height * self.packing.taps..self.task.shape.kernel_len()
    }

    /// The rows of a block, of all experts.
    fn wanted(&self, block: usize) -> Rows {
        let Packing { taps, height, .. } = self.packing;
        let (_, experts) = self.task.source(self.task.samples.0, self.weights);
        let (rows, len) = (self.rows(block), self.task.shape.kernel_len());
        let height = height.min(rows.len() / taps);
        let (mut expert, mut row) = (0, 0);
        Rows(std::array::from_fn(|_| {
            let start = experts.as_ptr().wrapping_add(expert + rows.start + row * taps);
            row += 1;
            if row == height {
                (row, expert) = (0, expert + len);
            }
            if expert == experts.len() {
                expert = 0;
            }
            start
        }))
    }
}

impl Source for Mixture<'_> {
    #[inline(always)]
    fn block<I: Isa>(&mut self, isa: I, index: usize) -> (&[f32], Option<Rows>) {
        let len = self.packing.block_len();
        let mut wanted = None;
        if index == self.ready {
            let rows = self.rows(index);
            for sample in 0..self.task.samples.1 {
                let (weights, experts) = self.task.source(self.task.samples.0 + sample, self.weights);
                let packed = &mut self.mixed[sample * self.own + index * len..][..len];
                pack::mix(isa, &self.packing, weights, experts, self.task.shape.kernel_len(), rows.clone(), packed);
            }
            self.ready += 1;
            wanted = (self.ready * len < self.own).then(|| self.wanted(self.ready));
        }
        (&self.mixed[self.sample * self.own + index * len..][..len], wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::super::scalar::Scalar;
    use super::*;
    use crate::ConvConfig;

    /// A block that is mixed tells the rows of the next one, of all experts; one that was mixed before, and the last one, tell nothing.
    #[test]
    fn experts_are_wanted_a_block_ahead() {
        let config = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
        let size = (1, 9);
        let shape = ConvShape { batch: 1, in_channels: 10, out_channels: 11, input: size, output: size, config };
        let (len, taps) = (shape.kernel_len(), 10);
        let experts: Vec<f32> = (0..3 * len).map(|i| i as f32).collect();
        let kernels = Kernels::Mixed { weights: &[1.0, 2.0, 3.0], experts: &experts };
        let epilogue = Epilogue::default();
        let task = Task { x: &[], kernels: &kernels, epilogue: &epilogue, shape: &shape, samples: (0, 1) };
        let packing = conv::packing::<Scalar>(&shape);
        let own = packing.blocks() * packing.block_len();
        let mut mixed = vec![f32::NAN; own];
        let mut mixture =
            Mixture { task: &task, packing, weights: &[], mixed: &mut mixed, own, first: 0, sample: 0, ready: 0 };
        assert!(packing.blocks() > 2);
        for block in 0..packing.blocks() {
            let (packed, wanted) = mixture.block(Scalar, block);
            let first = block * packing.height * taps;
            assert_eq!(packed[0], experts[first] + 2.0 * experts[len + first] + 3.0 * experts[2 * len + first]);
            let next = first + packing.height * taps;
            assert_eq!(wanted.is_some(), next < len);
            let Some(wanted) = wanted else { continue };
            let height = packing.height.min((len - next) / taps);
            for (index, start) in wanted.0.into_iter().enumerate() {
                let (expert, row) = (index / height % 3, index % height);
                assert_eq!(start, experts[expert * len + next + row * taps..].as_ptr(), "row {index} of block {block}");
            }
        }
        assert!(mixture.block(Scalar, 1).1.is_none());
    }
}
