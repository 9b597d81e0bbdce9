//! Metal's sources: through Apple's compiler on macOS, elsewhere through clang, which checks their address spaces.

use anyhow::bail;

use super::{compile::sources, toolkit};
use crate::process::run as execute;

pub(super) fn run(install: bool) -> anyhow::Result<()> {
    if cfg!(target_os = "macos") { compile() } else { lint(install) }
}

/// Apple's compiler, its checks only: the library compiles the text where it runs.
fn compile() -> anyhow::Result<()> {
    for source in sources("metal", "metal")? {
        let mut command = std::process::Command::new("xcrun");
        command.args(["metal", "-std=metal3.1", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]).arg(source);
        execute(&mut command)?;
    }
    Ok(())
}

/// Each text as C++ in which `device`, `constant` and `threadgroup` are address spaces that do not convert into each other.
fn lint(install: bool) -> anyhow::Result<()> {
    let Some(clang) = toolkit::clang(install)? else {
        println!(
            "Metal: the lint of address spaces was skipped: there is no clang of version 19 or newer; `--toolkit` installs one \
             into target/toolkit (340 MB)"
        );
        return Ok(());
    };
    let sources = sources("metal", "metal")?;
    for source in &sources {
        let mut command = clang.command();
        command.args(["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"]);
        // Attributes such as `[[buffer(0)]]` are Metal's.
        command.args(["-Wno-unknown-attributes", "-Ikernels/emulator/cpp/lint", "-x", "c++"]).arg(source);
        let output = command.output()?;
        if !output.status.success() {
            bail!("{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    println!("Metal: {} files pass the lint of address spaces", sources.len());
    Ok(())
}
