//! 3x3 convolution by Winograd's algorithm: 36 multiplications where a direct one takes 144, with stride 2 81.
//!
//! After Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), with the points 0, 1, -1, 2, -2 and infinity.
//! A tile of 4x4 outputs depends on 6x6 inputs. Inputs and kernels are transformed (36 values each), multiplied slot by slot,
//! which over all channels is a matrix product for each of the 36 slots, and transformed back. With stride 2 it depends on 9x9
//! inputs, which make 81 slots, of which some share kernels ([`super::transforms`]).
//!
//! The transforms multiply values by up to 8 and subtract them from each other again, which costs about one digit: results
//! agree with the direct convolution to some 1e-5 of the largest value instead of 1e-6.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::super::isa::Isa;
use super::direct::{PANEL_VECTORS, Packing, Weights};
use super::finish::{Act, load_part, put};
use super::memory::{Arena, LINE, View};
use super::product::{ZEROS, product};
use super::team::Member;
use super::transforms::{KERNELS, OUT, backward, forward, kernel_forward, kernels};

/// Kernels of a tile, of which each slot takes one.
pub(super) const POINTS: usize = KERNELS * KERNELS;
/// Keeps rows of different points from falling into the same sets of a cache.
pub(super) const SKEW: usize = 16;

/// Values of the packed kernels of one point.
pub(super) fn point_len(packing: &Packing) -> usize {
    packing.len() + SKEW
}

/// A 3x3 convolution.
#[derive(Debug, Clone)]
pub(super) struct Winograd {
    pub(super) input: View,
    pub(super) output: View,
    pub(super) padding: (usize, usize),
    /// 1 or 2.
    pub(super) stride: usize,
    pub(super) residual: Option<View>,
    pub(super) act: Act,
    /// Of one point: taps are input channels.
    pub(super) packing: Packing,
    /// Tiles that are worked on at a time: by one thread on its own, or by all together.
    pub(super) chunk: usize,
    /// Whether all threads share a chunk.
    pub(super) together: bool,
}

/// Transforms kernels `[out, in, 3, 3]` and packs them, point by point; panel by panel, for all points of all kernels at once would
/// take four times the kernels' memory.
pub(super) fn transform_kernels(packing: &Packing, stride: usize, weights: &[f32], packed: &mut [f32]) {
    let inputs = packing.taps;
    let outs = PANEL_VECTORS * packing.lanes;
    let mut points = vec![[0.0f32; POINTS]; outs.min(packing.out) * inputs];
    for (panel, weights) in weights.chunks(9 * inputs * outs).enumerate() {
        points.par_iter_mut().zip(weights.par_chunks_exact(9)).with_min_len(256).for_each(|(points, kernel)| {
            let k = |y: usize, x: usize| f64::from(kernel[3 * y + x]);
            let columns: [[f64; KERNELS]; 3] = std::array::from_fn(|x| kernels(stride, [k(0, x), k(1, x), k(2, x)]));
            for y in 0..KERNELS {
                let row = kernels(stride, [columns[0][y], columns[1][y], columns[2][y]]);
                for (x, value) in row.into_iter().enumerate() {
                    points[y * KERNELS + x] = value as f32;
                }
            }
        });
        let packed = packed.par_chunks_exact_mut(point_len(packing)).take(POINTS).enumerate();
        packed.with_min_len(4).for_each(|(point, packed)| {
            let packed = &mut packed[packing.panel(panel)..];
            packing.fill_panel(packed, panel, |out, input| points[out * inputs + input][point]);
        });
    }
}

