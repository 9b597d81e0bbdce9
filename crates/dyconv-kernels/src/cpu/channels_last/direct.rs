//! Convolution as a matrix product whose rows are found through pointers: no copy, no border, no unfolded map.
//!
//! A register tile is some pixels times two vectors of output channels. For each tap, or run of taps, a table holds where each
//! pixel of the tile reads; taps beside the map read zeros. The table of a block of pixels is made once for all panels of output
//! channels. Sums run over all taps in one go and stay in registers until the epilogue has been applied.

use super::super::isa::Isa;
use super::convert::{Decode, Outside};
use super::finish::{Act, put};
use super::memory::{Arena, Lines, Part, View};
use super::team::Member;

/// Vectors of output channels in a panel.
pub(super) const PANEL_VECTORS: usize = 2;

/// Geometry of a convolution; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Kernel size.
    pub kernel: (usize, usize),
    /// Step between outputs, in input pixels.
    pub stride: (usize, usize),
    /// Zeros around the map: above and left of it. Below and right, as many as the output needs.
    pub padding: (usize, usize),
    /// Step between taps, in input pixels.
    pub dilation: (usize, usize),
}

impl Window {
    pub(super) fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
}

/// Where packed kernels come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights<'a> {
    /// The same for all samples.
    Shared(&'a Lines),
    /// Each sample's own, at an offset of the arena, with as many values a sample.
    PerSample(usize, usize),
}

impl Weights<'_> {
    pub(super) fn of(&self, arena: &Arena, sample: usize) -> *const f32 {
        match self {
            Self::Shared(lines) => lines.as_ptr(),
            Self::PerSample(offset, len) => arena.at(offset + sample * len),
        }
    }
}

/// How kernels are packed: panels of output channels, for each panel all taps, for each tap a row of output channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packing {
    /// Output channels of a group.
    pub(super) out: usize,
    /// Taps of an output: window times input channels of a group.
    pub(super) taps: usize,
    pub(super) lanes: usize,
}

impl Packing {
    pub(super) fn new<I: Isa>(out: usize, taps: usize) -> Self {
        Self { out, taps, lanes: I::LANES }
    }

    /// Panels of a group.
    pub(super) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL_VECTORS * self.lanes)
    }

    /// Vectors of a panel: the last one may have fewer.
    pub(super) fn vectors(&self, panel: usize) -> usize {
        (self.out - panel * PANEL_VECTORS * self.lanes).div_ceil(self.lanes).min(PANEL_VECTORS)
    }

    /// Where a panel begins.
    pub(super) fn panel(&self, panel: usize) -> usize {
        panel * PANEL_VECTORS * self.lanes * self.taps
    }

    /// Values of a group.
    pub(super) fn len(&self) -> usize {
        self.out.div_ceil(self.lanes) * self.lanes * self.taps
    }

    /// Packs kernels `[out, in, kh, kw]` of a group, whose taps then come in the order `(ky, kx, in)`.
    pub(super) fn pack(&self, kernels: &[f32], window: usize, packed: &mut [f32]) {
        let inputs = self.taps / window;
        for panel in 0..self.panels() {
            let width = self.vectors(panel) * self.lanes;
            let first = panel * PANEL_VECTORS * self.lanes;
            let rows = packed[self.panel(panel)..].chunks_exact_mut(width).take(self.taps);
            for (tap, row) in rows.enumerate() {
                let (position, input) = (tap / inputs, tap % inputs);
                for (lane, value) in row.iter_mut().enumerate() {
                    let out = first + lane;
                    *value = if out < self.out { kernels[(out * inputs + input) * window + position] } else { 0.0 };
                }
            }
        }
    }
}

/// A convolution.
#[derive(Debug, Clone)]
pub(super) struct Direct {
    pub(super) window: Window,
    pub(super) groups: usize,
    /// Channels one after the other.
    pub(super) inputs: Vec<Part>,
    pub(super) output: View,
    pub(super) residual: Option<View>,
    pub(super) act: Act,
    pub(super) packing: Packing,
}

/// What a thread keeps.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    pointers: Vec<Pointer>,
    /// Of each tile, whether the taps of a row of the window are one run.
    merged: Vec<bool>,
}

#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Pointer(*const f32);

// SAFETY: what it points to is read only during the step that made it.
unsafe impl Send for Pointer {}

