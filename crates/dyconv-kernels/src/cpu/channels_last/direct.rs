//! Convolution as a matrix product whose rows are found through pointers: no copy, no border, no unfolded map.
//!
//! A register tile is some pixels times two vectors of output channels. For each tap, or run of taps, a table holds where each
//! pixel of the tile reads; taps beside the map read zeros. The table of a block of pixels is made once for all panels of output
//! channels. Sums run over all taps in one go and stay in registers until the epilogue has been applied.

mod band;
mod bf16;
mod head;
mod packing;
mod tiles;

use super::super::amx::Run;
use super::super::isa::Isa;
use super::finish::Act;
use super::memory::{Arena, Lines, Part, View};
use super::team::Member;
use super::tile::{Place, Sums, Taps, tile_of};
pub(super) use band::Runs;
pub(super) use head::HeadConv;
pub(super) use packing::{Packing, tap_of};

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
    /// Taps of an output.
    taps: usize,
    reads: Reads,
    /// Taps in portions whose weights stay in a level-1 cache while a block of pixels goes through them.
    chunks: Vec<Chunk>,
}

/// What kernels are packed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Values of f32.
    Values,
    /// Pairs of bf16.
    Pairs,
    /// Pairs of bf16 in runs of whole tiles.
    Tiles(Runs),
}

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    /// Values of f32 where they lie.
    Values,
    /// Pairs of bf16, as which then the kernels are packed: rounded and unfolded first ...
    Unfolded,
    /// ... or where they lie ...
    Pairs,
    /// ... or on tiles.
    Tiles(Runs),
}

/// A portion of the taps of a panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    /// Positions in the window, first and number.
    taps: (usize, usize),
    /// Parts of the input, first and number.
    parts: (usize, usize),
    /// Values of a run that come before, and how many are taken; all where the number is zero.
    cut: (usize, usize),
    /// Taps before it.
    before: usize,
}

/// What a thread keeps.
#[derive(Debug, Default, Clone)]
pub(super) struct Table {
    pointers: Vec<Pointer>,
    /// Of each tile, whether the taps of a row of the window are one run.
    merged: Vec<bool>,
    /// Sums of a block of pixels between portions of taps.
    sums: Vec<f32>,
    /// Pixels of a block in bf16.
    rows: Lines,
    runs: Vec<Run>,
    /// Sums of tiles, twice.
    tiles: Lines,
    /// The sample and the first pixel of the block that was laid out for tiles last, in this step.
    laid_out: Option<(usize, usize)>,
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

/// Bytes of weights of a portion of taps: two thirds of a level-1 cache of 32 KiB.
const CHUNK_BYTES: usize = 20 * 1024;

/// Cuts the taps of a window into portions. `lengths` are the channels of the input's parts; rows of the window stay whole where
/// they are short enough.
fn chunks(kernel: (usize, usize), lengths: &[usize], most: usize) -> Vec<Chunk> {
    let window = kernel.0 * kernel.1;
    let per_tap: usize = lengths.iter().sum();
    let all = Chunk { taps: (0, window), parts: (0, lengths.len()), cut: (0, 0), before: 0 };
    if per_tap * window <= most * 3 / 2 {
        return vec![all];
    }
    let mut chunks = Vec::new();
    if per_tap <= most {
        let step = if per_tap * kernel.1 <= most { most / (per_tap * kernel.1) * kernel.1 } else { most / per_tap };
        // Portions of about one size.
        let unit = if step >= kernel.1 { kernel.1 } else { 1 };
        let step = (window / unit).div_ceil(window.div_ceil(step)) * unit;
        for first in (0..window).step_by(step) {
            let taps = (first, step.min(window - first));
            chunks.push(Chunk { taps, before: first * per_tap, ..all });
        }
        return chunks;
    }
    let mut before = 0;
    for tap in 0..window {
        for (part, length) in lengths.iter().enumerate() {
            let step = length.div_ceil(length.div_ceil(most));
            for first in (0..*length).step_by(step) {
                let cut = (first, step.min(length - first));
                chunks.push(Chunk { taps: (tap, 1), parts: (part, 1), cut, before });
                before += cut.1;
            }
        }
    }
    chunks
}

impl Direct {
    /// A convolution of `inputs`, one after the other in their channels.
    pub(super) fn new<I: Isa>(
        (window, groups): (Window, usize),
        inputs: Vec<Part>,
        (output, residual): (View, Option<View>),
        act: Act,
        (packing, format): (Packing, Format),
    ) -> Self {
        let channels: usize = inputs.iter().map(|part| part.view.channels).sum();
        let of_group = channels / groups;
        let most = CHUNK_BYTES / (size_of::<f32>() * PANEL_VECTORS * I::LANES);
        let pairs = || groups == 1 && bf16::in_pairs(&window, &inputs, packing.taps <= most * 3 / 2);
        let reads = match format {
            Format::Values => Reads::Values,
            Format::Tiles(runs) => Reads::Tiles(runs),
            Format::Pairs if pairs() => Reads::Pairs,
            Format::Pairs => Reads::Unfolded,
        };
        let unit = if reads == Reads::Pairs { 2 } else { 1 };
        let chunks = if reads == Reads::Unfolded {
            bf16::chunks(packing.taps, most)
        } else if groups > 1 || inputs.len() == 1 {
            chunks(window.kernel, &[of_group / unit], most)
        } else {
            let lengths: Vec<usize> = inputs.iter().map(|part| part.view.channels / unit).collect();
            chunks(window.kernel, &lengths, most)
        };
        let taps = of_group * window.taps();
        Self { window, groups, inputs, output, residual, act, packing, taps, reads, chunks }
    }

