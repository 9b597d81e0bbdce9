//! Metal's sources: through Apple's compiler on macOS, elsewhere through clang, which checks their address spaces.

use std::io::Write as _;
use std::process::Stdio;

use anyhow::bail;

use super::compile::sources;
use super::toolkit::{self, Tool};
use crate::process::run as execute;

pub(super) fn run(install: bool) -> anyhow::Result<()> {
    if cfg!(target_os = "macos") { compile() } else { lint(install) }
}

/// Apple's compiler, its checks only: the library compiles the text where it runs.
fn compile() -> anyhow::Result<()> {
    for source in sources("metal", "metal")? {
        let mut command = std::process::Command::new("xcrun");
        command.args(["metal", "-std=metal3.1", "-Wall", "-Werror", "-fsyntax-only"]).arg(source);
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
    // A lint that accepts everything would go unnoticed.
    check(&clang, SNIPPET_RIGHT)?;
    if let Some(accepted) = SNIPPETS_WRONG.into_iter().find(|text| check(&clang, text).is_ok()) {
        bail!("the lint of Metal's address spaces accepts `{accepted}`");
    }
    let sources = sources("metal", "metal")?;
    for source in &sources {
        check(&clang, &format!("#include {source:?}\n"))?;
    }
    println!("Metal: {} files pass the lint of address spaces", sources.len());
    Ok(())
}

const SNIPPET_RIGHT: &str = "threadgroup float *f(threadgroup float *x, device float *y) { *x = *y; return x; }";

const SNIPPETS_WRONG: [&str; 5] = [
    "float *f(device float *x) { return x; }",
    "threadgroup float *f(device float *x) { return x; }",
    "device float &f(thread float &x) { return x; }",
    "void f(constant float &x) { x = 1.0f; }",
    "double f() { return 1; }",
];

/// Passes a text to clang, after the stand-in for Metal's library.
fn check(clang: &Tool, text: &str) -> anyhow::Result<()> {
    let mut command = clang.command();
    // Metal's language is C++14 with additions.
    command.args(["-std=c++14", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"]);
    // Attributes such as `[[buffer(0)]]` are Metal's.
    command.args(["-Wno-unknown-attributes", "-Ikernels/emulator/cpp/lint", "-x", "c++", "-"]);
    let mut clang = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = clang.stdin.take() {
        write!(input, "#include <metal_stdlib>\n{text}")?;
    }
    let output = clang.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