/// Values of input that a block of pixels reads, about: a quarter of a level-2 cache of 512 KiB.
const BLOCK_VALUES: usize = 32 * 1024;
/// Operations of a task, about: worth its start, few enough that all threads end together.
const TASK_OPERATIONS: usize = 8 << 20;
/// Tasks a thread gets at least, where there is work for them.
const TASKS_A_THREAD: usize = 6;

impl Direct {
    /// Input channels of a group.
    fn inputs_of_group(&self) -> usize {
        self.packing.taps / self.window.taps()
    }

    /// Whether the taps of a row of the window lie next to each other.
    fn merges(&self) -> bool {
        self.groups == 1
            && self.inputs.len() == 1
            && self.inputs[0].shift == 0
            && self.inputs[0].view.pixel == self.inputs[0].view.channels
            && self.window.dilation.1 == 1
            && self.window.kernel.1 > 1
    }

    /// The most pointers and tiles that a block takes.
    pub(super) fn reserve<I: Isa>(&self, table: &mut Table) {
        let tiles = self.block::<I>().div_ceil(I::TILE_ROWS);
        let runs = self.window.taps() * self.inputs.len();
        let pointers = (tiles * runs * I::TILE_ROWS).max(table.pointers.len());
        table.pointers.resize(pointers, Pointer(std::ptr::null()));
        table.merged.reserve(tiles.saturating_sub(table.merged.len()));
    }

    /// Pixels of a block.
    fn block<I: Isa>(&self) -> usize {
        let reads = self.inputs_of_group() * self.window.stride.0 * self.window.stride.1;
        let tiles = (BLOCK_VALUES / reads.max(1) / I::TILE_ROWS).clamp(2, 24);
        (tiles * I::TILE_ROWS).min((self.output.height * self.output.width).next_multiple_of(I::TILE_ROWS))
    }

    /// Runs it for `batch` samples on the team.
    pub(super) fn run<I: Isa>(
        &self,
        isa: I,
        arena: &Arena,
        batch: usize,
        (weights, bias): (Weights<'_>, Weights<'_>),
        zeros: *const f32,
        (member, table): (&Member<'_>, &mut Table),
    ) {
        let pixels = self.output.height * self.output.width;
        let block = self.block::<I>();
        let blocks = pixels.div_ceil(block);
        let panels = self.packing.panels();
        let panel_operations = 2 * block * self.packing.taps * PANEL_VECTORS * I::LANES;
        let fair = (batch * self.groups * blocks * panels / (member.count() * TASKS_A_THREAD)).max(1);
        let share = (TASK_OPERATIONS / panel_operations).max(1).min(fair).min(panels);
        let shares = panels.div_ceil(share);
        member.share(batch * self.groups * blocks * shares, |task| {
            let (part, rest) = (task % shares, task / shares);
            let (block_index, rest) = (rest % blocks, rest / blocks);
            let (group, sample) = (rest % self.groups, rest / self.groups);
            let first = block_index * block;
            let job = Job {
                conv: self,
                arena,
                sample,
                group,
                first,
                count: block.min(pixels - first),
                panels: (part * share, ((part + 1) * share).min(panels)),
                weights: weights.of(arena, sample).wrapping_add(group * self.packing.len()),
                bias: bias.of(arena, sample).wrapping_add(group * self.packing.out),
                zeros,
                out: arena.at(self.output.offset + sample * self.output.sample()),
            };
            isa.run(
                #[inline(always)]
                || job.run(isa, table),
            );
        });
    }
}

/// A level of a detection head: its convolution, and boxes decoded from its map while that is in the nearest cache.
#[derive(Debug, Clone)]
pub(super) struct HeadConv {
    /// Its output has no place in memory.
    pub(super) conv: Direct,
    pub(super) decode: Decode,
}

impl HeadConv {
    /// Pixels of a block: their map shall stay in a level-1 cache.
    fn block<I: Isa>(&self) -> usize {
        const VALUES: usize = 6 * 1024;
        let tiles = (VALUES / self.conv.output.channels / I::TILE_ROWS).max(1);
        (tiles * I::TILE_ROWS).min(self.conv.block::<I>())
    }

    /// Values of scratch that a thread takes.
    pub(super) fn scratch<I: Isa>(&self) -> usize {
        self.block::<I>() * self.conv.output.pixel
    }

