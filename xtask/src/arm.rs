//! `cargo xtask test --arm`: the CPU kernels' tests with NEON, emulated where this is no ARM machine.

use std::path::Path;
use std::process::Command;

use anyhow::bail;

use crate::process::{cargo, output_of, run as execute, starts};
use crate::slices;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATORS: [&str; 2] = ["qemu-aarch64", "qemu-aarch64-static"];

pub(crate) fn run() -> anyhow::Result<()> {
    let mut test = cargo();
    test.arg("test").arg("--lib").current_dir(slices::generate()?);
    if cfg!(target_arch = "aarch64") {
        return execute(test.args(["--", "--nocapture"]));
    }
    let emulator = tools()?;
    // Linked statically, so that the emulator needs no ARM libraries.
    test.args(["--target", TARGET, "--", "--nocapture", "--skip", "calls_within_calls"])
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", emulator)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    execute(&mut test)
}

/// The emulator, where everything is there; else all that is missing, and how to get it.
fn tools() -> anyhow::Result<&'static str> {
    let sysroot = output_of(Command::new("rustc").args(["--print", "sysroot"])).unwrap_or_default();
    let mut missing = Vec::new();
    if !Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).is_dir() {
        missing.push(format!("Rust's library for {TARGET}: rustup target add {TARGET}"));
    }
    if !starts(LINKER) {
        missing.push(format!("the linker {LINKER}: on Debian, apt-get install gcc-aarch64-linux-gnu"));
    }
    let emulator = EMULATORS.into_iter().find(|program| starts(program));
    match emulator {
        Some(emulator) if missing.is_empty() => return Ok(emulator),
        Some(_) => {}
        None => missing.push(format!("the emulator {}: on Debian, apt-get install qemu-user", EMULATORS[0])),
    }
    bail!("NEON was not tested; this is missing:\n  {}", missing.join("\n  "))
}
