//! Convolution as a matrix product: packed kernels, `[out, taps]`, times pixels that [`super::planes`] holds ready.
//!
//! A task is a piece of one map of one group; it goes through the taps in chunks that stay in the caches of its thread, and in
//! each chunk through its pixels, tile by tile. Sums of later chunks are added in place; the last chunk applies the epilogue
//! while its values are in registers or near.

use std::cell::RefCell;
use std::mem::MaybeUninit;

use super::channels_last::LINE;
use super::isa::{Isa, copy};
use super::own;
use super::pack::{self, Packing};
use super::phases::{share, share_runs};
use super::planes::{Piece, Planes};
use super::shared::Shared;
use super::tile::{self, MAX_VALUES, Offsets, Rows};
use super::{ConvShape, Epilogue, Kernels, activation, route, with_kept};

/// Taps of a chunk, about: a tile's pixels then stay in a level-1 cache, and few chunks add to the output.
const CHUNK_TAPS: usize = 576;
/// Values of the planes of a task, about: a quarter of a level-2 cache of 512 KiB.
const PLANE_VALUES: usize = 32 * 1024;
/// Channels that the copies of maps look ahead.
const AHEAD: usize = 2;
/// Values of mixed kernels that exist at a time, about.
const PACKED_VALUES: usize = 512 * 1024;

/// What a thread keeps between tasks.
#[derive(Default)]
struct Scratch {
    planes: Vec<f32>,
    offsets: Vec<u32>,
    runs: Vec<Run>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Mixed kernels, kept by the thread that called.
    static PACKED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Routing weights, kept likewise.
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
    if let Some(division) = own::division::<I>(kernels, shape) {
        return own::conv2d(isa, x, kernels, epilogue, y, (shape, division));
    }
    let packing = packing::<I>(shape);
    let set = packing.block_len() * packing.blocks() * shape.config.groups;
    match *kernels {
        Kernels::Shared(experts) => {
            return with_kept(&PACKED, |packed| {
                packed.resize(set.max(packed.len()), 0.0);
                mix_all(isa, shape, &[1.0], experts, &mut packed[..set]);
                convolve(isa, x, (&packed[..set], 0), epilogue, y, shape);
            });
        }
        Kernels::PerSample(_) | Kernels::Mixed { .. } | Kernels::Routed { .. } => {}
    }
    // A few samples at a time, whose maps are still near when they are convolved.
    let at_once = (PACKED_VALUES / set).clamp(1, shape.batch);
    let (sample, plane) = (x.len() / shape.batch, y.len() / shape.batch);
    let len = shape.kernel_len();
    with_kept(&PACKED, |packed| {
        packed.resize((set * at_once).max(packed.len()), 0.0);
        for (index, (x, y)) in x.chunks(sample * at_once).zip(y.chunks_mut(plane * at_once)).enumerate() {
            let (first, samples) = (index * at_once, x.len() / sample);
            let packed = &mut packed[..set * samples];
            match *kernels {
                Kernels::PerSample(kernels) => pack_all(isa, shape, &kernels[first * len..][..samples * len], packed),
                Kernels::Mixed { weights, experts } => {
                    let count = experts.len() / len;
                    mix_all(isa, shape, &weights[first * count..][..samples * count], experts, packed);
                }
                Kernels::Routed { ref router, experts } => with_kept(&ROUTING, |weights| {
                    let count = samples * router.bias.len();
                    weights.resize(count.max(weights.len()), 0.0);
                    route::by_router(isa, x, router, &mut weights[..count]);
                    mix_all(isa, shape, &weights[..count], experts, packed);
                }),
                Kernels::Shared(_) => unreachable!("packed once for all samples, above"),
            }
            let shift = shift_from(epilogue, first * shape.out_channels, shape);
            let part = ConvShape { batch: samples, ..*shape };
            convolve(isa, x, (packed, set), &Epilogue { shift, ..*epilogue }, y, &part);
        }
    });
}

