//! Finding the compilers, and installing them where the caller asks for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::process::{root, run as execute};

/// NVIDIA's compiler as Python packages. The parts must match, which the package of packages sees to; 13.2 is the newest whose PTX
/// and version number Candle's CUDA bindings know.
const NVIDIA: &str = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.2.1";

/// A clang that knows bf16, which comes inside Zig's compiler: version 19.
const CLANG: &str = "ziglang==0.14.1";

/// A compiler as a command line: the program, and the arguments that always come first.
pub(super) struct Tool {
    program: PathBuf,
    leading: &'static [&'static str],
}

impl Tool {
    fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), leading: &[] }
    }

    /// A command that runs from the repository's root.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.leading).current_dir(root());
        command
    }

    /// What `--version` answers; nothing where the program does not run.
    pub(super) fn version(&self) -> Option<String> {
        let output = self.command().arg("--version").stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// NVIDIA's compiler: from `NVCC`, `CUDA_HOME`, `CUDA_PATH`, the PATH, or an earlier installation of ours.
pub(super) fn nvcc(install: bool) -> anyhow::Result<Tool> {
    let home = |name| std::env::var_os(name).map(|home| PathBuf::from(home).join("bin/nvcc"));
    let given = [std::env::var_os("NVCC").map(PathBuf::from), home("CUDA_HOME"), home("CUDA_PATH")];
    for path in given.into_iter().flatten().chain(["nvcc".into()]).chain(own("nvidia/cu13/bin/nvcc", "nvidia")) {
        let tool = Tool::new(path);
        if tool.version().is_some() {
            return Ok(tool);
        }
    }
    if !install {
        bail!(
            "no nvcc in NVCC, CUDA_HOME or the PATH; `cargo xtask build-kernels --toolkit` installs NVIDIA's compiler packages into \
             target/toolkit (330 MB)"
        );
    }
    pip(NVIDIA, "nvidia")?;
    let path = own("nvidia/cu13/bin/nvcc", "nvidia").context("the installed packages hold no nvcc")?;
    Ok(Tool::new(path))
}

/// A clang of at least version 19, older ones lack arithmetic on bf16: from the PATH or an installation of ours.
pub(super) fn clang(install: bool) -> anyhow::Result<Option<Tool>> {
    let names = ["clang++", "clang++-22", "clang++-21", "clang++-20", "clang++-19"];
    let modern = |tool: &Tool| tool.version().is_some_and(|text| major(&text).is_some_and(|major| major >= 19));
    if let Some(tool) = names.into_iter().map(Tool::new).find(modern) {
        return Ok(Some(tool));
    }
    let installed = || own("ziglang/zig", "ziglang").map(|program| Tool { program, leading: &["clang"] });
    if installed().is_none() && install {
        pip(CLANG, "ziglang")?;
    }
    Ok(installed())
}

/// The number in `clang version 19.1.7`.
fn major(version: &str) -> Option<u32> {
    let (_, after) = version.split_once("clang version ")?;
    after.split('.').next()?.parse().ok()
}

/// A file of the packages installed in target/toolkit, where `package` is there as a whole.
fn own(inside: &str, package: &str) -> Option<PathBuf> {
    if !mark(package).is_file() {
        return None;
    }
    let folders = fs::read_dir(environment().join("lib")).ok()?;
    folders.flatten().map(|folder| folder.path().join("site-packages").join(inside)).find(|path| path.is_file())
}

fn environment() -> PathBuf {
    root().join("target/toolkit")
}

/// What is written once a package is installed: one that was cut short has its program, but not what the program needs.
fn mark(package: &str) -> PathBuf {
    environment().join(format!("complete-{package}"))
}

fn pip(requirement: &str, package: &str) -> anyhow::Result<()> {
    let environment = environment();
    println!("installing {requirement} from the Python package index into target/toolkit");
    let program = environment.join("bin/pip");
    if !Path::new(&program).is_file() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    }
    execute(Command::new(program).args(["install", "--quiet", "--disable-pip-version-check", requirement]))?;
    fs::write(mark(package), requirement).context("target/toolkit cannot be written")
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("Debian clang version 19.1.7 (3~deb12u1)\nTarget: x86_64-pc-linux-gnu"), Some(19));
        assert_eq!(major("clang version 16.0.6"), Some(16));
        assert_eq!(major("g++ (Debian 12.2.0-14) 12.2.0"), None);
    }
}
