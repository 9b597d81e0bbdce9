//! With the feature `cuda`: compiles `kernels/cuda/*.cu` to PTX and embeds it.
#![allow(clippy::print_stderr, reason = "Cargo shows what a build script prints")]

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The oldest architecture; the driver compiles its PTX for newer ones.
const ARCHITECTURE: &str = "compute_80";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes `ptx.rs`: a function from a kernel file's name to its PTX.
fn embed() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kernels/params.h");
    println!("cargo:rerun-if-changed=kernels/cuda");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let nvcc = nvcc();
    let mut sources: Vec<PathBuf> =
        fs::read_dir("kernels/cuda")?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let mut table = String::from(
        "/// PTX of a kernel file.\nfn ptx(file: &str) -> Option<&'static str> {\n    Some(match file {\n",
    );
    for source in &sources {
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let ptx = out.join(&name).with_extension("ptx");
        compile(&nvcc, source, &ptx)?;
        writeln!(table, "        {name:?} => include_str!({:?}),", ptx.display().to_string())?;
    }
    table += "        _ => return None,\n    })\n}\n";
    fs::write(out.join("ptx.rs"), table)?;
    Ok(())
}

fn compile(nvcc: &Path, source: &Path, ptx: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(nvcc);
    command.args(["-std=c++17", "-O3", "-ptx", "-arch", ARCHITECTURE]).arg(source).arg("-o").arg(ptx);
    let output = command.output().map_err(|error| {
        format!(
            "the feature `cuda` needs NVIDIA's compiler: `{}` cannot be run ({error}). Put nvcc on the PATH, set CUDA_HOME to the \
             toolkit, or NVCC to the program",
            nvcc.display()
        )
    })?;
    if !output.status.success() {
        return Err(
            format!("{} does not compile:\n{}", source.display(), String::from_utf8_lossy(&output.stderr)).into()
        );
    }
    Ok(())
}

/// By the variable NVCC, in CUDA_HOME or CUDA_PATH, or on the PATH.
fn nvcc() -> PathBuf {
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let program = format!("nvcc{}", env::consts::EXE_SUFFIX);
    homes.map(|home| Path::new(&home).join("bin").join(&program)).find(|path| path.is_file()).unwrap_or("nvcc".into())
}
