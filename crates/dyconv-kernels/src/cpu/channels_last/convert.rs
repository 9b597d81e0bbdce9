//! Between a program and the world: `[batch, channels, height, width]` outside, channels last inside.

use std::ops::Range;

use super::super::isa::{Isa, WIDEST, bf16_bits};
use super::super::shared::Shared;
use super::finish::{Act, load_part};
use super::memory::{Arena, View};
use super::team::Member;

/// Pixels of a strip that is turned at a time.
const STRIP: usize = 64;

/// What a program reads.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// `[batch, channels, height, width]`
    Maps(&'a [f32]),
    /// `[batch, height, width, channels]`, as pictures come: 0 to 255 stands for 0 to 1.
    Pixels(&'a [u8]),
}

impl Input<'_> {
    /// How many values it has.
    pub fn count(&self) -> usize {
        match self {
            Self::Maps(map) => map.len(),
            Self::Pixels(pixels) => pixels.len(),
        }
    }

    /// Some of its values.
    ///
    /// # Panics
    /// Where it has not as many.
    pub fn part(&self, values: Range<usize>) -> Self {
        match self {
            Self::Maps(map) => Self::Maps(&map[values]),
            Self::Pixels(pixels) => Self::Pixels(&pixels[values]),
        }
    }
}

/// What a sample of a picture stands for.
const UNIT: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut sample = 0;
    while sample < values.len() {
        values[sample] = sample as f32 / 255.0;
        sample += 1;
    }
    values
};

/// The same, in bf16.
const UNIT_BF16: [u16; 256] = {
    let mut bits = [0; 256];
    let mut sample = 0;
    while sample < bits.len() {
        bits[sample] = bf16_bits(UNIT[sample]);
        sample += 1;
    }
    bits
};

/// Writes a row of pixels; `table` says what each sample stands for.
///
/// # Safety
/// For each pixel of the row there must be places for `channels` values, the first from `line` on, the others `pixel` values further each;
/// no other thread may use them.
#[inline(always)]
unsafe fn look_up<T: Copy>(row: &[u8], channels: usize, table: &[T; 256], line: *mut T, pixel: usize) {
    if pixel == channels {
        for (i, sample) in row.iter().enumerate() {
            // SAFETY: the caller proves it.
            unsafe { *line.add(i) = table[usize::from(*sample)] };
        }
        return;
    }
    for (x, samples) in row.chunks_exact(channels).enumerate() {
        for (channel, sample) in samples.iter().enumerate() {
            // SAFETY: as above.
            unsafe { *line.add(x * pixel + channel) = table[usize::from(*sample)] };
        }
    }
}

/// Copies a map from outside into the middle of `view`, zeros around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Import {
    /// With the border.
    pub(super) view: View,
    /// Rows above and below, columns left and right.
    pub(super) border: (usize, usize),
}

impl Import {
    pub(super) fn size(&self) -> (usize, usize) {
        (self.view.height - 2 * self.border.0, self.view.width - 2 * self.border.1)
    }

