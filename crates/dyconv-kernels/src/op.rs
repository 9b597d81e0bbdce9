//! The convolution as an operation of Candle: shapes checked here, kernels of [`crate::cpu`] underneath, gradients of its own.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Storage, Tensor, bail};

use crate::ConvConfig;
use crate::cpu::{self, ConvShape, Epilogue, Kernels};
use crate::error::{Operation, Result, on_cpu};
use crate::reference;

/// Convolution of each sample with its own kernels.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `kernels` `[B, Cout * (Cin / groups) * kh * kw]`; the result is `[B, Cout, H', W']` with
/// `H' = (H + 2 * padding - dilation * (kh - 1) - 1) / stride + 1`, rounded down.
///
/// # Errors
/// Where types, devices or shapes do not fit, or the window does not fit into the padded map.
pub fn conv2d_per_sample(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    const CONVOLUTION: Operation = Operation("conv2d_per_sample");
    let [batch, ..] = CONVOLUTION.dims::<4>("x", x, "[B, C, H, W]")?;
    let [sets, values] = CONVOLUTION.dims("kernels", kernels, "[B, values]")?;
    if sets != batch {
        return Err(CONVOLUTION.wrong(
            "kernels",
            format!("[{batch}, values], a row a sample"),
            format!("[{sets}, {values}]"),
        ));
    }
    convolve(CONVOLUTION, "kernels", x, kernels, config)
}

/// Convolution of all samples with the same kernels, in any number of groups, without a loop over them.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `weight` `[Cout, Cin / groups, kh, kw]`; the result is `[B, Cout, H', W']`.
///
/// # Errors
/// As of [`conv2d_per_sample`].
pub fn conv2d(x: &Tensor, weight: &Tensor, config: &ConvConfig) -> Result<Tensor> {
    const CONVOLUTION: Operation = Operation("conv2d");
    let [_, channels, ..] = CONVOLUTION.dims::<4>("x", x, "[B, C, H, W]")?;
    let [out, per_group, kh, kw] = CONVOLUTION.dims("weight", weight, "[out, in / groups, kh, kw]")?;
    if (kh, kw) != config.kernel || per_group.checked_mul(config.groups) != Some(channels) {
        let expected =
            format!("[out, {channels} / {} groups, {}, {}]", config.groups, config.kernel.0, config.kernel.1);
        return Err(CONVOLUTION.wrong("weight", expected, format!("{:?}", weight.dims())));
    }
    if config.groups > 0 && out % config.groups != 0 {
        let expected = format!("[a multiple of {} groups, {per_group}, {kh}, {kw}]", config.groups);
        return Err(CONVOLUTION.wrong("weight", expected, format!("{:?}", weight.dims())));
    }
    convolve(CONVOLUTION, "weight", x, &weight.flatten_all()?.unsqueeze(0)?, config)
}

/// Transposed convolution: what gives [`conv2d`] its gradient, as an operation of its own.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `weight` `[Cin, Cout / groups, kh, kw]`; the result is `[B, Cout, H', W']` with
/// `H' = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1`.
///
/// # Errors
/// Where types, devices or shapes do not fit, or the result would have no pixel.
pub fn conv_transpose2d(x: &Tensor, weight: &Tensor, config: &ConvConfig, output_padding: usize) -> Result<Tensor> {
    const TRANSPOSED: Operation = Operation("conv_transpose2d");
    let [_, channels, height, width] = TRANSPOSED.dims("x", x, "[B, C, H, W]")?;
    let [in_channels, out_group, kh, kw] = TRANSPOSED.dims("weight", weight, "[in, out / groups, kh, kw]")?;
    TRANSPOSED.alike(&[("x", Some(x)), ("weight", Some(weight))])?;
    if in_channels != channels || (kh, kw) != config.kernel || config.groups == 0 || channels % config.groups != 0 {
        let expected =
            format!("[{channels}, out / {} groups, {}, {}]", config.groups, config.kernel.0, config.kernel.1);
        return Err(TRANSPOSED.wrong("weight", expected, format!("{:?}", weight.dims())));
    }
    let ConvConfig { stride, dilation, .. } = *config;
    if [stride.0, stride.1, dilation.0, dilation.1].contains(&0) {
        return Err(TRANSPOSED.wrong("config", "strides and dilations of at least 1", format!("{config:?}")));
    }
    let most = stride.0.max(dilation.0).min(stride.1.max(dilation.1)) - 1;
    if output_padding > most {
        let expected = format!("at most {most}, less than stride or dilation");
        return Err(TRANSPOSED.wrong("output_padding", expected, output_padding.to_string()));
    }
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        let reach = dilation.checked_mul(kernel.checked_sub(1)?)?;
        let full = size.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?.checked_add(output_padding)? + 1;
        full.checked_sub(padding.checked_mul(2)?).filter(|size| *size > 0)
    };
    let (Some(out_height), Some(out_width)) = (
        axis(height, kh, config.stride.0, config.padding.0, config.dilation.0),
        axis(width, kw, config.stride.1, config.padding.1, config.dilation.1),
    ) else {
        return Err(TRANSPOSED.wrong(
            "x",
            format!("a map of which {config:?} leaves a pixel"),
            format!("{height}x{width}"),
        ));
    };
    let turned = weight.reshape((config.groups, channels / config.groups, out_group, kh, kw))?;
    let turned = turned.flip(&[3, 4])?.transpose(1, 2)?.reshape((1, ()))?;
    Ok(reference::spread_convolution(x, &turned, config, (out_height, out_width), convolve_any)?)
}

