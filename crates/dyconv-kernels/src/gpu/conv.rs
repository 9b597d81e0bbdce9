//! Launches of the convolutions, their gradients and the epilogue.

use super::{
    Access, Buffer, ConvParams, Element, Kernel, Launch, MAX_SHARED, TooLarge, flag, limit, multiplier, product,
    shared, word,
};
use crate::cpu::ConvShape;

/// Rows and columns that a block of the matrix products writes.
const TILE: usize = 64;
/// Floats of its shared memory: two halves of two tiles of 16 rows of 68.
const TILE_FLOATS: usize = 2 * 2 * 16 * 68;
/// Pixels that one unit of the gradient of kernels sums over.
const CHUNK_PIXELS: usize = 1024;
/// Threads of a block of the matrix products and of the depthwise kernels.
const THREADS: u32 = 256;
/// Pixels of a plane that a block of the depthwise kernels or of the epilogue works on.
const PLANE_PIXELS: usize = 1024;
/// Blocks that keep a large GPU busy: the gradient of kernels is cut into parts until it has them.
const ENOUGH_BLOCKS: usize = 256;
/// The most partial sums of a gradient of kernels: each costs a write and a read.
const MAX_PARTS: usize = 64;

/// A convolution for the GPU: its sizes and what surrounds it.
#[derive(Debug, Clone, Copy)]
pub struct Conv<'a> {
    /// Sizes; batch, channels and maps are not empty.
    pub shape: &'a ConvShape,
    /// Type of all values.
    pub element: Element,
    /// Whether each sample has kernels of its own.
    pub per_sample: bool,
    /// Whether every buffer begins on a multiple of four values.
    pub aligned: bool,
}

/// What follows a convolution's sum, each part where it is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tail {
    /// `[Cout]`, or `[B, Cout]` where it is per sample.
    pub bias: Option<Bias>,
    /// `[Cout]`, multiplied after the bias.
    pub scale: bool,
    /// `[Cout]`, added after the scale.
    pub shift: bool,
    /// SiLU at the end.
    pub silu: bool,
}

/// Shape of a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// `[Cout]`.
    Shared,
    /// `[B, Cout]`.
    PerSample,
}

impl Tail {
    fn flags(self) -> u32 {
        let bias = match self.bias {
            None => 0,
            Some(Bias::Shared) => flag::HAS_BIAS,
            Some(Bias::PerSample) => flag::HAS_BIAS | flag::BIAS_PER_SAMPLE,
        };
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bias | bit(self.scale, flag::HAS_SCALE) | bit(self.shift, flag::HAS_SHIFT) | bit(self.silu, flag::SILU)
    }

    fn buffers(self, element: Element, batch: usize, channels: usize) -> [Buffer; 3] {
        let rows = if self.bias == Some(Bias::PerSample) { batch } else { 1 };
        [
            Buffer::optional("bias", element, rows * channels, self.bias.is_some()),
            Buffer::optional("scale", element, channels, self.scale),
            Buffer::optional("shift", element, channels, self.shift),
        ]
    }
}

