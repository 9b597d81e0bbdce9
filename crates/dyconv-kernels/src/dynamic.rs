//! The whole of a dynamic convolution in one call.

use candle_core::{CpuStorage, CustomOp3, Layout, Shape, Storage, Tensor, bail};

use crate::cpu::{self, ConvShape, Kernels};
use crate::error::{Operation, Result, on_cpu};
use crate::op::{self, slice};
use crate::{ConvConfig, Routing, conv2d_per_sample, mix_experts, route, routing, scale_shift, silu};

/// How the experts come together.
#[derive(Debug, Clone, Copy)]
pub enum Mixing<'a> {
    /// There is one expert, the same for all samples: a static convolution.
    Single,
    /// By routing weights `[B, K]` that are there already.
    Weights(&'a Tensor),
    /// By routing weights from the input itself, as [`route`] computes them.
    Router {
        /// `[K, Cin]`
        weight: &'a Tensor,
        /// `[K]`
        bias: &'a Tensor,
        /// What turns logits into weights.
        routing: Routing,
    },
}

/// What happens to the sums: `y = activation(scale * (sum + bias) + shift)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One factor an output channel, `[Cout]`; 1 where there is none.
    pub scale: Option<&'a Tensor>,
    /// One summand an output channel, `[Cout]`; 0 where there is none.
    pub shift: Option<&'a Tensor>,
    /// `v / (1 + exp(-v))` at the end.
    pub silu: bool,
}

const DYNAMIC: Operation = Operation("dynamic_conv2d");

/// Dynamic convolution: each sample with its own mixture of the experts' kernels, and of their biases where there are any.
///
/// On the CPU the kernels are mixed straight into the layout that the convolution reads, and the epilogue is applied to sums
/// that are still in the nearest cache. Where a gradient is wanted, the steps run one by one.
///
/// # Shapes
/// `x` is `[B, Cin, H, W]`, `experts` `[K, ...]` with `Cout * (Cin / groups) * kh * kw` values each, `bias` `[K, Cout]`; the
/// result is `[B, Cout, H', W']` as of [`conv2d_per_sample`].
///
/// # Errors
/// Where types, devices or shapes do not fit, or the window does not fit into the padded map.
pub fn dynamic_conv2d(
    x: &Tensor,
    mixing: Mixing<'_>,
    experts: &Tensor,
    bias: Option<&Tensor>,
    epilogue: &Epilogue<'_>,
    config: &ConvConfig,
) -> Result<Tensor> {
    let [batch, ..] = DYNAMIC.dims::<4>("x", x, "[B, C, H, W]")?;
    let (count, values) = match *experts.dims() {
        [count, ref rest @ ..] if !rest.is_empty() => (count, rest.iter().product::<usize>()),
        ref dims => return Err(DYNAMIC.wrong("experts", "[K, values]", format!("{dims:?}"))),
    };
    let shape = op::shape(DYNAMIC, "experts", x.dims(), values, config)?;
    let plain = |t: &Tensor| on_cpu(t) && t.elem_count() > 0 && !t.track_op();
    let epilogue_parts = [bias, epilogue.scale, epilogue.shift].into_iter().flatten();
    let router = match mixing {
        // The kernels do the routing, too. Mixed biases would need its result.
        Mixing::Router { weight, bias: router_bias, routing }
            if bias.is_none()
                && weight.dims() == [count, shape.in_channels]
                && [x, weight, router_bias, experts].into_iter().chain(epilogue_parts).all(plain) =>
        {
            routing::check(x, weight, router_bias, routing)?;
            Some(Router { weight: weight.contiguous()?, bias: router_bias.contiguous()?, routing })
        }
        _ => None,
    };
    let routing = match mixing {
        _ if router.is_some() => None,
        Mixing::Single if count == 1 => None,
        Mixing::Single => return Err(DYNAMIC.wrong("experts", "one where nothing mixes them", count.to_string())),
        Mixing::Weights(weights) => Some(weights.clone()),
        Mixing::Router { weight, bias, routing } => Some(route(x, weight, bias, routing)?),
    };
    if let Some(routing) = &routing {
        DYNAMIC.shape("mixing", routing, &[batch, count], "[B of `x`, K of `experts`]")?;
    }
    if let Some(bias) = bias {
        DYNAMIC.shape("bias", bias, &[count, shape.out_channels], "[K of `experts`, output channels]")?;
    }
    for (name, tensor) in [("scale", epilogue.scale), ("shift", epilogue.shift)] {
        if let Some(tensor) = tensor {
            DYNAMIC.shape(name, tensor, &[shape.out_channels], "[output channels]")?;
        }
    }
    DYNAMIC.alike(&[
        ("x", Some(x)),
        ("mixing", routing.as_ref()),
        ("experts", Some(experts)),
        ("bias", bias),
        ("scale", epilogue.scale),
        ("shift", epilogue.shift),
    ])?;
    let operands = [Some(x), routing.as_ref(), Some(experts), bias, epilogue.scale, epilogue.shift];
    let tracked = operands.into_iter().flatten().any(Tensor::track_op);
    let experts = experts.flatten_from(1)?;
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if !tracked && crate::gpu::tensor::takes(x) && x.elem_count() > 0 && count * values > 0 {
        return on_gpu(x, routing.as_ref(), &experts, bias, epilogue, &shape);
    }
    if tracked || !on_cpu(x) || x.elem_count() == 0 || count * values == 0 {
        return steps(x, routing.as_ref(), &experts, bias, epilogue, config);
    }
    let shift = shift(routing.as_ref(), bias, epilogue)?;
    let fused = Fused {
        shape,
        scale: epilogue.scale.map(Tensor::contiguous).transpose()?,
        shift: shift.map(|shift| shift.contiguous()).transpose()?,
        silu: epilogue.silu,
        mixed: routing.is_some(),
        router,
    };
    let experts = experts.contiguous()?;
    // Without routing the operation has a place to fill; it reads nothing there.
    let routing = routing.as_ref().map_or_else(|| Ok(experts.clone()), Tensor::contiguous)?;
    Ok(x.contiguous()?.apply_op3_no_bwd(&routing, &experts, &fused)?)
}