/// The epilogue's summands of the samples whose outputs begin with channel `first` of all; those of all samples, if they share
/// them.
pub(super) fn shift_from<'a>(epilogue: &Epilogue<'a>, first: usize, shape: &ConvShape) -> &'a [f32] {
    if epilogue.shift.len() == shape.out_channels {
        epilogue.shift
    } else {
        epilogue.shift.get(first..).unwrap_or_default()
    }
}

/// The packed form for a shape.
pub(super) fn packing<I: Isa>(shape: &ConvShape) -> Packing {
    Packing::new::<I>(shape.out_channels / shape.config.groups, shape.taps())
}

/// Mixes the experts for each sample of `weights`, on all threads.
pub(super) fn mix_all<I: Isa>(isa: I, shape: &ConvShape, weights: &[f32], experts: &[f32], packed: &mut [f32]) {
    let count = experts.len() / shape.kernel_len();
    fill_blocks(isa, shape, packed, |sample| (&weights[sample * count..][..count], experts));
}

/// Packs each sample's own kernels, on all threads.
fn pack_all<I: Isa>(isa: I, shape: &ConvShape, kernels: &[f32], packed: &mut [f32]) {
    fill_blocks(isa, shape, packed, |sample| (&[1.0], &kernels[sample * shape.kernel_len()..][..shape.kernel_len()]));
}

/// Fills packed kernels, a block of rows at a time, from the weights and experts that `source` gives for a sample.
fn fill_blocks<'a, I: Isa>(
    isa: I,
    shape: &ConvShape,
    packed: &mut [f32],
    source: impl Fn(usize) -> (&'a [f32], &'a [f32]) + Sync,
) {
    /// Values of a task, about: worth its start.
    const TASK_VALUES: usize = 16 * 1024;
    let packing = packing::<I>(shape);
    let (per_group, groups) = (packing.blocks(), shape.config.groups);
    let group_len = packing.rows * packing.taps;
    let blocks = per_group * groups;
    let samples = packed.len() / (packing.block_len() * blocks);
    let least = (TASK_VALUES / (packing.block_len() * samples)).max(1);
    let out = Shared::filled(packed);
    // All samples of a block one after the other: its rows of the experts are then near.
    let fill = |index: usize| {
        let (group, block) = (index / per_group, index % per_group);
        let rows = group * group_len + block * packing.height * packing.taps..(group + 1) * group_len;
        for sample in 0..samples {
            let (weights, experts) = source(sample);
            // SAFETY: each task has its own blocks of all samples.
            let packed = unsafe { out.part((sample * blocks + index) * packing.block_len(), packing.block_len()) };
            isa.run(
                #[inline(always)]
                || pack::mix(isa, &packing, weights, experts, shape.kernel_len(), rows.clone(), packed),
            );
        }
    };
    share_runs(blocks, least, |blocks| blocks.for_each(fill));
}

/// Runs the convolution with packed kernels: `set` values a sample, or none where all samples share them.
fn convolve<I: Isa>(
    isa: I,
    x: &[f32],
    (packed, set): (&[f32], usize),
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    let shape = &flattened(shape);
    let packing = packing::<I>(shape);
    let groups = shape.config.groups;
    let maps = shape.batch * groups;
    let threads = rayon::current_num_threads();
    let chunk = chunk_channels::<I>(shape);
    // Pieces of whole rows; where a map is one long row, of whole vectors.
    let single = shape.output.0 == 1;
    let (units, unit) = if single { (shape.output.1.div_ceil(I::LANES), I::LANES) } else { (shape.output.0, 1) };
    let everything = Piece { rows: (0, shape.output.0), columns: (0, shape.output.1) };
    let values = Planes::new(shape, everything).channel_len() * chunk;
    // What is read where it lies takes no room.
    let wanted = if in_place(shape) { 1 } else { values.div_ceil(PLANE_VALUES) }.max(threads.div_ceil(maps));
    let wanted = if maps.is_multiple_of(threads) { wanted } else { wanted.next_multiple_of(threads) }.min(units);
    let step = units.div_ceil(wanted) * unit;
    let pieces = (units * unit).div_ceil(step);
    let parts = threads.div_ceil(maps * pieces).min(packing.blocks());
    let out = Shared::new(y);
    share(maps * pieces * parts, |task| {
        let (map, piece, part) = (task / (pieces * parts), task / parts % pieces, task % parts);
        let (sample, group) = (map / groups, map % groups);
        let (from, to) = (piece * step, ((piece + 1) * step).min(if single { shape.output.1 } else { shape.output.0 }));
        let piece = if single {
            Piece { columns: (from, to - from), ..everything }
        } else {
            Piece { rows: (from, to - from), ..everything }
        };
        let per_group = packing.block_len() * packing.blocks();
        let blocks = part_of(packing.blocks(), part, parts);
        let job = Job {
            shape,
            packing,
            maps: &x[(sample * groups + group) * (x.len() / maps)..][..x.len() / maps],
            epilogue,
            sample,
            group,
            piece,
            blocks,
            chunk,
        };
        let packed = &packed[sample * set + group * per_group..][..per_group][blocks.0 * packing.block_len()..];
        job.go(isa, &mut Packed { values: packed, len: packing.block_len() }, &out);
    });
}

