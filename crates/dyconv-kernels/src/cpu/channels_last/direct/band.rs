//! What tiles of pixels are loaded from: a band of the map's rows, laid out anew for a task. Values are rounded, there are zeros
//! around the map and behind its channels, up to whole tiles, and every phase of the stride lies by itself; so the pixels of a
//! tap lie one stride apart for all outputs of all rows.

use super::super::super::amx::{Amx, DEPTH, SIDE};
use super::super::super::isa::Isa;
use super::super::finish::{load_part, put_rounded};
use super::super::memory::{Part, View};
use super::bf16::{copy, round};
use super::{Direct, Job, Window};

/// How the taps of an output lie: as runs of neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Runs {
    pub(in super::super) amx: Amx,
    /// Taps of a run, and with zeros behind them as many as a number of steps takes.
    len: usize,
    padded: usize,
    pub(super) count: usize,
    /// Taps of a step.
    pub(super) depth: usize,
    way: Way,
}

/// What a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The channels at a position of the window.
    Taps,
    /// Those of a row of the window, written one after the other for each output: where channels are few.
    Rows,
    /// Those of a row of the window which lie next to each other in the map, so that outputs share them: where a row is one step.
    Overlapping,
}

impl Runs {
    pub(in super::super) fn new(amx: Amx, window: &Window, inputs: &[Part]) -> Self {
        let channels: usize = inputs.iter().map(|part| part.view.channels).sum();
        let row = channels * window.kernel.1;
        let way = match inputs {
            [Part { shift: 0, .. }]
                if window.kernel.1 > 1 && window.dilation.1 == 1 && row <= DEPTH && row.is_multiple_of(2) =>
            {
                Way::Overlapping
            }
            _ if channels < DEPTH
                && row.next_multiple_of(DEPTH) < channels.next_multiple_of(DEPTH) * window.kernel.1 =>
            {
                Way::Rows
            }
            _ => Way::Taps,
        };
        let (len, count) = if way == Way::Taps { (channels, window.taps()) } else { (row, window.kernel.0) };
        let depth = if way == Way::Overlapping { row } else { DEPTH };
        Self { amx, len, padded: len.next_multiple_of(depth), count, depth, way }
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

    pub(super) fn steps(&self) -> usize {
        self.padded / self.depth
    }

    /// Columns of the window that have runs of their own.
    pub(super) fn columns(&self, window: &Window) -> usize {
        if self.way == Way::Taps { window.kernel.1 } else { 1 }
    }
}

/// What a task reads, laid out anew: for each phase of the stride rows of pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Band {
    phases: (usize, usize),
    rows: usize,
    pub(super) columns: usize,
    /// Values from a pixel to the next; one for each output of a row.
    pub(super) pixel: usize,
}

impl Band {
    /// For so many rows of the output.
    pub(super) fn new(conv: &Direct, runs: &Runs, rows: usize) -> Self {
        let Window { kernel, stride, dilation, .. } = conv.window;
        let span = |kernel: usize, dilation: usize| (kernel - 1) * dilation;
        let (down, across) = (span(kernel.0, dilation.0), span(kernel.1, dilation.1));
        let (phases, columns) = match runs.way {
            Way::Taps => (stride.1.min(across + 1), across / stride.1),
            Way::Rows => (1, 0),
            Way::Overlapping => (1, across / stride.1),
        };
        let channels = runs.len / kernel.1;
        Self {
            phases: (stride.0.min(down + 1), phases),
            rows: rows + down / stride.0,
            columns: conv.output.width + columns,
            pixel: if runs.way == Way::Overlapping { stride.1 * channels } else { runs.padded },
        }
    }

    /// Values, with those behind it that the last tiles read beyond the last pixel.
    pub(super) fn len(&self) -> usize {
        let pixels = self.phases.0 * self.phases.1 * self.rows * self.columns;
        (pixels + 2 * SIDE) * self.pixel + DEPTH
    }

    /// Which pixel of it is the first output's at a position of the window.
    pub(super) fn tap(&self, window: &Window, (ky, kx): (usize, usize)) -> usize {
        let Window { stride, dilation, .. } = *window;
        let (y, x) = (ky * dilation.0, kx * dilation.1);
        let phase = y % stride.0 * self.phases.1 + x % stride.1;
        (phase * self.rows + y / stride.0) * self.columns + x / stride.1
    }
}

impl Job<'_> {
    /// Fills the band for outputs from row `top` on.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    pub(super) unsafe fn lay_out<I: Isa>(&self, isa: I, runs: &Runs, (band, top): (&Band, usize), to: *mut u16) {
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
                            Some(y) if runs.way == Way::Rows => self.unfold_row(isa, runs, y, to),
                            Some(y) if runs.way == Way::Overlapping => self.copy_row(isa, y, to, line),
                            Some(y) => self.lay_row(isa, (runs, band), (y, across), to),
                        }
                    }
                }
            }
        }
    }

    /// A row of the map as it is, between zeros: `line` values in all.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    unsafe fn copy_row<I: Isa>(&self, isa: I, y: usize, to: *mut u16, line: usize) {
        let view = &self.conv.inputs[0].view;
        let (from, channels) = (self.line(view, y), view.channels);
        let before = (self.conv.window.padding.1 * channels).min(line);
        let count = view.width.min((line - before) / channels);
        // SAFETY: the row has `line` places, the map as many pixels.
        unsafe {
            to.write_bytes(0, before);
            let to = to.wrapping_add(before);
            if view.pixel == channels {
                values(isa, view, from, to, count * channels);
            } else {
                for column in 0..count {
                    let from = from.wrapping_byte_add(column * view.pixel * view.value());
                    values(isa, view, from, to.wrapping_add(column * channels), channels);
                }
            }
            to.wrapping_add(count * channels).write_bytes(0, line - before - count * channels);
        }
    }

    /// A row of one phase of the map.
    ///
    /// # Safety
    /// There must be room for it.
    #[inline(always)]
    unsafe fn lay_row<I: Isa>(&self, isa: I, (runs, band): (&Runs, &Band), (y, phase): (usize, usize), to: *mut u16) {
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
            if runs.len < runs.padded {
                for column in first..last {
                    clear(to.wrapping_add((column + 1) * band.pixel - DEPTH));
                }
            }
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
        let channels = runs.len / kernel.1;
        // Where a row of the window is one piece of the map.
        let whole = match conv.inputs.as_slice() {
            [Part { view, shift: 0 }] if dilation.1 == 1 && view.pixel == view.channels => Some(view),
            _ => None,
        };
        for column in 0..conv.output.width {
            let to = to.wrapping_add(column * runs.padded);
            let x = column * stride.1;
            // SAFETY: the row has a place for each run; what is read lies on the map.
            unsafe {
                if let Some(view) = whole
                    && x >= padding.1
                    && x + span < width + padding.1
                {
                    clear(to.wrapping_add(runs.padded - DEPTH));
                    let from = self.line(view, y).wrapping_byte_add((x - padding.1) * view.pixel * view.value());
                    values(isa, view, from, to, runs.len);
                    continue;
                }
                to.write_bytes(0, runs.padded);
                for kx in 0..kernel.1 {
                    let Some(x) = (x + kx * dilation.1).checked_sub(padding.1).filter(|x| *x < width) else { continue };
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

/// Zeros in a step of tiles.
///
/// # Safety
/// They must be writable.
#[inline(always)]
unsafe fn clear(to: *mut u16) {
    // SAFETY: the caller proves the room.
    unsafe { to.cast::<[u16; DEPTH]>().write_unaligned([0; DEPTH]) };
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