/// One after the other: differentiable, and on any device.
fn steps(
    x: &Tensor,
    routing: Option<&Tensor>,
    experts: &Tensor,
    bias: Option<&Tensor>,
    epilogue: &Epilogue<'_>,
    config: &ConvConfig,
) -> Result<Tensor> {
    let mut y = match routing {
        Some(routing) => conv2d_per_sample(x, &mix_experts(routing, experts)?, config)?,
        None => op::convolve(DYNAMIC, "experts", x, experts, config)?,
    };
    if let Some(bias) = bias {
        let bias = routing.map_or_else(|| Ok(bias.clone()), |routing| mix_experts(routing, bias))?;
        #[cfg(any(feature = "cuda", feature = "metal"))]
        if crate::gpu::tensor::takes(x) && y.elem_count() > 0 {
            return after_bias(crate::gpu::tensor::add_bias(&y, &bias)?, epilogue);
        }
        y = y.broadcast_add(&bias.unsqueeze(2)?.unsqueeze(3)?)?;
    }
    after_bias(y, epilogue)
}

/// Scale, shift and activation.
fn after_bias(mut y: Tensor, epilogue: &Epilogue<'_>) -> Result<Tensor> {
    let channels = y.dim(1)?;
    let (dtype, device) = (y.dtype(), y.device().clone());
    let constant = |value: f64| -> Result<Tensor> { Ok((Tensor::zeros(channels, dtype, &device)? + value)?) };
    if epilogue.scale.is_some() || epilogue.shift.is_some() {
        let scale = epilogue.scale.map_or_else(|| constant(1.0), |scale| Ok(scale.clone()))?;
        let shift = epilogue.shift.map_or_else(|| constant(0.0), |shift| Ok(shift.clone()))?;
        y = scale_shift(&y, &scale, &shift)?;
    }
    if epilogue.silu { silu(&y) } else { Ok(y) }
}

