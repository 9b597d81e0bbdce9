//! `cargo xtask bench`: what is timed stands beside a reference, and ratios are printed.

mod peers;
mod regress;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process::{cargo, run as execute, target};

/// The PyTorch that is measured against.
const TORCH: &str = "torch==2.11.0\nnumpy\n";
/// Names a Python that has the packages already.
const PYTHON: &str = "BENCH_PYTHON";

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    match options {
        [name @ ("dyconv" | "letterbox")] => criterion(name, false),
        ["dyconv", "--torch"] => criterion("dyconv", true),
        ["peers", options @ ..] => peers::run(options),
        ["regress", options @ ..] => regress::run(options),
        _ => bail!("`bench {}`: expected dyconv, dyconv --torch, letterbox, peers or regress BASE", options.join(" ")),
    }
}

/// A benchmark of the crate `benches`.
fn criterion(name: &str, torch: bool) -> anyhow::Result<()> {
    let mut bench = cargo();
    // The kernels are optimised in this profile, and built for the tests already.
    bench.args(["bench", "--workspace", "--profile", "dev", "--bench", name]);
    bench.env("RAYON_NUM_THREADS", "2").env("BENCH_COMPARE", "");
    // As long as the program `yolo` keeps pages.
    bench.env("MIMALLOC_PURGE_DELAY", "10000");
    if torch {
        bench.env(PYTHON, python("bench-python", TORCH)?);
    }
    execute(&mut bench)
}

/// A Python with these packages, a line each: the one that the environment names, or one made in the target folder.
fn python(folder: &str, packages: &str) -> anyhow::Result<OsString> {
    if let Some(python) = std::env::var_os(PYTHON) {
        return Ok(python);
    }
    let folder = target().join(folder);
    let python = folder.join("bin/python");
    let complete = folder.join("complete");
    if fs::read_to_string(&complete).unwrap_or_default() != packages {
        println!(
            "installing {} into {} (this may take minutes)",
            packages.trim().replace('\n', ", "),
            folder.display()
        );
        execute(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        execute(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(packages.split_whitespace()))?;
        fs::write(&complete, packages).with_context(|| complete.display().to_string())?;
    }
    Ok(python.into_os_string())
}

/// Builds `yolo` and the example `graph_json` in release into a folder; where the binary lies.
///
/// Always both: without the example, Cargo chooses other features and builds Candle once more.
fn release(cargo: &mut Command, folder: &Path) -> anyhow::Result<PathBuf> {
    cargo.args(["build", "--workspace", "--release", "--bin", "yolo", "--example", "graph_json"]);
    execute(cargo.env("CARGO_TARGET_DIR", folder))?;
    Ok(folder.join("release"))
}

/// A program's file name here.
fn program(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}