/// Begin and end of part `part` of `parts`, none of which is empty where there are no more parts than blocks.
pub(super) fn part_of(blocks: usize, part: usize, parts: usize) -> (usize, usize) {
    (part * blocks / parts, (part + 1) * blocks / parts)
}

/// A 1x1 convolution without padding sees no rows: its maps are one long row each.
pub(super) fn flattened(shape: &ConvShape) -> ConvShape {
    let config = &shape.config;
    if config.kernel == (1, 1) && config.stride == (1, 1) && config.padding == (0, 0) {
        let pixels = shape.output.0 * shape.output.1;
        ConvShape { input: (1, pixels), output: (1, pixels), ..*shape }
    } else {
        *shape
    }
}

/// Whether tiles read the maps where they are: those of 1x1 convolutions, unless the channels of a tile lie so that they fall
/// into few of the sets of a level-1 cache.
pub(super) fn in_place(shape: &ConvShape) -> bool {
    /// Bytes of a level-1 cache that have a set of their own.
    const SETS: usize = 4096;
    const LINE_BYTES: usize = LINE * size_of::<f32>();
    let bytes = size_of::<f32>() * shape.input.1;
    let long_row = shape.config.kernel == (1, 1) && shape.input.0 == 1 && shape.output == shape.input;
    // The largest power of two that divides both.
    let common = 1 << bytes.trailing_zeros().min(SETS.trailing_zeros());
    long_row && shape.config.padding == (0, 0) && bytes <= 4 * SETS && common <= LINE_BYTES
}

/// Channels of a chunk: so many that its taps are whole vectors of the packed form.
pub(super) fn chunk_channels<I: Isa>(shape: &ConvShape) -> usize {
    let window = shape.config.kernel.0 * shape.config.kernel.1;
    let mut unit = 1;
    while !(unit * window).is_multiple_of(I::LANES) {
        unit *= 2;
    }
    let wanted = CHUNK_TAPS / (window * unit).max(1) * unit;
    wanted.max(unit).min(shape.in_channels / shape.config.groups)
}

/// Where a job finds the packed kernels of its blocks.
pub(super) trait Source {
    /// Those of block `index`, counted from the job's first, and what will be wanted next. A job takes all blocks in turn before it takes
    /// one again.
    fn block<I: Isa>(&mut self, isa: I, index: usize) -> (&[f32], Option<Rows>);
}

/// Kernels that are packed already, `len` values a block.
struct Packed<'a> {
    values: &'a [f32],
    len: usize,
}

impl Source for Packed<'_> {
    #[inline(always)]
    fn block<I: Isa>(&mut self, _: I, index: usize) -> (&[f32], Option<Rows>) {
        (&self.values[index * self.len..][..self.len], None)
    }
}

/// One thread's piece: some pixels of some output channels of a group.
pub(super) struct Job<'a> {
    pub(super) shape: &'a ConvShape,
    pub(super) packing: Packing,
    /// The group's channels of the sample.
    pub(super) maps: &'a [f32],
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) sample: usize,
    pub(super) group: usize,
    pub(super) piece: Piece,
    /// Blocks of rows, first and one past the last.
    pub(super) blocks: (usize, usize),
    /// Channels of a chunk.
    pub(super) chunk: usize,
}