impl Conv<'_> {
    /// The kernel that suits the forward convolution.
    pub fn kernel(&self) -> Kernel {
        let config = &self.shape.config;
        if self.in_per_group() == 1 && self.window() <= MAX_SHARED / size_of::<f32>() {
            Kernel::ConvDepthwise
        } else if (config.kernel, config.stride, config.padding) == ((1, 1), (1, 1), (0, 0)) {
            Kernel::ConvPointwise
        } else {
            Kernel::ConvGemm
        }
    }

    /// `x, kernels, bias, scale, shift -> y`: the convolution and what follows it.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn forward(&self, tail: Tail) -> Result<Launch, TooLarge> {
        let (s, element, kernel) = (self.shape, self.element, self.kernel());
        let pixels = s.output.0 * s.output.1;
        let (grid, floats) = if kernel == Kernel::ConvDepthwise {
            (planes(s.batch * s.out_channels, pixels)?, self.window())
        } else {
            (self.tiles(s.batch, self.out_per_group(), pixels)?, TILE_FLOATS)
        };
        let [bias, scale, shift] = tail.buffers(element, s.batch, s.out_channels);
        let buffers = vec![
            Buffer::read("x", element, self.x_len()),
            Buffer::read("kernels", element, self.kernels_len()),
            bias,
            scale,
            shift,
            Buffer::write("y", element, self.y_len()),
        ];
        let mut params = self.params()?;
        params.flags |= tail.flags();
        self.launch(kernel, grid, shared(floats)?, buffers, params)
    }

    /// `dy, kernels -> dx`: the gradient of the map.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_input(&self) -> Result<Launch, TooLarge> {
        let (s, element) = (self.shape, self.element);
        let pixels = s.input.0 * s.input.1;
        // A channel's kernels stay in shared memory, where they fit.
        let own = self.out_per_group() * self.window();
        let (kernel, grid, floats) = if self.in_per_group() == 1 && own <= MAX_SHARED / size_of::<f32>() {
            let grid = planes(s.batch * s.in_channels, pixels)?;
            (Kernel::ConvDepthwiseGradInput, grid, own)
        } else {
            (Kernel::ConvGradInput, self.tiles(s.batch, self.in_per_group(), pixels)?, TILE_FLOATS)
        };
        let buffers = vec![
            Buffer::read("dy", element, self.y_len()),
            Buffer::read("kernels", element, self.kernels_len()),
            Buffer::write("dx", element, self.x_len()),
        ];
        self.launch(kernel, grid, shared(floats)?, buffers, self.params()?)
    }

    /// `dy, x -> parts`: the gradient of the kernels in f32, `[parts, sets, P]`, to be summed over the parts.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_kernels(&self) -> Result<Launch, TooLarge> {
        let (s, element) = (self.shape, self.element);
        let depthwise = self.in_per_group() == 1;
        let parts = self.grad_kernels_parts();
        let mut params = self.params()?;
        let (kernel, grid, floats) = if depthwise {
            let blocks = word("the number of blocks", product(&[s.batch, s.out_channels]))?;
            (Kernel::ConvDepthwiseGradKernels, [blocks, 1, 1], 0)
        } else {
            let (sample_chunks, set_chunks, part_chunks) = self.chunks();
            params.sample_chunks = word("the chunks of a sample", sample_chunks)?;
            params.set_chunks = word("the chunks of a set of kernels", set_chunks)?;
            params.part_chunks = word("the chunks of a part", part_chunks)?;
            let taps = self.in_per_group() * self.window();
            let grid = self.tiles(product(&[parts, self.sets()]), self.out_per_group(), taps)?;
            (Kernel::ConvGradKernels, grid, TILE_FLOATS)
        };
        let buffers = vec![
            Buffer::read("dy", element, self.y_len()),
            Buffer::read("x", element, self.x_len()),
            Buffer::write("parts", Element::F32, product(&[parts, self.kernels_len()])),
        ];
        self.launch(kernel, grid, shared(floats)?, buffers, params)
    }

    /// How many partial sums [`Self::grad_kernels`] writes.
    pub fn grad_kernels_parts(&self) -> usize {
        if self.in_per_group() == 1 {
            return self.shape.batch / self.sets();
        }
        let (_, set_chunks, part_chunks) = self.chunks();
        set_chunks.div_ceil(part_chunks)
    }

    /// `x, bias, scale, shift -> y`: what follows a convolution, on maps of the shape's output.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn epilogue(&self, tail: Tail) -> Result<Launch, TooLarge> {
        let (s, element) = (self.shape, self.element);
        let grid = planes(s.batch * s.out_channels, s.output.0 * s.output.1)?;
        let [bias, scale, shift] = tail.buffers(element, s.batch, s.out_channels);
        let buffers = vec![
            Buffer::read("x", element, self.y_len()),
            bias,
            scale,
            shift,
            Buffer::write("y", element, self.y_len()),
        ];
        let mut params = self.params()?;
        params.flags |= tail.flags();
        self.launch(Kernel::Epilogue, grid, 0, buffers, params)
    }

    /// Values of all kernels.
    pub fn kernels_len(&self) -> usize {
        product(&[self.sets(), self.shape.kernel_len()])
    }

    /// Values of the input.
    pub fn x_len(&self) -> usize {
        product(&[self.shape.batch, self.shape.in_channels, self.shape.input.0, self.shape.input.1])
    }

    /// Values of the output.
    pub fn y_len(&self) -> usize {
        product(&[self.shape.batch, self.shape.out_channels, self.shape.output.0, self.shape.output.1])
    }

    fn sets(&self) -> usize {
        if self.per_sample { self.shape.batch } else { 1 }
    }

    fn in_per_group(&self) -> usize {
        self.shape.in_channels / self.shape.config.groups
    }

    fn out_per_group(&self) -> usize {
        self.shape.out_channels / self.shape.config.groups
    }

    fn window(&self) -> usize {
        self.shape.config.kernel.0 * self.shape.config.kernel.1
    }

    /// Chunks of a sample, of a set of kernels, and of a part. Deterministic: it depends on sizes alone.
    fn chunks(&self) -> (usize, usize, usize) {
        let s = self.shape;
        let sample = (s.output.0 * s.output.1).div_ceil(CHUNK_PIXELS);
        let set = sample * s.batch / self.sets();
        let tiles = self.out_per_group().div_ceil(TILE) * (self.in_per_group() * self.window()).div_ceil(TILE);
        let blocks = product(&[tiles, self.sets(), s.config.groups]);
        let parts = ENOUGH_BLOCKS.div_ceil(blocks).clamp(1, MAX_PARTS.min(set));
        (sample, set, set.div_ceil(parts))
    }

    /// Grid of a matrix product of `rows` x `columns` for each of `samples` and groups.
    fn tiles(&self, samples: usize, rows: usize, columns: usize) -> Result<[u32; 3], TooLarge> {
        let x = product(&[samples, self.shape.config.groups, columns.div_ceil(TILE)]);
        let y = rows.div_ceil(TILE);
        limit("the tiles of a group's channels", y, 65_535)?;
        Ok([word("the number of blocks", x)?, y as u32, 1])
    }

    fn params(&self) -> Result<ConvParams, TooLarge> {
        let (s, config) = (self.shape, &self.shape.config);
        let (group_in, group_out, window) = (self.in_per_group(), self.out_per_group(), self.window());
        // Within a sample's group the kernels index by 32 bits, and `divide` is exact below 2^32.
        word("a group of the input", product(&[group_in, s.input.0, s.input.1]))?;
        word("a group of the output", product(&[group_out, s.output.0, s.output.1]))?;
        word("the padded height", s.input.0.saturating_add(2 * config.padding.0))?;
        word("the padded width", s.input.1.saturating_add(2 * config.padding.1))?;
        // A tile reads up to TILE taps past the last one before it finds out.
        let depth = product(&[group_in.max(group_out), window]).saturating_add(TILE);
        for (what, size) in [
            ("taps times the window", product(&[depth, window])),
            ("the padded height times the stride", product(&[s.input.0 + config.padding.0, config.stride.0])),
            ("the padded width times the stride", product(&[s.input.1 + config.padding.1, config.stride.1])),
        ] {
            limit(what, size, u32::MAX as usize)?;
        }
        let stride = if self.per_sample { s.kernel_len() } else { 0 };
        Ok(ConvParams {
            batch: word("the batch", s.batch)?,
            groups: word("groups", config.groups)?,
            in_per_group: word("channels of a group", group_in)?,
            out_per_group: word("channels of a group", group_out)?,
            height: word("the height", s.input.0)?,
            width: word("the width", s.input.1)?,
            out_height: word("the height", s.output.0)?,
            out_width: word("the width", s.output.1)?,
            kernel_h: word("the kernel", config.kernel.0)?,
            kernel_w: word("the kernel", config.kernel.1)?,
            stride_h: word("the stride", config.stride.0)?,
            stride_w: word("the stride", config.stride.1)?,
            pad_h: word("the padding", config.padding.0)?,
            pad_w: word("the padding", config.padding.1)?,
            dilation_h: word("the dilation", config.dilation.0)?,
            dilation_w: word("the dilation", config.dilation.1)?,
            kernel_stride: word("a sample's kernels", stride)?,
            flags: if self.aligned { flag::VECTOR } else { 0 },
            by_window: multiplier(window as u32),
            by_kernel_w: multiplier(config.kernel.1 as u32),
            by_stride_h: multiplier(config.stride.0 as u32),
            by_stride_w: multiplier(config.stride.1 as u32),
            sample_chunks: 0,
            set_chunks: 0,
            part_chunks: 0,
        })
    }

    fn launch(
        &self,
        kernel: Kernel,
        grid: [u32; 3],
        shared: u32,
        buffers: Vec<Buffer>,
        params: ConvParams,
    ) -> Result<Launch, TooLarge> {
        debug_assert!(buffers.iter().all(|buffer| buffer.access == Access::Absent || buffer.len > 0));
        Ok(Launch {
            kernel,
            element: self.element,
            grid,
            block: [THREADS, 1, 1],
            shared,
            buffers,
            params: params.words(),
        })
    }
}

/// Grid of `planes` planes, each cut into blocks of pixels.
fn planes(planes: usize, pixels: usize) -> Result<[u32; 3], TooLarge> {
    Ok([word("the number of blocks", product(&[planes, pixels.div_ceil(PLANE_PIXELS)]))?, 1, 1])
}
