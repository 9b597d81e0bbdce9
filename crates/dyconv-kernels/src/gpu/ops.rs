//! Operations as sequences of launches, the same for every device.
//!
//! Shapes are checked before; nothing here is empty. A buffer begins where its values do and holds at least those that its
//! launch names.

use super::conv::{Conv, Tail};
use super::mix::{Mix, sum_parts};
use super::route::{Route, plane_sums};
use super::{Element, Launch, TooLarge};

/// A device that runs launches, in order.
pub trait Device {
    /// Memory of the device.
    type Buffer;
    /// What can go wrong.
    type Error: From<TooLarge>;

    /// Memory for `len` values, not initialised.
    ///
    /// # Errors
    /// Where there is none.
    fn empty(&self, element: Element, len: usize) -> Result<Self::Buffer, Self::Error>;

    /// Runs one launch with its buffers in order; `None` for those that are absent.
    ///
    /// # Errors
    /// Where the device fails, or the buffers are not those that the launch describes.
    fn run(&self, launch: &Launch, buffers: &[Option<&Self::Buffer>]) -> Result<(), Self::Error>;
}

/// Runs a launch whose last buffer is the only one written, and makes that one.
fn into_new<D: Device>(device: &D, launch: &Launch, inputs: &[Option<&D::Buffer>]) -> Result<D::Buffer, D::Error> {
    let (element, len) = launch.buffers.last().map_or((launch.element, 0), |last| (last.element, last.len));
    let out = device.empty(element, len)?;
    let buffers: Vec<_> = inputs.iter().copied().chain([Some(&out)]).collect();
    device.run(launch, &buffers)?;
    Ok(out)
}

/// The sum of partial results; nothing to do where there is one part of the type that is asked for.
fn summed<D: Device>(
    device: &D,
    parts: D::Buffer,
    count: usize,
    len: usize,
    element: Element,
) -> Result<D::Buffer, D::Error> {
    if count == 1 && element == Element::F32 {
        return Ok(parts);
    }
    into_new(device, &sum_parts(count, len, element)?, &[Some(&parts)])
}

/// Routing weights `[batch, experts]` of maps `x`; `weight` is `[experts, channels]`, `bias` `[experts]`.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn route<D: Device>(
    device: &D,
    sizes: &Route,
    x: &D::Buffer,
    weight: &D::Buffer,
    bias: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    if sizes.is_small() {
        return into_new(device, &sizes.fused()?, &[Some(x), Some(weight), Some(bias)]);
    }
    let pooled = into_new(device, &sizes.pool()?, &[Some(x)])?;
    into_new(device, &sizes.pooled()?, &[Some(&pooled), Some(weight), Some(bias)])
}

/// Gradient of the logits, `[batch, experts]` in f32, from the weights `r` and their gradient.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn route_grad_logits<D: Device>(
    device: &D,
    sizes: &Route,
    r: &D::Buffer,
    grad: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &sizes.grad_logits()?, &[Some(r), Some(grad)])
}

/// Gradient of the maps from that of the logits in f32.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn route_grad_input<D: Device>(
    device: &D,
    sizes: &Route,
    logits: &D::Buffer,
    weight: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &sizes.grad_input()?, &[Some(logits), Some(weight)])
}

/// Gradient of the linear layer's weight `[experts, channels]` from that of the logits in f32.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn route_grad_weight<D: Device>(
    device: &D,
    sizes: &Route,
    logits: &D::Buffer,
    x: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    let &Route { batch, channels, experts, element, .. } = sizes;
    let pooled = into_new(device, &sizes.pool()?, &[Some(x)])?;
    // A weighted sum of the samples' pooled channels: the same sum as that of experts.
    let sum = Mix { batch, experts, length: channels, element: Element::F32, aligned: false };
    let grad = into_new(device, &sum.grad_experts()?, &[Some(logits), Some(&pooled)])?;
    summed(device, grad, 1, experts * channels, element)
}

