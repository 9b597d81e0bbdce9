//! Builds the stand-in for NVIDIA's driver and the libraries that Candle links, around the emulated kernels. The first argument
//! is the folder for them; prints the variables for a program that runs on them. `cargo xtask test --driver` calls it.
#![allow(clippy::print_stdout, reason = "a program for a script")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dyconv_emulator::module::{Language, Sources, compile};

/// Libraries that Candle links and whose functions it calls when a device is made; each of ours does nothing and succeeds.
const LIBRARIES: [&str; 5] = ["cublas", "cublasLt", "cudart", "curand", "nvrtc"];

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("expected the folder to build in")?);
    fs::create_dir_all(&folder)?;
    let sources = Sources::read(Language::Cuda)?;
    let mut kernels = Vec::new();
    for file in sources.kernel_files() {
        kernels.push(compile(&sources, file, &folder)?.display().to_string());
    }
    let driver = Path::new(env!("CARGO_MANIFEST_DIR")).join("driver/libcuda.cc");
    library(&folder, "cuda", &driver, &["-Wl,-soname,libcuda.so.1"])?;
    fs::copy(folder.join("libcuda.so"), folder.join("libcuda.so.1"))?;
    // The second argument, a program that is linked already, tells which functions it misses.
    let missing = match std::env::args().nth(2) {
        Some(program) => missing(&program, &folder.join("libcuda.so"))?,
        None => Vec::new(),
    };
    let stubs = folder.join("stubs.cc");
    fs::write(
        &stubs,
        missing.iter().map(|name| format!("extern \"C\" int {name}() {{ return 0; }}\n")).collect::<String>(),
    )?;
    for name in LIBRARIES {
        library(&folder, name, &stubs, &[])?;
    }
    println!("DYCONV_EMULATED_KERNELS={}", kernels.join(":"));
    Ok(())
}

fn library(folder: &Path, name: &str, source: &Path, options: &[&str]) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new("g++");
    command.args(["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra"]).args(options);
    command.arg("-o").arg(folder.join(format!("lib{name}.so"))).arg(source).arg("-ldl");
    if command.status()?.success() { Ok(()) } else { Err(format!("lib{name}.so cannot be built").into()) }
}

/// Functions of NVIDIA's that a program calls and the driver does not have.
fn missing(program: &str, driver: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let symbols = |option: &str, path: &Path| -> Result<Vec<String>, Box<dyn Error>> {
        let output = Command::new("nm").args(["-D", option]).arg(path).output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().last().map(str::to_owned)).collect())
    };
    let known = symbols("--defined-only", driver)?;
    let mut called = symbols("--undefined-only", Path::new(program))?;
    called.retain(|name| ["cu", "nvrtc"].iter().any(|prefix| name.starts_with(prefix)) && !known.contains(name));
    Ok(called)
}
