//! Convolution as a matrix product: kernels as they stand, `[out, taps]`, times unfolded pixels, `[taps, pixels]`.
//!
//! Only a block of the unfolded map exists at a time, in the caches of the thread that made it: a panel of `DEPTH` taps for each
//! register tile of pixels. The kernels need no packing, since a tile reads each of its rows along the taps, one value after
//! the other; so kernels that were mixed for one sample a moment ago are as good as any.

use std::cell::RefCell;

use rayon::prelude::*;

use super::ConvShape;
use super::isa::Isa;

/// Vectors of pixels in a register tile.
const TILE_VECTORS: usize = 2;
/// The most rows and columns of a register tile on any instruction set.
const MAX_ROWS: usize = 14;
const MAX_COLUMNS: usize = 32;
/// A panel of unfolded pixels takes half of a 32 KiB level-1 cache.
const PANEL_VALUES: usize = 4096;
/// A thread works on about so many pixels at a time: enough to use kernels again, little enough to stay in level 2.
const BLOCK_PIXELS: usize = 256;

thread_local! {
    /// The thread's unfolded block and one row of it.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Runs the convolution on all threads of the pool.
pub(super) fn conv2d<I: Isa>(isa: I, x: &[f32], kernels: &[f32], y: &mut [f32], shape: &ConvShape) {
    let groups = shape.config.groups;
    let pixels = shape.output.0 * shape.output.1;
    let columns = TILE_VECTORS * I::LANES;
    let threads = rayon::current_num_threads();
    let maps = shape.batch * groups;
    // Blocks of whole tiles, of about one size, as many a map as keep all threads busy to the end.
    let tiles = pixels.div_ceil(columns);
    let wanted = pixels.div_ceil(BLOCK_PIXELS).max(threads.div_ceil(maps)).min(tiles);
    let wanted = if maps == 1 && wanted > 1 { wanted.next_multiple_of(threads).min(tiles) } else { wanted };
    let block = tiles.div_ceil(wanted) * columns;
    let blocks = pixels.div_ceil(block);
    let out = SharedRows { start: y.as_mut_ptr(), rows: shape.batch * shape.out_channels, length: pixels };
    (0..maps * blocks).into_par_iter().for_each(|task| {
        let (map, index) = (task / blocks, task % blocks);
        let first = index * block;
        let job = Block {
            shape,
            x,
            kernels,
            sample: map / groups,
            group: map % groups,
            first,
            last: (first + block).min(pixels),
        };
        SCRATCH.with_borrow_mut(|scratch| {
            isa.run(
                #[inline(always)]
                || job.run(isa, scratch, &out),
            );
        });
    });
}

/// The output as rows of one map's channel each, handed out to several threads.
struct SharedRows {
    start: *mut f32,
    rows: usize,
    length: usize,
}

// SAFETY: `part` is unsafe to call, and its callers see to it that no two threads have a part in common.
unsafe impl Sync for SharedRows {}

impl SharedRows {
    /// Columns `first..last` of a row.
    ///
    /// # Safety
    /// No other reference to any of these values may be alive.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the parts that are handed out do not overlap, which the caller promises")]
    unsafe fn part(&self, row: usize, first: usize, last: usize) -> &mut [f32] {
        assert!(row < self.rows && first <= last && last <= self.length);
        // SAFETY: the part lies inside the slice that `start` came from; the caller promises that it is not shared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.length + first), last - first) }
    }
}

/// One thread's piece: pixels `first..last` of all output channels of a group.
struct Block<'a> {
    shape: &'a ConvShape,
    x: &'a [f32],
    kernels: &'a [f32],
    sample: usize,
    group: usize,
    first: usize,
    last: usize,
}

