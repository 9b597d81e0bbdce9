//! `--device`: from what the user typed to a device, or to the sentence that says why not.

use anyhow::{Context, bail};
use candle_core::Device;

/// Opens the device that `--device` asks for: `cpu`, `cuda`, `cuda:1`, `1`, `metal` or `mps`; empty is the first GPU that
/// this build supports and the machine has, else the CPU.
///
/// # Errors
/// A name that is none of these, a device this build lacks, or one that the machine lacks.
pub(crate) fn open(request: &str) -> anyhow::Result<Device> {
    match request.trim().to_lowercase().as_str() {
        "" => Ok(best()),
        "cpu" => Ok(Device::Cpu),
        "metal" | "mps" => metal(),
        "cuda" => cuda(0),
        name => {
            let number = name.strip_prefix("cuda:").unwrap_or(name);
            if number.contains(',') {
                bail!("--device {request}: one device at a time (for example --device 0)");
            }
            match number.parse() {
                Ok(index) => cuda(index),
                Err(_) => bail!("--device {request}: no such device (expected cpu, cuda, cuda:N, N, metal or mps)"),
            }
        }
    }
}

/// How the device is named in what is printed.
pub(crate) fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "CPU".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("CUDA:{gpu_id}"),
        candle_core::DeviceLocation::Metal { .. } => "Metal".into(),
    }
}

fn best() -> Device {
    cuda(0).or_else(|_| metal()).unwrap_or(Device::Cpu)
}

fn cuda(index: usize) -> anyhow::Result<Device> {
    if !cfg!(feature = "cuda") {
        bail!("CUDA is not in this build of yolo: build it with `--features cuda`, or use --device cpu");
    }
    Device::new_cuda(index).with_context(|| format!("CUDA device {index} cannot be opened (use --device cpu)"))
}

fn metal() -> anyhow::Result<Device> {
    if !cfg!(feature = "metal") {
        bail!("Metal is not in this build of yolo: build it with `--features metal` on a Mac, or use --device cpu");
    }
    Device::new_metal(0).context("the Metal device cannot be opened (use --device cpu)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_goes_by_its_name() {
        for request in ["cpu", "CPU", " cpu "] {
            assert!(open(request).unwrap().is_cpu(), "{request:?}");
        }
        assert_eq!(name(&Device::Cpu), "CPU");
    }

    #[test]
    fn what_is_no_device_is_told() {
        for request in ["gpu", "cuda:", "cuda:-1", "cuda:x", "-1", "1.5", "99999999999999999999999"] {
            let error = open(request).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--device {request}: no such device")), "{error}");
        }
        assert!(open("0,1").unwrap_err().to_string().contains("one device at a time"));
    }

    #[test]
    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    fn what_is_not_compiled_in_is_told() {
        for request in ["cuda", "cuda:0", "0", "CUDA:3"] {
            assert!(open(request).unwrap_err().to_string().contains("--features cuda"), "{request:?}");
        }
        for request in ["metal", "mps"] {
            assert!(open(request).unwrap_err().to_string().contains("--features metal"), "{request:?}");
        }
        assert!(open("").unwrap().is_cpu());
    }
}