    /// Runs it for `batch` samples on the team; `scratch` is the thread's own.
    pub(super) fn run<I: Isa>(
        &self,
        isa: I,
        arena: &Arena,
        batch: usize,
        (weights, bias): (Weights<'_>, Weights<'_>),
        zeros: *const f32,
        (threshold, outside): (Option<f32>, &Outside),
        (member, table, scratch): (&Member<'_>, &mut Table, *mut f32),
    ) {
        let conv = &self.conv;
        let pixels = conv.output.height * conv.output.width;
        let block = self.block::<I>();
        let blocks = pixels.div_ceil(block);
        member.share(batch * blocks, |task| {
            let (sample, first) = (task / blocks, task % blocks * block);
            let count = block.min(pixels - first);
            let job = Job {
                conv,
                arena,
                sample,
                group: 0,
                first,
                count,
                panels: (0, conv.packing.panels()),
                weights: weights.of(arena, sample),
                bias: bias.of(arena, sample),
                zeros,
                out: scratch.wrapping_sub(first * conv.output.pixel),
            };
            isa.run(
                #[inline(always)]
                || {
                    job.run(isa, table);
                    // SAFETY: the job has written the map of these pixels; each task has its own.
                    unsafe { self.decode.pixels(isa, scratch, (sample, first, count), threshold, outside) };
                },
            );
        });
    }
}

/// Some panels of a block of pixels of one group of one sample.
struct Job<'a> {
    conv: &'a Direct,
    arena: &'a Arena,
    sample: usize,
    group: usize,
    /// Pixels.
    first: usize,
    count: usize,
    panels: (usize, usize),
    /// Of the group; the bias as many values as the group has output channels, and room for a vector behind.
    weights: *const f32,
    bias: *const f32,
    zeros: *const f32,
    /// Where the sample's first pixel goes.
    out: *mut f32,
}

impl Job<'_> {
    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, table: &mut Table) {
        let conv = self.conv;
        let (output, packing) = (&conv.output, &conv.packing);
        self.look_up::<I>(table);
        let window = &conv.window;
        let inputs = conv.inputs_of_group();
        let mut lengths = [0; 8];
        let lengths: &[usize] = if conv.inputs.len() == 1 || conv.groups > 1 {
            lengths[0] = inputs;
            &lengths[..1]
        } else {
            for (length, part) in lengths.iter_mut().zip(&conv.inputs) {
                *length = part.view.channels;
            }
            &lengths[..conv.inputs.len()]
        };
        let merged_length = [inputs * window.kernel.1];
        let runs = window.taps() * lengths.len();
        let residual = conv.residual.map(|view| (self.arena.at(view.offset + self.sample * view.sample()), view.pixel));
        for panel in self.panels.0..self.panels.1 {
            let channel = panel * PANEL_VECTORS * I::LANES;
            let weights = self.weights.wrapping_add(packing.panel(panel));
            let channels = packing.out - channel;
            let vectors = packing.vectors(panel);
            let mut pointers = table.pointers.as_ptr();
            for (tile, merged) in table.merged.iter().enumerate() {
                let (lengths, rows) = if *merged { (&merged_length[..], window.kernel.0) } else { (lengths, window.taps()) };
                let at = tile * I::TILE_ROWS;
                let count = (self.count - at).min(I::TILE_ROWS);
                let channel = self.group * packing.out + channel;
                let place = (self.first + at) * output.pixel + channel;
                let place = Place {
                    out: self.out.wrapping_add(place),
                    pixel: output.pixel,
                    residual: residual.map_or(std::ptr::null(), |(start, pixel)| {
                        start.wrapping_add((self.first + at) * pixel + channel).cast_const()
                    }),
                    residual_pixel: residual.map_or(0, |(_, pixel)| pixel),
                    act: conv.act,
                    channels,
                };
                let bias = self.bias.wrapping_add(panel * PANEL_VECTORS * I::LANES);
                let taps = Taps { lengths, rows, pointers: pointers.cast(), stride: I::TILE_ROWS };
                // SAFETY: the table holds a pointer to as many values as its run is long for each pixel of the tile, zeros
                // where the map ends; weights and bias are packed for the same runs; the output and the residual have a
                // place for each pixel.
                unsafe { tile_of(isa, (count, vectors), &taps, weights, bias, &place) };
                pointers = pointers.wrapping_add(runs * I::TILE_ROWS);
            }
        }
    }

    /// Fills the table for the block.
    #[inline(always)]
    fn look_up<I: Isa>(&self, table: &mut Table) {
        let conv = self.conv;
        let Window { kernel, stride, padding, dilation } = conv.window;
        let (_, width) = conv.inputs[0].size();
        let merges = conv.merges();
        let runs = conv.window.taps() * conv.inputs.len();
        let columns = conv.output.width;
        let span = (kernel.1 - 1) * dilation.1;
        table.merged.clear();
        for at in (0..self.count).step_by(I::TILE_ROWS) {
            let count = (self.count - at).min(I::TILE_ROWS);
            // What is missing in the last tile is not read.
            let pointers = &mut table.pointers[at * runs..][..runs * I::TILE_ROWS];
            let (mut y, mut x) = ((self.first + at) / columns, (self.first + at) % columns);
            let inside = |first: usize, count: usize| {
                first * stride.1 >= padding.1 && (first + count - 1) * stride.1 + span < width + padding.1
            };
            let merged = merges && x + count <= columns && inside(x, count);
            table.merged.push(merged);
            // Row by row of the output.
            let mut done = 0;
            while done < count {
                let here = (count - done).min(columns - x);
                let segment = Segment { y, x, done, count: here, inside: inside(x, here) };
                for ky in 0..kernel.0 {
                    if merged {
                        self.point::<I>(&segment, (ky, 0), ky, pointers);
                    } else {
                        for kx in 0..kernel.1 {
                            let run = (ky * kernel.1 + kx) * conv.inputs.len();
                            self.point::<I>(&segment, (ky, kx), run, pointers);
                        }
                    }
                }
                done += here;
                (y, x) = (y + 1, 0);
            }
        }
    }

    /// Pointers of one tap of some pixels, for all parts of the input: runs from `run` on.
    #[inline(always)]
    fn point<I: Isa>(&self, segment: &Segment, (ky, kx): (usize, usize), run: usize, pointers: &mut [Pointer]) {
        let conv = self.conv;
        let Window { stride, padding, dilation, .. } = conv.window;
        let (height, width) = conv.inputs[0].size();
        let row = (segment.y * stride.0 + ky * dilation.0).checked_sub(padding.0).filter(|row| *row < height);
        let skip = self.group * conv.inputs_of_group();
        for (index, part) in conv.inputs.iter().enumerate() {
            let view = &part.view;
            let pointers = &mut pointers[(run + index) * I::TILE_ROWS + segment.done..][..segment.count];
            let Some(row) = row else {
                pointers.fill(Pointer(self.zeros));
                continue;
            };
            let start = view.offset + self.sample * view.sample() + skip;
            let line = self.arena.at(start + (row >> part.shift) * view.width * view.pixel).cast_const();
            let first = segment.x * stride.1 + kx * dilation.1;
            if segment.inside && part.shift == 0 {
                let mut at = line.wrapping_add((first - padding.1) * view.pixel);
                for pointer in pointers {
                    *pointer = Pointer(at);
                    at = at.wrapping_add(stride.1 * view.pixel);
                }
                continue;
            }
            for (i, pointer) in pointers.iter_mut().enumerate() {
                let column = (first + i * stride.1).checked_sub(padding.1).filter(|column| *column < width);
                *pointer = Pointer(column.map_or(self.zeros, |column| {
                    line.wrapping_add((column >> part.shift) * view.pixel)
                }));
            }
        }
    }
}

