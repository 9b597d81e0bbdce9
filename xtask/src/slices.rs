//! The CPU kernels as a crate of their own, made in the target folder.
//!
//! They know no tensors, so little has to be built to test them for a foreign CPU, in an interpreter or with a
//! sanitizer.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::process::{root, target};

const MANIFEST: &str = r#"[package]
name = "slices"
version = "0.0.0"
edition = "2024"
publish = false

[workspace]

[dependencies]
libc = "0.2"
memmap2 = "0.9"
rayon = "1"

[dev-dependencies]
proptest = { version = "1", default-features = false, features = ["std"] }

[profile.dev]
opt-level = 2
debug = "line-tables-only"

[profile.dev.package."*"]
opt-level = 1
"#;

/// Writes the crate; its folder.
pub(crate) fn generate() -> anyhow::Result<PathBuf> {
    let folder = target().join("slices");
    let kernels = root().join("crates/dyconv-kernels/src");
    // The same names as at the root of the whole crate.
    let library = format!(
        "#![allow(dead_code)]\n\
         #[path = {:?}]\nmod config;\n\
         #[path = {:?}]\npub mod cpu;\n\
         pub use config::{{ConvConfig, Routing}};\n",
        kernels.join("config.rs"),
        kernels.join("cpu/mod.rs"),
    );
    fs::create_dir_all(folder.join("src")).with_context(|| format!("{} cannot be made", folder.display()))?;
    write(&folder.join("Cargo.toml"), MANIFEST)?;
    write(&folder.join("src/lib.rs"), &library)?;
    // The versions that the workspace uses.
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("Cargo.lock cannot be read")?;
    write(&folder.join("Cargo.lock"), &lock)?;
    Ok(folder)
}

/// Writes what is new only, so that nothing is built again for its date.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
