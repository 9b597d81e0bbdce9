//! The operations on tensors that lie on a GPU, with their gradients.
//!
//! An operation is a [`Compute`]: what to call on storages of whichever back end holds its operands. Shapes and types are
//! checked by the callers.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Storage, Tensor, bail,
};

use super::glue::{self, Backend, Operand, Terms};
use crate::Routing;
use crate::cpu::ConvShape;

/// Whether the kernels take a tensor.
pub(crate) fn takes(x: &Tensor) -> bool {
    !matches!(x.device(), Device::Cpu) && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// A kind of GPU.
trait Family {
    type Storage;
    type On<'a>: Backend<'a, Storage = Self::Storage>;

    /// The storage of a tensor, where it is of this kind.
    fn storage(storage: &Storage) -> Option<&Self::Storage>;
}

#[cfg(feature = "cuda")]
struct Cuda;

#[cfg(feature = "cuda")]
impl Family for Cuda {
    type Storage = candle_core::CudaStorage;
    type On<'a> = crate::cuda::Cuda<'a>;

    fn storage(storage: &Storage) -> Option<&Self::Storage> {
        match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        }
    }
}

#[cfg(feature = "metal")]
struct Metal;

#[cfg(feature = "metal")]
impl Family for Metal {
    type Storage = candle_core::MetalStorage;
    type On<'a> = crate::metal::Metal<'a>;

    fn storage(storage: &Storage) -> Option<&Self::Storage> {
        match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        }
    }
}

/// An operation of up to three contiguous operands.
trait Compute: Send + Sync + 'static {
    const NAME: &'static str;

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)>;

    /// Gradients of the operands that want one.
    fn gradients(&self, _operands: &[&Tensor], _result: &Tensor, _grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        bail!("{} has no gradient", Self::NAME)
    }
}

/// A [`Compute`] as an operation of Candle.
struct OnGpu<C>(C);

impl<C: Compute> OnGpu<C> {
    fn no_cpu<T>(&self) -> Result<T> {
        bail!("{} on the GPU got a tensor on the CPU", C::NAME)
    }
}

macro_rules! custom_op {
    ($trait:ident, $gradients:ty, $($storage:ident $layout:ident $tensor:ident),+) => {
        impl<C: Compute> $trait for OnGpu<C> {
            fn name(&self) -> &'static str {
                C::NAME
            }

            fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),+) -> Result<(CpuStorage, Shape)> {
                let _ = ($($storage, $layout),+);
                self.no_cpu()
            }

            #[cfg(feature = "cuda")]
            fn cuda_fwd(
                &self,
                $($storage: &candle_core::CudaStorage, $layout: &Layout),+
            ) -> Result<(candle_core::CudaStorage, Shape)> {
                self.0.run::<Cuda>(&[$(($storage, $layout)),+])
            }

            #[cfg(feature = "metal")]
            fn metal_fwd(
                &self,
                $($storage: &candle_core::MetalStorage, $layout: &Layout),+
            ) -> Result<(candle_core::MetalStorage, Shape)> {
                self.0.run::<Metal>(&[$(($storage, $layout)),+])
            }

            fn bwd(&self, $($tensor: &Tensor),+, result: &Tensor, grad: &Tensor) -> Result<$gradients> {
                let mut gradients = self.0.gradients(&[$($tensor),+], result, &grad.contiguous()?)?.into_iter();
                Ok(($({
                    let _ = $tensor;
                    gradients.next().flatten()
                }),+))
            }
        }
    };
}

custom_op!(CustomOp1, Option<Tensor>, s1 l1 t1);
custom_op!(CustomOp2, (Option<Tensor>, Option<Tensor>), s1 l1 t1, s2 l2 t2);
custom_op!(CustomOp3, (Option<Tensor>, Option<Tensor>, Option<Tensor>), s1 l1 t1, s2 l2 t2, s3 l3 t3);

fn arity<T>(name: &str, operands: usize) -> Result<T> {
    bail!("{name}: {operands} operands")
}

/// Destructures operands, or fails.
macro_rules! operands {
    ($operands:expr, $($name:ident),+) => {
        let &[$($name),+] = $operands else { return arity(Self::NAME, $operands.len()) };
    };
}

/// Convolution of `x` `[B, Cin, H, W]` with `kernels` of each sample `[B, P]` or of all `[1, P]`.
pub(crate) fn convolve(x: &Tensor, kernels: &Tensor, shape: &ConvShape) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&kernels.contiguous()?, OnGpu(Convolution { shape: *shape }))
}

struct Convolution {
    shape: ConvShape,
}

