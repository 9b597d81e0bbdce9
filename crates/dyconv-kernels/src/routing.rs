//! Routing: what tells each sample how much of which expert it gets.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Shape, Tensor, bail};
use candle_nn::ops::{sigmoid, softmax};

use crate::error::{Operation, Result, on_cpu};
use crate::op::slice;
use crate::{Routing, cpu, reference};

impl Routing {
    /// Weights from logits `[B, K]`.
    ///
    /// # Errors
    /// Where the logits have another rank or no floating type, the temperature is not positive and finite, or the device fails.
    pub fn activate(self, logits: &Tensor) -> Result<Tensor> {
        const ACTIVATE: Operation = Operation("activate");
        self.check()?;
        ACTIVATE.dims::<2>("logits", logits, "[B, K]")?;
        ACTIVATE.alike(&[("logits", Some(logits))])?;
        if logits.elem_count() == 0 {
            // There is no largest of none.
            return Ok(logits.clone());
        }
        match self {
            Self::Sigmoid => Ok(sigmoid(logits)?),
            Self::Softmax { temperature } => {
                // Without the largest first, huge logits over a low temperature would overflow.
                let largest = logits.detach().max_keepdim(D::Minus1)?;
                // At that temperature it is a choice of one; the reciprocal of a lower one would overflow in f16.
                Ok(softmax(&(logits.broadcast_sub(&largest)? / temperature.max(2e-5))?, D::Minus1)?)
            }
        }
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Softmax { temperature } if !(temperature > 0.0 && temperature.is_finite()) => {
                Err(Operation("route").wrong("temperature", "positive and finite", temperature.to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// Routing weights of each sample: global average pool, linear layer, activation.
///
/// # Shapes
/// `x` is `[B, C, H, W]` with at least one pixel, `weight` `[K, C]`, `bias` `[K]`; the result is `[B, K]`.
///
/// # Errors
/// Where types, devices or shapes do not fit, or the temperature is not positive and finite.
pub fn route(x: &Tensor, weight: &Tensor, bias: &Tensor, routing: Routing) -> Result<Tensor> {
    let [batch, channels] = check(x, weight, bias, routing)?;
    if on_cpu(x) && batch > 0 && channels > 0 {
        return Ok(x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Route { routing })?);
    }
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if crate::gpu::tensor::takes(x) {
        return Ok(crate::gpu::tensor::route(x, weight, bias, routing)?);
    }
    Ok(reference::route(x, weight, bias, routing)?)
}

/// Samples and channels, where the operands of [`route`] fit.
pub(crate) fn check(x: &Tensor, weight: &Tensor, bias: &Tensor, routing: Routing) -> Result<[usize; 2]> {
    const ROUTE: Operation = Operation("route");
    let [batch, channels, height, width] = ROUTE.dims("x", x, "[B, C, H, W]")?;
    let [experts, _] = ROUTE.dims("weight", weight, "[K, C]")?;
    ROUTE.shape("weight", weight, &[experts, channels], "[K, C of `x`]")?;
    ROUTE.shape("bias", bias, &[experts], "[K of `weight`]")?;
    ROUTE.alike(&[("x", Some(x)), ("weight", Some(weight)), ("bias", Some(bias))])?;
    routing.check()?;
    if height == 0 || width == 0 || experts == 0 {
        let got = format!("{:?} with {experts} experts", x.dims());
        return Err(ROUTE.wrong("x", "a map of at least one pixel, for at least one expert", got));
    }
    Ok([batch, channels])
}

struct Route {
    routing: Routing,
}

impl CustomOp3 for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, ..) = x_layout.shape().dims4()?;
        let (x, weight, bias) = (slice(x, x_layout)?, slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let mut r = vec![0.0; batch * bias.len()];
        cpu::route(x, weight, bias, self.routing, &mut r, channels);
        Ok((CpuStorage::F32(r), (batch, bias.len()).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        r: &Tensor,
        dr: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [_, _, height, width] = *x.dims() else { bail!("route: the gradient needs a map") };
        let logits = match self.routing {
            Routing::Sigmoid => ((dr * r)? * (1.0 - r)?)?,
            Routing::Softmax { temperature } => {
                let mean = (dr * r)?.sum_keepdim(1)?;
                ((dr.broadcast_sub(&mean)? * r)? / temperature.max(2e-5))?
            }
        };
        let dx = || {
            let pooled = (logits.matmul(weight)? / (height * width) as f64)?;
            pooled.unsqueeze(2)?.unsqueeze(3)?.broadcast_as(x.dims())?.contiguous()
        };
        Ok((
            x.track_op().then(dx).transpose()?,
            weight.track_op().then(|| logits.t()?.matmul(&x.mean((2, 3))?)).transpose()?,
            bias.track_op().then(|| logits.sum(0)).transpose()?,
        ))
    }
}
