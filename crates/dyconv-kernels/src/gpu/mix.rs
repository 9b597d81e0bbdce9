//! Launches of the mixing of experts, its gradients, and sums of partial results.

use super::{Buffer, Element, Kernel, Launch, MixParams, SumParams, TooLarge, flag, limit, product, shared, word};

/// Threads of a block.
const THREADS: usize = 256;
/// Rows that a block of `mix_experts` writes.
const MIX_ROWS: usize = 8;
/// Coefficients of a row in its shared memory.
const MIX_CHUNK: usize = 32;
/// Values of a row that a block of `mix_grad_routing` multiplies.
const DOT_VALUES: usize = 8 * THREADS;
/// Rows of the gradient that it multiplies by.
const DOT_ROWS: usize = 4;
/// Experts whose sums are in its shared memory.
const DOT_CHUNK: usize = 32;
/// Warps of a block.
const WARPS: usize = THREADS / 32;

/// Sizes of a mixture: `batch` samples of `experts` experts of `length` values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mix {
    /// Samples.
    pub batch: usize,
    /// Experts.
    pub experts: usize,
    /// Values of an expert.
    pub length: usize,
    /// Type of all values.
    pub element: Element,
    /// Whether every buffer begins on a multiple of four values.
    pub aligned: bool,
}

impl Mix {
    /// `coefficients, in -> out`: routing weights `[batch, experts]` and experts `[experts, length]` to mixtures
    /// `[batch, length]`.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn forward(&self) -> Result<Launch, TooLarge> {
        self.weighted(self.batch, self.experts, (self.experts, 1))
    }

    /// `coefficients, in -> out`: routing weights and the mixtures' gradient `[batch, length]` to the experts' gradient
    /// `[experts, length]`; the kernel of [`Self::forward`] with the weights transposed.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_experts(&self) -> Result<Launch, TooLarge> {
        self.weighted(self.experts, self.batch, (1, self.experts))
    }

    fn weighted(&self, rows_out: usize, rows_in: usize, steps: (usize, usize)) -> Result<Launch, TooLarge> {
        let params = self.params(rows_out, rows_in, steps)?;
        let y = rows_out.div_ceil(MIX_ROWS);
        limit("the rows written", rows_out, 65_535 * MIX_ROWS)?;
        Ok(Launch {
            kernel: Kernel::MixExperts,
            element: self.element,
            grid: [word("the number of blocks", self.length.div_ceil(4 * THREADS))?, y as u32, 1],
            block: [THREADS as u32, 1, 1],
            shared: shared(MIX_ROWS * MIX_CHUNK)?,
            buffers: vec![
                Buffer::read("coefficients", self.element, product(&[rows_out, rows_in])),
                Buffer::read("in", self.element, product(&[rows_in, self.length])),
                Buffer::write("out", self.element, product(&[rows_out, self.length])),
            ],
            params: params.words(),
        })
    }

    /// `grad, experts -> parts`: the mixtures' gradient `[batch, length]` and the experts to the routing weights' gradient in
    /// f32, `[parts, batch, experts]`, to be summed over the parts.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_routing(&self) -> Result<Launch, TooLarge> {
        let params = self.params(self.batch, self.experts, (self.experts, 1))?;
        let parts = self.grad_routing_parts();
        let y = self.batch.div_ceil(DOT_ROWS);
        limit("the batch", self.batch, 65_535 * DOT_ROWS)?;
        Ok(Launch {
            kernel: Kernel::MixGradRouting,
            element: self.element,
            grid: [word("the number of blocks", parts)?, y as u32, 1],
            block: [THREADS as u32, 1, 1],
            shared: shared(DOT_CHUNK * DOT_ROWS * WARPS)?,
            buffers: vec![
                Buffer::read("grad", self.element, product(&[self.batch, self.length])),
                Buffer::read("experts", self.element, product(&[self.experts, self.length])),
                Buffer::write("parts", Element::F32, product(&[parts, self.batch, self.experts])),
            ],
            params: params.words(),
        })
    }

    /// How many partial sums [`Self::grad_routing`] writes.
    pub fn grad_routing_parts(&self) -> usize {
        self.length.div_ceil(DOT_VALUES)
    }

    fn params(&self, rows_out: usize, rows_in: usize, steps: (usize, usize)) -> Result<MixParams, TooLarge> {
        Ok(MixParams {
            rows_out: word("the rows written", rows_out)?,
            rows_in: word("the rows read", rows_in)?,
            row_step: word("the experts", steps.0)?,
            column_step: word("the experts", steps.1)?,
            length: word("the values of an expert", self.length)?,
            flags: if self.aligned { flag::VECTOR } else { 0 },
        })
    }
}

/// `parts -> out`: the sum of `parts` rows of `length` f32 values, as `element`.
///
/// # Errors
/// Where a size is beyond the kernels' indices.
pub fn sum_parts(parts: usize, length: usize, element: Element) -> Result<Launch, TooLarge> {
    let params = SumParams { parts: word("the partial sums", parts)?, length: word("the values of a sum", length)? };
    Ok(Launch {
        kernel: Kernel::SumParts,
        element,
        grid: [length.div_ceil(THREADS) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        buffers: vec![
            Buffer::read("parts", Element::F32, product(&[parts, length])),
            Buffer::write("out", element, length),
        ],
        params: params.words(),
    })
}