/// Neighbouring pixels of a tile in one row of the output.
struct Segment {
    y: usize,
    x: usize,
    /// Pixels of the tile before it.
    done: usize,
    count: usize,
    /// Whether all columns that their windows reach are in the map.
    inside: bool,
}

/// Runs of taps: for each of `rows`, one after the other, runs as long as `lengths` say; pointers of a run lie `stride` apart
/// from those of the next.
#[derive(Clone, Copy)]
pub(super) struct Taps<'a> {
    lengths: &'a [usize],
    rows: usize,
    pointers: *const *const f32,
    stride: usize,
}

/// Where a tile's sums go.
struct Place {
    out: *mut f32,
    pixel: usize,
    residual: *const f32,
    residual_pixel: usize,
    act: Act,
    /// Channels that there are from the tile's first on.
    channels: usize,
}

/// Calls a function that is generic over the tile's size: `$run!(PIXELS, VECTORS)`.
macro_rules! by_size {
    ($isa:ident, $size:expr, $run:ident) => {
        match $size {
            (1, 1) => $run!(1, 1),
            (2, 1) => $run!(2, 1),
            (3, 1) => $run!(3, 1),
            (4, 1) => $run!(4, 1),
            (5, 1) if $isa::TILE_ROWS > 4 => $run!(5, 1),
            (6, 1) if $isa::TILE_ROWS > 4 => $run!(6, 1),
            (7, 1) if $isa::TILE_ROWS > 6 => $run!(7, 1),
            (8, 1) if $isa::TILE_ROWS > 6 => $run!(8, 1),
            (9, 1) if $isa::TILE_ROWS > 6 => $run!(9, 1),
            (10, 1) if $isa::TILE_ROWS > 6 => $run!(10, 1),
            (11, 1) if $isa::TILE_ROWS > 6 => $run!(11, 1),
            (12, 1) if $isa::TILE_ROWS > 6 => $run!(12, 1),
            (13, 1) if $isa::TILE_ROWS > 12 => $run!(13, 1),
            (14, 1) if $isa::TILE_ROWS > 12 => $run!(14, 1),
            (1, _) => $run!(1, 2),
            (2, _) => $run!(2, 2),
            (3, _) => $run!(3, 2),
            (4, _) => $run!(4, 2),
            (5, _) if $isa::TILE_ROWS > 4 => $run!(5, 2),
            (6, _) if $isa::TILE_ROWS > 4 => $run!(6, 2),
            (7, _) if $isa::TILE_ROWS > 6 => $run!(7, 2),
            (8, _) if $isa::TILE_ROWS > 6 => $run!(8, 2),
            (9, _) if $isa::TILE_ROWS > 6 => $run!(9, 2),
            (10, _) if $isa::TILE_ROWS > 6 => $run!(10, 2),
            (11, _) if $isa::TILE_ROWS > 6 => $run!(11, 2),
            (12, _) if $isa::TILE_ROWS > 6 => $run!(12, 2),
            (13, _) if $isa::TILE_ROWS > 12 => $run!(13, 2),
            (14, _) if $isa::TILE_ROWS > 12 => $run!(14, 2),
            (size, _) => unreachable!("no tile has {size} pixels"),
        }
    };
}
pub(super) use by_size;

