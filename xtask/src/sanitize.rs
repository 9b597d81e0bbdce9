//! `cargo xtask test --sanitize`: the CPU kernels' tests with every access to memory checked by AddressSanitizer.

use anyhow::{Context, bail};

use crate::process::{nightly, output_of, run as execute};
use crate::slices;

pub(crate) fn run() -> anyhow::Result<()> {
    let Some(about) = output_of(nightly("rustc").arg("-vV")) else {
        bail!("AddressSanitizer needs the nightly compiler, which is missing: rustup toolchain install nightly");
    };
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not say its host")?;
    let mut test = nightly("cargo");
    // A target that is named keeps the flag from build scripts.
    test.args(["test", "--lib", "--target", host, "--target-dir", "target/sanitize", "--", "--nocapture"])
        .current_dir(slices::generate()?)
        .env("RUSTFLAGS", "-Zsanitizer=address");
    execute(&mut test)
}
