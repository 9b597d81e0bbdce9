//! `cargo xtask bench dyconv [--torch]`, `cargo xtask bench letterbox`: benchmarks beside their references.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::process::{cargo, run as execute, target};

/// The PyTorch that is measured against.
const TORCH: &str = "torch==2.11.0";
/// Names a Python that has PyTorch already.
const PYTHON: &str = "BENCH_PYTHON";

pub(crate) fn run(name: &str, torch: bool) -> anyhow::Result<()> {
    let mut bench = cargo();
    // The kernels are optimised in this profile, and built for the tests already.
    bench.args(["bench", "--workspace", "--profile", "dev", "--bench", name]);
    bench.env("RAYON_NUM_THREADS", "2").env("BENCH_COMPARE", "");
    if torch {
        bench.env(PYTHON, python()?);
    }
    execute(&mut bench)
}

/// A Python with PyTorch: the one that the environment names, or one made in the target folder.
fn python() -> anyhow::Result<OsString> {
    if let Some(python) = std::env::var_os(PYTHON) {
        return Ok(python);
    }
    let folder = target().join("bench-python");
    let python = folder.join("bin/python");
    if !folder.join("complete").exists() {
        println!("installing {TORCH} into {} (some gigabytes)", folder.display());
        execute(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        execute(Command::new(&python).args(["-m", "pip", "install", "--quiet", TORCH, "numpy"]))?;
        fs::write(folder.join("complete"), TORCH)?;
    }
    Ok(python.into_os_string())
}