impl Block<'_> {
    #[inline(always)]
    fn run<I: Isa>(&self, isa: I, scratch: &mut Vec<f32>, out: &SharedRows) {
        let columns = TILE_VECTORS * I::LANES;
        let depth = PANEL_VALUES / columns;
        let count = self.last - self.first;
        let tiles = count.div_ceil(columns);
        let taps = self.shape.taps();
        let rows = self.shape.out_channels / self.shape.config.groups;
        let kernel_len = self.shape.kernel_len();
        let set = if self.kernels.len() == kernel_len { 0 } else { self.sample };
        let kernels = &self.kernels[set * kernel_len + self.group * rows * taps..][..rows * taps];
        let first_row = self.sample * self.shape.out_channels + self.group * rows;
        scratch.resize(tiles * columns * (depth + 1), 0.0);
        let (panels, line) = scratch.split_at_mut(tiles * columns * depth);
        for start in (0..taps).step_by(depth) {
            let length = depth.min(taps - start);
            for k in 0..length {
                self.unfold(start + k, &mut line[..count]);
                for (tile, part) in line.chunks_exact(columns).enumerate() {
                    panels[tile * depth * columns + k * columns..][..columns].copy_from_slice(part);
                }
            }
            for tile in 0..tiles {
                let panel = &panels[tile * depth * columns..][..length * columns];
                let from = self.first + tile * columns;
                let to = (from + columns).min(self.last);
                for row in (0..rows).step_by(I::TILE_ROWS) {
                    let height = I::TILE_ROWS.min(rows - row);
                    let mut result = [0.0; MAX_ROWS * MAX_COLUMNS];
                    // Rows beyond the last repeat it; their results are dropped.
                    let lines: [&[f32]; MAX_ROWS] =
                        std::array::from_fn(|i| &kernels[(row + i.min(height - 1)) * taps + start..][..length]);
                    product(isa, &lines, panel, &mut result);
                    for (i, values) in result.chunks_exact(columns).take(height).enumerate() {
                        // SAFETY: each task has its own pixels of its own map, and one part is alive at a time.
                        let target = unsafe { out.part(first_row + row + i, from, to) };
                        if start == 0 {
                            target.copy_from_slice(&values[..to - from]);
                        } else {
                            target.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                        }
                    }
                }
            }
        }
    }

    /// What tap number `tap` sees at the block's pixels.
    #[inline(always)]
    fn unfold(&self, tap: usize, line: &mut [f32]) {
        let ConvShape { input: (height, width), output: (_, out_width), config, .. } = *self.shape;
        let window = config.kernel.0 * config.kernel.1;
        let channel = self.group * (self.shape.in_channels / config.groups) + tap / window;
        let (ky, kx) = (tap % window / config.kernel.1, tap % config.kernel.1);
        let plane = &self.x[(self.sample * self.shape.in_channels + channel) * height * width..][..height * width];
        if config.kernel == (1, 1) && config.stride == (1, 1) && config.padding == (0, 0) {
            line.copy_from_slice(&plane[self.first..self.last]);
            return;
        }
        let columns = Span::new(kx * config.dilation.1, config.padding.1, config.stride.1, width);
        let mut filled = 0;
        while filled < line.len() {
            let pixel = self.first + filled;
            let (row, column) = (pixel / out_width, pixel % out_width);
            let count = (out_width - column).min(line.len() - filled);
            let part = &mut line[filled..filled + count];
            let y = (row * config.stride.0 + ky * config.dilation.0).wrapping_sub(config.padding.0);
            if y < height {
                columns.copy(&plane[y * width..][..width], column, part);
            } else {
                part.fill(0.0);
            }
            filled += count;
        }
    }
}

/// Which outputs of a row a tap sees inside the map, and where.
pub(super) struct Span {
    /// Outputs `first..last` see the map.
    pub(super) first: usize,
    pub(super) last: usize,
    /// What output `first` sees.
    pub(super) start: usize,
    stride: usize,
}

impl Span {
    /// For a tap `offset` pixels into the window.
    pub(super) fn new(offset: usize, padding: usize, stride: usize, width: usize) -> Self {
        let first = padding.saturating_sub(offset).div_ceil(stride);
        let last = (width + padding).saturating_sub(offset).div_ceil(stride).max(first);
        Self { first, last, start: (first * stride + offset).saturating_sub(padding), stride }
    }

    /// Outputs from `column` on, as many as `part` takes.
    #[inline(always)]
    fn copy(&self, row: &[f32], column: usize, part: &mut [f32]) {
        let end = column + part.len();
        let (first, last) = (self.first.clamp(column, end), self.last.clamp(column, end));
        part[..first - column].fill(0.0);
        part[last - column..].fill(0.0);
        let inside = &mut part[first - column..last - column];
        if inside.is_empty() {
            return;
        }
        let source = &row[self.start + (first - self.first) * self.stride..];
        if self.stride == 1 {
            inside.copy_from_slice(&source[..inside.len()]);
        } else {
            inside.iter_mut().zip(source.iter().step_by(self.stride)).for_each(|(to, from)| *to = *from);
        }
    }
}

/// `result[i][j] = sum over k of lines[i][k] * panel[k][j]`, for a register tile.
#[inline(always)]
fn product<I: Isa>(isa: I, lines: &[&[f32]; MAX_ROWS], panel: &[f32], result: &mut [f32; MAX_ROWS * MAX_COLUMNS]) {
    let columns = TILE_VECTORS * I::LANES;
    let length = panel.len() / columns;
    let lines: [&[f32]; MAX_ROWS] = std::array::from_fn(|i| &lines[i][..length]);
    let mut sums = [[isa.splat(0.0); TILE_VECTORS]; MAX_ROWS];
    for (k, pixels) in panel.chunks_exact(columns).enumerate().take(length) {
        let pixels: [I::F32; TILE_VECTORS] = std::array::from_fn(|j| isa.load(&pixels[j * I::LANES..][..I::LANES]));
        for i in 0..I::TILE_ROWS {
            let weight = isa.splat(lines[i][k]);
            for j in 0..TILE_VECTORS {
                sums[i][j] = isa.fma(weight, pixels[j], sums[i][j]);
            }
        }
    }
    for i in 0..I::TILE_ROWS {
        for j in 0..TILE_VECTORS {
            isa.store(&mut result[i * columns + j * I::LANES..][..I::LANES], sums[i][j]);
        }
    }
}
