//! The cases on a device of Candle's, for the example that has this as a module: it names the device's types.

use std::cell::RefCell;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, Tensor};
use dyconv_emulator::conformance::{self, Table, TestDevice};
use dyconv_emulator::{Error, cases};
use dyconv_kernels::gpu::ops::Device;
use dyconv_kernels::gpu::{Element, Kernel, Launch};
use dyconv_kernels::{ConvConfig, Epilogue, Mixing, Routing, dynamic_conv2d};
use half::{bf16, f16};

use super::{Buffer, CandleDevice, Kernels, on_candle};

struct Gpu {
    device: CandleDevice,
    kernels: Kernels<'static>,
    launched: RefCell<Vec<(Kernel, Element)>>,
}

fn failed(error: candle_core::Error) -> Error {
    Error::Device(error.to_string())
}

impl Device for Gpu {
    type Buffer = Buffer<'static>;
    type Error = Error;

    fn empty(&self, element: Element, len: usize) -> Result<Self::Buffer, Error> {
        self.kernels.empty(element, len).map_err(failed)
    }

    fn run(&self, launch: &Launch, buffers: &[Option<&Self::Buffer>]) -> Result<(), Error> {
        self.launched.borrow_mut().push((launch.kernel, launch.element));
        self.kernels.run(launch, buffers).map_err(|error| Error::Device(format!("{}: {error}", launch.entry())))
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

/// A dynamic convolution as a user calls it, fused and step by step, with the gradients of all its parameters.
fn dynamic(device: &candle_core::Device) -> candle_core::Result<Vec<Vec<f32>>> {
    let wave = |shape: &[usize], salt: f64| {
        let values = (0..shape.iter().product()).map(|i: usize| ((i as f64 + salt) * 1.7).sin() as f32 * 0.5).collect();
        candle_core::Var::from_tensor(&Tensor::from_vec::<_, f32>(values, shape, device)?)
    };
    let flat = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
    let config = ConvConfig { kernel: (3, 2), stride: (2, 1), padding: (1, 1), dilation: (1, 1), groups: 2 };
    let (x, experts) = (wave(&[2, 4, 7, 6], 0.0)?, wave(&[3, 6 * 2 * 6], 9.0)?);
    let (weight, linear, bias) = (wave(&[3, 4], 2.0)?, wave(&[3], 5.0)?, wave(&[3, 6], 7.0)?);
    let (scale, shift) = (wave(&[6], 3.0)?, wave(&[6], 8.0)?);
    let routing = Routing::Softmax { temperature: 2.0 };
    let run = |variables: [&Tensor; 5], epilogue: &Epilogue<'_>| {
        let [x, experts, weight, linear, bias] = variables;
        let mixing = Mixing::Router { weight, bias: linear, routing };
        dynamic_conv2d(x, mixing, experts, Some(bias), epilogue, &config)
    };
    let variables = [&x, &experts, &weight, &linear, &bias];
    let fused = Epilogue { scale: Some(&scale.detach()), shift: Some(&shift.detach()), silu: true };
    let detached = variables.map(|variable| variable.detach());
    let mut results = vec![flat(&run(detached.each_ref(), &fused)?)?];
    let y = run(variables.map(|variable| variable.as_tensor()), &Epilogue::default())?;
    results.push(flat(&y)?);
    // The loss on the CPU: Candle's own GPU kernels are not what is tested.
    let gradients = y.to_device(&candle_core::Device::Cpu)?.sqr()?.sum_all()?.backward()?;
    for variable in variables {
        let Some(gradient) = gradients.get(variable) else { candle_core::bail!("a variable without a gradient") };
        results.push(flat(gradient)?);
    }
    Ok(results)
}

/// What [`dynamic`] gives on a device against what it gives on the CPU.
fn compare(device: CandleDevice) -> Result<(), Error> {
    let got = dynamic(&on_candle(device)).map_err(failed)?;
    let expected = dynamic(&candle_core::Device::Cpu).map_err(failed)?;
    let names = ["fused", "step by step", "dx", "d experts", "d router weight", "d router bias", "d bias"];
    for ((name, got), expected) in names.into_iter().zip(&got).zip(&expected) {
        let largest = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs() / largest);
        let error = worst.fold(0.0, |most, error| if error <= most { most } else { error });
        let right = got.len() == expected.len() && error <= 1e-5;
        if !right {
            let what = format!("dynamic_conv2d: {name}");
            return Err(Error::Wrong { what, error: error.into(), tolerance: 1e-5 });
        }
        println!("dynamic_conv2d, {name:<16} {:>5} values as on the CPU, off by at most {error:.1e}", got.len());
    }
    Ok(())
}

/// Runs everything, and prints what was compared.
pub(crate) fn run() -> Result<(), Error> {
    let device = CandleDevice::new(0).map_err(failed)?;
    compare(device.clone())?;
    let gpu = Gpu { kernels: Kernels::new(device.clone()), device, launched: RefCell::default() };
    let mut table = Table::default();
    for element in Element::ALL {
        conformance::run(&gpu, &cases::all(), element, &mut table)?;
    }
    println!("{table}");
    let missing = table.missing();
    if missing.is_empty() { Ok(()) } else { Err(Error::Found(format!("no case reaches {}", missing.join(", ")))) }
}