/// Transforms one tap row of kernels that are packed for the direct convolution: nine vectors to 36.
///
/// # Safety
/// Vector `(y, x)` of the nine must be readable at `from[3 * y + x]`, and 36 vectors writable at `to`, `step` values apart.
#[inline(always)]
pub(super) unsafe fn transform_packed<I: Isa>(isa: I, nine: &[I::F32; 9], to: *mut f32, step: usize) {
    let column = [
        kernel_forward(isa, [nine[0], nine[3], nine[6]]),
        kernel_forward(isa, [nine[1], nine[4], nine[7]]),
        kernel_forward(isa, [nine[2], nine[5], nine[8]]),
    ];
    for y in 0..KERNELS {
        let row = kernel_forward(isa, [column[0][y], column[1][y], column[2][y]]);
        for x in 0..KERNELS {
            // SAFETY: the caller proves the room.
            unsafe { isa.store_at(to.add((y * KERNELS + x) * step), row[x]) };
        }
    }
}

/// Sizes of the scratch of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// Values of a tile's row of transformed inputs and of products.
    pub(super) row_in: usize,
    /// Values from the first of so many channels as a row has to the first behind them.
    pub(super) block_in: usize,
    pub(super) row_out: usize,
    /// Values of a point.
    pub(super) point_in: usize,
    pub(super) point_out: usize,
}

impl Winograd {
    /// Inputs of a tile along an axis, and as many slots.
    fn side(&self) -> usize {
        if self.stride == 1 { 6 } else { 9 }
    }

    /// Products of a tile.
    fn slots(&self) -> usize {
        self.side() * self.side()
    }

    /// The kernel of a slot.
    fn kernel(&self, slot: usize) -> usize {
        let (y, x) = (slot / self.side(), slot % self.side());
        y.min(KERNELS - 1) * KERNELS + x.min(KERNELS - 1)
    }

    /// Rows and columns of tiles.
    pub(super) fn tiles(&self) -> (usize, usize) {
        (self.output.height.div_ceil(OUT), self.output.width.div_ceil(OUT))
    }

    /// Whether kernels stay in a level-2 cache beside a chunk. Then a thread goes through the phases on its own: products that it
    /// would hand to others come back from further away.
    pub(super) fn near(&self) -> bool {
        /// Values of transformed kernels: half of a cache of 1 MiB. Fewer in tests, whose kernels are small, so that some of them
        /// are more.
        const KERNEL_VALUES: usize = if cfg!(test) { POINTS * 36 * 36 } else { 160 * 1024 };
        POINTS * self.packing.taps * self.packing.out <= KERNEL_VALUES
    }

    /// Chooses how many tiles are worked on at a time, for so many threads.
    pub(super) fn choose_chunk<I: Isa>(&mut self, threads: usize) {
        /// Transformed inputs and products of a chunk of one thread, about: most of a level-2 cache of 512 KiB.
        const OWN_VALUES: usize = 96 * 1024;
        /// Of a chunk of all threads: a share of a level-3 cache.
        const COMMON_VALUES: usize = 2 * 1024 * 1024;
        let tile = self.slots() * (self.packing.taps + self.packing.out);
        let (rows, columns) = self.tiles();
        let tiles = rows * columns;
        let own = OWN_VALUES / tile;
        // With stride 2 what threads would hand to each other is more than twice as much: on cores that share no cache it takes longer
        // than chunks of a single register tile lose.
        let few = |enough: usize| tiles < enough * threads * I::TILE_ROWS;
        let common = if self.near() { few(2) } else { own < 3 * I::TILE_ROWS || few(4) };
        self.together = self.stride == 1 && common;
        let least = if self.stride == 1 { 2 } else { 1 };
        let most = if self.together { COMMON_VALUES / tile } else { own };
        // Chunks of equal size, of whole register tiles where there are several.
        let most = (most / I::TILE_ROWS).max(least) * I::TILE_ROWS;
        let chunks = tiles.div_ceil(most);
        let chunks = if self.together { chunks } else { chunks.next_multiple_of(threads) };
        self.chunk = if chunks == 1 { tiles } else { tiles.div_ceil(chunks).next_multiple_of(I::TILE_ROWS) };
    }

