//! `cargo xtask test --miri`: the CPU kernels in Miri, which sees undefined behaviour and data races.
//!
//! Miri interprets x86's vector instructions too, so AVX2 and AVX-512 run on any machine. Shapes are small there, for it
//! takes a thousand times as long.

use anyhow::bail;

use crate::process::{nightly, output_of, run as execute};
use crate::slices;

/// The thread pool lives to the end of the process, and its queues (of crossbeam) fit the tree model of borrows only. Functions
/// such as `exp` would be a little wrong at random; tests compare results bit by bit.
const FLAGS: &str = "-Zmiri-ignore-leaks -Zmiri-tree-borrows -Zmiri-permissive-provenance -Zmiri-num-cpus=2 \
                     -Zmiri-deterministic-floats";
const FEATURES: &str = "-Ctarget-feature=+avx2,+fma,+avx512f,+avx512vl,+avx512bw,+avx512dq";

pub(crate) fn run() -> anyhow::Result<()> {
    if output_of(nightly("cargo").args(["miri", "--version"])).is_none() {
        bail!("Miri is missing: rustup toolchain install nightly --component miri,rust-src");
    }
    let mut test = nightly("cargo");
    test.args([
        "miri",
        "test",
        "--lib",
        "--target-dir",
        "target/miri",
        "--",
        "--nocapture",
        "conformance",
        "helpers",
        "phases",
        "channels_last",
    ])
    .current_dir(slices::generate()?)
    .env("MIRIFLAGS", FLAGS)
    .env("RUSTFLAGS", if cfg!(target_arch = "x86_64") { FEATURES } else { "" });
    execute(&mut test)
}
