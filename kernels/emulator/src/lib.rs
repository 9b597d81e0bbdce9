//! Runs the text of GPU kernels on a CPU and checks every access.
//!
//! A kernel's source is compiled by g++ against a small shim of its language, each GPU thread becomes a fibre, and every load
//! and store goes through checks of bounds, initialisation and races; see this crate's README. It consumes the launch
//! descriptions of [`dyconv_kernels::gpu`], as the real devices do, and is right where they are right:
//!
//! - [`module`] compiles and loads kernels; [`device`] is an [`ops::Device`](dyconv_kernels::gpu::ops::Device) on top.
//! - [`cases`] lists what is run, [`conformance`] runs it on any device against [`twin`], plain loops in f64.
//! - [`mutants`] are mistakes put into the kernels, each of which must be caught.

pub mod cases;
pub mod conformance;
pub mod device;
pub mod module;
pub mod mutants;
pub mod twin;

/// What can go wrong, or be found wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The emulator is not made for this system.
    #[error("the GPU emulator does not run here: {0}")]
    Unavailable(String),
    /// The emulator itself fails, where it should run.
    #[error("the GPU emulator fails: {0}")]
    Broken(String),
    /// A source does not compile; the compiler's messages.
    #[error("{file} does not compile:\n{messages}")]
    Compile {
        /// The kernel's file.
        file: String,
        /// What the compiler says.
        messages: String,
    },
    /// What the checks found while a kernel ran.
    #[error("{0}")]
    Found(String),
    /// A result is not that of the twin.
    #[error("{what}: off by {error:.3e} of the largest value, at most {tolerance:.1e} are right")]
    Wrong {
        /// The operation and case.
        what: String,
        /// The error, relative to the largest value expected.
        error: f64,
        /// What rounding explains.
        tolerance: f64,
    },
    /// A buffer is not the one that the launch describes.
    #[error("{kernel}: `{buffer}` should have {expected}, has {got}")]
    Buffer {
        /// The kernel.
        kernel: String,
        /// The argument.
        buffer: &'static str,
        /// Type and values.
        expected: String,
        /// Type and values.
        got: String,
    },
    /// A real device, or Candle on top of it, failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// Sizes that the kernels do not take.
    #[error(transparent)]
    TooLarge(#[from] dyconv_kernels::gpu::TooLarge),
    /// Files that cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// The reason.
        error: std::io::Error,
    },
}