    pub(super) fn layout<I: Isa>(&self) -> Layout {
        let row_in = self.packing.taps.next_multiple_of(I::LANES);
        let row_out = self.packing.out.next_multiple_of(I::LANES);
        let (point_in, point_out) = (self.chunk * row_in + SKEW, self.chunk * row_out + SKEW);
        Layout { row_in, block_in: 0, row_out, point_in, point_out }
    }

    /// Values of scratch that a chunk takes.
    pub(super) fn scratch<I: Isa>(&self) -> usize {
        let layout = self.layout::<I>();
        self.slots() * (layout.point_in + layout.point_out)
    }

    /// How it is divided into jobs.
    pub(super) fn jobs<I: Isa>(&self) -> Jobs<'_> {
        let (rows, columns) = self.tiles();
        let tiles = rows * columns;
        let lanes = I::LANES;
        Jobs { conv: self, layout: self.layout::<I>(), tiles, chunks: tiles.div_ceil(self.chunk), lanes }
    }

    /// Runs it for `batch` samples on the team; `scratch` is the thread's own or, for chunks of all threads, theirs.
    pub(super) fn run<I: Isa>(
        &self,
        isa: I,
        arena: &Arena,
        batch: usize,
        (weights, bias): (Weights<'_>, Weights<'_>),
        scratch: *mut f32,
        member: &Member<'_>,
    ) {
        let jobs = self.jobs::<I>();
        let job = |index: usize| {
            let (sample, chunk) = (index / jobs.chunks, index % jobs.chunks);
            jobs.chunk(arena, chunk, weights.of(arena, sample), bias.of(arena, sample), scratch).of(sample)
        };
        if !self.together {
            member.share(batch * jobs.chunks, |index| {
                let job = job(index);
                isa.run(
                    #[inline(always)]
                    || job.all(isa),
                );
            });
            return;
        }
        for index in 0..batch * jobs.chunks {
            let job = job(index);
            for phase in PHASES {
                member.share(jobs.tasks(phase, index % jobs.chunks), |task| {
                    isa.run(
                        #[inline(always)]
                        || job.task(isa, phase, task),
                    );
                });
            }
        }
    }
}

/// What is done with a chunk, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Inputs,
    Products,
    Outputs,
}

/// All phases in order.
pub(super) const PHASES: [Phase; 3] = [Phase::Inputs, Phase::Products, Phase::Outputs];

/// Tiles and vectors of channels of a task of a transform.
const TASK_TILES: usize = 4;
const TASK_VECTORS: usize = 8;

/// A convolution divided into chunks of tiles, and those into tasks.
#[derive(Clone, Copy)]
pub(super) struct Jobs<'a> {
    conv: &'a Winograd,
    layout: Layout,
    tiles: usize,
    /// Chunks of a sample.
    pub(super) chunks: usize,
    lanes: usize,
}

impl<'a> Jobs<'a> {
    fn count(&self, chunk: usize) -> usize {
        self.conv.chunk.min(self.tiles - chunk * self.conv.chunk)
    }

    /// Panels of a task of the products.
    fn share(&self) -> usize {
        self.conv.packing.panels().div_ceil(2).min(8)
    }

    /// Tasks of a phase, if all threads share a chunk.
    pub(super) fn tasks(&self, phase: Phase, chunk: usize) -> usize {
        let packing = &self.conv.packing;
        let transform = |channels: usize| {
            self.count(chunk).div_ceil(TASK_TILES) * channels.div_ceil(self.lanes).div_ceil(TASK_VECTORS)
        };
        match phase {
            Phase::Inputs => transform(packing.taps),
            Phase::Products => self.conv.slots() * packing.panels().div_ceil(self.share()),
            Phase::Outputs => transform(packing.out),
        }
    }

