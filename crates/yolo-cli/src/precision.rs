//! `--precision`: what convolutions multiply on the CPU.

use std::fmt;

use candle_core::{DType, Device};
use clap::ValueEnum;

use crate::predict::console::Console;

/// Types of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits, the upper half of f32, on CPUs with AVX512-BF16; sums stay in 32 bits
    Bf16,
}

impl From<Precision> for yolo_core::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        yolo_core::Precision::from(*self).fmt(f)
    }
}

/// Numbers that a network computes with on `device`; `half` is YOLOv5's flag.
pub(crate) fn dtype(half: bool, precision: Precision, device: &Device, console: &Console) -> anyhow::Result<DType> {
    if !device.is_cpu() {
        anyhow::ensure!(precision == Precision::F32, "--precision {precision}: it is the CPU's; a GPU has --half");
        return Ok(if half { DType::F16 } else { DType::F32 });
    }
    if half {
        console.problem(&format!("warning: --half: the CPU computes in {precision}; going on with that"));
    }
    Ok(match precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::BF16,
    })
}
