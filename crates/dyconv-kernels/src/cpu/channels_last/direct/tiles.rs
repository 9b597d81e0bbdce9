//! Direct convolution in bf16 on tiles (AMX). A tile of pixels is loaded from rows that lie one stride apart, so that what a task
//! reads is first laid out as a band: rounded, with zeros around the map, its channels padded to whole tiles, every phase of
//! the stride by itself. In a band the pixels of a tap lie one after the other for all outputs, those at the end of a row and the
//! first of the next among them; what comes out for columns beside the map is left out. A 1x1 convolution of maps in bf16 needs
//! no band.

use super::super::super::amx::{Amx, DEPTH, Run, SIDE, Tiles};
use super::super::super::isa::Isa;
use super::super::finish::{load_part, put_rounded};
use super::super::memory::View;
use super::super::tile::{Place, Sums, tile_of};
use super::bf16::{copy, round};
use super::{Direct, Job, PANEL_VECTORS, Table, Window};

/// Values of a band, about: an eighth of a level-2 cache of 2 MiB.
const BAND: usize = 128 * 1024;
/// Bytes of kernels of a task: a quarter of a level-2 cache.
const KERNELS: usize = 512 * 1024;
/// Pixels of a task at least, where the map has them, and tasks of a map that has many.
const PIXELS: usize = 256;
const TASKS: usize = 16;
/// Rows of sums that the epilogue takes at a time.
const ROWS: usize = 8;

/// How the taps of an output lie: as runs, each with zeros behind up to a whole number of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Runs {
    pub(in super::super) amx: Amx,
    /// Taps of a run, and with the zeros.
    len: usize,
    padded: usize,
    count: usize,
    /// Whether a run is a row of the window instead of one of its positions: where channels are few.
    unfolded: bool,
}

impl Runs {
    pub(in super::super) fn new(amx: Amx, window: &Window, channels: usize) -> Self {
        let row = channels * window.kernel.1;
        let unfolded =
            channels < DEPTH && row.next_multiple_of(DEPTH) < channels.next_multiple_of(DEPTH) * window.kernel.1;
        let (len, count) = if unfolded { (row, window.kernel.0) } else { (channels, window.taps()) };
        Self { amx, len, padded: len.next_multiple_of(DEPTH), count, unfolded }
    }

    /// Pairs of an output, those of zeros included.
    pub(in super::super) fn pairs(&self) -> usize {
        self.count * self.padded / 2
    }

    /// The tap that lies at a place.
    pub(in super::super) fn tap(&self, place: usize) -> Option<usize> {
        let (run, own) = (place / self.padded, place % self.padded);
        (own < self.len).then_some(run * self.len + own)
    }

    fn steps(&self) -> usize {
        self.padded / DEPTH
    }
}

/// What a task reads, laid out anew: for each phase of the stride rows of pixels.
#[derive(Debug, Clone, Copy)]
struct Band {
    phases: (usize, usize),
    rows: usize,
    columns: usize,
    /// Values of a pixel.
    pixel: usize,
}

impl Band {
    /// For so many rows of the output.
    fn new(conv: &Direct, runs: &Runs, rows: usize) -> Self {
        let Window { kernel, stride, dilation, .. } = conv.window;
        let span = |kernel: usize, dilation: usize| (kernel - 1) * dilation;
        let (down, across) = (span(kernel.0, dilation.0), span(kernel.1, dilation.1));
        let (phases, columns) = if runs.unfolded { (1, 0) } else { (stride.1.min(across + 1), across / stride.1) };
        Self {
            phases: (stride.0.min(down + 1), phases),
            rows: rows + down / stride.0,
            columns: conv.output.width + columns,
            pixel: runs.padded,
        }
    }

    /// Values, with those behind it that the last tiles read beyond the last pixel.
    fn len(&self) -> usize {
        let pixels = self.phases.0 * self.phases.1 * self.rows * self.columns;
        (pixels + 2 * SIDE) * self.pixel
    }

    /// Where the pixel of a tap lies for the first output; the tap counts in input pixels.
    fn tap(&self, (y, x): (usize, usize), stride: (usize, usize)) -> usize {
        let phase = y % stride.0 * self.phases.1 + x % stride.1;
        (phase * self.rows + y / stride.0) * self.columns + x / stride.1
    }
}