    /// A chunk of the first sample.
    pub(super) fn chunk(
        &self,
        arena: &'a Arena,
        chunk: usize,
        weights: *const f32,
        bias: *const f32,
        scratch: *mut f32,
    ) -> Chunk<'a> {
        let first = chunk * self.conv.chunk;
        Chunk {
            jobs: *self,
            conv: self.conv,
            layout: self.layout,
            arena,
            sample: 0,
            first,
            count: self.count(chunk),
            weights,
            bias,
            scale: std::ptr::null(),
            scratch,
        }
    }
}

impl Chunk<'_> {
    /// The same of another sample.
    pub(super) fn of(self, sample: usize) -> Self {
        Self { sample, ..self }
    }

    /// The same with its transformed inputs in another order.
    pub(super) fn laid_out(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// All phases.
    #[inline(always)]
    pub(super) fn all<I: Isa>(&self, isa: I) {
        let packing = &self.conv.packing;
        self.transform_input(isa, (0, self.count), (0, packing.taps.div_ceil(I::LANES)));
        // Not a closure, which might not be compiled for the instruction set.
        for slot in 0..self.conv.slots() {
            self.multiply(isa, slot, (0, packing.panels()));
        }
        self.transform_output(isa, (0, self.count), (0, packing.out.div_ceil(I::LANES)));
    }

    /// One task of a phase.
    #[inline(always)]
    pub(super) fn task<I: Isa>(&self, isa: I, phase: Phase, task: usize) {
        let packing = &self.conv.packing;
        // Some tiles and some channels.
        let part = |channels: usize| {
            let vectors = channels.div_ceil(I::LANES);
            let of_vectors = vectors.div_ceil(TASK_VECTORS);
            let (tile, vector) = (task / of_vectors * TASK_TILES, task % of_vectors * TASK_VECTORS);
            ((tile, (tile + TASK_TILES).min(self.count)), (vector, (vector + TASK_VECTORS).min(vectors)))
        };
        match phase {
            Phase::Inputs => {
                let (tiles, vectors) = part(packing.taps);
                self.transform_input(isa, tiles, vectors);
            }
            Phase::Products => {
                let share = self.jobs.share();
                let shares = packing.panels().div_ceil(share);
                let (slot, part) = (task / shares, task % shares);
                self.multiply(isa, slot, (part * share, ((part + 1) * share).min(packing.panels())));
            }
            Phase::Outputs => {
                let (tiles, vectors) = part(packing.out);
                self.transform_output(isa, tiles, vectors);
            }
        }
    }
}

/// A chunk of tiles of one sample.
pub(super) struct Chunk<'a> {
    jobs: Jobs<'a>,
    conv: &'a Winograd,
    layout: Layout,
    arena: &'a Arena,
    sample: usize,
    first: usize,
    count: usize,
    weights: *const f32,
    bias: *const f32,
    /// Factors of the sums, or null.
    pub(super) scale: *const f32,
    scratch: *mut f32,
}