    /// Input channels of a group.
    fn inputs_of_group(&self) -> usize {
        self.taps / self.window.taps()
    }

    /// Whether the taps of a row of the window lie next to each other.
    fn merges(&self) -> bool {
        self.groups == 1
            && self.inputs.len() == 1
            && self.inputs[0].shift == 0
            && self.inputs[0].view.pixel == self.inputs[0].view.channels
            && self.window.dilation.1 == 1
            && self.window.kernel.1 > 1
            && self.chunks.iter().all(|chunk| chunk.taps.1.is_multiple_of(self.window.kernel.1))
    }

    /// The most pointers and tiles that a block takes.
    pub(super) fn reserve<I: Isa>(&self, table: &mut Table) {
        if let Reads::Tiles(runs) = &self.reads {
            return self.reserve_tiles(runs, self.block::<I>(), table);
        }
        let tiles = self.block::<I>().div_ceil(I::TILE_ROWS);
        let runs = self.window.taps() * self.inputs.len();
        let pointers = (tiles * runs * I::TILE_ROWS).max(table.pointers.len());
        table.pointers.resize(pointers, Pointer(std::ptr::null()));
        table.merged.reserve(tiles.saturating_sub(table.merged.len()));
        let sums = (tiles * I::TILE_ROWS * PANEL_VECTORS * I::LANES).max(table.sums.len());
        table.sums.resize(sums, 0.0);
        if self.reads == Reads::Unfolded {
            table.rows.grow(bf16::values(self.packing.taps, tiles * I::TILE_ROWS));
        }
    }