    pub(super) fn run<I: Isa>(&self, isa: I, arena: &Arena, batch: usize, input: &Input<'_>, member: &Member<'_>) {
        let View { height, width, channels, pixel, offset, .. } = self.view;
        let (rows, columns) = self.size();
        let strip = |index: usize| {
            let (sample, y) = (index / height, index % height);
            if self.view.bf16 {
                if let Some(isa) = isa.bf16() {
                    isa.run(
                        #[inline(always)]
                        || self.rounded(isa, (sample, y), arena, input),
                    );
                }
                return;
            }
            let line = arena.at(offset + (sample * height + y) * width * pixel);
            let inside = y.checked_sub(self.border.0).filter(|y| *y < rows);
            for x in 0..width {
                let column = x.checked_sub(self.border.1).filter(|x| *x < columns);
                if inside.is_none() || column.is_none() {
                    for channel in 0..channels {
                        // SAFETY: the view has a place for each channel of each pixel.
                        unsafe { *line.add(x * pixel + channel) = 0.0 };
                    }
                }
            }
            let Some(y) = inside else { return };
            let line = line.wrapping_add(self.border.1 * pixel);
            let map = match input {
                Input::Maps(map) => map,
                Input::Pixels(pixels) => {
                    let row = &pixels[(sample * rows + y) * columns * channels..][..columns * channels];
                    // SAFETY: as above.
                    unsafe { look_up(row, channels, &UNIT, line, pixel) };
                    return;
                }
            };
            for channel in 0..channels {
                let row = &map[((sample * channels + channel) * rows + y) * columns..][..columns];
                for (x, value) in row.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { *line.add(x * pixel + channel) = *value };
                }
            }
        };
        const ROWS: usize = 8;
        let parts = (batch * height).div_ceil(ROWS);
        member.share(parts, |part| (part * ROWS..((part + 1) * ROWS).min(batch * height)).for_each(strip));
    }

    /// A row of a map in bf16.
    #[inline(always)]
    fn rounded<I: Isa>(&self, isa: I, (sample, y): (usize, usize), arena: &Arena, input: &Input<'_>) {
        let View { width, channels, pixel, .. } = self.view;
        let (rows, columns) = self.size();
        let line = arena.at(self.view.offset + sample * self.view.sample()).cast::<u16>();
        let line = line.wrapping_add(y * width * pixel);
        let inside = y.checked_sub(self.border.0).filter(|y| *y < rows);
        for x in 0..width {
            if inside.is_none() || x < self.border.1 || x >= self.border.1 + columns {
                for channel in 0..channels {
                    // SAFETY: the view has a place for each channel of each pixel.
                    unsafe { *line.add(x * pixel + channel) = 0 };
                }
            }
        }
        let Some(y) = inside else { return };
        let line = line.wrapping_add(self.border.1 * pixel);
        let map = match input {
            Input::Maps(map) => map,
            Input::Pixels(pixels) => {
                let row = &pixels[(sample * rows + y) * columns * channels..][..columns * channels];
                // SAFETY: the view has a place for each channel of each pixel.
                unsafe { look_up(row, channels, &UNIT_BF16, line, pixel) };
                return;
            }
        };
        let mut done = 0;
        if (channels, pixel) == (3, 3) {
            let start = sample * 3 * rows * columns + y * columns;
            while done + I::LANES <= columns {
                let row = |channel: usize| &map[start + channel * rows * columns + done..];
                // SAFETY: the view has a place for each channel of each pixel.
                unsafe { isa.weave_bf16_at([row(0), row(1), row(2)], line.add(3 * done)) };
                done += I::LANES;
            }
        }
        let mut bits = [0; WIDEST];
        for channel in 0..channels {
            let row = &map[((sample * channels + channel) * rows + y) * columns..][..columns];
            for first in (done..columns).step_by(I::LANES) {
                let count = (columns - first).min(I::LANES);
                // SAFETY: there are as many places as the widest vector has lanes; the view has a place for each channel of each pixel.
                unsafe {
                    isa.store_bf16_at(bits.as_mut_ptr(), load_part(isa, row[first..].as_ptr(), count));
                    for i in 0..count {
                        *line.add((first + i) * pixel + channel) = bits[i];
                    }
                }
            }
        }
    }
}

/// Copies a map out.
pub(super) fn export(view: &View, arena: &Arena, batch: usize, outside: &Shared<'_>, member: &Member<'_>) {
    let pixels = view.height * view.width;
    let strips = pixels.div_ceil(STRIP);
    member.share(batch * strips, |task| {
        let (sample, first) = (task / strips, task % strips * STRIP);
        let count = STRIP.min(pixels - first);
        let start = arena.at(view.offset + sample * view.sample() + first * view.pixel);
        for channel in 0..view.channels {
            // SAFETY: each task has its own pixels.
            let out = unsafe { outside.part((sample * view.channels + channel) * pixels + first, count) };
            for (i, value) in out.iter_mut().enumerate() {
                // SAFETY: the view has a place for each channel of each pixel.
                *value = unsafe { *start.add(i * view.pixel + channel) };
            }
        }
    });
}

