//! NVIDIA GPUs: runs the launches of [`crate::gpu`] on Candle's CUDA device.
//!
//! The kernels' PTX is made when the crate is built and compiled by the driver when a file of kernels is first used.

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaView, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaDType, WrapErr};
use candle_core::{CudaDevice, CudaStorage, Result, bail};
use half::{bf16, f16};

use crate::gpu::glue::Backend;
use crate::gpu::ops::Device;
use crate::gpu::{Access, Element, Launch};

include!(concat!(env!("OUT_DIR"), "/ptx.rs"));

/// Words of the longest struct of scalars.
const MAX_WORDS: usize = 32;

/// Candle's CUDA device as a device of [`gpu::ops`](crate::gpu::ops).
#[derive(Debug, Clone)]
pub struct Cuda<'a>(CudaDevice, PhantomData<&'a CudaStorage>);

/// Memory of the device from an offset in values on.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// A tensor's.
    Borrowed(&'a CudaStorage, usize),
    /// Its own.
    Owned(CudaStorage, usize),
}

/// A buffer's values as the kernel sees them.
enum View<'a> {
    F32(CudaView<'a, f32>),
    F16(CudaView<'a, f16>),
    Bf16(CudaView<'a, bf16>),
    /// A null pointer, for what is absent.
    Absent(u64),
}

/// A struct of scalars. The driver copies as many bytes as the kernel's struct has.
#[repr(C)]
struct Words([u32; MAX_WORDS]);

// SAFETY: plain words without padding, copied byte by byte.
unsafe impl DeviceRepr for Words {}

impl Buffer<'_> {
    /// `len` values, where they are there and of this type.
    fn view(&self, element: Element, len: usize) -> Result<View<'_>> {
        let (storage, start) = match self {
            Self::Borrowed(storage, offset) => (*storage, *offset),
            Self::Owned(storage, offset) => (storage, *offset),
        };
        Ok(match element {
            Element::F32 => View::F32(slice(storage, start, len)?),
            Element::F16 => View::F16(slice(storage, start, len)?),
            Element::BF16 => View::Bf16(slice(storage, start, len)?),
        })
    }
}

fn slice<T: CudaDType>(storage: &CudaStorage, start: usize, len: usize) -> Result<CudaView<'_, T>> {
    let all = storage.as_cuda_slice::<T>()?;
    match all.try_slice(start..start + len) {
        Some(view) => Ok(view),
        None => bail!("a buffer of {} values from value {start} on, where a kernel needs {len}", all.len()),
    }
}

impl Cuda<'_> {
    /// Candle's device.
    pub fn new(device: CudaDevice) -> Self {
        Self(device, PhantomData)
    }
}

impl<'a> Device for Cuda<'a> {
    type Buffer = Buffer<'a>;
    type Error = candle_core::Error;

    fn empty(&self, element: Element, len: usize) -> Result<Buffer<'a>> {
        let device = self.0.clone();
        // SAFETY: the launch that the memory is for writes all of it before anything reads it (`Access::Write`).
        let storage = unsafe {
            match element {
                Element::F32 => CudaStorage::wrap_cuda_slice(self.0.alloc::<f32>(len)?, device),
                Element::F16 => CudaStorage::wrap_cuda_slice(self.0.alloc::<f16>(len)?, device),
                Element::BF16 => CudaStorage::wrap_cuda_slice(self.0.alloc::<bf16>(len)?, device),
            }
        };
        Ok(Buffer::Owned(storage, 0))
    }

    fn run(&self, launch: &Launch, buffers: &[Option<&Buffer<'a>>]) -> Result<()> {
        let (entry, file) = (launch.entry(), launch.kernel.file());
        if launch.buffers.len() != buffers.len() || launch.params.len() > MAX_WORDS {
            bail!("{entry}: {} buffers for {} arguments", buffers.len(), launch.buffers.len());
        }
        let Some(ptx) = ptx(file) else { bail!("{entry}: no kernel file `{file}` was built in") };
        // Candle keeps modules by name for a device; this one is of no other crate.
        let module = format!("dyconv-kernels-{}-{file}", env!("CARGO_PKG_VERSION"));
        let function = self.0.get_or_load_custom_func(&entry, &module, ptx)?;
        let mut views = Vec::with_capacity(buffers.len());
        for (described, given) in launch.buffers.iter().zip(buffers) {
            views.push(match (described.access, given) {
                (Access::Absent, _) => View::Absent(0),
                (_, Some(buffer)) => buffer.view(described.element, described.len)?,
                (_, None) => bail!("{entry}: `{}` is missing", described.name),
            });
        }
        let mut words = Words([0; MAX_WORDS]);
        words.0[..launch.params.len()].copy_from_slice(&launch.params);
        let mut builder = function.builder();
        for view in &views {
            match view {
                View::F32(view) => builder.arg(view),
                View::F16(view) => builder.arg(view),
                View::Bf16(view) => builder.arg(view),
                View::Absent(null) => builder.arg(null),
            };
        }
        builder.arg(&words);
        let [gx, gy, gz] = launch.grid;
        let [bx, by, bz] = launch.block;
        let config = LaunchConfig { grid_dim: (gx, gy, gz), block_dim: (bx, by, bz), shared_mem_bytes: launch.shared };
        // SAFETY: the arguments are those of the launch description, whose order, types and lengths the emulator's tests hold
        // against the kernel's text; each view has the described length. A tensor that is written is a new one, used on this
        // device's only stream.
        unsafe { builder.launch(config) }.w()?;
        Ok(())
    }
}

impl<'a> Backend<'a> for Cuda<'a> {
    type Storage = CudaStorage;

    fn of(storage: &'a CudaStorage) -> Self {
        Self::new(storage.device().clone())
    }

    fn input(storage: &'a CudaStorage, offset: usize) -> Buffer<'a> {
        Buffer::Borrowed(storage, offset)
    }

    fn output(&self, buffer: Buffer<'a>) -> Result<CudaStorage> {
        match buffer {
            Buffer::Owned(storage, 0) => Ok(storage),
            _ => bail!("a result is memory of its own"),
        }
    }
}