    /// Pixels of a block.
    fn block<I: Isa>(&self) -> usize {
        if let Reads::Tiles(runs) = &self.reads {
            return self.rows_of_tiles(runs);
        }
        let pixels = self.output.height * self.output.width;
        let tiles = if self.reads == Reads::Unfolded {
            bf16::tiles(self.packing.taps, pixels.div_ceil(I::TILE_ROWS))
        } else {
            let reads = self.inputs_of_group() * self.window.stride.0 * self.window.stride.1;
            (BLOCK_VALUES / reads.max(1) / I::TILE_ROWS).clamp(2, 24)
        };
        (tiles * I::TILE_ROWS).min(pixels.next_multiple_of(I::TILE_ROWS))
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
        let panel_operations = 2 * block * self.taps * PANEL_VECTORS * I::LANES;
        let fair = (batch * self.groups * blocks * panels / (member.count() * TASKS_A_THREAD)).max(1);
        let share = (TASK_OPERATIONS / panel_operations).max(1).min(fair).min(panels);
        // What is unfolded serves all panels.
        let share = match self.reads {
            Reads::Unfolded => panels,
            Reads::Tiles(_) => self.share_of_tiles(batch * blocks, member.count()),
            _ => share,
        };
        let shares = panels.div_ceil(share);
        table.laid_out = None;
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

impl<'a> Job<'a> {
    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, table: &mut Table) {
        let conv = self.conv;
        if let (Reads::Tiles(runs), Some(isa)) = (&conv.reads, isa.bf16()) {
            isa.run(
                #[inline(always)]
                || self.run_tiles(isa, runs, table),
            );
            return;
        }
        self.look_up::<I>(table);
        if conv.reads != Reads::Values {
            // The table was made for one and is read by the other.
            const { assert!(I::Bf16::LANES == I::LANES && I::Bf16::TILE_ROWS == I::TILE_ROWS) };
            if let Some(isa) = isa.bf16() {
                isa.run(
                    #[inline(always)]
                    || self.run_bf16(isa, table),
                );
            }
            return;
        }
        let (lengths, parts) = self.lengths(1);
        let lengths = (&lengths[..parts], &[conv.inputs_of_group() * conv.window.kernel.1]);
        let Table { pointers, merged, sums, .. } = table;
        let taps = |tile: usize, chunk: &'a Chunk| self.taps::<I>((pointers, merged), lengths, tile, chunk);
        self.tiles(isa, taps, sums.as_mut_ptr());
    }

    /// What the pixels of a tile have for a portion of the taps; `lengths` are those of the runs of a tap, and of a row of the window as
    /// one.
    #[inline(always)]
    fn taps<'b, I: Isa>(
        &self,
        (pointers, merged): (&[Pointer], &[bool]),
        (lengths, merged_length): (&'b [usize], &'b [usize; 1]),
        tile: usize,
        chunk: &'b Chunk,
    ) -> Taps<'b> {
        let window = &self.conv.window;
        let runs = window.taps() * lengths.len();
        let cut = std::slice::from_ref(&chunk.cut.1);
        let own = if chunk.cut.1 > 0 { cut } else { &lengths[chunk.parts.0..][..chunk.parts.1] };
        let (lengths, rows, first) = if merged[tile] {
            (&merged_length[..], chunk.taps.1 / window.kernel.1, chunk.taps.0 / window.kernel.1)
        } else {
            (own, chunk.taps.1, chunk.taps.0 * lengths.len() + chunk.parts.0)
        };
        let pointers = pointers.as_ptr().wrapping_add((tile * runs + first) * I::TILE_ROWS);
        // A pointer to as many values as its run is long for each pixel of the tile, zeros where the map ends.
        Taps { lengths, rows, pointers: pointers.cast(), stride: I::TILE_ROWS, skip: chunk.cut.0 }
    }

    /// Values, or as many at a time as `unit` says, of the runs of a tap, and how many runs those are.
    #[inline(always)]
    fn lengths(&self, unit: usize) -> ([usize; 8], usize) {
        let conv = self.conv;
        let mut lengths = [0; 8];
        if conv.inputs.len() == 1 || conv.groups > 1 {
            lengths[0] = conv.inputs_of_group() / unit;
            return (lengths, 1);
        }
        for (length, part) in lengths.iter_mut().zip(&conv.inputs) {
            *length = part.view.channels / unit;
        }
        (lengths, conv.inputs.len())
    }