impl Job<'_> {
    /// Does it.
    pub(super) fn go<I: Isa>(&self, isa: I, source: &mut impl Source, out: &Shared<'_>) {
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(
                #[inline(always)]
                || self.run(isa, source, scratch, out),
            );
        });
    }

    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, source: &mut impl Source, scratch: &mut Scratch, out: &Shared<'_>) {
        let shape = self.shape;
        let planes = Planes::new(shape, self.piece);
        let columns = I::PRODUCT.1 * I::LANES;
        let numbers = planes.numbers();
        let window = shape.config.kernel.0 * shape.config.kernel.1;
        let map = shape.input.0 * shape.input.1;
        let channels = self.maps.len() / map;
        let in_place = in_place(shape);
        let Scratch { planes: copies, offsets, runs } = scratch;
        let needed = self.chunk * if in_place { columns } else { planes.channel_len() } + columns;
        copies.resize(needed.max(copies.len()), 0.0);
        if in_place {
            offsets.clear();
            offsets.extend((0..self.chunk).map(|channel| (channel * map) as u32));
            offsets.extend((0..self.chunk).map(|channel| (channel * columns) as u32));
        } else {
            if planes.bordered(shape) {
                copies[..needed].fill(0.0);
            }
            planes.offsets(shape, self.chunk, offsets);
        }
        let mut sums = [0.0; MAX_VALUES];
        for first in (0..channels).step_by(self.chunk) {
            let count = self.chunk.min(channels - first);
            let maps = &self.maps[first * map..(first + count) * map];
            if !in_place {
                self.copy(isa, &planes, maps, copies);
            }
            let taps = Offsets::new(&offsets[..count * window]);
            let step = Step { isa, start: first == 0, end: first + count == channels };
            for number in (0..numbers).step_by(columns) {
                let vectors = (numbers - number).min(columns).div_ceil(I::LANES);
                let (pixels, taps) = if !in_place {
                    (&copies[number..], taps)
                } else if number + vectors * I::LANES <= numbers {
                    (&maps[self.piece.columns.0 + number..], taps)
                } else {
                    // The last tile would read beyond the maps.
                    let rest = self.piece.columns.0 + number..self.piece.columns.0 + numbers;
                    for (map, line) in maps.chunks_exact(map).zip(copies.chunks_exact_mut(columns)) {
                        line[..rest.len()].copy_from_slice(&map[rest.clone()]);
                    }
                    (&copies[..], Offsets::new(&offsets[self.chunk..][..count]))
                };
                self.runs(&planes, number, columns, runs);
                let share = count.div_ceil(self.blocks.1 - self.blocks.0);
                for block in self.blocks.0..self.blocks.1 {
                    if in_place {
                        // The next tile's lines, a few at a time.
                        let from = (block - self.blocks.0) * share;
                        for channel in from..(from + share).min(count) {
                            let next = channel * map + self.piece.columns.0 + number + columns;
                            for line in (0..columns).step_by(LINE) {
                                isa.prefetch(&maps[(next + line).min(maps.len() - 1)..]);
                            }
                        }
                    }
                    let (packed, wanted) = source.block(isa, block - self.blocks.0);
                    let packed = self.packing.since(packed, first * window);
                    let (size, pixels) = ((self.packing.height, vectors), (&taps, pixels));
                    match wanted {
                        Some(wanted) => tile::product(isa, size, packed, pixels, &wanted, &mut sums),
                        None => tile::product(isa, size, packed, pixels, &(), &mut sums),
                    }
                    self.write(&step, runs, block, &sums, out);
                }
            }
        }
    }

    /// Copies the piece of each map.
    #[inline(always)]
    fn copy<I: Isa>(&self, isa: I, planes: &Planes, maps: &[f32], copies: &mut [f32]) {
        let map = self.shape.input.0 * self.shape.input.1;
        let area = planes.area(self.shape);
        let copies = copies.chunks_exact_mut(planes.channel_len());
        for (channel, (own, copy)) in maps.chunks_exact(map).zip(copies).enumerate() {
            // Each channel is a new place in memory, which the processor would not foresee.
            if let Some(later) = maps.get((channel + AHEAD) * map..(channel + AHEAD + 1) * map) {
                later[area.clone()].chunks(LINE).for_each(|line| isa.prefetch(line));
            }
            planes.fill(isa, self.shape, own, copy);
        }
    }

    /// Which of a tile's numbers are outputs, row by row.
    #[inline(always)]
    fn runs(&self, planes: &Planes, number: usize, columns: usize, runs: &mut Vec<Run>) {
        runs.clear();
        let row_len = planes.row();
        let end = (number + columns).min(planes.numbers());
        let (mut row, mut column) = (number / row_len, number % row_len);
        let mut at = number;
        while at < end {
            let next = (at + row_len - column).min(end);
            let count = self.piece.columns.1.saturating_sub(column).min(next - at);
            if count > 0 {
                let target = (self.piece.rows.0 + row) * self.shape.output.1 + self.piece.columns.0 + column;
                runs.push(Run { from: at - number, target, count });
            }
            (at, row, column) = (next, row + 1, 0);
        }
    }

    /// Writes or adds a tile's rows, without the numbers that belong to no output.
    #[inline(always)]
    fn write<I: Isa>(&self, step: &Step<I>, runs: &[Run], block: usize, sums: &tile::Sums, out: &Shared<'_>) {
        let columns = I::PRODUCT.1 * I::LANES;
        let first = block * self.packing.height;
        let height = self.packing.height.min(self.packing.rows - first);
        let plane = self.shape.output.0 * self.shape.output.1;
        for (i, sums) in sums.chunks_exact(columns).take(height).enumerate() {
            let channel = self.group * self.packing.rows + first + i;
            for run in runs {
                let row = self.sample * self.shape.out_channels + channel;
                // SAFETY: each task has its own pixels of its own channels, and one part is alive at a time; the first chunk of
                // taps writes it.
                let target = unsafe { out.part(row * plane + run.target, run.count) };
                if run.count == columns {
                    // The usual case, with sizes that the compiler knows.
                    put(step.isa, sums, &mut target[..columns], !step.start);
                } else {
                    put(step.isa, &sums[run.from..][..run.count], target, !step.start);
                }
                if step.end {
                    self.epilogue.apply(target, self.sample, channel, self.shape.out_channels);
                }
            }
        }
    }
}

