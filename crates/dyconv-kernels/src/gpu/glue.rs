//! The operations on Candle's storages, the same for each back end.
//!
//! Operands are contiguous, possibly with an offset, and of one type unless a function says that one is f32. Where a size is
//! 0 nothing is launched.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{DType, Error, Layout, Result, bail};

use super::conv::{Bias, Conv, Tail};
use super::mix::Mix;
use super::ops::{self, Device, TailBuffers};
use super::route::Route;
use super::{Element, TooLarge};
use crate::Routing;
use crate::cpu::ConvShape;

impl From<TooLarge> for Error {
    fn from(error: TooLarge) -> Self {
        Self::wrap(error)
    }
}

impl Element {
    /// The type of a tensor's values, where the kernels take it.
    fn of(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 => Ok(Self::F16),
            DType::BF16 => Ok(Self::BF16),
            other => bail!("the GPU kernels take f32, f16 or bf16, not {}", other.as_str()),
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }
}

/// A device of [`ops`] over Candle's storages.
pub(crate) trait Backend<'a>: Device<Error = Error> + Sized {
    /// Candle's storage.
    type Storage: BackendStorage<Device: BackendDevice<Storage = Self::Storage>> + 'a;

    /// The device that holds a storage.
    fn of(storage: &'a Self::Storage) -> Self;
    /// An operand that begins `offset` values into a storage.
    fn input(storage: &'a Self::Storage, offset: usize) -> Self::Buffer;
    /// A result's storage.
    fn output(&self, buffer: Self::Buffer) -> Result<Self::Storage>;
}

/// A tensor as a custom operation gets it.
pub(crate) type Operand<'a, S> = (&'a S, &'a Layout);

/// What follows a convolution, each part where it is there.
pub(crate) struct Terms<'a, S> {
    /// `[Cout]` or `[B, Cout]`.
    pub(crate) bias: Option<Operand<'a, S>>,
    /// `[Cout]`.
    pub(crate) scale: Option<Operand<'a, S>>,
    /// `[Cout]`.
    pub(crate) shift: Option<Operand<'a, S>>,
    /// SiLU at the end.
    pub(crate) silu: bool,
}

/// A device with checked operands.
struct Call<'a, B: Backend<'a>> {
    device: B,
    storage: &'a B::Storage,
    element: Element,
    aligned: bool,
}

impl<'a, B: Backend<'a>> Call<'a, B> {
    /// `operands` have one type, that of the first.
    fn new(operands: &[Operand<'a, B::Storage>]) -> Result<Self> {
        let Some((storage, _)) = operands.first() else { bail!("a GPU operation without operands") };
        let element = Element::of(storage.dtype())?;
        let mut call = Self { device: B::of(storage), storage, element, aligned: true };
        for (other, layout) in operands {
            if other.dtype() != storage.dtype() {
                bail!("expected one type for all operands, got {:?} and {:?}", storage.dtype(), other.dtype());
            }
            call.aligned &= offset(layout)? % 4 == 0;
        }
        Ok(call)
    }

    fn input(&self, (storage, layout): Operand<'a, B::Storage>) -> Result<B::Buffer> {
        Ok(B::input(storage, offset(layout)?))
    }

    /// Runs `operation` unless there is nothing to compute from, then the result is `len` zeros.
    fn run(
        &self,
        sizes: &[usize],
        element: Element,
        len: usize,
        operation: impl FnOnce(&B) -> Result<B::Buffer>,
    ) -> Result<B::Storage> {
        if sizes.contains(&0) {
            // Drivers refuse to allocate nothing.
            return self.storage.device().zeros_impl(&len.max(1).into(), element.dtype());
        }
        self.device.output(operation(&self.device)?)
    }

    fn conv<'s>(&self, shape: &'s ConvShape, kernels: &Layout) -> Conv<'s> {
        let per_sample = kernels.shape().elem_count() != shape.kernel_len();
        Conv { shape, element: self.element, per_sample, aligned: self.aligned }
    }
}

fn offset(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("the GPU kernels take contiguous tensors, got strides {:?}", layout.stride()),
    }
}

fn sizes(shape: &ConvShape) -> [usize; 7] {
    let (input, output) = (shape.input, shape.output);
    [shape.batch, shape.in_channels, shape.out_channels, input.0, input.1, output.0, output.1]
}

/// A convolution of `x` with kernels of each sample or of all, and what follows it.
pub(crate) fn convolution<'a, B: Backend<'a>>(
    shape: &ConvShape,
    x: Operand<'a, B::Storage>,
    kernels: Operand<'a, B::Storage>,
    terms: &Terms<'a, B::Storage>,
) -> Result<B::Storage> {
    let optional = [terms.bias, terms.scale, terms.shift];
    let operands: Vec<_> = [x, kernels].into_iter().chain(optional.into_iter().flatten()).collect();
    let call = Call::<B>::new(&operands)?;
    let conv = call.conv(shape, kernels.1);
    let tail = tail(shape, terms);
    call.run(&sizes(shape), call.element, conv.y_len(), |device| {
        let (x, kernels) = (call.input(x)?, call.input(kernels)?);
        let [bias, scale, shift] = inputs(&call, optional)?;
        let buffers = TailBuffers { bias: bias.as_ref(), scale: scale.as_ref(), shift: shift.as_ref() };
        ops::convolution(device, &conv, tail, &x, &kernels, &buffers)
    })
}