/// Boxes of one level of a head: YOLOv5's decoding.
#[derive(Debug, Clone)]
pub(super) struct Decode {
    /// Height and width of the map.
    pub(super) size: (usize, usize),
    /// Width and height in pixels.
    pub(super) anchors: Vec<[f32; 2]>,
    pub(super) stride: f32,
    /// Values of a row: 5, classes, mask coefficients.
    pub(super) outputs: usize,
    /// Mask coefficients, which stay as they are.
    pub(super) masks: usize,
    /// Rows of all levels, and of those before this one.
    pub(super) rows: usize,
    pub(super) first: usize,
}

impl Decode {
    /// Decodes `count` pixels from `first` on of a sample, whose map, `[count, anchors * outputs]`, lies at `map`. Of rows
    /// whose objectness is not above `threshold`, only that is written.
    ///
    /// # Safety
    /// The map must be readable, and no other thread may use these pixels' rows.
    #[inline(always)]
    pub(super) unsafe fn pixels<I: Isa>(
        &self,
        isa: I,
        map: *const f32,
        (sample, first, count): (usize, usize, usize),
        threshold: Option<f32>,
        outside: &Shared<'_>,
    ) {
        let (height, width) = self.size;
        let outputs = self.outputs;
        for anchor in 0..self.anchors.len() {
            let row = sample * self.rows + self.first + anchor * height * width + first;
            // SAFETY: the caller proves that the rows are nobody else's.
            let rows = unsafe { outside.part(row * outputs, count * outputs) };
            for (index, row) in rows.chunks_exact_mut(outputs).enumerate() {
                // SAFETY: the caller proves the map.
                let from = unsafe {
                    std::slice::from_raw_parts(map.add((index * self.anchors.len() + anchor) * outputs), outputs)
                };
                let cell = ((first + index) % width, (first + index) / width);
                self.row(isa, from, cell, anchor, threshold, row);
            }
        }
    }

    #[inline(always)]
    fn row<I: Isa>(
        &self,
        isa: I,
        from: &[f32],
        (x, y): (usize, usize),
        anchor: usize,
        threshold: Option<f32>,
        row: &mut [f32],
    ) {
        if let Some(threshold) = threshold {
            let objectness = 1.0 / (1.0 + (-from[4]).exp());
            if objectness <= threshold {
                row[4] = objectness;
                return;
            }
        }
        let classes = self.outputs - self.masks;
        let mut at = 0;
        while at + I::LANES <= classes {
            isa.store(&mut row[at..], Act::Sigmoid.apply(isa, isa.load(&from[at..])));
            at += I::LANES;
        }
        if at < classes && classes >= I::LANES {
            // The last vector overlaps the one before.
            let at = classes - I::LANES;
            isa.store(&mut row[at..], Act::Sigmoid.apply(isa, isa.load(&from[at..])));
        } else if at < classes {
            let mut values = [0.0; 16];
            values[..classes - at].copy_from_slice(&from[at..classes]);
            let result = Act::Sigmoid.apply(isa, isa.load(&values));
            isa.store(&mut values, result);
            row[at..classes].copy_from_slice(&values[..classes - at]);
        }
        row[classes..].copy_from_slice(&from[classes..]);
        for (i, cell) in [x, y].into_iter().enumerate() {
            row[i] = (row[i] * 2.0 + (cell as f32 - 0.5)) * self.stride;
            let twice = row[2 + i] * 2.0;
            row[2 + i] = twice * twice * self.anchors[anchor][i];
        }
    }
}
