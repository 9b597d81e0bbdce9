//! Rules of this repository that no other tool checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::process::root;

/// A longer file holds more than one idea.
const MAX_LINES: usize = 600;
/// Larger files weigh on every clone.
const MAX_BYTES: u64 = 2_000_000;
/// Whole networks with PyTorch's outputs, and those that the program carries.
const LARGE: [&str; 4] = [
    "crates/yolo-core/tests/data/goldens/net_n_detect_C3_GhostDynamicConv.safetensors",
    "crates/yolo-core/tests/data/goldens/net_n_segment_C3_GhostDynamicConv.safetensors",
    "weights/shapes-n-ghostdyn.safetensors",
    "weights/shapes-n-ghostdyn-seg.safetensors",
];

pub(crate) fn run() -> anyhow::Result<()> {
    println!("$ tidy");
    let mut problems = Vec::new();
    for path in tracked()? {
        let full = root().join(&path);
        let bytes = fs::metadata(&full).map_or(0, |metadata| metadata.len());
        if bytes > MAX_BYTES && !LARGE.iter().any(|large| path == Path::new(large)) {
            problems.push(format!(
                "{}: {bytes} bytes; keep it under {MAX_BYTES}, or list it in xtask/src/tidy.rs",
                path.display()
            ));
        }
        check(&path, &full, &mut problems);
    }
    if !problems.is_empty() {
        bail!("tidy:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

/// The files that git knows.
fn tracked() -> anyhow::Result<Vec<PathBuf>> {
    let output =
        Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output().context("git cannot be run")?;
    if !output.status.success() {
        bail!("`git ls-files` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).collect())
}

fn check(path: &Path, full: &Path, problems: &mut Vec<String>) {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if !["rs", "toml", "md", "yaml", "cu", "metal", "py"].contains(&extension) {
        return;
    }
    let Ok(text) = fs::read_to_string(full) else { return };
    let shown = path.display();
    if extension == "rs" {
        if !text.starts_with("//!") {
            problems.push(format!("{shown}:1: begin with a line `//! ...` that says what the module is for"));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            problems.push(format!("{shown}: {lines} lines; split it, {MAX_LINES} are the most"));
        }
    }
    if path.ends_with("Cargo.toml") && text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
        problems.push(format!("{shown}: add `[lints]` with `workspace = true`"));
    }
    for (i, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            problems.push(format!("{shown}:{}: trailing white space", i + 1));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        problems.push(format!("{shown}: end the last line with a newline"));
    }
}
