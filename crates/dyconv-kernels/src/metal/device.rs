//! Candle's Metal device as a device of [`gpu::ops`](crate::gpu::ops).

use std::marker::PhantomData;

use candle_core::backend::BackendStorage;
use candle_core::{MetalDevice, MetalStorage, Result, bail};
use candle_metal_kernels::metal::{self, ComputeCommandEncoder};
use objc2_metal::MTLSize;

use super::pipelines::pipeline;
use crate::gpu::glue::Backend;
use crate::gpu::ops::Device;
use crate::gpu::{Access, Element, Launch};

/// Metal takes lengths of threadgroup memory in these steps.
const SHARED_STEP: usize = 16;

/// Candle's Metal device, for operands that live as long as `'a`.
#[derive(Debug, Clone)]
pub struct Metal<'a>(MetalDevice, PhantomData<&'a MetalStorage>);

impl Metal<'_> {
    /// Candle's device.
    pub fn new(device: MetalDevice) -> Self {
        Self(device, PhantomData)
    }
}

/// Memory of the device from an offset in values on.
#[derive(Debug)]
pub enum Buffer<'a> {
    /// A tensor's.
    Borrowed(&'a MetalStorage, usize),
    /// Its own.
    Owned(MetalStorage, usize),
}

impl Buffer<'_> {
    /// The memory, and bytes to the first value; an error where fewer than `len` values of the type are there.
    fn bytes(&self, element: Element, len: usize) -> Result<(&metal::Buffer, usize)> {
        let (storage, start) = match self {
            Self::Borrowed(storage, start) => (*storage, *start),
            Self::Owned(storage, start) => (storage, *start),
        };
        let (buffer, kind) = (storage.buffer(), storage.dtype());
        let needed = start.saturating_add(len).saturating_mul(element.size());
        if kind != element.dtype() || buffer.length() < needed {
            bail!(
                "a buffer of {} bytes of {kind:?}, where a kernel needs {len} values of {} from value {start} on",
                buffer.length(),
                element.suffix()
            );
        }
        Ok((buffer, start * element.size()))
    }
}

impl<'a> Device for Metal<'a> {
    type Buffer = Buffer<'a>;
    type Error = candle_core::Error;

    fn empty(&self, element: Element, len: usize) -> Result<Buffer<'a>> {
        let device = &self.0;
        let buffer = device.new_buffer_builder().with_size_for(len, element.dtype()).with_label("dyconv").build()?;
        Ok(Buffer::Owned(MetalStorage::new(buffer, device.clone(), len, element.dtype()), 0))
    }

    fn run(&self, launch: &Launch, buffers: &[Option<&Buffer<'a>>]) -> Result<()> {
        let entry = launch.entry();
        if launch.buffers.len() != buffers.len() {
            bail!("{entry}: {} buffers for {} arguments", buffers.len(), launch.buffers.len());
        }
        let mut bound = Vec::with_capacity(buffers.len());
        for (described, given) in launch.buffers.iter().zip(buffers) {
            bound.push(match (described.access, given) {
                (Access::Absent, _) => None,
                (_, Some(buffer)) => Some(buffer.bytes(described.element, described.len)?),
                (_, None) => bail!("{entry}: `{}` is missing", described.name),
            });
        }
        // Metal's validation wants memory at every argument, also where the kernel does not look.
        let Some(spare) = bound.iter().flatten().next().copied() else { bail!("{entry}: no buffers") };
        let pipeline = pipeline(&self.0, launch)?;
        let commands = self.0.command_encoder()?;
        let encoder: &ComputeCommandEncoder = commands.as_ref();
        encoder.set_compute_pipeline_state(&pipeline);
        for (index, (described, bound)) in launch.buffers.iter().zip(&bound).enumerate() {
            // The encoder runs launches at once unless one's input is another's output: each buffer has to be bound as what it is.
            let (buffer, offset) = bound.unwrap_or(spare);
            if described.access == Access::Write {
                encoder.set_output_buffer(index, Some(buffer), offset);
            } else {
                encoder.set_input_buffer(index, Some(buffer), offset);
            }
        }
        encoder.set_bytes_directly(bound.len(), size_of_val(launch.params.as_slice()), launch.params.as_ptr().cast());
        if launch.shared > 0 {
            encoder.set_threadgroup_memory_length(0, (launch.shared as usize).next_multiple_of(SHARED_STEP));
        }
        encoder.dispatch_thread_groups(size(launch.grid), size(launch.block));
        Ok(())
    }
}

fn size([x, y, z]: [u32; 3]) -> MTLSize {
    MTLSize { width: x as usize, height: y as usize, depth: z as usize }
}

impl<'a> Backend<'a> for Metal<'a> {
    type Storage = MetalStorage;

    fn of(storage: &'a MetalStorage) -> Self {
        Self::new(storage.device().clone())
    }

    fn input(storage: &'a MetalStorage, offset: usize) -> Buffer<'a> {
        Buffer::Borrowed(storage, offset)
    }

    fn output(&self, buffer: Buffer<'a>) -> Result<MetalStorage> {
        match buffer {
            Buffer::Owned(storage, 0) => Ok(storage),
            _ => bail!("a result is memory of its own"),
        }
    }
}
