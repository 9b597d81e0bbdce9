//! Mixtures of experts: a product of two matrices, of which one is very wide.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor};

use crate::cpu;
use crate::error::{Operation, Result, on_cpu};
use crate::op::slice;

/// Each sample's mixture of the experts: `sum_k r[b, k] * experts[k]`.
///
/// # Shapes
/// `r` is `[B, K]`, `experts` `[K, P]`; the result is `[B, P]`.
///
/// # Errors
/// Where types, devices or shapes do not fit.
pub fn mix_experts(r: &Tensor, experts: &Tensor) -> Result<Tensor> {
    const MIX: Operation = Operation("mix_experts");
    let [batch, count] = MIX.dims("r", r, "[B, K]")?;
    let [_, values] = MIX.dims("experts", experts, "[K, P]")?;
    MIX.shape("experts", experts, &[count, values], "[K of `r`, P]")?;
    MIX.alike(&[("r", Some(r)), ("experts", Some(experts))])?;
    if [batch, count, values].contains(&0) {
        return Ok(Tensor::zeros((batch, values), r.dtype(), r.device())?);
    }
    if on_cpu(r) {
        return Ok(r.contiguous()?.apply_op2(&experts.contiguous()?, Mix)?);
    }
    #[cfg(any(feature = "cuda", feature = "metal"))]
    if crate::gpu::tensor::takes(r) {
        return Ok(crate::gpu::tensor::mix_experts(r, experts)?);
    }
    Ok(r.matmul(experts)?)
}

struct Mix;

impl CustomOp2 for Mix {
    fn name(&self) -> &'static str {
        "mix-experts"
    }

    fn cpu_fwd(
        &self,
        r: &CpuStorage,
        r_layout: &Layout,
        experts: &CpuStorage,
        experts_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, _) = r_layout.shape().dims2()?;
        let (_, values) = experts_layout.shape().dims2()?;
        let mut mixed = vec![0.0; batch * values];
        cpu::mix_experts(slice(r, r_layout)?, slice(experts, experts_layout)?, &mut mixed, values);
        Ok((CpuStorage::F32(mixed), (batch, values).into()))
    }

    fn bwd(
        &self,
        r: &Tensor,
        experts: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let dr = r.track_op().then(|| dy.matmul(&experts.t()?)).transpose()?;
        let experts = experts.track_op().then(|| r.t()?.matmul(dy)).transpose()?;
        Ok((dr, experts))
    }
}
