//! What to launch on a GPU, without any GPU in it.
//!
//! One function a kernel turns shapes into a [`Launch`]: the kernel's name, grid, block, shared memory, buffers and scalars.
//! CUDA, Metal and the emulator that runs the kernels' text in tests all consume the same value, so what is tested is what
//! is launched. Names and argument lists are the same in `kernels/cuda` and `kernels/metal`: the buffers in order, then one
//! struct of scalars (`kernels/params.h`).
//!
//! [`ops`] puts launches together to operations, generic over the device.

pub mod conv;
#[cfg(any(feature = "cuda", feature = "metal"))]
pub(crate) mod glue;
pub mod mix;
pub mod ops;
mod params;
pub mod route;
#[cfg(any(feature = "cuda", feature = "metal"))]
pub(crate) mod tensor;
#[cfg(test)]
mod tests;

pub use params::{ConvParams, MixParams, RouteParams, SumParams, flag, multiplier};

/// Type of stored values; all arithmetic is in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
}

impl Element {
    /// All of them; each kernel exists for each.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one value.
    pub fn size(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The last part of a kernel's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads all or part of it.
    Read,
    /// Writes every value, and reads none before.
    Write,
    /// Nothing: an optional argument that is not there. Any valid buffer, or null, may stand in its place.
    Absent,
}

/// One buffer argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// The argument's name in the kernel.
    pub name: &'static str,
    /// What is done with it.
    pub access: Access,
    /// Type of its values.
    pub element: Element,
    /// Values, from the buffer's start (after any offset).
    pub len: usize,
}

impl Buffer {
    fn read(name: &'static str, element: Element, len: usize) -> Self {
        Self { name, access: Access::Read, element, len }
    }

    fn write(name: &'static str, element: Element, len: usize) -> Self {
        Self { name, access: Access::Write, element, len }
    }

    fn optional(name: &'static str, element: Element, len: usize, present: bool) -> Self {
        if present { Self::read(name, element, len) } else { Self { name, access: Access::Absent, element, len: 0 } }
    }
}

/// One launch of one kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The kernel, without the type at the end of its name.
    pub kernel: Kernel,
    /// Type of the stored values.
    pub element: Element,
    /// Blocks (threadgroups) along x, y, z; none of them 0.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Bytes of shared (threadgroup) memory; kernels declare none of their own.
    pub shared: u32,
    /// The buffer arguments in order.
    pub buffers: Vec<Buffer>,
    /// The struct of scalars that is the last argument, by words of 4 bytes.
    pub params: Vec<u32>,
}

impl Launch {
    /// The kernel's name in the source, such as `conv_gemm_f16`.
    pub fn entry(&self) -> String {
        format!("{}_{}", self.kernel.name(), self.element.suffix())
    }
}

macro_rules! kernels {
    ($($(#[$doc:meta])* $kernel:ident = $name:literal in $file:literal),+ $(,)?) => {
        /// Every kernel there is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kernel { $($(#[$doc])* $kernel),+ }

        impl Kernel {
            /// All of them, in the order of their files.
            pub const ALL: &'static [Self] = &[$(Self::$kernel),+];

            /// The name in the source, without the type at its end.
            pub fn name(self) -> &'static str {
                match self { $(Self::$kernel => $name),+ }
            }

            /// The source file, without its ending (`.cu` or `.metal`).
            pub fn file(self) -> &'static str {
                match self { $(Self::$kernel => $file),+ }
            }
        }
    };
}

kernels! {
    /// Pooling, linear layer and activation of small maps.
    Route = "route" in "route",
    /// Linear layer and activation of pooled maps.
    RoutePooled = "route_pooled" in "route",
    /// Sums of planes.
    Pool = "pool" in "route",
    /// Gradient of the logits.
    RouteGradLogits = "route_grad_logits" in "route",
    /// Gradient of the map that was pooled.
    RouteGradInput = "route_grad_input" in "route",
    /// Weighted sums of rows: mixtures of experts, and the gradient of the experts.
    MixExperts = "mix_experts" in "mix",
    /// Products of rows with rows, in parts: the gradient of the routing weights.
    MixGradRouting = "mix_grad_routing" in "mix",
    /// Convolution of single channels.
    ConvDepthwise = "conv_depthwise" in "conv_depthwise",
    /// Gradient of its map.
    ConvDepthwiseGradInput = "conv_depthwise_grad_input" in "conv_depthwise",
    /// Gradient of its kernels, of each sample.
    ConvDepthwiseGradKernels = "conv_depthwise_grad_kernels" in "conv_depthwise",
    /// Convolution with 1 x 1 kernels.
    ConvPointwise = "conv_pointwise" in "conv_pointwise",
    /// Any convolution.
    ConvGemm = "conv_gemm" in "conv_gemm",
    /// Gradient of any convolution's map.
    ConvGradInput = "conv_grad_input" in "conv_grad",
    /// Gradient of any convolution's kernels, in parts.
    ConvGradKernels = "conv_grad_kernels" in "conv_grad",
    /// Bias, scale, shift and activation on their own.
    Epilogue = "epilogue" in "epilogue",
    /// Sum of partial results in order, and conversion from f32.
    SumParts = "sum_parts" in "epilogue",
}

/// A size that the kernels' 32-bit indices or a device's memory cannot hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// Which size.
    pub what: &'static str,
    /// The size.
    pub got: usize,
    /// The largest that works.
    pub most: usize,
}

impl std::fmt::Display for TooLarge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}; the GPU kernels take at most {}", self.what, self.got, self.most)
    }
}

impl std::error::Error for TooLarge {}

/// Shared memory that every device has: Apple's GPUs give a threadgroup 32 KiB.
pub const MAX_SHARED: usize = 32 << 10;

/// `size` in a word, where signed indices hold it.
fn word(what: &'static str, size: usize) -> Result<u32, TooLarge> {
    limit(what, size, i32::MAX as usize).map(|()| size as u32)
}

fn limit(what: &'static str, got: usize, most: usize) -> Result<(), TooLarge> {
    if got > most { Err(TooLarge { what, got, most }) } else { Ok(()) }
}

/// Product of sizes; more than `usize` holds counts as the most that it holds.
fn product(sizes: &[usize]) -> usize {
    sizes.iter().fold(1, |all, size| all.saturating_mul(*size))
}

/// Bytes of shared memory for `floats` values.
fn shared(floats: usize) -> Result<u32, TooLarge> {
    limit("the shared memory of a block", product(&[floats, 4]), MAX_SHARED).map(|()| (floats * 4) as u32)
}
