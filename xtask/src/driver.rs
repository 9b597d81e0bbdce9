//! `cargo xtask test --driver`: Candle's own CUDA device runs the kernels, on a stand-in for NVIDIA's driver that hands them to
//! the emulator. Takes a few minutes, most of them to build Candle with its feature `cuda`.

use std::process::Command;

use anyhow::{Context, bail};

use crate::check_gpu::without_toolkit;
use crate::process::{cargo, root, run as execute, target};

/// The program that runs the cases on a CUDA device.
const PROGRAM: &str = "cuda_conformance";

pub(crate) fn run() -> anyhow::Result<()> {
    if !cfg!(target_os = "linux") {
        bail!("the stand-in driver needs Linux and g++");
    }
    execute(cargo().args(["build", "--workspace", "--examples"]))?;
    let folder = root().join("target/driver");
    let builder = target().join("debug/examples/cuda_driver");
    execute(Command::new(&builder).arg(&folder))?;
    // Functions that the libraries do not have yet are found when the program starts.
    let flags = format!("-Lnative={}\x1f-Clink-arg=-Wl,--unresolved-symbols=ignore-all", folder.display());
    let mut build = cargo();
    build.args(["build", "--package", "dyconv-emulator", "--features", "cuda", "--example", PROGRAM]);
    // Compiled faster than it would run: the emulator is where the time goes.
    build.args(["--config", "profile.dev.package.\"*\".opt-level=0"]);
    build
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .envs(without_toolkit(&folder)?);
    execute(&mut build)?;
    let program = folder.join("target/debug/examples").join(PROGRAM);
    let output = Command::new(&builder).arg(&folder).arg(&program).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8(output.stdout)?;
    let (name, value) = text.trim().split_once('=').context("the builder of the driver names no kernels")?;
    // The linker left out the libraries that had no functions then; any of them has what is missing.
    let mut conformance = Command::new(program);
    conformance.env("LD_LIBRARY_PATH", &folder).env("LD_PRELOAD", folder.join("libcublas.so")).env(name, value);
    execute(&mut conformance)
}
