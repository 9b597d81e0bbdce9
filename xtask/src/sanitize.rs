//! `cargo xtask test --sanitize`: the CPU kernels' tests, and networks compiled for the CPU, with every access to memory checked by
//! AddressSanitizer.

use std::process::Command;

use anyhow::{Context, bail};

use crate::process::{nightly, output_of, run as execute, target};
use crate::slices;

pub(crate) fn run() -> anyhow::Result<()> {
    let Some(about) = output_of(nightly("rustc").arg("-vV")) else {
        bail!("AddressSanitizer needs the nightly compiler, which is missing: rustup toolchain install nightly");
    };
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    // A target that is named keeps the flag from build scripts.
    let options = ["--target", host, "--target-dir"];
    let run = |test: &mut Command| execute(test.env("RUSTFLAGS", "-Zsanitizer=address"));
    let mut kernels = nightly("cargo");
    kernels.args(["test", "--lib"]).args(options).args(["target/sanitize", "--", "--nocapture"]);
    run(kernels.current_dir(slices::generate()?))?;
    let mut networks = nightly("cargo");
    networks.args(["test", "-p", "yolo-core", "--test", "plan", "--test", "yaml_properties"]);
    run(networks.args(options).arg(target().join("sanitize")))
}