/// What follows a convolution on its own, on maps `x` of the shape's output.
pub(crate) fn epilogue<'a, B: Backend<'a>>(
    shape: &ConvShape,
    x: Operand<'a, B::Storage>,
    terms: &Terms<'a, B::Storage>,
) -> Result<B::Storage> {
    let optional = [terms.bias, terms.scale, terms.shift];
    let operands: Vec<_> = [x].into_iter().chain(optional.into_iter().flatten()).collect();
    let call = Call::<B>::new(&operands)?;
    let conv = Conv { shape, element: call.element, per_sample: false, aligned: call.aligned };
    let tail = tail(shape, terms);
    call.run(&sizes(shape), call.element, conv.y_len(), |device| {
        let x = call.input(x)?;
        let [bias, scale, shift] = inputs(&call, optional)?;
        let buffers = TailBuffers { bias: bias.as_ref(), scale: scale.as_ref(), shift: shift.as_ref() };
        ops::epilogue(device, &conv, tail, &x, &buffers)
    })
}

fn tail<S>(shape: &ConvShape, terms: &Terms<'_, S>) -> Tail {
    let bias =
        terms.bias.map(
            |(_, layout)| {
                if layout.shape().elem_count() == shape.out_channels { Bias::Shared } else { Bias::PerSample }
            },
        );
    Tail { bias, scale: terms.scale.is_some(), shift: terms.shift.is_some(), silu: terms.silu }
}

fn inputs<'a, B: Backend<'a>>(
    call: &Call<'a, B>,
    operands: [Option<Operand<'a, B::Storage>>; 3],
) -> Result<[Option<B::Buffer>; 3]> {
    let [a, b, c] = operands.map(|operand| operand.map(|operand| call.input(operand)).transpose());
    Ok([a?, b?, c?])
}

/// Gradient of a convolution's input.
pub(crate) fn conv_grad_input<'a, B: Backend<'a>>(
    shape: &ConvShape,
    dy: Operand<'a, B::Storage>,
    kernels: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[dy, kernels])?;
    let conv = call.conv(shape, kernels.1);
    call.run(&sizes(shape), call.element, conv.x_len(), |device| {
        ops::conv_grad_input(device, &conv, &call.input(dy)?, &call.input(kernels)?)
    })
}

/// Gradient of a convolution's kernels, of each sample or summed over the samples.
pub(crate) fn conv_grad_kernels<'a, B: Backend<'a>>(
    shape: &ConvShape,
    per_sample: bool,
    dy: Operand<'a, B::Storage>,
    x: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[dy, x])?;
    let conv = Conv { shape, element: call.element, per_sample, aligned: call.aligned };
    call.run(&sizes(shape), call.element, conv.kernels_len(), |device| {
        ops::conv_grad_kernels(device, &conv, &call.input(dy)?, &call.input(x)?)
    })
}

/// Gradient of a bias of each sample or of all.
pub(crate) fn bias_grad<'a, B: Backend<'a>>(
    shape: &ConvShape,
    per_sample: bool,
    dy: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[dy])?;
    let conv = Conv { shape, element: call.element, per_sample, aligned: call.aligned };
    let len = if per_sample { shape.batch * shape.out_channels } else { shape.out_channels };
    call.run(&sizes(shape), call.element, len, |device| ops::bias_grad(device, &conv, per_sample, &call.input(dy)?))
}

/// Mixtures `[B, P]` by weights `[B, K]` of experts `[K, P]`.
pub(crate) fn mix_experts<'a, B: Backend<'a>>(
    r: Operand<'a, B::Storage>,
    experts: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[r, experts])?;
    let mix = mix(&call, r.1, experts.1)?;
    call.run(&[mix.batch, mix.experts, mix.length], mix.element, mix.batch * mix.length, |device| {
        ops::mix_experts(device, &mix, &call.input(r)?, &call.input(experts)?)
    })
}

/// Gradient of the weights `[B, K]` from that of the mixtures `[B, P]` and the experts `[K, P]`.
pub(crate) fn mix_grad_routing<'a, B: Backend<'a>>(
    grad: Operand<'a, B::Storage>,
    experts: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[grad, experts])?;
    let (batch, length) = grad.1.shape().dims2()?;
    let (experts_len, _) = experts.1.shape().dims2()?;
    let mix = Mix { batch, experts: experts_len, length, element: call.element, aligned: call.aligned };
    call.run(&[batch, experts_len, length], mix.element, batch * experts_len, |device| {
        ops::mix_grad_routing(device, &mix, &call.input(grad)?, &call.input(experts)?)
    })
}

