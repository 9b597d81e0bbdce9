//! Direct convolution in bf16 on tiles (AMX). What tiles of pixels are loaded from is a band that a task lays out, or the map itself
//! where that is in bf16 and its kernels are 1x1. In a band all rows have one length, so that tiles go on from one into the next;
//! what comes out for columns beside the map is left out.

use super::super::super::amx::{DEPTH, Run, SIDE, Tiles};
use super::super::super::isa::Isa;
use super::super::memory::View;
use super::super::tile::{Sums, tile_of};
use super::band::{Band, Runs};
use super::{Direct, Job, PANEL_VECTORS, Reads, Table};

/// Values of a band, about: an eighth of a level-2 cache of 2 MiB; or half of it, where kernels are more than stay there.
const BAND: usize = 128 * 1024;
const LARGE_BAND: usize = 512 * 1024;
/// Bytes of kernels that stay in a level-2 cache: a quarter of it.
const KERNELS: usize = 512 * 1024;
/// Pixels of a task at least, where the map has them, and tasks of a map that has many.
const PIXELS: usize = 256;
const TASKS: usize = 16;
/// Rows of sums that the epilogue takes at a time, and steps of tiles that run beside it.
const ROWS: usize = 8;
const PORTION: usize = 4;

/// Rows of sums that follow each other on the map, at most [`ROWS`]: the first one's row of the tile, its pixel, and how many.
type Segment = (usize, usize, usize);

/// Rows of up to two tiles that lie on the map.
#[derive(Clone, Copy)]
struct Segments {
    all: [Segment; 2 * SIDE],
    count: usize,
}

const NONE: Segments = Segments { all: [(0, 0, 0); 2 * SIDE], count: 0 };

/// Sums that wait for their epilogue, which runs while the tiles of the next ones are multiplied.
#[derive(Clone, Copy)]
struct Waiting {
    sums: *const f32,
    segments: Segments,
    panel: usize,
    /// Segments that are done.
    done: usize,
}

impl Direct {
    pub(in super::super) fn on_tiles(&self) -> bool {
        matches!(self.reads, Reads::Tiles(_))
    }

    /// Whether the map can be multiplied where it lies.
    fn in_place(&self) -> bool {
        let plain = self.window.kernel == (1, 1) && self.window.stride == (1, 1) && self.window.padding == (0, 0);
        let whole = |view: &View| view.bf16 && view.channels.is_multiple_of(DEPTH);
        let pixels = self.output.height * self.output.width;
        plain && pixels >= SIDE && self.inputs.iter().all(|part| part.shift == 0 && whole(&part.view))
    }

    /// Pixels of a block on tiles: whole rows of the map. Large kernels are read for as few blocks as can be.
    pub(super) fn rows_of_tiles(&self, runs: &Runs) -> usize {
        let (height, width) = (self.output.height, self.output.width);
        let large = self.bytes_of_panel() * self.packing.panels() > KERNELS;
        let (least, most) = if large { (height, LARGE_BAND) } else { (height.div_ceil(TASKS), BAND) };
        let mut rows = PIXELS.div_ceil(width).max(least).min(height);
        while rows > 1 && Band::new(self, runs, rows).len() > most {
            rows -= 1;
        }
        // About as many rows for each block.
        height.div_ceil(height.div_ceil(rows)) * width
    }

    /// Panels of a task.
    pub(super) fn share_of_tiles(&self, blocks: usize, threads: usize) -> usize {
        const TASKS_A_THREAD: usize = 4;
        let panels = self.packing.panels();
        let shares = (threads * TASKS_A_THREAD).div_ceil(blocks.max(1)).clamp(1, panels);
        panels.div_ceil(shares).min((KERNELS / self.bytes_of_panel()).max(1))
    }

    fn bytes_of_panel(&self) -> usize {
        PANEL_VECTORS * self.packing.lanes * self.packing.taps * size_of::<f32>()
    }

    /// What a thread needs for blocks of so many pixels.
    pub(super) fn reserve_tiles(&self, runs: &Runs, pixels: usize, table: &mut Table) {
        let rows = (pixels + self.output.width - 2) / self.output.width + 1;
        let values = Band::new(self, runs, rows.min(self.output.height)).len();
        table.rows.grow(values.div_ceil(2));
        table.tiles.grow(8 * SIDE * SIDE);
        let most = runs.count.max(self.inputs.len());
        table.runs.reserve(most.saturating_sub(table.runs.len()));
    }
}