/// Mixing, then convolution and epilogue in one launch.
#[cfg(any(feature = "cuda", feature = "metal"))]
fn on_gpu(
    x: &Tensor,
    routing: Option<&Tensor>,
    experts: &Tensor,
    bias: Option<&Tensor>,
    epilogue: &Epilogue<'_>,
    shape: &ConvShape,
) -> Result<Tensor> {
    let mixed = |experts: &Tensor| match routing {
        Some(routing) => mix_experts(routing, experts),
        None => Ok(experts.clone()),
    };
    let tail = crate::gpu::tensor::Fused {
        bias: bias.map(|bias| Ok::<_, crate::Error>(mixed(bias)?.contiguous()?)).transpose()?,
        scale: epilogue.scale.map(Tensor::contiguous).transpose()?,
        shift: epilogue.shift.map(Tensor::contiguous).transpose()?,
        silu: epilogue.silu,
    };
    Ok(crate::gpu::tensor::convolve_fused(x, &mixed(experts)?, shape, tail)?)
}

/// What is added to the scaled sums: `[B, Cout]` or `[Cout]` values.
fn shift(routing: Option<&Tensor>, bias: Option<&Tensor>, epilogue: &Epilogue<'_>) -> Result<Option<Tensor>> {
    let Some(bias) = bias else { return Ok(epilogue.shift.cloned()) };
    let mut shift = routing.map_or_else(|| Ok(bias.clone()), |routing| mix_experts(routing, bias))?;
    if let Some(scale) = epilogue.scale {
        shift = shift.broadcast_mul(scale)?;
    }
    if let Some(own) = epilogue.shift {
        shift = shift.broadcast_add(own)?;
    }
    Ok(Some(shift))
}

/// Mixing, convolution and epilogue, without a gradient. Operands are `x`, the routing weights and the experts.
struct Fused {
    shape: ConvShape,
    scale: Option<Tensor>,
    shift: Option<Tensor>,
    silu: bool,
    mixed: bool,
    router: Option<Router>,
}

/// What gives the routing weights.
struct Router {
    weight: Tensor,
    bias: Tensor,
    routing: Routing,
}

impl CustomOp3 for Fused {
    fn name(&self) -> &'static str {
        "dynamic-conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        routing: &CpuStorage,
        routing_layout: &Layout,
        experts: &CpuStorage,
        experts_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = &self.shape;
        let experts = slice(experts, experts_layout)?;
        let x = slice(x, x_layout)?;
        let y = values(self.scale.as_ref(), |scale| {
            values(self.shift.as_ref(), |shift| {
                let epilogue = cpu::Epilogue { scale, shift, silu: self.silu };
                let run = |kernels: &Kernels<'_>| cpu::conv2d_new(x, kernels, &epilogue, shape);
                match &self.router {
                    Some(Router { weight, bias, routing }) => values(Some(weight), |weight| {
                        values(Some(bias), |bias| {
                            let router = cpu::Router { weight, bias, routing: *routing };
                            Ok(run(&Kernels::Routed { router, experts }))
                        })
                    }),
                    None if self.mixed => {
                        Ok(run(&Kernels::Mixed { weights: slice(routing, routing_layout)?, experts }))
                    }
                    None => Ok(run(&Kernels::Shared(experts))),
                }
            })
        })?;
        let dims = (shape.batch, shape.out_channels, shape.output.0, shape.output.1);
        Ok((CpuStorage::F32(y), dims.into()))
    }
}

/// Calls `f` with the values of a contiguous tensor on the CPU, none where there is none.
fn values<T>(tensor: Option<&Tensor>, f: impl FnOnce(&[f32]) -> candle_core::Result<T>) -> candle_core::Result<T> {
    let Some(tensor) = tensor else { return f(&[]) };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("dynamic_conv2d: the epilogue is not on the CPU") };
    f(slice(storage, layout)?)
}

#[cfg(test)]
mod tests;