/// `kernels` is `[B, values]` or `[1, values]`; `argument` is what the caller calls them.
pub(crate) fn convolve(
    operation: Operation,
    argument: &'static str,
    x: &Tensor,
    kernels: &Tensor,
    config: &ConvConfig,
) -> Result<Tensor> {
    operation.alike(&[("x", Some(x)), (argument, Some(kernels))])?;
    let (_, values) = kernels.dims2()?;
    let shape = shape(operation, argument, x.dims(), values, config)?;
    let dims = (shape.batch, shape.out_channels, shape.output.0, shape.output.1);
    if x.elem_count() == 0 || values == 0 {
        return Ok(Tensor::zeros(dims, x.dtype(), x.device())?);
    }
    Ok(convolve_any(x, kernels, config)?)
}

/// As [`convolve`], of shapes that fit.
fn convolve_any(x: &Tensor, kernels: &Tensor, config: &ConvConfig) -> candle_core::Result<Tensor> {
    if on_cpu(x) && x.elem_count() > 0 && kernels.elem_count() > 0 {
        return x.contiguous()?.apply_op2(&kernels.contiguous()?, Convolution { config: *config });
    }
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if crate::gpu::tensor::takes(x) && kernels.elem_count() > 0 {
        let shape = shape(Operation("convolution"), "kernels", x.dims(), kernels.dim(1)?, config)?;
        return crate::gpu::tensor::convolve(x, kernels, &shape);
    }
    reference::convolve(x, kernels, config)
}

/// The sizes of a convolution of `x` with `values` kernel values a sample, checked.
pub(crate) fn shape(
    operation: Operation,
    argument: &'static str,
    x: &[usize],
    values: usize,
    config: &ConvConfig,
) -> Result<ConvShape> {
    let &[batch, in_channels, height, width] = x else {
        return Err(operation.wrong("x", "[B, C, H, W]", format!("{x:?}")));
    };
    let ConvConfig { kernel, stride, padding, dilation, groups } = *config;
    if [kernel.0, kernel.1, stride.0, stride.1, dilation.0, dilation.1, groups].contains(&0) {
        let expected = "a kernel, strides, dilations and groups of at least 1";
        return Err(operation.wrong("config", expected, format!("{config:?}")));
    }
    if in_channels == 0 || in_channels % groups != 0 {
        let expected = format!("[B, channels in {groups} groups, H, W]");
        return Err(operation.wrong("x", expected, format!("{x:?}: {in_channels} channels do not divide")));
    }
    let taps = (in_channels / groups).checked_mul(kernel.0).and_then(|taps| taps.checked_mul(kernel.1));
    let row = taps.and_then(|taps| taps.checked_mul(groups));
    let (Some(taps), Some(row)) = (taps, row) else {
        return Err(operation.wrong("config", "a kernel that fits into memory", format!("{config:?}")));
    };
    if !values.is_multiple_of(row) {
        let expected = format!("of a multiple of {row} values a sample ({taps} taps, {groups} groups)");
        return Err(operation.wrong(argument, expected, format!("of {values}")));
    }
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        let window = dilation.checked_mul(kernel - 1)?.checked_add(1)?;
        Some(padding.checked_mul(2)?.checked_add(size)?.checked_sub(window)? / stride + 1)
    };
    let (Some(out_height), Some(out_width)) = (
        axis(height, kernel.0, stride.0, padding.0, dilation.0),
        axis(width, kernel.1, stride.1, padding.1, dilation.1),
    ) else {
        let expected =
            format!("a map that a window of {kernel:?} fits into, padding {padding:?}, dilation {dilation:?}");
        return Err(operation.wrong("x", expected, format!("of {height}x{width} pixels")));
    };
    let shape = ConvShape {
        batch,
        in_channels,
        out_channels: values / taps,
        input: (height, width),
        output: (out_height, out_width),
        config: *config,
    };
    let outputs = [shape.out_channels, out_height, out_width].iter().try_fold(batch, |all, n| all.checked_mul(*n));
    if outputs.is_none_or(|outputs| outputs > isize::MAX as usize / 16) {
        return Err(operation.wrong("config", "of a result that fits into memory", format!("{config:?}")));
    }
    if !countable(&shape) {
        let expected = "maps of fewer than 2^26 pixels, padding and a stride more each way included";
        let got = format!("of {height}x{width} pixels, padding {padding:?}, strides {stride:?}");
        return Err(operation.wrong("x", expected, got));
    }
    Ok(shape)
}