impl Chunk<'_> {
    /// Tiles and vectors of channels, first and one past the last.
    #[inline(always)]
    fn transform_input<I: Isa>(&self, isa: I, tiles: (usize, usize), vectors: (usize, usize)) {
        if self.conv.stride == 1 {
            self.inputs::<I, 6>(isa, tiles, vectors);
        } else {
            self.inputs::<I, 9>(isa, tiles, vectors);
        }
    }

    /// Of tiles of `N`x`N` inputs.
    #[inline(always)]
    fn inputs<I: Isa, const N: usize>(&self, isa: I, tiles: (usize, usize), vectors: (usize, usize)) {
        let conv = self.conv;
        let view = &conv.input;
        let (_, columns) = conv.tiles();
        let start = self.arena.at(view.offset + self.sample * view.sample()).cast_const();
        for tile in tiles.0..tiles.1 {
            let step = OUT * conv.stride;
            let (row, column) = ((self.first + tile) / columns * step, (self.first + tile) % columns * step);
            // Rows and columns of the tile that the map has.
            let span = |at: usize, padding: usize, size: usize| {
                (padding.saturating_sub(at).min(N), (size + padding).saturating_sub(at).min(N))
            };
            let (top, bottom) = span(row, conv.padding.0, view.height);
            let (left, right) = span(column, conv.padding.1, view.width);
            let whole = (top, bottom, left, right) == (0, N, 0, N);
            let place = |y: usize, x: usize| {
                ((row + y - conv.padding.0) * view.width + column + x - conv.padding.1) * view.pixel
            };
            for vector in vectors.0..vectors.1 {
                let channel = vector * I::LANES;
                let count = conv.packing.taps - channel;
                let mut columns = [[MaybeUninit::uninit(); N]; N];
                for x in 0..N {
                    let mut column = [isa.splat(0.0); N];
                    if whole && count >= I::LANES {
                        let start = start.wrapping_add(place(0, x) + channel);
                        for y in 0..N {
                            // SAFETY: the whole tile lies in the map.
                            column[y] = unsafe { isa.load_at(start.add(y * view.width * view.pixel)) };
                        }
                    } else if (left..right).contains(&x) {
                        for y in top..bottom {
                            // SAFETY: the pixel lies in the map, and the channels behind `channel` are as many as `count`.
                            column[y] = unsafe { load_part(isa, start.wrapping_add(place(y, x) + channel), count) };
                        }
                    }
                    let column = forward(isa, &column);
                    for y in 0..N {
                        columns[y][x].write(column[y]);
                    }
                }
                let Layout { row_in, block_in, .. } = self.layout;
                let place = channel / row_in * block_in + channel % row_in;
                let out = self.scratch.wrapping_add(tile * row_in + place);
                for y in 0..N {
                    // SAFETY: the loop above wrote all of them.
                    let row = forward(isa, unsafe { written(&columns[y]) });
                    for x in 0..N {
                        // SAFETY: the scratch has a row of whole vectors for each tile and point.
                        unsafe { isa.store_at(out.add((y * N + x) * self.layout.point_in), row[x]) };
                    }
                }
            }
        }
    }

    /// The matrix product of one slot, some panels of output channels.
    #[inline(always)]
    fn multiply<I: Isa>(&self, isa: I, slot: usize, panels: (usize, usize)) {
        let Layout { row_in, row_out, point_in, point_out, .. } = self.layout;
        let packing = &self.conv.packing;
        let inputs = self.scratch.wrapping_add(slot * point_in).cast_const();
        let products = self.scratch.wrapping_add(self.conv.slots() * point_in + slot * point_out);
        let weights = self.weights.wrapping_add(self.conv.kernel(slot) * point_len(packing));
        // Tiles of equal height waste least.
        let height = self.count.div_ceil(self.count.div_ceil(I::TILE_ROWS));
        let far = !self.conv.near();
        for panel in panels.0..panels.1 {
            let weights = weights.wrapping_add(packing.panel(panel));
            let products = products.wrapping_add(panel * PANEL_VECTORS * I::LANES);
            for first in (0..self.count).step_by(height) {
                let size = (height.min(self.count - first), packing.vectors(panel));
                let (rows, out) = (inputs.wrapping_add(first * row_in), products.wrapping_add(first * row_out));
                let (start, out) = ((ZEROS.as_ptr(), 0), (out, row_out));
                let row = size.1 * I::LANES;
                // Of kernels, the next panel, once for all tiles.
                let next = weights.wrapping_add(packing.taps * row);
                let ahead = if first == 0 { [(next, row), (next.wrapping_add(LINE), row)] } else { [(rows, 0); 2] };
                // SAFETY: the scratch has rows for all tiles of the chunk, the weights a row for each input channel.
                unsafe {
                    if far {
                        product::<I, true>(isa, (size, packing.taps), (rows, row_in), weights, start, out, ahead);
                    } else {
                        product::<I, false>(isa, (size, packing.taps), (rows, row_in), weights, start, out, ahead);
                    }
                }
            }
        }
    }

    /// Tiles and vectors of channels, first and one past the last.
    #[inline(always)]
    fn transform_output<I: Isa>(&self, isa: I, tiles: (usize, usize), vectors: (usize, usize)) {
        let conv = self.conv;
        let view = &conv.output;
        let (_, columns) = conv.tiles();
        let out = self.arena.at(view.offset + self.sample * view.sample());
        let residual = conv.residual.map(|view| (self.arena.at(view.offset + self.sample * view.sample()), view));
        let products = self.scratch.wrapping_add(conv.slots() * self.layout.point_in).cast_const();
        for tile in tiles.0..tiles.1 {
            let (row, column) = ((self.first + tile) / columns * OUT, (self.first + tile) % columns * OUT);
            let (height, width) = (OUT.min(view.height - row), OUT.min(view.width - column));
            for vector in vectors.0..vectors.1 {
                let channel = vector * I::LANES;
                let from = products.wrapping_add(tile * self.layout.row_out + channel);
                // SAFETY: the bias has room for whole vectors.
                let bias = unsafe { isa.load_at(self.bias.add(channel)) };
                let channels = conv.packing.out - channel;
                let scale = if self.scale.is_null() {
                    isa.splat(1.0)
                } else {
                    // SAFETY: as the bias.
                    unsafe { isa.load_at(self.scale.add(channel)) }
                };
                // SAFETY: the scratch has a row of whole vectors for each tile and point.
                let mut values = unsafe {
                    if conv.stride == 1 {
                        outputs::<I, 6>(isa, from, self.layout.point_out, scale, bias)
                    } else {
                        outputs::<I, 9>(isa, from, self.layout.point_out, scale, bias)
                    }
                };
                conv.act.apply_all(isa, &mut values);
                for y in 0..height {
                    for x in 0..width {
                        let pixel = (row + y) * view.width + column + x;
                        let residual = residual.map_or(std::ptr::null(), |(start, view)| {
                            start.wrapping_add(pixel * view.pixel + channel).cast_const()
                        });
                        let out = out.wrapping_add(pixel * view.pixel + channel);
                        // SAFETY: the output and the residual have a place for each pixel of the map.
                        unsafe { put(isa, values[y][x], residual, out, channels) };
                    }
                }
            }
        }
    }
}