/// Rows of sums that follow each other on the map: the first one's tile row, its pixel, and how many.
type Segment = (usize, usize, usize);

impl Direct {
    /// Whether the map can be multiplied where it lies.
    fn in_place(&self) -> bool {
        let plain = self.window.kernel == (1, 1) && self.window.stride == (1, 1) && self.window.padding == (0, 0);
        let whole = |view: &View| view.bf16 && view.channels.is_multiple_of(DEPTH);
        let pixels = self.output.height * self.output.width;
        plain && pixels >= SIDE && self.inputs.iter().all(|part| part.shift == 0 && whole(&part.view))
    }

    /// Pixels of a block on tiles: whole rows of the map.
    pub(super) fn rows_of_tiles(&self, runs: &Runs) -> usize {
        let (height, width) = (self.output.height, self.output.width);
        let mut rows = PIXELS.div_ceil(width).max(height.div_ceil(TASKS)).min(height);
        while rows > 1 && Band::new(self, runs, rows).len() > BAND {
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
        let kernels = PANEL_VECTORS * self.packing.lanes * self.packing.taps * size_of::<f32>();
        panels.div_ceil(shares).min((KERNELS / kernels).max(1))
    }

    /// What a thread needs for blocks of so many pixels.
    pub(super) fn reserve_tiles(&self, runs: &Runs, pixels: usize, table: &mut Table) {
        let rows = (pixels + self.output.width - 2) / self.output.width + 1;
        let values = Band::new(self, runs, rows.min(self.output.height)).len();
        table.rows.grow(values.div_ceil(2));
        table.sums.resize(table.sums.len().max(4 * SIDE * SIDE), 0.0);
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
            // SAFETY: room for a band of so many rows was reserved.
            unsafe { self.lay_out(isa, runs, (&band, top), table.rows.as_mut_ptr().cast()) };
            let position = |pixel: usize| (pixel / width - top) * band.columns + pixel % width;
            (position(first), position(last) + 1, band.columns)
        };
        let pixels = conv.output.height * width;
        let tiles = runs.amx.begin();
        let mut at = start;
        while at < end {
            let two = end - at > SIDE && (!in_place || pixels >= 2 * SIDE);
            let rows = if two { 2 * SIDE } else { SIDE };
            // The last tile may begin before its first pixel, lest it reads beyond the map.
            let from = if in_place { at.min(pixels - rows) } else { at };
            self.point_tiles(runs, in_place, &band, from, table);
            let mut segments: [Segment; 2 * SIDE] = [(0, 0, 0); 2 * SIDE];
            let mut count = 0;
            let mut position = at;
            while position < end.min(from + rows) {
                let (row, column) = (position / columns, position % columns);
                let length = (columns - column).min(end.min(from + rows) - position);
                if in_place {
                    segments[count] = (position - from, position, length);
                    count += 1;
                } else if column < width {
                    segments[count] = (position - from, (top + row) * width + column, length.min(width - column));
                    count += 1;
                }
                position += length;
            }
            self.panels_of_tiles(isa, &tiles, rows, &segments[..count], table);
            at = from + rows;
        }
    }

    /// Sums and epilogue of up to two tiles of pixels, for all panels.
    #[inline(always)]
    fn panels_of_tiles<I: Isa>(&self, isa: I, tiles: &Tiles, rows: usize, segments: &[Segment], table: &mut Table) {
        let conv = self.conv;
        let (output, packing) = (&conv.output, &conv.packing);
        let residual = conv.residual.map(|view| (self.arena.at(view.offset + self.sample * view.sample()), view.pixel));
        let sums = table.sums.as_mut_ptr();
        for panel in self.panels.0..self.panels.1 {
            let channel = panel * PANEL_VECTORS * I::LANES;
            let vectors = packing.vectors(panel);
            let weights = self.weights.wrapping_add(packing.panel(panel));
            // SAFETY: the runs lead to pixels of the band or of the map; the weights have a row for each of their pairs.
            unsafe { tiles.product((rows / SIDE, vectors), &table.runs, weights, sums) };
            for &(row, pixel, count) in segments {
                for done in (0..count).step_by(ROWS) {
                    let pixel = pixel + done;
                    let out = self.out.wrapping_byte_add((pixel * output.pixel + channel) * output.value());
                    let place = Place {
                        start: self.bias.wrapping_add(channel),
                        start_pixel: 0,
                        between: std::ptr::null_mut(),
                        out,
                        pixel: output.pixel,
                        rounded: output.bf16,
                        residual: residual.map_or(std::ptr::null(), |(start, step)| {
                            start.wrapping_add(pixel * step + channel).cast_const()
                        }),
                        residual_pixel: residual.map_or(0, |(_, step)| step),
                        act: conv.act,
                        channels: packing.out - channel,
                    };
                    let row = vectors * I::LANES * (row + done);
                    let stored = Stored { sums: sums.wrapping_add(row), row: vectors * I::LANES };
                    // SAFETY: there are sums for each row; the output and the residual have a place for each pixel.
                    unsafe { tile_of(isa, (ROWS.min(count - done), vectors), &stored, std::ptr::null(), &place) };
                }
            }
        }
    }

