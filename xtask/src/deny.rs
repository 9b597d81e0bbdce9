//! Licences, bans and sources of all dependencies; their advisories where the database can be reached.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{cargo, output_of, root, run as execute};

/// Where cargo-deny gets its advisories from.
const DATABASE: &str = "https://github.com/RustSec/advisory-db";

pub(crate) fn run() -> anyhow::Result<()> {
    let deny = find_or_install()?;
    execute(command(&deny).args(["check", "licenses", "bans", "sources"]))?;
    if reachable() {
        return execute(command(&deny).args(["check", "advisories"]));
    }
    println!("advisories of dependencies: skipped, {DATABASE} cannot be reached from here");
    Ok(())
}

fn command(deny: &Path) -> Command {
    let mut command = Command::new(deny);
    command.current_dir(root()).args(["--workspace", "--log-level", "warn"]);
    command
}

/// cargo-deny from the PATH, or else one of the project's own.
fn find_or_install() -> anyhow::Result<PathBuf> {
    let runs = |program: &Path| output_of(Command::new(program).arg("--version")).is_some();
    let tools = root().join("target/tools");
    let own = tools.join("bin/cargo-deny");
    if let Some(found) = [PathBuf::from("cargo-deny"), own.clone()].into_iter().find(|program| runs(program)) {
        return Ok(found);
    }
    println!("cargo-deny is not installed; building it into target/tools, which takes some minutes once");
    // Unoptimised: it runs for a second, but its optimised build takes many times longer.
    let mut install = cargo();
    install.args(["install", "cargo-deny", "--locked", "--debug", "--version", "0.20.2", "--root"]).arg(&tools);
    execute(install.env("CARGO_TARGET_DIR", root().join("target/tools/build")))?;
    Ok(own)
}

/// Whether the database answers within ten seconds.
fn reachable() -> bool {
    let mut probe = Command::new("git");
    probe.args([
        "-c",
        "http.lowSpeedLimit=1",
        "-c",
        "http.lowSpeedTime=10",
        "ls-remote",
        "--exit-code",
        DATABASE,
        "HEAD",
    ]);
    probe.env("GIT_TERMINAL_PROMPT", "0").stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}