impl Job<'_> {
    #[inline(always)]
    pub(super) fn run_tiles<I: Isa>(&self, isa: I, runs: &Runs, table: &mut Table) {
        let conv = self.conv;
        let width = conv.output.width;
        let in_place = conv.in_place();
        // Positions that are computed: pixels of the map, or of the band, whose rows are longer.
        let (first, last) = (self.first, self.first + self.count - 1);
        let top = first / width;
        let band = Band::new(conv, runs, last / width - top + 1);
        let (start, end, columns) = if in_place {
            (first, last + 1, usize::MAX)
        } else {
            let own = (self.sample, self.first);
            if table.laid_out.replace(own) != Some(own) {
                // SAFETY: room for a band of so many rows was reserved.
                unsafe { self.lay_out(isa, runs, (&band, top), table.rows.as_mut_ptr().cast()) };
            }
            let position = |pixel: usize| (pixel / width - top) * band.columns + pixel % width;
            (position(first), position(last) + 1, band.columns)
        };
        let pixels = conv.output.height * width;
        let mut tiles = runs.amx.begin(runs.depth);
        let sums = table.tiles.as_mut_ptr();
        // In turn: those of one place wait while the other's are written.
        let sums = [sums, sums.wrapping_add(4 * SIDE * SIDE)];
        let mut waiting = Waiting { sums: sums[0], segments: NONE, panel: 0, done: 0 };
        let mut at = start;
        while at < end {
            let two = end - at > SIDE && (!in_place || pixels >= 2 * SIDE);
            let rows = if two { 2 * SIDE } else { SIDE };
            // The last tile may begin before its first pixel, lest it reads beyond the map.
            let from = if in_place { at.min(pixels - rows) } else { at };
            debug_assert!(!in_place || from + rows <= pixels, "a tile beyond the map");
            self.point_tiles(runs, in_place, &band, from, table);
            let mut segments = NONE;
            let last = end.min(from + rows);
            while at < last {
                let (row, column) = (at / columns, at % columns);
                let length = if column < width || in_place {
                    let rest = if in_place { ROWS } else { ROWS.min(width - column) };
                    let (length, pixel) =
                        (rest.min(last - at), if in_place { at } else { (top + row) * width + column });
                    segments.all[segments.count] = (at - from, pixel, length);
                    segments.count += 1;
                    length
                } else {
                    (columns - column).min(last - at)
                };
                at += length;
            }
            self.panels_of_tiles(isa, (&mut tiles, rows, runs.depth), &table.runs, (segments, &sums), &mut waiting);
            at = from + rows;
        }
        while self.finish_tiles(isa, &mut waiting) {}
    }

    /// Sums of up to two tiles of pixels, for all panels, and the epilogue of those before.
    #[inline(always)]
    fn panels_of_tiles<I: Isa>(
        &self,
        isa: I,
        (tiles, rows, depth): (&mut Tiles, usize, usize),
        runs: &[Run],
        (segments, places): (Segments, &[*mut f32; 2]),
        waiting: &mut Waiting,
    ) {
        let packing = &self.conv.packing;
        for panel in self.panels.0..self.panels.1 {
            let vectors = packing.vectors(panel);
            let size = (rows / SIDE, vectors);
            let mut weights = self.weights.wrapping_add(packing.panel(panel));
            tiles.clear();
            for run in runs {
                let mut left = *run;
                while left.steps > 0 {
                    let portion = Run { steps: left.steps.min(PORTION), ..left };
                    // SAFETY: runs lead to pixels of the band or of the map; the weights have a row for each of their pairs.
                    unsafe { tiles.add(size, &portion, weights) };
                    weights = weights.wrapping_add(portion.steps * depth / 2 * vectors * I::LANES);
                    left.pixels = left.pixels.map(|pixels| pixels.wrapping_add(portion.steps * DEPTH));
                    left.steps -= portion.steps;
                    self.finish_tiles(isa, waiting);
                }
            }
            while self.finish_tiles(isa, waiting) {}
            let sums = if waiting.sums == places[0] { places[1] } else { places[0] };
            // SAFETY: each place has room for four tiles.
            unsafe { tiles.store(size, sums) };
            *waiting = Waiting { sums, segments, panel, done: 0 };
        }
    }

    /// The epilogue of the next segment; whether there was one.
    #[inline(always)]
    fn finish_tiles<I: Isa>(&self, isa: I, waiting: &mut Waiting) -> bool {
        if waiting.done == waiting.segments.count {
            return false;
        }
        let packing = &self.conv.packing;
        let (row, pixel, count) = waiting.segments.all[waiting.done];
        waiting.done += 1;
        let vectors = packing.vectors(waiting.panel);
        let channel = waiting.panel * PANEL_VECTORS * I::LANES;
        let place = self.place(pixel, channel);
        let width = vectors * I::LANES;
        let stored = Stored { sums: waiting.sums.wrapping_add(row * width), row: width };
        // SAFETY: there are sums for each row; the output and the residual have a place for each pixel.
        unsafe { tile_of(isa, (count, vectors), &stored, std::ptr::null(), &place) };
        true
    }

    /// Where the runs of the pixels from a position on lie.
    #[inline(always)]
    fn point_tiles(&self, runs: &Runs, in_place: bool, band: &Band, from: usize, table: &mut Table) {
        let conv = self.conv;
        let window = &conv.window;
        let run = |start: *const u16, pixel: usize, steps: usize| {
            let at = |pixels: usize| start.wrapping_add(pixels * pixel);
            Run { pixels: [at(from), at(from + SIDE)], stride: pixel * size_of::<u16>(), steps }
        };
        table.runs.clear();
        if in_place {
            for part in &conv.inputs {
                let view = &part.view;
                let start = self.arena.at(view.offset + self.sample * view.sample()).cast_const().cast();
                table.runs.push(run(start, view.pixel, view.channels / DEPTH));
            }
            return;
        }
        let start: *const u16 = table.rows.as_ptr().cast();
        for ky in 0..window.kernel.0 {
            for kx in 0..runs.columns(window) {
                let tap = band.tap(window, (ky, kx));
                debug_assert!((tap + from + 2 * SIDE) * band.pixel + DEPTH <= 2 * table.rows.len());
                table.runs.push(run(start.wrapping_add(tap * band.pixel), band.pixel, runs.steps()));
            }
        }
    }
}

/// Sums of rows of tiles, in memory.
struct Stored {
    sums: *const f32,
    /// Values from a row to the next.
    row: usize,
}

impl Sums for Stored {
    #[inline(always)]
    unsafe fn sums<I: Isa, const M: usize, const N: usize>(
        &self,
        isa: I,
        _: *const f32,
        start: [[I::F32; N]; M],
    ) -> [[I::F32; N]; M] {
        let mut sums = start;
        for i in 0..M {
            for j in 0..N {
                // SAFETY: there is a row for each pixel.
                let sum = unsafe { isa.load_at(self.sums.wrapping_add(i * self.row + j * I::LANES)) };
                sums[i][j] = isa.add(sums[i][j], sum);
            }
        }
        sums
    }
}
