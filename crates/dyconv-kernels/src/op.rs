//! The convolution as an operation of Candle: shapes checked here, kernels of [`crate::cpu`] underneath, gradients of its own.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, bail};

use crate::ConvConfig;
use crate::cpu::{self, ConvShape, Epilogue, Kernels};
use crate::reference::{self, mix_experts};

/// Convolution of each sample with its own kernels.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `kernels` `[B, Cout * (Cin / groups) * kh * kw]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// Where the shapes do not fit, or the window does not fit into the padded map.
pub fn conv2d_per_sample(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (sets, _) = kernels.dims2()?;
    let (batch, ..) = x.dims4()?;
    if sets != batch {
        bail!("conv2d_per_sample: `kernels` must have one row for each of {batch} samples, it has {sets}");
    }
    convolve(x, kernels, config)
}

/// Convolution of all samples with the same kernels, in any number of groups, without a loop over them.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `weight` `[Cout, Cin / groups, kh, kw]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// Where the shapes do not fit, or the window does not fit into the padded map.
pub fn conv2d(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (_, per_group, kh, kw) = weight.dims4()?;
    let (_, channels, ..) = x.dims4()?;
    if (kh, kw) != config.kernel || per_group * config.groups != channels {
        bail!(
            "conv2d: `weight` must be [out, {channels} / {} groups, {}, {}], it is {:?}",
            config.groups,
            config.kernel.0,
            config.kernel.1,
            weight.dims()
        );
    }
    convolve(x, &weight.flatten_all()?.unsqueeze(0)?, config)
}

/// Dynamic convolution: each sample with its own mixture of the experts' kernels, and of their biases where there are any.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `routing` `[B, K]` (from [`route`](crate::route)), `experts` `[K, ...]` with
/// `Cout * (Cin / groups) * kh * kw` values each, `bias` `[K, Cout]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// Where the shapes do not fit, or the window does not fit into the padded map.
pub fn dynamic_conv2d(
    x: &Tensor,
    routing: &Tensor,
    experts: &Tensor,
    bias: Option<&Tensor>,
    config: &ConvConfig,
) -> Result<Tensor> {
    let y = conv2d_per_sample(x, &mix_experts(routing, &experts.flatten_from(1)?)?, config)?;
    match bias {
        Some(bias) => y.broadcast_add(&mix_experts(routing, bias)?.unsqueeze(2)?.unsqueeze(3)?),
        None => Ok(y),
    }
}

/// Transposed convolution: what gives [`conv2d`] its gradient, as an operation of its own.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `weight` `[Cin, Cout / groups, kh, kw]`; the result is `[B, Cout, H', W']` with
/// `H' = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1`.
///
/// # Errors
/// Where the shapes do not fit, or the result would have no pixel.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, config: &ConvConfig, output_padding: usize) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let (in_channels, out_group, kh, kw) = weight.dims4()?;
    if in_channels != channels || (kh, kw) != config.kernel || config.groups == 0 || channels % config.groups != 0 {
        bail!(
            "conv_transpose2d: `weight` must be [{channels}, out / {} groups, {}, {}], it is {:?}",
            config.groups,
            config.kernel.0,
            config.kernel.1,
            weight.dims()
        );
    }
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        let full = size.checked_sub(1)? * stride + dilation * kernel.checked_sub(1)? + output_padding + 1;
        full.checked_sub(2 * padding).filter(|size| *size > 0)
    };
    let (Some(out_height), Some(out_width)) = (
        axis(height, kh, config.stride.0, config.padding.0, config.dilation.0),
        axis(width, kw, config.stride.1, config.padding.1, config.dilation.1),
    ) else {
        bail!("conv_transpose2d: a map of {height}x{width} leaves no pixel with {config:?}");
    };
    let turned = weight.reshape((config.groups, channels / config.groups, out_group, kh, kw))?;
    let turned = turned.flip(&[3, 4])?.transpose(1, 2)?.reshape((1, ()))?;
    reference::spread_convolution(x, &turned, config, (out_height, out_width), convolve)
}

/// `kernels` is `[B, values]` or `[1, values]`.
fn convolve(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    shape(x.dims(), kernels.dims(), config)?;
    if matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32 && kernels.dtype() == DType::F32 {
        return x.contiguous()?.apply_op2(&kernels.contiguous()?, Convolution { config: *config });
    }
    reference::convolve(x, kernels, config)
}

