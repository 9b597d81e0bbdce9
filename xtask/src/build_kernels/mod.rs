//! `cargo xtask build-kernels`: the device sources through the real compilers, and what they cost.
//!
//! Every `.cu` becomes PTX for compute_80 and machine code for each GPU from A100 on that the compiler knows; a warning or a
//! spilled register is an error. Metal's sources go through Apple's compiler on macOS, elsewhere through a lint of their address
//! spaces. The tables of resources and floors are written into `docs/kernels.md`, or compared with it (`--check`).

mod compile;
mod document;
mod floor;
mod launches;
mod metal;
mod occupancy;
mod toolkit;

use anyhow::bail;

/// What the command line asks for.
#[derive(Default)]
struct Options {
    /// Install the compilers where none is found.
    toolkit: bool,
    /// Compare the tables in the documentation instead of writing it.
    check: bool,
}

pub(crate) fn run(given: &[&str]) -> anyhow::Result<()> {
    let mut options = Options::default();
    for word in given {
        match *word {
            "--toolkit" => options.toolkit = true,
            "--check" => options.check = true,
            other => bail!("build-kernels: no such option: `{other}`; there are `--toolkit` and `--check`"),
        }
    }
    if cfg!(target_os = "macos") {
        // NVIDIA's compiler is not made for it.
        println!("CUDA: skipped, there is no nvcc for macOS");
        return metal::run(options.toolkit);
    }
    // Before anything that takes minutes.
    let nvcc = toolkit::nvcc(options.toolkit)?;
    let launches = launches::read()?;
    metal::run(options.toolkit)?;
    compile::run(&nvcc, &launches, options.check)?;
    floor::run(&launches, options.check)
}
