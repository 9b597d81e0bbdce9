//! Kernels on slices of f32, for the CPU that runs them; no tensors here.
//!
//! One algorithm a file, generic over the instruction set; the sets are thin files beside it. The set is found at
//! run time; the environment variable `DYCONV_ISA` (`avx512`, `avx2`, `neon`, `scalar`) forces one that the CPU has;
//! `avx512` leaves out tiles (AMX) then.

mod activation;
mod amx;
mod batch_norm;
mod channels;
pub mod channels_last;
#[cfg(test)]
mod conformance;
mod conv;
mod depthwise;
#[cfg(test)]
mod gradient_tests;
mod helpers;
mod input_gradient;
mod isa;
mod kernel_gradient;
mod mix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod own;
mod pack;
mod phases;
mod planes;
mod pool;
mod route;
mod scalar;
mod shared;
mod strided;
#[cfg(test)]
mod tests;
mod tile;
mod upsample;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::thread::LocalKey;

use crate::ConvConfig;

pub use batch_norm::{NormShape, Statistics, batch_norm_backward, batch_norm_training};
pub use channels::{add_to_planes, cut_channels, join_channels, plane_sums, scale_shift};
use channels_last::planar;
pub use input_gradient::conv2d_input_gradient;
pub use isa::IsaName;
pub use kernel_gradient::conv2d_kernel_gradient;
pub use pool::{PoolShape, max_pool2d, max_pool2d_backward};
pub use upsample::{upsample_nearest2d, upsample_nearest2d_backward};

/// Sizes of one convolution of maps `[batch, in_channels, height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Samples.
    pub batch: usize,
    /// Channels read.
    pub in_channels: usize,
    /// Channels written.
    pub out_channels: usize,
    /// Height and width of the input.
    pub input: (usize, usize),
    /// Height and width of the output.
    pub output: (usize, usize),
    /// Kernel, stride, padding, dilation, groups.
    pub config: ConvConfig,
}

impl ConvShape {
    /// Checks that nothing of it is zero that must not be, and that its groups divide its channels.
    fn check(&self) {
        let ConvConfig { kernel, stride, dilation, groups, .. } = self.config;
        assert!(
            ![kernel.0, kernel.1, stride.0, stride.1, dilation.0, dilation.1, groups, self.in_channels].contains(&0)
        );
        assert!(self.in_channels.is_multiple_of(groups) && self.out_channels.is_multiple_of(groups));
    }

    /// Values of one sample's kernels.
    pub fn kernel_len(&self) -> usize {
        self.out_channels * self.taps()
    }

    /// Inputs that one output depends on.
    pub(crate) fn taps(&self) -> usize {
        self.in_channels / self.config.groups * self.config.kernel.0 * self.config.kernel.1
    }

    fn depthwise(&self) -> bool {
        self.config.groups == self.in_channels && self.out_channels == self.in_channels
    }
}

/// The instruction sets that this CPU has kernels for, the widest first.
pub fn available() -> Vec<IsaName> {
    IsaName::ALL.into_iter().filter(|name| with(*name, Probe).is_some()).collect()
}

/// The instruction set in use.
pub fn chosen() -> IsaName {
    static CHOSEN: OnceLock<IsaName> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let available = available();
        let wanted = std::env::var("DYCONV_ISA").unwrap_or_default();
        let forced = available.iter().find(|name| name.name() == wanted);
        forced.or(available.first()).copied().unwrap_or(IsaName::Scalar)
    })
}

/// Where the kernels of a convolution come from.
#[derive(Debug, Clone, Copy)]
pub enum Kernels<'a> {
    /// The same for all samples: [`ConvShape::kernel_len`] values.
    Shared(&'a [f32]),
    /// Each sample's own, one after the other.
    PerSample(&'a [f32]),
    /// Mixed for each sample from experts.
    Mixed {
        /// `[batch, K]`
        weights: &'a [f32],
        /// `[K, kernel_len]`
        experts: &'a [f32],
    },
    /// Mixed for each sample from experts by the router's weights, which depend on the sample.
    Routed {
        /// Gives `[batch, K]`.
        router: Router<'a>,
        /// `[K, kernel_len]`
        experts: &'a [f32],
    },
}

/// What gives a sample's routing weights: `activation(weight * average(x) + bias)`.
#[derive(Debug, Clone, Copy)]
pub struct Router<'a> {
    /// `[K, in_channels]`
    pub weight: &'a [f32],
    /// `[K]`
    pub bias: &'a [f32],
    /// What turns logits into weights.
    pub routing: crate::Routing,
}

