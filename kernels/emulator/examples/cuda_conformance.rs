//! Runs every case on Candle's first CUDA device and prints the conformance table: on a GPU with
//! `cargo run --release -p dyconv-emulator --features cuda --example cuda_conformance`, without one under `cargo xtask test --driver`.
#![allow(clippy::print_stdout, reason = "a program for people")]

mod gpu;

use candle_core::CudaDevice as CandleDevice;
use dyconv_kernels::cuda::{Buffer, Cuda as Kernels};

fn on_candle(device: CandleDevice) -> candle_core::Device {
    candle_core::Device::Cuda(device)
}

fn main() -> Result<(), dyconv_emulator::Error> {
    gpu::run()
}
