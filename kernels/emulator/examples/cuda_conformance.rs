//! Runs every case on Candle's first CUDA device and prints the conformance table: on a GPU with
//! `cargo run --release -p dyconv-emulator --features cuda --example cuda_conformance`, without one under `cargo xtask test --driver`.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::cell::RefCell;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaDevice};
use dyconv_emulator::conformance::{self, Table, TestDevice};
use dyconv_emulator::{Error, cases};
use dyconv_kernels::cuda::{Buffer, Cuda};
use dyconv_kernels::gpu::ops::Device;
use dyconv_kernels::gpu::{Element, Kernel, Launch};
use half::{bf16, f16};

struct Gpu {
    device: CudaDevice,
    cuda: Cuda<'static>,
    launched: RefCell<Vec<(Kernel, Element)>>,
}

fn failed(error: candle_core::Error) -> Error {
    Error::Device(error.to_string())
}

impl Device for Gpu {
    type Buffer = Buffer<'static>;
    type Error = Error;

    fn empty(&self, element: Element, len: usize) -> Result<Self::Buffer, Error> {
        self.cuda.empty(element, len).map_err(failed)
    }

    fn run(&self, launch: &Launch, buffers: &[Option<&Self::Buffer>]) -> Result<(), Error> {
        self.launched.borrow_mut().push((launch.kernel, launch.element));
        self.cuda.run(launch, buffers).map_err(|error| Error::Device(format!("{}: {error}", launch.entry())))
    }
}

impl TestDevice for Gpu {
    fn upload(&self, bytes: &[u8], element: Element, offset: usize) -> Result<Self::Buffer, Error> {
        // Values before the offset, so that the buffer begins in the middle of an allocation.
        let bytes = [vec![0; offset * element.size()].as_slice(), bytes].concat();
        let half = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        let values = match element {
            Element::F32 => {
                let words = bytes.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
                CpuStorage::F32(words.map(f32::from_le_bytes).collect())
            }
            Element::F16 => CpuStorage::F16(half.map(f16::from_le_bytes).collect()),
            Element::BF16 => CpuStorage::BF16(half.map(bf16::from_le_bytes).collect()),
        };
        Ok(Buffer::Owned(self.device.storage_from_cpu_storage(&values).map_err(failed)?, offset))
    }

    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<u8>, Error> {
        let (storage, offset) = match buffer {
            Buffer::Borrowed(storage, offset) => (*storage, *offset),
            Buffer::Owned(storage, offset) => (storage, *offset),
        };
        Ok(match storage.to_cpu_storage().map_err(failed)? {
            CpuStorage::F32(values) => values[offset..].iter().flat_map(|v| v.to_le_bytes()).collect(),
            CpuStorage::F16(values) => values[offset..].iter().flat_map(|v| v.to_le_bytes()).collect(),
            CpuStorage::BF16(values) => values[offset..].iter().flat_map(|v| v.to_le_bytes()).collect(),
            other => return Err(Error::Device(format!("got values of {:?}", other.dtype()))),
        })
    }

    fn reorder(&self, _: u32) {}

    fn take_launched(&self) -> Vec<(Kernel, Element)> {
        self.launched.take()
    }
}

fn main() -> Result<(), Error> {
    let device = CudaDevice::new(0).map_err(failed)?;
    let gpu = Gpu { cuda: Cuda::new(device.clone()), device, launched: RefCell::default() };
    let mut table = Table::default();
    for element in Element::ALL {
        conformance::run(&gpu, &cases::all(), element, &mut table)?;
    }
    println!("{table}");
    let missing = table.missing();
    if missing.is_empty() { Ok(()) } else { Err(Error::Found(format!("no case reaches {}", missing.join(", ")))) }
}
