//! Running other programs from the repository's root.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder that everything is built in: Cargo knows, from its variables and settings.
pub(crate) fn target() -> PathBuf {
    let metadata = output_of(cargo().args(["metadata", "--format-version", "1", "--no-deps", "--offline"]));
    metadata.as_deref().and_then(target_of).unwrap_or_else(|| root().join("target"))
}

/// The value of a key of Cargo's JSON; a parser would be another crate to wait for.
fn target_of(metadata: &str) -> Option<PathBuf> {
    let (_, value) = metadata.split_once(r#""target_directory":""#)?;
    let (value, _) = value.split_once('"')?;
    Some(value.replace(r"\\", r"\").into())
}

/// The `cargo` that runs this.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// A program of the nightly toolchain, whatever toolchain runs this.
pub(crate) fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).current_dir(root());
    for inherited in ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
        command.env_remove(inherited);
    }
    command
}

/// Whether a program can be started.
pub(crate) fn starts(program: &str) -> bool {
    output_of(Command::new(program).arg("--version")).is_some()
}

/// What a command prints, where it can be run and succeeds.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Runs a command, saying so, and fails where it does.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let line = std::iter::once(program).chain(words).collect::<Vec<_>>().join(" ");
    println!("$ {line}");
    let status = command.status().with_context(|| format!("`{line}` cannot be run"))?;
    if !status.success() {
        bail!("`{line}` failed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::target_of;

    #[test]
    fn cargo_tells_the_target_folder() {
        let metadata = r#"{"packages":[],"target_directory":"/a b/target","version":1}"#;
        assert_eq!(target_of(metadata), Some("/a b/target".into()));
        assert_eq!(target_of("{}"), None);
    }
}
