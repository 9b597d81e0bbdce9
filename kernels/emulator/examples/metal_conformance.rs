//! Runs every case on Candle's first Metal device and prints the conformance table: on a Mac with
//! `cargo run --release -p dyconv-emulator --features metal --example metal_conformance`.
#![allow(clippy::print_stdout, reason = "a program for people")]

mod gpu;

use candle_core::MetalDevice as CandleDevice;
use dyconv_kernels::metal::{Buffer, Metal as Kernels};

fn on_candle(device: CandleDevice) -> candle_core::Device {
    candle_core::Device::Metal(device)
}

fn main() -> Result<(), dyconv_emulator::Error> {
    gpu::run()
}