/// The sizes of a convolution, checked.
fn shape(x: &[usize], kernels: &[usize], config: &ConvConfig) -> Result<ConvShape> {
    let (&[batch, in_channels, height, width], &[sets, values]) = (x, kernels) else {
        bail!("convolution: expected `x` [B, C, H, W] and `kernels` [B, values], got {x:?} and {kernels:?}");
    };
    let ConvConfig { kernel, stride, padding, dilation, groups } = *config;
    if [kernel.0, kernel.1, stride.0, stride.1, dilation.0, dilation.1, groups].contains(&0) {
        bail!("convolution: kernel, stride, dilation and groups must be at least 1, got {config:?}");
    }
    if sets != batch && sets != 1 {
        bail!("convolution: `kernels` must have 1 row or {batch}, it has {sets}");
    }
    if in_channels % groups != 0 {
        bail!("convolution: {in_channels} channels do not divide by {groups} groups");
    }
    let taps = in_channels / groups * kernel.0 * kernel.1;
    if taps == 0 || !values.is_multiple_of(taps * groups) {
        bail!("convolution: `kernels` must have a multiple of {taps} taps in {groups} groups a row, it has {values}");
    }
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        (size + 2 * padding).checked_sub(dilation * (kernel - 1) + 1).map(|room| room / stride + 1)
    };
    let (Some(out_height), Some(out_width)) = (
        axis(height, kernel.0, stride.0, padding.0, dilation.0),
        axis(width, kernel.1, stride.1, padding.1, dilation.1),
    ) else {
        bail!("convolution: a window of {kernel:?} does not fit into a map of {height}x{width}");
    };
    Ok(ConvShape {
        batch,
        in_channels,
        out_channels: values / taps,
        input: (height, width),
        output: (out_height, out_width),
        config: *config,
    })
}

struct Convolution {
    config: ConvConfig,
}

impl CustomOp2 for Convolution {
    fn name(&self) -> &'static str {
        "conv2d-per-sample"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let shape = shape(x_layout.dims(), k_layout.dims(), &self.config)?;
        let (x, k) = (slice(x, x_layout)?, slice(k, k_layout)?);
        let dims = (shape.batch, shape.out_channels, shape.output.0, shape.output.1);
        let mut y = vec![0.0; dims.0 * dims.1 * dims.2 * dims.3];
        let kernels = if k.len() == shape.kernel_len() { Kernels::Shared(k) } else { Kernels::PerSample(k) };
        cpu::conv2d(x, &kernels, &Epilogue::default(), &mut y, &shape);
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(&self, x: &Tensor, k: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| input_gradient(x, k, dy, &self.config)).transpose()?;
        let dk = k.track_op().then(|| kernel_gradient(x, k, dy, &self.config)).transpose()?;
        Ok((dx, dk))
    }
}

/// A contiguous tensor's values.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("convolution: expected contiguous tensors") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// The transposed convolution of the gradient, cut or filled to the input's size.
fn input_gradient(x: &Tensor, kernels: &Tensor, dy: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let shape = shape(x.dims(), kernels.dims(), config)?;
    let (sets, groups) = (kernels.dim(0)?, config.groups);
    let (per_group, out_group) = (channels / groups, shape.out_channels / groups);
    let [kh, kw] = [config.kernel.0, config.kernel.1];
    let turned = kernels.reshape([sets, groups, out_group, per_group, kh, kw].as_slice())?;
    let turned = turned.flip(&[4, 5])?.transpose(2, 3)?.reshape((sets, ()))?;
    reference::spread_convolution(dy, &turned, config, (height, width), convolve)
}

/// The gradient times the unfolded input: one matrix product a sample and group.
fn kernel_gradient(x: &Tensor, kernels: &Tensor, dy: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    let (batch, channels, ..) = x.dims4()?;
    let (columns, height, width) = reference::im2col(x, config)?;
    let taps = channels / config.groups * config.kernel.0 * config.kernel.1;
    let columns = columns.reshape((batch, config.groups, taps, height * width))?;
    let out_group = dy.dim(1)? / config.groups;
    let dy = dy.contiguous()?.reshape((batch, config.groups, out_group, height * width))?;
    let dk = dy.matmul(&columns.transpose(2, 3)?.contiguous()?)?.reshape((batch, ()))?;
    if kernels.dim(0)? == batch { Ok(dk) } else { dk.sum_keepdim(0) }
}

#[cfg(test)]
mod tests;