/// Gradient of the linear layer's bias `[experts]` from that of the logits in f32.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn route_grad_bias<D: Device>(device: &D, sizes: &Route, logits: &D::Buffer) -> Result<D::Buffer, D::Error> {
    into_new(device, &sum_parts(sizes.batch, sizes.experts, sizes.element)?, &[Some(logits)])
}

/// Mixtures `[batch, length]` of experts `[experts, length]` by weights `r` `[batch, experts]`.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn mix_experts<D: Device>(
    device: &D,
    sizes: &Mix,
    r: &D::Buffer,
    experts: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &sizes.forward()?, &[Some(r), Some(experts)])
}

/// Gradient of the weights `[batch, experts]` from that of the mixtures.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn mix_grad_routing<D: Device>(
    device: &D,
    sizes: &Mix,
    grad: &D::Buffer,
    experts: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    let parts = into_new(device, &sizes.grad_routing()?, &[Some(grad), Some(experts)])?;
    summed(device, parts, sizes.grad_routing_parts(), sizes.batch * sizes.experts, sizes.element)
}

/// Gradient of the experts `[experts, length]` from that of the mixtures.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn mix_grad_experts<D: Device>(
    device: &D,
    sizes: &Mix,
    r: &D::Buffer,
    grad: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &sizes.grad_experts()?, &[Some(r), Some(grad)])
}

/// The buffers of a convolution's epilogue, each where it is there.
#[derive(Debug)]
pub struct TailBuffers<'a, B> {
    /// Bias, `[Cout]` or `[B, Cout]`.
    pub bias: Option<&'a B>,
    /// Scale, `[Cout]`.
    pub scale: Option<&'a B>,
    /// Shift, `[Cout]`.
    pub shift: Option<&'a B>,
}

/// Convolution with what follows it.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn convolution<D: Device>(
    device: &D,
    conv: &Conv<'_>,
    tail: Tail,
    x: &D::Buffer,
    kernels: &D::Buffer,
    terms: &TailBuffers<'_, D::Buffer>,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &conv.forward(tail)?, &[Some(x), Some(kernels), terms.bias, terms.scale, terms.shift])
}

/// What follows a convolution, on its own.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn epilogue<D: Device>(
    device: &D,
    conv: &Conv<'_>,
    tail: Tail,
    x: &D::Buffer,
    terms: &TailBuffers<'_, D::Buffer>,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &conv.epilogue(tail)?, &[Some(x), terms.bias, terms.scale, terms.shift])
}

/// Gradient of a convolution's input.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn conv_grad_input<D: Device>(
    device: &D,
    conv: &Conv<'_>,
    dy: &D::Buffer,
    kernels: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    into_new(device, &conv.grad_input()?, &[Some(dy), Some(kernels)])
}

/// Gradient of a convolution's kernels: of each sample, or summed over the samples where they are shared.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn conv_grad_kernels<D: Device>(
    device: &D,
    conv: &Conv<'_>,
    dy: &D::Buffer,
    x: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    let parts = into_new(device, &conv.grad_kernels()?, &[Some(dy), Some(x)])?;
    summed(device, parts, conv.grad_kernels_parts(), conv.kernels_len(), conv.element)
}

/// Gradient of a bias `[B, Cout]`, or `[Cout]` where the samples share it, from that of the maps.
///
/// # Errors
/// Where the sizes are too large or the device fails.
pub fn bias_grad<D: Device>(
    device: &D,
    conv: &Conv<'_>,
    per_sample: bool,
    dy: &D::Buffer,
) -> Result<D::Buffer, D::Error> {
    let (batch, channels) = (conv.shape.batch, conv.shape.out_channels);
    let pixels = conv.shape.output.0 * conv.shape.output.1;
    let sums = into_new(device, &plane_sums(batch * channels, pixels, conv.element, conv.aligned)?, &[Some(dy)])?;
    let (parts, len) = if per_sample { (1, batch * channels) } else { (batch, channels) };
    summed(device, sums, parts, len, conv.element)
}