/// Whether a padded map has few enough pixels: kernels count the values of a chunk of up to 64 channels in 32 bits.
fn countable(shape: &ConvShape) -> bool {
    let config = &shape.config;
    let height = (shape.input.0 + 2 * config.padding.0).saturating_add(config.stride.0);
    let width = (shape.input.1 + 2 * config.padding.1).saturating_add(config.stride.1);
    height.checked_mul(width).is_some_and(|pixels| pixels < 1 << 26)
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
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (_, values) = k_layout.shape().dims2()?;
        let shape = shape(Operation(self.name()), "kernels", x_layout.dims(), values, &self.config)?;
        let (x, k) = (slice(x, x_layout)?, slice(k, k_layout)?);
        let dims = (shape.batch, shape.out_channels, shape.output.0, shape.output.1);
        let kernels = if k.len() == shape.kernel_len() { Kernels::Shared(k) } else { Kernels::PerSample(k) };
        let y = cpu::conv2d_new(x, &kernels, &Epilogue::default(), &shape);
        Ok((CpuStorage::F32(y), dims.into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        k: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = x.track_op().then(|| input_gradient(x, k, dy, &self.config)).transpose()?;
        let dk = k.track_op().then(|| kernel_gradient(x, k, dy, &self.config)).transpose()?;
        Ok((dx, dk))
    }
}

/// A contiguous tensor's values.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("convolution: expected contiguous tensors") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// Calls `f` with the values of contiguous tensors of f32 on the CPU.
pub(crate) fn with_values<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> T,
) -> candle_core::Result<T> {
    let stored = tensors.map(Tensor::storage_and_layout);
    let mut slices = [[].as_slice(); N];
    for (values, (storage, layout)) in slices.iter_mut().zip(&stored) {
        let Storage::Cpu(storage) = &**storage else { bail!("expected tensors on the CPU") };
        *values = slice(storage, layout)?;
    }
    Ok(f(slices))
}

/// The transposed convolution of the gradient, cut or filled to the input's size. Without a kernel, by matrix products.
fn input_gradient(x: &Tensor, kernels: &Tensor, dy: &Tensor, config: &ConvConfig) -> candle_core::Result<Tensor> {
    let (_, channels, height, width) = x.dims4()?;
    let shape = shape(Operation("convolution"), "kernels", x.dims(), kernels.dim(1)?, config)?;
    if on_cpu(dy) && dy.elem_count() > 0 {
        let dx = with_values([&dy.contiguous()?, &kernels.contiguous()?], |[dy, kernels]| {
            cpu::conv2d_input_gradient(dy, kernels, &shape)
        })?;
        return Tensor::from_vec(dx, x.dims(), x.device());
    }
    let (sets, groups) = (kernels.dim(0)?, config.groups);
    let (per_group, out_group) = (channels / groups, shape.out_channels / groups);
    let [kh, kw] = [config.kernel.0, config.kernel.1];
    let turned = kernels.reshape([sets, groups, out_group, per_group, kh, kw].as_slice())?;
    let turned = turned.flip(&[4, 5])?.transpose(2, 3)?.reshape((sets, ()))?;
    reference::spread_convolution(dy, &turned, config, (height, width), convolve_any)
}

/// The gradient times the input under each tap. Without a kernel, one matrix product a sample and group.
fn kernel_gradient(x: &Tensor, kernels: &Tensor, dy: &Tensor, config: &ConvConfig) -> candle_core::Result<Tensor> {
    let (batch, channels, ..) = x.dims4()?;
    if on_cpu(dy) && dy.elem_count() > 0 {
        let shape = shape(Operation("convolution"), "kernels", x.dims(), kernels.dim(1)?, config)?;
        let per_sample = kernels.dim(0)? == batch;
        let dk = with_values([&x.contiguous()?, &dy.contiguous()?], |[x, dy]| {
            cpu::conv2d_kernel_gradient(x, dy, per_sample, &shape)
        })?;
        return Tensor::from_vec(dk, kernels.dims(), kernels.device());
    }
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