/// A row of a square that was written column by column. Zeroing it first would take a fifth of the transforms' time.
///
/// # Safety
/// All values must be written.
#[inline(always)]
unsafe fn written<T, const N: usize>(row: &[MaybeUninit<T>; N]) -> &[T; N] {
    // SAFETY: the layout is the same, and the caller wrote the values.
    unsafe { &*std::ptr::from_ref(row).cast() }
}

/// A tile's outputs, from `N`x`N` slots: `scale * sum + bias`, of products that lie `step` values apart.
///
/// # Safety
/// A vector of each slot must be readable.
#[inline(always)]
pub(super) unsafe fn outputs<I: Isa, const N: usize>(
    isa: I,
    products: *const f32,
    step: usize,
    scale: I::F32,
    bias: I::F32,
) -> [[I::F32; OUT]; OUT] {
    let mut rows = [[MaybeUninit::uninit(); N]; OUT];
    for x in 0..N {
        let mut column = [isa.splat(0.0); N];
        for y in 0..N {
            // SAFETY: the caller proves the products.
            column[y] = unsafe { isa.load_at(products.wrapping_add((y * N + x) * step)) };
        }
        let column = backward(isa, &column);
        for y in 0..OUT {
            rows[y][x].write(column[y]);
        }
    }
    let mut values = [[bias; OUT]; OUT];
    for y in 0..OUT {
        // SAFETY: the loop above wrote all of them.
        let row = backward(isa, unsafe { written(&rows[y]) });
        for x in 0..OUT {
            values[y][x] = isa.fma(row[x], scale, bias);
        }
    }
    values
}
