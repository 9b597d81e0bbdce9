//! Routing weights: every map is read once for its sum, and what follows is a few hundred products.

use std::cell::RefCell;

use super::isa::{Isa, WIDEST};
use super::phases::share_chunks;
use super::{Router, with_kept};
use crate::Routing;

/// Values of maps that a task sums, about: worth its start.
const TASK_VALUES: usize = 16 * 1024;
/// Sums that run beside each other, so that none waits for another.
const VECTORS: usize = 4;

thread_local! {
    /// Averages of all maps, kept by the thread that called.
    static AVERAGES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `r[b] = activation(weight * average(x[b]) + bias)`; `weight` is `[K, channels]`.
pub(super) fn route<I: Isa>(
    isa: I,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    routing: Routing,
    r: &mut [f32],
    channels: usize,
) {
    let maps = r.len() / bias.len() * channels;
    let pixels = x.len() / maps;
    with_kept(&AVERAGES, |averages| {
        averages.resize(maps.max(averages.len()), 0.0);
        let averages = &mut averages[..maps];
        let step = (TASK_VALUES / pixels).clamp(1, maps);
        share_chunks(averages, step, |number, averages| {
            let x = &x[number * step * pixels..][..averages.len() * pixels];
            isa.run(
                #[inline(always)]
                || averages_of(isa, x, averages),
            );
        });
        for (r, averages) in r.chunks_exact_mut(bias.len()).zip(averages.chunks_exact(channels)) {
            let router = Router { weight, bias, routing };
            isa.run(
                #[inline(always)]
                || weights(isa, averages, &router, r),
            );
        }
    });
}

/// Routing weights of maps `x`, `[batch, channels, pixels]`, on all threads: as many as there is room for in `r`.
pub(super) fn by_router<I: Isa>(isa: I, x: &[f32], router: &Router<'_>, r: &mut [f32]) {
    let Router { weight, bias, routing } = *router;
    route(isa, x, weight, bias, routing, r, weight.len() / bias.len());
}

/// Routing weights of one sample's maps, on this thread.
pub(super) fn alone<I: Isa>(isa: I, x: &[f32], router: &Router<'_>, r: &mut [f32]) {
    let channels = router.weight.len() / router.bias.len();
    with_kept(&AVERAGES, |averages| {
        averages.resize(channels.max(averages.len()), 0.0);
        let averages = &mut averages[..channels];
        isa.run(
            #[inline(always)]
            || {
                averages_of(isa, x, averages);
                weights(isa, averages, router, r);
            },
        );
    });
}

/// The averages of as many maps, one after the other.
#[inline(always)]
pub(super) fn averages_of<I: Isa>(isa: I, x: &[f32], averages: &mut [f32]) {
    let pixels = x.len() / averages.len();
    for (average, map) in averages.iter_mut().zip(x.chunks_exact(pixels)) {
        *average = sum(isa, map) / pixels as f32;
    }
}

/// Routing weights of a sample's averages.
#[inline(always)]
pub(super) fn weights<I: Isa>(isa: I, averages: &[f32], router: &Router<'_>, r: &mut [f32]) {
    let rows = router.weight.chunks_exact(averages.len());
    for ((r, weight), bias) in r.iter_mut().zip(rows).zip(router.bias) {
        *r = bias + dot(isa, weight, averages);
    }
    activate(r, router.routing);
}

/// Turns logits into weights in place.
pub(super) fn activate(logits: &mut [f32], routing: Routing) {
    match routing {
        Routing::Sigmoid => logits.iter_mut().for_each(|l| *l = 1.0 / (1.0 + (-*l).exp())),
        Routing::Softmax { temperature } => {
            // As the twin does: the largest first, and no temperature below the one at which it is a choice of one.
            let factor = (1.0 / temperature.max(2e-5)) as f32;
            let largest = logits.iter().fold(f32::NEG_INFINITY, |max, l| max.max(*l));
            logits.iter_mut().for_each(|l| *l = ((*l - largest) * factor).exp());
            let sum: f32 = logits.iter().sum();
            logits.iter_mut().for_each(|l| *l /= sum);
        }
    }
}

/// The sum of all values.
#[inline(always)]
fn sum<I: Isa>(isa: I, values: &[f32]) -> f32 {
    let one = isa.splat(1.0);
    let mut sums = [isa.splat(0.0); VECTORS];
    let mut blocks = values.chunks_exact(VECTORS * I::LANES);
    for block in blocks.by_ref() {
        for j in 0..VECTORS {
            sums[j] = isa.fma(one, isa.load(&block[j * I::LANES..][..I::LANES]), sums[j]);
        }
    }
    let mut vectors = blocks.remainder().chunks_exact(I::LANES);
    for (j, vector) in vectors.by_ref().enumerate() {
        sums[j] = isa.fma(one, isa.load(vector), sums[j]);
    }
    across(isa, sums) + vectors.remainder().iter().sum::<f32>()
}

#[inline(always)]
fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [isa.splat(0.0); VECTORS];
    let (mut left, mut right) = (a.chunks_exact(VECTORS * I::LANES), b.chunks_exact(VECTORS * I::LANES));
    for (a, b) in left.by_ref().zip(right.by_ref()) {
        for j in 0..VECTORS {
            let (a, b) = (&a[j * I::LANES..][..I::LANES], &b[j * I::LANES..][..I::LANES]);
            sums[j] = isa.fma(isa.load(a), isa.load(b), sums[j]);
        }
    }
    let rest = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b);
    across(isa, sums) + rest.sum::<f32>()
}

/// The sum of all lanes, by halves: one after the other, each addition would wait for the one before.
#[inline(always)]
fn across<I: Isa>(isa: I, sums: [I::F32; VECTORS]) -> f32 {
    let mut all = sums[0];
    for j in 1..VECTORS {
        all = isa.add(all, sums[j]);
    }
    let mut lanes = [0.0; WIDEST];
    isa.store(&mut lanes, all);
    let mut half = WIDEST / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
