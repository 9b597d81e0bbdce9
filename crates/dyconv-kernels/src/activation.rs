//! Sigmoid and SiLU as operations of Candle: vectors and threads on the CPU, Candle's own elsewhere.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Shape, Tensor};

use crate::cpu::{self, Unary};
use crate::error::{Result, on_cpu};
use crate::op::slice;

/// `1 / (1 + exp(-x))`
///
/// # Errors
/// Where the device fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) { Ok(x.contiguous()?.apply_op1(Function(Unary::Sigmoid))?) } else { Ok(candle_nn::ops::sigmoid(x)?) }
}

/// `x / (1 + exp(-x))`
///
/// # Errors
/// Where the device fails.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if on_cpu(x) { Ok(x.contiguous()?.apply_op1(Function(Unary::Silu))?) } else { Ok(x.silu()?) }
}

struct Function(Unary);

impl CustomOp1 for Function {
    fn name(&self) -> &'static str {
        match self.0 {
            Unary::Sigmoid => "sigmoid",
            Unary::Silu => "silu",
        }
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len()];
        cpu::unary(self.0, x, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        match self.0 {
            // s (1 - s)
            Unary::Sigmoid => Ok(Some((dy * (y * (1.0 - y)?)?)?)),
            Unary::Silu => x.apply_op2_no_bwd(&dy.contiguous()?, &SiluBackward).map(Some),
        }
    }
}

struct SiluBackward;

impl CustomOp2 for SiluBackward {
    fn name(&self) -> &'static str {
        "silu-gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = slice(x, x_layout)?;
        let mut dx = vec![0.0; x.len()];
        cpu::silu_backward(x, slice(dy, dy_layout)?, &mut dx);
        Ok((CpuStorage::F32(dx), x_layout.shape().clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn values_and_gradients_agree_with_candle() {
        let values: Vec<f32> = (0..5 * 7 * 11).map(|i| (i as f32 * 0.7).sin() * 9.0).collect();
        let x = Tensor::from_vec(values, (5, 7, 11), &Device::Cpu).unwrap().transpose(0, 2).unwrap();
        type Candle = fn(&Tensor) -> candle_core::Result<Tensor>;
        type Pair = (fn(&Tensor) -> Result<Tensor>, Candle);
        let pairs: [Pair; 2] = [(sigmoid, candle_nn::ops::sigmoid), (silu, Tensor::silu)];
        for (ours, candles) in pairs {
            let run = |f: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>| {
                let variable = Var::from_tensor(&x.contiguous().unwrap()).unwrap();
                let y = f(variable.as_tensor()).unwrap();
                let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                [flat(&y), flat(gradients.get(&variable).unwrap()), flat(&f(&x).unwrap())].concat()
            };
            let ours = |x: &Tensor| Ok(ours(x)?);
            for (got, expected) in run(&ours).iter().zip(run(&candles)) {
                assert!((got - expected).abs() <= 2e-6 * (1.0 + expected.abs()), "{got} instead of {expected}");
            }
        }
    }
}