/// What happens to a convolution's sums before they are written: `y = activation(scale * sum + shift)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// One factor an output channel, or empty for 1.
    pub scale: &'a [f32],
    /// One summand an output channel, the same for all samples or for each its own, or empty for 0.
    pub shift: &'a [f32],
    /// `v / (1 + exp(-v))` at the end.
    pub silu: bool,
}

/// Convolution of `x`, `[batch, in_channels, height, width]`; writes every value of `y`.
///
/// # Panics
/// Where a slice is not as long as `shape` says.
pub fn conv2d(x: &[f32], kernels: &Kernels<'_>, epilogue: &Epilogue<'_>, y: &mut [f32], shape: &ConvShape) {
    conv2d_on(chosen(), x, kernels, epilogue, y, shape);
}

/// As [`conv2d`], into memory of its own, which is not filled with zeros first.
///
/// # Panics
/// Where a slice is not as long as `shape` says.
pub fn conv2d_new(x: &[f32], kernels: &Kernels<'_>, epilogue: &Epilogue<'_>, shape: &ConvShape) -> Vec<f32> {
    let len = shape.batch * shape.out_channels * shape.output.0 * shape.output.1;
    let mut y = Vec::with_capacity(len);
    conv2d_into(chosen(), x, kernels, epilogue, &mut y.spare_capacity_mut()[..len], shape);
    // SAFETY: there is room for `len` values, and the convolution has written all of them.
    unsafe { y.set_len(len) };
    y
}

fn conv2d_on(
    isa: IsaName,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [f32],
    shape: &ConvShape,
) {
    // SAFETY: values that are there may be taken for values that may be there, as long as none is taken away: only values
    // are written.
    let y = unsafe { std::slice::from_raw_parts_mut(y.as_mut_ptr().cast::<MaybeUninit<f32>>(), y.len()) };
    conv2d_into(isa, x, kernels, epilogue, y, shape);
}

/// Writes every value of `y`.
fn conv2d_into(
    isa: IsaName,
    x: &[f32],
    kernels: &Kernels<'_>,
    epilogue: &Epilogue<'_>,
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
) {
    shape.check();
    assert_eq!(x.len(), shape.batch * shape.in_channels * shape.input.0 * shape.input.1);
    assert_eq!(y.len(), shape.batch * shape.out_channels * shape.output.0 * shape.output.1);
    let len = shape.kernel_len();
    match *kernels {
        Kernels::Shared(kernels) => assert_eq!(kernels.len(), len),
        Kernels::PerSample(kernels) => assert_eq!(kernels.len(), shape.batch * len),
        Kernels::Mixed { weights, experts } => assert_eq!(weights.len() * len, shape.batch * experts.len()),
        Kernels::Routed { router, experts } => {
            assert!(!router.bias.is_empty() && router.weight.len() == router.bias.len() * shape.in_channels);
            assert_eq!(router.bias.len() * len, experts.len());
        }
    }
    assert!(epilogue.scale.is_empty() || epilogue.scale.len() == shape.out_channels);
    assert!([0, shape.out_channels, shape.batch * shape.out_channels].contains(&epilogue.shift.len()));
    if y.is_empty() {
        return;
    }
    let job = Conv { x, kernels, epilogue, y, shape };
    if with(isa, job).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

/// `mixed[b] = sum over e of weights[b][e] * experts[e]`, for experts of `len` values.
///
/// # Panics
/// Where `len` is zero, or the slices do not hold whole rows of one batch and one number of experts.
pub fn mix_experts(weights: &[f32], experts: &[f32], mixed: &mut [f32], len: usize) {
    mix_experts_on(chosen(), weights, experts, mixed, len);
}

fn mix_experts_on(isa: IsaName, weights: &[f32], experts: &[f32], mixed: &mut [f32], len: usize) {
    assert!(mixed.len().is_multiple_of(len) && experts.len().is_multiple_of(len));
    assert_eq!(weights.len(), mixed.len() / len * (experts.len() / len));
    if with(isa, Mix { weights, experts, mixed, len }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

struct Mix<'a> {
    weights: &'a [f32],
    experts: &'a [f32],
    mixed: &'a mut [f32],
    len: usize,
}

impl Job for Mix<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        mix::mix_experts(isa, self.weights, self.experts, self.mixed, self.len);
    }
}

/// Routing weights `r`, `[batch, K]`, of maps `x`, `[batch, channels, pixels]`; `weight` is `[K, channels]`, `bias` `[K]`.
///
/// # Panics
/// Where a slice is empty, or not as long as the others say.
pub fn route(x: &[f32], weight: &[f32], bias: &[f32], routing: crate::Routing, r: &mut [f32], channels: usize) {
    route_on(chosen(), x, weight, bias, routing, r, channels);
}

