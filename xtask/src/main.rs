//! The project's automation: `cargo xtask <verb>`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this crate talks to the terminal")]

mod arm;
mod bench;
mod build_kernels;
mod check_gpu;
mod deny;
mod driver;
mod lint;
mod miri;
mod process;
mod sanitize;
mod slices;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask <verb>

  test   build everything and run every test
         --arm       the CPU kernels with NEON, emulated where this is no ARM machine
         --miri      the CPU kernels in Miri, on every instruction set of x86-64
         --sanitize  the CPU kernels with AddressSanitizer
         --driver    the CUDA kernels through Candle's own CUDA device, on a stand-in for NVIDIA's driver (minutes)
  mutants
         every mistake that is put into the GPU kernels, and what catches it
  bench  dyconv: dynamic convolution beside static convolution and Candle's own
         --torch     and beside PyTorch's, of BENCH_PYTHON or installed into target/
  bench  letterbox: fitting a picture into the network's input, beside its plain twin
  bench  peers [--nets NAME[:BATCH] ...] [--rounds N] [--iters N] [--threads N] [--bf16] [--check]
         `yolo benchmark` beside ONNX Runtime and OpenVINO, of BENCH_PYTHON or installed into target/, on networks exported from
         our graph; --check compares the results instead
  bench  regress BASE [--paired]
         the working tree beside a git revision, by instructions (Valgrind) or by times of runs in turn; fails where it is slower
  lint   formatting, clippy, documentation, tidiness, licences and advisories of dependencies
  ci     test, lint, build-kernels --toolkit --check, check-gpu

  build-kernels [--toolkit] [--check]
         the CUDA and Metal sources through their compilers, and what each kernel needs; --toolkit installs the compilers that
         are not found into target/, --check fails where docs/kernels.md is out of date
  check-gpu [cuda] [metal]
         type-checks the code behind these features, without a GPU or its tools";

/// What has to hold before a change is taken.
fn ci() -> anyhow::Result<()> {
    test::run()?;
    lint::run()?;
    build_kernels::run(&["--toolkit", "--check"])?;
    check_gpu::run(&[])
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match given.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test"] => test::run(),
        ["test", "--driver"] => driver::run(),
        ["mutants"] => test::mutants(),
        ["test", "--arm"] => arm::run(),
        ["test", "--miri"] => miri::run(),
        ["test", "--sanitize"] => sanitize::run(),
        ["bench", options @ ..] => bench::run(options),
        ["lint"] => lint::run(),
        ["ci"] => ci(),
        ["build-kernels", options @ ..] => build_kernels::run(options),
        ["check-gpu", features @ ..] => check_gpu::run(features),
        ["help" | "-h" | "--help"] => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [] => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
        other => {
            eprintln!("no such verb: `{}`\n\n{USAGE}", other.join(" "));
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
