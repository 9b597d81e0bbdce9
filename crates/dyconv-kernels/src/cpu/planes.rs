//! Padded copies of a piece of the input, such that every tap of every output is one vector load away.
//!
//! A map is cut into phases, one for each remainder of the row and the column by the stride, so that neighbouring outputs read
//! neighbouring values whatever the stride. Outputs are numbered along rows that are as wide as a phase's: a few numbers at the
//! end of each row belong to no output, and what the tile computes for them is dropped. That costs less than unfolding
//! (im2col), which copies each value once for every tap.

use std::ops::Range;

use super::ConvShape;
use super::isa::{Isa, copy};
use super::strided::gather;

/// A rectangle of outputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// First row, and the number of rows.
    pub(super) rows: (usize, usize),
    /// First column, and the number of columns.
    pub(super) columns: (usize, usize),
}

/// Layout of the phases of one channel for a piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planes {
    piece: Piece,
    /// Phases that taps use, vertical and horizontal.
    phases: (usize, usize),
    /// Rows and columns of a phase.
    height: usize,
    width: usize,
}

impl Planes {
    pub(super) fn new(shape: &ConvShape, piece: Piece) -> Self {
        let config = &shape.config;
        let reach = |kernel: usize, dilation: usize| (kernel - 1) * dilation;
        let (vertical, horizontal) =
            (reach(config.kernel.0, config.dilation.0), reach(config.kernel.1, config.dilation.1));
        Self {
            piece,
            phases: (config.stride.0.min(vertical + 1), config.stride.1.min(horizontal + 1)),
            height: piece.rows.1 + vertical / config.stride.0,
            width: piece.columns.1 + horizontal / config.stride.1,
        }
    }

    /// Values of one channel.
    pub(super) fn channel_len(&self) -> usize {
        self.phases.0 * self.phases.1 * self.height * self.width
    }

    /// Width of the rows that outputs are numbered along.
    pub(super) fn row(&self) -> usize {
        self.width
    }

    /// Numbers that cover all outputs.
    pub(super) fn numbers(&self) -> usize {
        (self.piece.rows.1 - 1) * self.width + self.piece.columns.1
    }

    /// Where each tap of `channels` channels lies, seen from output number 0.
    pub(super) fn offsets(&self, shape: &ConvShape, channels: usize, offsets: &mut Vec<u32>) {
        let config = &shape.config;
        offsets.clear();
        for channel in 0..channels {
            for y in (0..config.kernel.0).map(|k| k * config.dilation.0) {
                for x in (0..config.kernel.1).map(|k| k * config.dilation.1) {
                    let phase = (y % config.stride.0) * self.phases.1 + x % config.stride.1;
                    let row = phase * self.height + y / config.stride.0;
                    offsets.push((channel * self.channel_len() + row * self.width + x / config.stride.1) as u32);
                }
            }
        }
    }

    /// The part of a map that is read, as far as whole rows tell.
    pub(super) fn area(&self, shape: &ConvShape) -> Range<usize> {
        let (height, width) = shape.input;
        let config = &shape.config;
        let start = (self.piece.rows.0 * config.stride.0).saturating_sub(config.padding.0).min(height);
        let end = (start + self.height * config.stride.0).min(height);
        if height == 1 {
            let first = (self.piece.columns.0 * config.stride.1).saturating_sub(config.padding.1).min(width);
            return first..(first + self.width * config.stride.1).min(width);
        }
        start * width..end * width
    }

    /// Whether a plane holds values that no map gives.
    pub(super) fn bordered(&self, shape: &ConvShape) -> bool {
        shape.config.padding != (0, 0) || shape.config.stride != (1, 1)
    }

    /// Copies one channel, `map`, into `planes`, which has [`Planes::channel_len`] values, and zeros where the map does not
    /// reach: those are not written, being the same for all channels.
    #[inline(always)]
    pub(super) fn fill<I: Isa>(&self, isa: I, shape: &ConvShape, map: &[f32], planes: &mut [f32]) {
        let (height, width) = shape.input;
        let config = &shape.config;
        for vertical in 0..self.phases.0 {
            for horizontal in 0..self.phases.1 {
                let phase = (vertical * self.phases.1 + horizontal) * self.height * self.width;
                let columns = Span::new(
                    self.piece.columns.0 * config.stride.1 + horizontal,
                    config.padding.1,
                    config.stride.1,
                    width,
                    self.width,
                );
                let rows = Span::new(
                    self.piece.rows.0 * config.stride.0 + vertical,
                    config.padding.0,
                    config.stride.0,
                    height,
                    self.height,
                );
                for row in rows.first..rows.last {
                    let y = rows.start + (row - rows.first) * config.stride.0;
                    let source = &map[y * width..][..width];
                    let line = &mut planes[phase + row * self.width..][..self.width];
                    let inside = &mut line[columns.first..columns.last];
                    if inside.is_empty() {
                        continue;
                    }
                    let source = &source[columns.start..];
                    match config.stride.1 {
                        1 => copy(isa, source, inside),
                        step => gather(isa, source, inside, step),
                    }
                }
            }
        }
    }
}

/// Which values of a phase's row or column the map gives.
struct Span {
    /// Values `first..last`.
    first: usize,
    last: usize,
    /// Where in the map the first of them lies.
    start: usize,
}

impl Span {
    /// Value `i` is the map's at `start + i * stride - padding`.
    fn new(start: usize, padding: usize, stride: usize, size: usize, count: usize) -> Self {
        let first = padding.saturating_sub(start).div_ceil(stride).min(count);
        let last = (size + padding).saturating_sub(start).div_ceil(stride).clamp(first, count);
        Self { first, last, start: (start + first * stride).saturating_sub(padding) }
    }
}