fn route_on(
    isa: IsaName,
    x: &[f32],
    weight: &[f32],
    bias: &[f32],
    routing: crate::Routing,
    r: &mut [f32],
    channels: usize,
) {
    assert!(![x.len(), bias.len(), channels].contains(&0));
    assert!(weight.len() == bias.len() * channels && r.len().is_multiple_of(bias.len()));
    assert!(x.len().is_multiple_of(r.len() / bias.len() * channels));
    if with(isa, Route { x, weight, bias, routing, r, channels }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

struct Route<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    routing: crate::Routing,
    r: &'a mut [f32],
    channels: usize,
}

impl Job for Route<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        route::route(isa, self.x, self.weight, self.bias, self.routing, self.r, self.channels);
    }
}

/// A function of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unary {
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x / (1 + exp(-x))`
    Silu,
}

/// Applies a function to every value of `x`.
///
/// # Panics
/// Where `y` is not as long.
pub fn unary(kind: Unary, x: &[f32], y: &mut [f32]) {
    unary_on(chosen(), kind, x, y);
}

fn unary_on(isa: IsaName, kind: Unary, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    if with(isa, Map { kind, x, y }).is_none() {
        unreachable!("{isa:?} was not found on this CPU");
    }
}

struct Map<'a> {
    kind: Unary,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Job for Map<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        match self.kind {
            Unary::Sigmoid => activation::sigmoid(isa, self.x, self.y),
            Unary::Silu => activation::silu(isa, self.x, self.y),
        }
    }
}

/// `sums[i] += values[i]`, on all threads.
///
/// # Panics
/// Where one slice is longer than the other.
pub fn add_to(sums: &mut [f32], values: &[f32]) {
    assert_eq!(sums.len(), values.len());
    if with(chosen(), AddTo { sums, values }).is_none() {
        unreachable!("the chosen instruction set was not found on this CPU");
    }
}

struct AddTo<'a> {
    sums: &'a mut [f32],
    values: &'a [f32],
}

impl Job for AddTo<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        activation::add_to(isa, self.sums, self.values);
    }
}

/// The gradient for `x` of SiLU, from that for its result.
///
/// # Panics
/// Where the slices are not all as long.
pub fn silu_backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    assert!([x.len(), dy.len()] == [dx.len(); 2]);
    if with(chosen(), SiluBackward { x, dy, dx }).is_none() {
        unreachable!("the chosen instruction set was not found on this CPU");
    }
}

struct SiluBackward<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for SiluBackward<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        activation::silu_backward(isa, self.x, self.dy, self.dx);
    }
}

/// Lends memory that the calling thread keeps from call to call.
///
/// It is taken out meanwhile: a thread that waits for its tasks may begin another call, which then finds none and makes its own.
fn with_kept<R>(kept: &'static LocalKey<RefCell<Vec<f32>>>, use_it: impl FnOnce(&mut Vec<f32>) -> R) -> R {
    let mut memory = kept.take();
    let result = use_it(&mut memory);
    kept.set(memory);
    result
}

/// Something to run on an instruction set.
trait Job {
    type Output;
    fn run<I: isa::Isa>(self, isa: I) -> Self::Output;
}

/// Runs `job` on an instruction set, where the CPU has it.
fn with<J: Job>(name: IsaName, job: J) -> Option<J::Output> {
    match name {
        IsaName::Scalar => Some(job.run(scalar::Scalar)),
        #[cfg(target_arch = "x86_64")]
        IsaName::Avx2 => x86::Avx2::detect().map(|isa| job.run(isa)),
        #[cfg(target_arch = "x86_64")]
        IsaName::Avx512 => x86::Avx512::<false>::detect().map(|isa| job.run(isa)),
        #[cfg(target_arch = "aarch64")]
        IsaName::Neon => neon::Neon::detect().map(|isa| job.run(isa)),
        #[allow(unreachable_patterns, reason = "which sets remain depends on the architecture")]
        _ => None,
    }
}

struct Probe;

impl Job for Probe {
    type Output = ();
    fn run<I: isa::Isa>(self, _: I) {}
}

struct Conv<'a> {
    x: &'a [f32],
    kernels: &'a Kernels<'a>,
    epilogue: &'a Epilogue<'a>,
    y: &'a mut [MaybeUninit<f32>],
    shape: &'a ConvShape,
}

impl Job for Conv<'_> {
    type Output = ();
    fn run<I: isa::Isa>(self, isa: I) {
        if planar::suits(self.shape) {
            planar::conv2d(isa, self.x, self.kernels, self.epilogue, self.y, self.shape);
        } else if self.shape.depthwise() {
            depthwise::conv2d(isa, self.x, self.kernels, self.epilogue, self.y, self.shape);
        } else {
            conv::conv2d(isa, self.x, self.kernels, self.epilogue, self.y, self.shape);
        }
    }
}
