//! `cargo xtask check-gpu`: the Rust code behind the features `cuda` and `metal` type-checks, on a machine that has neither.
//!
//! CUDA needs an nvcc while it builds: a stand-in answers for it. Metal's bindings build on other systems with an Objective-C
//! runtime's name given and one line removed, the one that links Apple's framework; a type check links nothing. A crate made for this
//! in `target/` depends on yolo-core with the feature, has the program that runs the kernels' cases on such a device as its own, and
//! holds those two changes, so that the workspace knows nothing of them.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::process::{cargo, root, run as execute};

const NVCC: &str = include_str!("nvcc.sh");

/// The line of objc2-metal that only Apple's linker understands.
const FRAMEWORK: &str = "#[link(name = \"Metal\", kind = \"framework\")]\n";

/// Checks the features named, or both.
pub(crate) fn run(features: &[&str]) -> anyhow::Result<()> {
    let features = if features.is_empty() { &["cuda", "metal"] } else { features };
    for feature in features {
        match *feature {
            "cuda" => cuda()?,
            "metal" => metal()?,
            other => bail!("check-gpu: no such feature: `{other}`; there are `cuda` and `metal`"),
        }
    }
    Ok(())
}

fn cuda() -> anyhow::Result<()> {
    let folder = root().join("target/check-gpu/cuda");
    prepare(&folder, "cuda", "")?;
    let variables = without_toolkit(&folder)?;
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    check(&folder, &variables)
}

/// The variables with which the feature `cuda` builds without NVIDIA's toolkit: a stand-in for nvcc, put into `folder`.
pub(crate) fn without_toolkit(folder: &Path) -> anyhow::Result<[(&'static str, OsString); 3]> {
    let nvcc = folder.join("nvcc");
    fs::write(&nvcc, NVCC)?;
    executable(&nvcc)?;
    Ok([("NVCC", nvcc.into()), ("CUDA_COMPUTE_CAP", "80".into()), ("CUDARC_CUDA_VERSION", "13000".into())])
}

fn metal() -> anyhow::Result<()> {
    let folder = root().join("target/check-gpu/metal");
    let extra = if cfg!(target_os = "macos") {
        ""
    } else {
        copy_bindings(&folder.join("objc2-metal"))?;
        "objc2 = { version = \"0.6\", features = [\"gnustep-2-1\"] }\n\
         block2 = { version = \"0.6\", features = [\"gnustep-2-1\"] }\n\n\
         [patch.crates-io]\nobjc2-metal = { path = \"objc2-metal\" }\n"
    };
    prepare(&folder, "metal", extra)?;
    check(&folder, &[])
}

/// A crate that depends on yolo-core with one feature, and has the program that runs the cases on such a device.
fn prepare(folder: &Path, feature: &str, extra: &str) -> anyhow::Result<()> {
    fs::create_dir_all(folder.join("src"))?;
    let path = |inside: &str| root().join(inside);
    let example = path("kernels/emulator/examples").join(format!("{feature}_conformance.rs"));
    let manifest = format!(
        "[package]\nname = \"check-{feature}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [[bin]]\nname = \"{feature}_conformance\"\npath = {example:?}\n\n[dependencies]\ncandle-core = \"*\"\nhalf = \"*\"\n\
         dyconv-emulator = {{ path = {:?}, features = [\"{feature}\"] }}\ndyconv-kernels = {{ path = {:?} }}\n\
         yolo-core = {{ path = {:?}, features = [\"{feature}\"] }}\n{extra}",
        path("kernels/emulator"),
        path("crates/dyconv-kernels"),
        path("crates/yolo-core"),
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/lib.rs"), "")?;
    // The workspace's versions.
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    Ok(())
}

fn check(folder: &Path, variables: &[(&str, &std::ffi::OsStr)]) -> anyhow::Result<()> {
    let mut command = cargo();
    command.arg("check").arg("--manifest-path").arg(folder.join("Cargo.toml"));
    // Both features share what does not depend on them. Warnings of the project's own crates are errors; Cargo silences the others'.
    command
        .env("CARGO_TARGET_DIR", root().join("target/check-gpu/target"))
        .env("CARGO_ENCODED_RUSTFLAGS", "-Dwarnings");
    command.envs(variables.iter().copied());
    execute(&mut command)
}

/// Copies the bindings as Cargo unpacked them, without the line that links.
fn copy_bindings(to: &Path) -> anyhow::Result<()> {
    let lock = fs::read_to_string(root().join("Cargo.lock"))?;
    let version = version(&lock, "objc2-metal").context("Cargo.lock does not name objc2-metal")?;
    execute(cargo().args(["fetch", "--quiet", "--locked"]))?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cargo"))).context("there is no home folder")?;
    let name = format!("objc2-metal-{version}");
    let unpacked = fs::read_dir(home.join("registry/src"))?.flatten().map(|index| index.path().join(&name));
    let from =
        unpacked.into_iter().find(|path| path.is_dir()).with_context(|| format!("Cargo has not unpacked {name}"))?;
    if to.is_dir() {
        fs::remove_dir_all(to)?;
    }
    copy(&from, to)?;
    let file = to.join("src/generated/mod.rs");
    let text = fs::read_to_string(&file)?;
    let without = text.replacen(FRAMEWORK, "", 1);
    if without == text {
        bail!("{name} has no line `{}`", FRAMEWORK.trim());
    }
    fs::write(&file, without)?;
    Ok(())
}

/// The version of a package in a lock file.
fn version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, after) = lock.split_once(&format!("name = \"{package}\"\nversion = \""))?;
    after.split('"').next()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn executable(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn executable(_: &Path) -> anyhow::Result<()> {
    bail!("the stand-in for nvcc is a shell script: `cargo xtask check-gpu cuda` runs on Unix only");
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0\"\n\n[[package]]\nname = \"objc2-metal\"\nversion = \"0.3.2\"\n";
        assert_eq!(version(lock, "objc2-metal"), Some("0.3.2"));
        assert_eq!(version(lock, "b"), None);
    }
}