    /// All tiles; `taps` gives what the pixels of a tile have for a portion, in `between` is room for the block's sums.
    #[inline(always)]
    fn tiles<I: Isa, S: Sums>(&self, isa: I, taps: impl Fn(usize, &'a Chunk) -> S, between: *mut f32) {
        let conv = self.conv;
        let packing = &conv.packing;
        let width = PANEL_VECTORS * I::LANES;
        for panel in self.panels.0..self.panels.1 {
            let channel = panel * width;
            let weights = self.weights.wrapping_add(packing.panel(panel));
            let bias = self.bias.wrapping_add(channel);
            let channels = packing.out - channel;
            let vectors = packing.vectors(panel);
            let channel = self.group * packing.out + channel;
            for (index, chunk) in conv.chunks.iter().enumerate() {
                let weights = weights.wrapping_add(chunk.before * vectors * I::LANES);
                let last = index + 1 == conv.chunks.len();
                for (tile, at) in (0..self.count).step_by(I::TILE_ROWS).enumerate() {
                    let count = (self.count - at).min(I::TILE_ROWS);
                    let between = between.wrapping_add(at * width);
                    let place = Place {
                        start: if index == 0 { bias } else { between },
                        start_pixel: if index == 0 { 0 } else { width },
                        between: if last { std::ptr::null_mut() } else { between },
                        channels,
                        ..self.place(self.first + at, channel)
                    };
                    // SAFETY: `taps` has values for each pixel of the tile; weights and bias are packed for the same runs;
                    // the output and the residual have a place for each pixel, and so have the sums between portions.
                    unsafe { tile_of(isa, (count, vectors), &taps(tile, chunk), weights, &place) };
                }
            }
        }
    }

    /// Where the result of a pixel goes from a channel of the output on; sums start from the bias.
    #[inline(always)]
    fn place(&self, pixel: usize, channel: usize) -> Place {
        let Direct { output, residual, act, packing, .. } = self.conv;
        let own = channel - self.group * packing.out;
        let residual = residual.as_ref();
        Place {
            start: self.bias.wrapping_add(own),
            start_pixel: 0,
            between: std::ptr::null_mut(),
            out: self.out.wrapping_byte_add((pixel * output.pixel + channel) * output.value()),
            pixel: output.pixel,
            rounded: output.bf16,
            residual: residual.map_or(std::ptr::null(), |view| {
                let start = self.arena.at(view.offset + self.sample * view.sample()).cast_const();
                start.wrapping_byte_add((pixel * view.pixel + channel) * view.value())
            }),
            residual_pixel: residual.map_or(0, |view| view.pixel * view.value()),
            residual_rounded: residual.is_some_and(|view| view.bf16),
            act: *act,
            channels: packing.out - own,
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
            let inside = |first: usize, count: usize| {
                first * stride.1 >= padding.1 && (first + count - 1) * stride.1 + span < width + padding.1
            };
            // Row by row of the output.
            let segment = |done: usize| {
                let (y, x) = ((self.first + at + done) / columns, (self.first + at + done) % columns);
                let count = (count - done).min(columns - x);
                Segment { y, x, done, count, inside: inside(x, count) }
            };
            let mut merged = merges;
            let mut done = 0;
            while merged && done < count {
                let Segment { count, inside, .. } = segment(done);
                (merged, done) = (inside, done + count);
            }
            table.merged.push(merged);
            let mut done = 0;
            while done < count {
                let segment = segment(done);
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
                done += segment.count;
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
            let start = self.arena.at(view.offset + self.sample * view.sample()).cast_const();
            let line = start.wrapping_byte_add((skip + (row >> part.shift) * view.width * view.pixel) * view.value());
            // From a pixel to the next.
            let pixel = view.pixel * view.value();
            let first = segment.x * stride.1 + kx * dilation.1;
            if segment.inside && part.shift == 0 {
                let mut at = line.wrapping_byte_add((first - padding.1) * pixel);
                for pointer in pointers {
                    *pointer = Pointer(at);
                    at = at.wrapping_byte_add(stride.1 * pixel);
                }
                continue;
            }
            for (i, pointer) in pointers.iter_mut().enumerate() {
                let column = (first + i * stride.1).checked_sub(padding.1).filter(|column| *column < width);
                *pointer =
                    Pointer(column.map_or(self.zeros, |column| line.wrapping_byte_add((column >> part.shift) * pixel)));
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