/// Gradient of the experts `[K, P]` from the weights `[B, K]` and the gradient of the mixtures `[B, P]`.
pub(crate) fn mix_grad_experts<'a, B: Backend<'a>>(
    r: Operand<'a, B::Storage>,
    grad: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[r, grad])?;
    let mix = mix(&call, r.1, grad.1)?;
    call.run(&[mix.batch, mix.experts, mix.length], mix.element, mix.experts * mix.length, |device| {
        ops::mix_grad_experts(device, &mix, &call.input(r)?, &call.input(grad)?)
    })
}

/// Sizes from weights `[B, K]` and rows of values.
fn mix<'a, B: Backend<'a>>(call: &Call<'a, B>, r: &Layout, rows: &Layout) -> Result<Mix> {
    let (batch, experts) = r.shape().dims2()?;
    let (_, length) = rows.shape().dims2()?;
    Ok(Mix { batch, experts, length, element: call.element, aligned: call.aligned })
}

/// Routing weights `[B, K]` of maps `[B, C, H, W]`.
pub(crate) fn route<'a, B: Backend<'a>>(
    routing: Routing,
    x: Operand<'a, B::Storage>,
    weight: Operand<'a, B::Storage>,
    bias: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[x, weight, bias])?;
    let sizes = route_sizes(&call, routing, x.1.dims(), weight.1)?;
    call.run(&route_dims(&sizes), sizes.element, sizes.batch * sizes.experts, |device| {
        ops::route(device, &sizes, &call.input(x)?, &call.input(weight)?, &call.input(bias)?)
    })
}

/// Gradient of the logits `[B, K]` in f32, from the weights and theirs.
pub(crate) fn route_grad_logits<'a, B: Backend<'a>>(
    routing: Routing,
    r: Operand<'a, B::Storage>,
    grad: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[r, grad])?;
    let (batch, experts) = r.1.shape().dims2()?;
    let (element, aligned) = (call.element, call.aligned);
    let sizes = Route { batch, channels: 1, pixels: 1, experts, routing, element, aligned };
    call.run(&[batch, experts], Element::F32, batch * experts, |device| {
        ops::route_grad_logits(device, &sizes, &call.input(r)?, &call.input(grad)?)
    })
}

/// Gradient of the maps of `dims` from that of the logits, which is f32.
pub(crate) fn route_grad_input<'a, B: Backend<'a>>(
    dims: &[usize],
    logits: Operand<'a, B::Storage>,
    weight: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[weight])?;
    let sizes = route_sizes(&call, Routing::Sigmoid, dims, weight.1)?;
    call.run(&route_dims(&sizes), sizes.element, dims.iter().product(), |device| {
        ops::route_grad_input(device, &sizes, &call.input(logits)?, &call.input(weight)?)
    })
}

/// Gradient of the linear layer's weight `[K, C]` from that of the logits `[B, K]`, which is f32, and the maps.
pub(crate) fn route_grad_weight<'a, B: Backend<'a>>(
    logits: Operand<'a, B::Storage>,
    x: Operand<'a, B::Storage>,
) -> Result<B::Storage> {
    let call = Call::<B>::new(&[x])?;
    let (batch, channels, height, width) = x.1.shape().dims4()?;
    let (_, experts) = logits.1.shape().dims2()?;
    let (pixels, routing) = (height * width, Routing::Sigmoid);
    let sizes = Route { batch, channels, pixels, experts, routing, element: call.element, aligned: call.aligned };
    call.run(&route_dims(&sizes), sizes.element, experts * channels, |device| {
        ops::route_grad_weight(device, &sizes, &call.input(logits)?, &call.input(x)?)
    })
}

/// Gradient of the linear layer's bias `[K]`, as `dtype`, from that of the logits `[B, K]`, which is f32.
pub(crate) fn route_grad_bias<'a, B: Backend<'a>>(dtype: DType, logits: Operand<'a, B::Storage>) -> Result<B::Storage> {
    let call = Call::<B>::new(&[logits])?;
    let (batch, experts) = logits.1.shape().dims2()?;
    let (routing, element) = (Routing::Sigmoid, Element::of(dtype)?);
    let sizes = Route { batch, channels: 1, pixels: 1, experts, routing, element, aligned: false };
    call.run(&[batch, experts], element, experts, |device| ops::route_grad_bias(device, &sizes, &call.input(logits)?))
}

fn route_sizes<'a, B: Backend<'a>>(
    call: &Call<'a, B>,
    routing: Routing,
    x: &[usize],
    weight: &Layout,
) -> Result<Route> {
    let &[batch, channels, height, width] = x else { bail!("route: expected maps [B, C, H, W], got {x:?}") };
    let (experts, _) = weight.shape().dims2()?;
    let (element, aligned) = (call.element, call.aligned);
    Ok(Route { batch, channels, pixels: height * width, experts, routing, element, aligned })
}

fn route_dims(sizes: &Route) -> [usize; 4] {
    [sizes.batch, sizes.channels, sizes.pixels, sizes.experts]
}