/// Writes values, or adds them.
#[inline(always)]
fn put<I: Isa>(isa: I, values: &[f32], target: &mut [f32], add: bool) {
    if !add {
        return copy(isa, values, target);
    }
    let one = isa.splat(1.0);
    let mut targets = target.chunks_exact_mut(I::LANES);
    let mut sources = values.chunks_exact(I::LANES);
    for (target, source) in targets.by_ref().zip(sources.by_ref()) {
        isa.store(target, isa.fma(one, isa.load(target), isa.load(source)));
    }
    let rest = targets.into_remainder().iter_mut().zip(sources.remainder());
    rest.for_each(|(target, value)| *target += *value);
}

/// Where in its work a job is.
struct Step<I> {
    isa: I,
    /// First chunk of taps: sums are written, not added.
    start: bool,
    /// Last chunk: the epilogue is due.
    end: bool,
}

/// Outputs of a tile that lie beside each other.
struct Run {
    /// Place in the tile.
    from: usize,
    /// Place in the output's map.
    target: usize,
    count: usize,
}

impl Epilogue<'_> {
    /// Applies it to values of one channel of one sample.
    #[inline(always)]
    pub(super) fn apply(&self, values: &mut [f32], sample: usize, channel: usize, channels: usize) {
        if !self.scale.is_empty() || !self.shift.is_empty() {
            let scale = if self.scale.is_empty() { 1.0 } else { self.scale[channel] };
            let shift = match self.shift.len() {
                0 => 0.0,
                one if one == channels => self.shift[channel],
                _ => self.shift[sample * channels + channel],
            };
            values.iter_mut().for_each(|value| *value = *value * scale + shift);
        }
        if self.silu {
            values.iter_mut().for_each(|value| *value = activation::silu_of(*value));
        }
    }
}
