//! Launches of the routing and its gradients.

use super::{Buffer, Element, Kernel, Launch, RouteParams, TooLarge, flag, product, shared, word};
use crate::Routing;

/// Threads of a block of the routing.
const THREADS: usize = 256;
/// Threads of a block that works on one plane.
const PLANE_THREADS: u32 = 128;
/// Values of a sample beyond which one block takes longer to pool it than the launch of another kernel costs.
const SMALL_MAP: usize = 32_768;

/// At this temperature a softmax is a choice of one; the reciprocal of a lower one might not be finite.
const COLDEST: f64 = 2e-5;

/// Sizes of a routing: maps `[batch, channels, pixels]`, `experts` weights a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Route {
    /// Samples.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Pixels of a plane.
    pub pixels: usize,
    /// Experts.
    pub experts: usize,
    /// The activation.
    pub routing: Routing,
    /// Type of all values.
    pub element: Element,
    /// Whether every buffer begins on a multiple of four values.
    pub aligned: bool,
}

impl Route {
    /// Whether one launch of [`Self::fused`] is the way; [`Self::pool`] and [`Self::pooled`] otherwise.
    pub fn is_small(&self) -> bool {
        product(&[self.channels, self.pixels]) <= SMALL_MAP
    }

    /// `x, weight, bias -> r`: pooling, linear layer and activation in one, one block a sample.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices or shared memory.
    pub fn fused(&self) -> Result<Launch, TooLarge> {
        self.weigh(Kernel::Route, Buffer::read("x", self.element, product(&[self.batch, self.channels, self.pixels])))
    }

    /// `pooled, weight, bias -> r`: linear layer and activation of pooled channels in f32.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices or shared memory.
    pub fn pooled(&self) -> Result<Launch, TooLarge> {
        self.weigh(Kernel::RoutePooled, Buffer::read("pooled", Element::F32, product(&[self.batch, self.channels])))
    }

    fn weigh(&self, kernel: Kernel, source: Buffer) -> Result<Launch, TooLarge> {
        Ok(Launch {
            kernel,
            element: self.element,
            grid: [word("the batch", self.batch)?, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: shared(self.channels.saturating_add(self.experts))?,
            buffers: vec![
                source,
                Buffer::read("weight", self.element, product(&[self.experts, self.channels])),
                Buffer::read("bias", self.element, self.experts),
                Buffer::write("r", self.element, product(&[self.batch, self.experts])),
            ],
            params: self.params()?.words(),
        })
    }

    /// `x -> pooled`: mean of each plane in f32, `[batch, channels]`.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn pool(&self) -> Result<Launch, TooLarge> {
        let planes = product(&[self.batch, self.channels]);
        Ok(Launch {
            kernel: Kernel::Pool,
            element: self.element,
            grid: [word("the number of planes", planes)?, 1, 1],
            block: [PLANE_THREADS, 1, 1],
            shared: shared(PLANE_THREADS as usize / 32)?,
            buffers: vec![
                Buffer::read("x", self.element, product(&[planes, self.pixels])),
                Buffer::write("pooled", Element::F32, planes),
            ],
            params: self.params()?.words(),
        })
    }

    /// `r, grad -> logits`: gradient of the logits in f32 from the weights and their gradient, all `[batch, experts]`.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_logits(&self) -> Result<Launch, TooLarge> {
        let len = product(&[self.batch, self.experts]);
        Ok(Launch {
            kernel: Kernel::RouteGradLogits,
            element: self.element,
            grid: [word("the weights", len)?.div_ceil(THREADS as u32), 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            buffers: vec![
                Buffer::read("r", self.element, len),
                Buffer::read("grad", self.element, len),
                Buffer::write("logits", Element::F32, len),
            ],
            params: self.params()?.words(),
        })
    }

    /// `logits, weight -> dx`: gradient of the map from that of the logits.
    ///
    /// # Errors
    /// Where a size is beyond the kernels' indices.
    pub fn grad_input(&self) -> Result<Launch, TooLarge> {
        let planes = product(&[self.batch, self.channels]);
        Ok(Launch {
            kernel: Kernel::RouteGradInput,
            element: self.element,
            grid: [word("the number of planes", planes)?, 1, 1],
            block: [PLANE_THREADS, 1, 1],
            shared: 0,
            buffers: vec![
                Buffer::read("logits", Element::F32, product(&[self.batch, self.experts])),
                Buffer::read("weight", self.element, product(&[self.experts, self.channels])),
                Buffer::write("dx", self.element, product(&[planes, self.pixels])),
            ],
            params: self.params()?.words(),
        })
    }

    fn params(&self) -> Result<RouteParams, TooLarge> {
        let (softmax, logit_scale) = match self.routing {
            Routing::Sigmoid => (0, 1.0),
            Routing::Softmax { temperature } => (flag::SOFTMAX, 1.0 / temperature.max(COLDEST)),
        };
        Ok(RouteParams {
            batch: word("the batch", self.batch)?,
            channels: word("channels", self.channels)?,
            pixels: word("the pixels of a plane", self.pixels)?,
            experts: word("experts", self.experts)?,
            flags: softmax | if self.aligned { flag::VECTOR } else { 0 },
            pool_scale: 1.0 / self.pixels as f32,
            logit_scale: logit_scale as f32,
        })
    }
}

/// `x -> pooled`: sum of each of `planes` planes of `pixels` values in f32: the gradient of a bias.
///
/// # Errors
/// Where a size is beyond the kernels' indices.
pub fn plane_sums(planes: usize, pixels: usize, element: Element, aligned: bool) -> Result<Launch, TooLarge> {
    let sizes = Route { batch: 1, channels: planes, pixels, experts: 1, routing: Routing::Sigmoid, element, aligned };
    let mut launch = sizes.pool()?;
    launch.params = RouteParams { pool_scale: 1.0, ..sizes.params()? }.words();
    Ok(launch)
}