impl Compute for Convolution {
    const NAME: &'static str = "conv2d-per-sample";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, x, kernels);
        let terms = Terms { bias: None, scale: None, shift: None, silu: false };
        Ok((glue::convolution::<F::On<'_>>(&self.shape, x, kernels, &terms)?, output(&self.shape)))
    }

    fn gradients(&self, operands: &[&Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        operands!(operands, x, kernels);
        let shape = self.shape;
        let dx = || dy.apply_op2_no_bwd(kernels, &OnGpu(ConvGradInput { shape }));
        let dk = || dy.apply_op2_no_bwd(x, &OnGpu(ConvGradKernels { shape, sets: kernels.dim(0)? }));
        Ok(vec![x.track_op().then(dx).transpose()?, kernels.track_op().then(dk).transpose()?])
    }
}

fn output(shape: &ConvShape) -> Shape {
    (shape.batch, shape.out_channels, shape.output.0, shape.output.1).into()
}

struct ConvGradInput {
    shape: ConvShape,
}

impl Compute for ConvGradInput {
    const NAME: &'static str = "conv-grad-input";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, dy, kernels);
        let s = &self.shape;
        let dims = (s.batch, s.in_channels, s.input.0, s.input.1);
        Ok((glue::conv_grad_input::<F::On<'_>>(s, dy, kernels)?, dims.into()))
    }
}

struct ConvGradKernels {
    shape: ConvShape,
    sets: usize,
}

impl Compute for ConvGradKernels {
    const NAME: &'static str = "conv-grad-kernels";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, dy, x);
        let dk = glue::conv_grad_kernels::<F::On<'_>>(&self.shape, self.sets > 1, dy, x)?;
        Ok((dk, (self.sets, self.shape.kernel_len()).into()))
    }
}

/// Convolution with a bias `[Cout]` or `[B, Cout]`, scale and shift `[Cout]` and SiLU in the same launch; without a gradient.
pub(crate) fn convolve_fused(x: &Tensor, kernels: &Tensor, shape: &ConvShape, tail: Fused) -> Result<Tensor> {
    x.contiguous()?.apply_op2_no_bwd(&kernels.contiguous()?, &OnGpu(FusedConvolution { shape: *shape, tail }))
}

/// What follows a convolution, contiguous and on its device, each part where it is there.
#[derive(Default)]
pub(crate) struct Fused {
    pub(crate) bias: Option<Tensor>,
    pub(crate) scale: Option<Tensor>,
    pub(crate) shift: Option<Tensor>,
    pub(crate) silu: bool,
}

struct FusedConvolution {
    shape: ConvShape,
    tail: Fused,
}

impl Compute for FusedConvolution {
    const NAME: &'static str = "dynamic-conv2d";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, x, kernels);
        let Fused { bias, scale, shift, silu } = &self.tail;
        let held = [bias, scale, shift].map(|tensor| tensor.as_ref().map(Tensor::storage_and_layout));
        let [bias, scale, shift] = held.each_ref().map(|held| {
            let held = held.as_ref().map(|(storage, layout)| (F::storage(storage), *layout));
            held.map(|(storage, layout)| storage.map(|storage| (storage, layout))).map_or(Ok(None), |operand| {
                match operand {
                    Some(operand) => Ok(Some(operand)),
                    None => bail!("{}: the epilogue is on another device", Self::NAME),
                }
            })
        });
        let terms = Terms { bias: bias?, scale: scale?, shift: shift?, silu: *silu };
        Ok((glue::convolution::<F::On<'_>>(&self.shape, x, kernels, &terms)?, output(&self.shape)))
    }
}

/// `y` `[B, C, H, W]` and a bias `[B, C]` or `[C]`.
pub(crate) fn add_bias(y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (batch, out_channels, height, width) = y.dims4()?;
    let config = crate::ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
    let map = (height, width);
    let shape = ConvShape { batch, in_channels: out_channels, out_channels, input: map, output: map, config };
    y.contiguous()?.apply_op2(&bias.contiguous()?, OnGpu(AddBias { shape }))
}

struct AddBias {
    shape: ConvShape,
}

impl Compute for AddBias {
    const NAME: &'static str = "add-bias";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, y, bias);
        let terms = Terms { bias: Some(bias), scale: None, shift: None, silu: false };
        Ok((glue::epilogue::<F::On<'_>>(&self.shape, y, &terms)?, output(&self.shape)))
    }

    fn gradients(&self, operands: &[&Tensor], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        operands!(operands, y, bias);
        let grad = BiasGrad { shape: self.shape, dims: bias.dims().to_vec() };
        let db = bias.track_op().then(|| dy.apply_op1_no_bwd(&OnGpu(grad))).transpose()?;
        Ok(vec![y.track_op().then(|| dy.clone()), db])
    }
}

struct BiasGrad {
    shape: ConvShape,
    dims: Vec<usize>,
}

impl Compute for BiasGrad {
    const NAME: &'static str = "bias-grad";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, dy);
        let per_sample = self.dims.iter().product::<usize>() != self.shape.out_channels;
        let db = glue::bias_grad::<F::On<'_>>(&self.shape, per_sample, dy)?;
        Ok((db, self.dims.as_slice().into()))
    }
}

/// Mixtures `[B, P]` of experts `[K, P]` by weights `[B, K]`.
pub(crate) fn mix_experts(r: &Tensor, experts: &Tensor) -> Result<Tensor> {
    r.contiguous()?.apply_op2(&experts.contiguous()?, OnGpu(Mix))
}

struct Mix;

impl Compute for Mix {
    const NAME: &'static str = "mix-experts";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, r, experts);
        let shape = (r.1.shape().dim(0)?, experts.1.shape().dim(1)?);
        Ok((glue::mix_experts::<F::On<'_>>(r, experts)?, shape.into()))
    }

    fn gradients(&self, operands: &[&Tensor], _: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        operands!(operands, r, experts);
        let dr = || grad.apply_op2_no_bwd(experts, &OnGpu(MixGradRouting));
        let de = || r.apply_op2_no_bwd(grad, &OnGpu(MixGradExperts));
        Ok(vec![r.track_op().then(dr).transpose()?, experts.track_op().then(de).transpose()?])
    }
}

struct MixGradRouting;

impl Compute for MixGradRouting {
    const NAME: &'static str = "mix-grad-routing";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, grad, experts);
        let shape = (grad.1.shape().dim(0)?, experts.1.shape().dim(0)?);
        Ok((glue::mix_grad_routing::<F::On<'_>>(grad, experts)?, shape.into()))
    }
}

struct MixGradExperts;

impl Compute for MixGradExperts {
    const NAME: &'static str = "mix-grad-experts";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, r, grad);
        let shape = (r.1.shape().dim(1)?, grad.1.shape().dim(1)?);
        Ok((glue::mix_grad_experts::<F::On<'_>>(r, grad)?, shape.into()))
    }
}

/// Routing weights `[B, K]` of maps `x` `[B, C, H, W]` by a linear layer `weight` `[K, C]`, `bias` `[K]`.
pub(crate) fn route(x: &Tensor, weight: &Tensor, bias: &Tensor, routing: Routing) -> Result<Tensor> {
    x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, OnGpu(Route { routing }))
}

struct Route {
    routing: Routing,
}

impl Compute for Route {
    const NAME: &'static str = "route";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, x, weight, bias);
        let shape = (x.1.shape().dim(0)?, weight.1.shape().dim(0)?);
        Ok((glue::route::<F::On<'_>>(self.routing, x, weight, bias)?, shape.into()))
    }

    fn gradients(&self, operands: &[&Tensor], r: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        operands!(operands, x, weight, bias);
        let logits = r.apply_op2_no_bwd(grad, &OnGpu(RouteGradLogits { routing: self.routing }))?;
        let dx = || logits.apply_op2_no_bwd(weight, &OnGpu(RouteGradInput { dims: x.dims().to_vec() }));
        let dw = || logits.apply_op2_no_bwd(x, &OnGpu(RouteGradWeight));
        let db = || logits.apply_op1_no_bwd(&OnGpu(RouteGradBias { dtype: bias.dtype() }));
        Ok(vec![
            x.track_op().then(dx).transpose()?,
            weight.track_op().then(dw).transpose()?,
            bias.track_op().then(db).transpose()?,
        ])
    }
}

struct RouteGradLogits {
    routing: Routing,
}

impl Compute for RouteGradLogits {
    const NAME: &'static str = "route-grad-logits";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, r, grad);
        Ok((glue::route_grad_logits::<F::On<'_>>(self.routing, r, grad)?, r.1.shape().clone()))
    }
}

struct RouteGradInput {
    dims: Vec<usize>,
}

impl Compute for RouteGradInput {
    const NAME: &'static str = "route-grad-input";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, logits, weight);
        let dx = glue::route_grad_input::<F::On<'_>>(&self.dims, logits, weight)?;
        Ok((dx, self.dims.as_slice().into()))
    }
}

struct RouteGradWeight;

impl Compute for RouteGradWeight {
    const NAME: &'static str = "route-grad-weight";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, logits, x);
        let shape = (logits.1.shape().dim(1)?, x.1.shape().dim(1)?);
        Ok((glue::route_grad_weight::<F::On<'_>>(logits, x)?, shape.into()))
    }
}

struct RouteGradBias {
    dtype: DType,
}

impl Compute for RouteGradBias {
    const NAME: &'static str = "route-grad-bias";

    fn run<F: Family>(&self, operands: &[Operand<'_, F::Storage>]) -> Result<(F::Storage, Shape)> {
        operands!(operands, logits);
        let shape = logits.1.shape().dim(1)?;
        Ok((glue::route_grad_bias::<F::On<'_>>(self.dtype, logits)?, shape.into()))
    }
}