    /// Where the runs of the pixels from a position on lie.
    #[inline(always)]
    fn point_tiles(&self, runs: &Runs, in_place: bool, band: &Band, from: usize, table: &mut Table) {
        let conv = self.conv;
        let Window { kernel, stride, dilation, .. } = conv.window;
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
        let columns = if runs.unfolded { 1 } else { kernel.1 };
        for ky in 0..kernel.0 {
            for kx in 0..columns {
                let tap = if runs.unfolded {
                    // All phases across are one.
                    let phase = ky * dilation.0 % stride.0;
                    (phase * band.rows + ky * dilation.0 / stride.0) * band.columns
                } else {
                    band.tap((ky * dilation.0, kx * dilation.1), stride)
                };
                table.runs.push(run(start.wrapping_add(tap * band.pixel), band.pixel, runs.steps()));
            }
        }
    }

    /// Fills the band for outputs from row `top` on.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    unsafe fn lay_out<I: Isa>(&self, isa: I, runs: &Runs, (band, top): (&Band, usize), to: *mut u16) {
        let Window { stride, padding, .. } = self.conv.window;
        let (height, _) = self.conv.inputs[0].size();
        let line = band.columns * band.pixel;
        for phase in 0..band.phases.0 {
            for row in 0..band.rows {
                let y = ((top + row) * stride.0 + phase).checked_sub(padding.0).filter(|y| *y < height);
                for across in 0..band.phases.1 {
                    let to = to.wrapping_add(((phase * band.phases.1 + across) * band.rows + row) * line);
                    // SAFETY: the band has a place for each row of each phase.
                    unsafe {
                        match y {
                            None => to.write_bytes(0, line),
                            Some(y) if runs.unfolded => self.unfold_row(isa, runs, y, to),
                            Some(y) => self.lay_row(isa, band, (y, across), to),
                        }
                    }
                }
            }
        }
    }

    /// A row of one phase of the map.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    unsafe fn lay_row<I: Isa>(&self, isa: I, band: &Band, (y, phase): (usize, usize), to: *mut u16) {
        let conv = self.conv;
        let (stride, padding) = (conv.window.stride.1, conv.window.padding.1);
        let (_, width) = conv.inputs[0].size();
        // Columns of the band that lie on the map.
        let first = padding.saturating_sub(phase).div_ceil(stride).min(band.columns);
        let last = (width + padding).saturating_sub(phase).div_ceil(stride).clamp(first, band.columns);
        // SAFETY: the row has a place for each column, each part a pixel for each that lies on the map.
        unsafe {
            to.write_bytes(0, first * band.pixel);
            to.wrapping_add(last * band.pixel).write_bytes(0, (band.columns - last) * band.pixel);
            let mut done = 0;
            for part in &conv.inputs {
                let view = &part.view;
                let line = self.line(view, y >> part.shift);
                let step = view.pixel * view.value();
                let start = first * stride + phase - padding;
                if part.shift == 0 && stride == 1 && view.channels == band.pixel && view.pixel == band.pixel {
                    let from = line.wrapping_byte_add(start * step);
                    let (to, count) = (to.wrapping_add(first * band.pixel), (last - first) * band.pixel);
                    if view.bf16 {
                        std::ptr::copy_nonoverlapping(from.cast(), to, count);
                    } else {
                        round(isa, from, to, count);
                    }
                } else {
                    for column in first..last {
                        let x = column * stride + phase - padding;
                        let from = line.wrapping_byte_add((x >> part.shift) * step);
                        let to = to.wrapping_add(column * band.pixel + done);
                        values(isa, view, from, to, view.channels);
                    }
                }
                done += view.channels;
            }
            if done < band.pixel {
                for column in first..last {
                    to.wrapping_add(column * band.pixel + done).write_bytes(0, band.pixel - done);
                }
            }
        }
    }

    /// A row of the map as rows of windows, one behind the other for each output.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    unsafe fn unfold_row<I: Isa>(&self, isa: I, runs: &Runs, y: usize, to: *mut u16) {
        let conv = self.conv;
        let Window { kernel, stride, padding, dilation } = conv.window;
        let (_, width) = conv.inputs[0].size();
        let span = (kernel.1 - 1) * dilation.1;
        let [part] = conv.inputs.as_slice() else {
            // SAFETY: as of this function.
            return unsafe { self.unfold_parts(isa, runs, y, to) };
        };
        let view = &part.view;
        let line = self.line(view, y >> part.shift);
        let step = view.pixel * view.value();
        let whole = dilation.1 == 1 && part.shift == 0 && view.pixel == view.channels;
        for column in 0..conv.output.width {
            let to = to.wrapping_add(column * runs.padded);
            let x = column * stride.1;
            // SAFETY: the row has a place for each run; what is read lies on the map.
            unsafe {
                if whole && x >= padding.1 && x + span < width + padding.1 {
                    values(isa, view, line.wrapping_byte_add((x - padding.1) * step), to, runs.len);
                    to.wrapping_add(runs.len).write_bytes(0, runs.padded - runs.len);
                    continue;
                }
                to.write_bytes(0, runs.padded);
                for kx in 0..kernel.1 {
                    let x = (x + kx * dilation.1).checked_sub(padding.1).filter(|x| *x < width);
                    if let Some(x) = x {
                        let from = line.wrapping_byte_add((x >> part.shift) * step);
                        values(isa, view, from, to.wrapping_add(kx * view.channels), view.channels);
                    }
                }
            }
        }
    }

    /// The same of several parts.
    ///
    /// # Safety
    /// As of [`Job::unfold_row`].
    unsafe fn unfold_parts<I: Isa>(&self, isa: I, runs: &Runs, y: usize, to: *mut u16) {
        let conv = self.conv;
        let Window { kernel, stride, padding, dilation } = conv.window;
        let (_, width) = conv.inputs[0].size();
        let channels = runs.len / kernel.1;
        for column in 0..conv.output.width {
            let to = to.wrapping_add(column * runs.padded);
            // SAFETY: the row has a place for each run; what is read lies on the map.
            unsafe {
                to.write_bytes(0, runs.padded);
                for kx in 0..kernel.1 {
                    let x = (column * stride.1 + kx * dilation.1).checked_sub(padding.1).filter(|x| *x < width);
                    let Some(x) = x else { continue };
                    let mut done = kx * channels;
                    for part in &conv.inputs {
                        let view = &part.view;
                        let step = view.pixel * view.value();
                        let from = self.line(view, y >> part.shift).wrapping_byte_add((x >> part.shift) * step);
                        values(isa, view, from, to.wrapping_add(done), view.channels);
                        done += view.channels;
                    }
                }
            }
        }
    }

    /// The first pixel of a row.
    #[inline(always)]
    fn line(&self, view: &View, y: usize) -> *const f32 {
        let start = self.arena.at(view.offset + self.sample * view.sample()).cast_const();
        start.wrapping_byte_add(y * view.width * view.pixel * view.value())
    }
}

/// Values of a pixel, or of several that lie next to each other, as bf16.
///
/// # Safety
/// They must be readable, and as many must be writable.
#[inline(always)]
unsafe fn values<I: Isa>(isa: I, view: &View, from: *const f32, to: *mut u16, count: usize) {
    // SAFETY: as of this function.
    unsafe {
        if view.bf16 {
            copy(from.cast(), to, count);
        } else if count < I::LANES {
            put_rounded(isa, load_part(isa, from, count), to, count);
        } else {
            round(isa, from, to, count);
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