/// One tile: sums and epilogue.
///
/// # Safety
/// Pointers of `taps` must lead to as many values as the runs have; `weights` to the panel; `bias` to a panel's vectors; the
/// places of `place` to `size.0` pixels.
#[inline(always)]
unsafe fn tile_of<I: Isa>(
    isa: I,
    size: (usize, usize),
    taps: &Taps<'_>,
    weights: *const f32,
    bias: *const f32,
    place: &Place,
) {
    macro_rules! run {
        ($m:literal, $n:literal) => {{
            // SAFETY: the caller proves all of it.
            unsafe {
                let mut start = [isa.splat(0.0); $n];
                for j in 0..$n {
                    start[j] = isa.load_at(bias.add(j * I::LANES));
                }
                let mut sums = sums::<I, $m, $n>(isa, taps, weights, [start; $m]);
                place.act.apply_all(isa, &mut sums);
                for i in 0..$m {
                    let out = place.out.wrapping_add(i * place.pixel);
                    let residual = place.residual.wrapping_add(i * place.residual_pixel);
                    for j in 0..$n {
                        let residual =
                            if place.residual.is_null() { place.residual } else { residual.wrapping_add(j * I::LANES) };
                        put(isa, sums[i][j], residual, out.wrapping_add(j * I::LANES), place.channels - j * I::LANES);
                    }
                }
            }
        }};
    }
    by_size!(I, size, run);
}

/// `start[i] + sum over taps k of pixel i's value at k * weights[k]`
///
/// # Safety
/// As of [`tile_of`].
#[inline(always)]
unsafe fn sums<I: Isa, const M: usize, const N: usize>(
    isa: I,
    taps: &Taps<'_>,
    mut weights: *const f32,
    start: [[I::F32; N]; M],
) -> [[I::F32; N]; M] {
    let mut sums = start;
    let mut pointers = taps.pointers;
    for _ in 0..taps.rows {
        for length in taps.lengths {
            // SAFETY: the table has a pointer for each pixel of each run, and the weights a row for each tap.
            unsafe {
                let mut pixels = [std::ptr::null::<f32>(); M];
                for i in 0..M {
                    pixels[i] = *pointers.add(i);
                }
                for k in 0..*length {
                    let mut row = [sums[0][0]; N];
                    for j in 0..N {
                        row[j] = isa.load_at(weights.add(j * I::LANES));
                    }
                    for i in 0..M {
                        let value = isa.splat(*pixels[i].add(k));
                        for j in 0..N {
                            sums[i][j] = isa.fma(value, row[j], sums[i][j]);
                        }
                    }
                    weights = weights.add(N * I::LANES);
                }
                pointers = pointers.add(taps.stride);
            }
        }
    }
    sums
}
