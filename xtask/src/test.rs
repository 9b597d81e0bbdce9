//! `cargo xtask test`: every test of the workspace.

use crate::process::{cargo, run};

pub(crate) fn run_examples() -> anyhow::Result<()> {
    // Those that need no weights run to the end; all of them were built with the tests.
    for example in ["build_network", "features"] {
        run(cargo().args(["run", "--quiet", "--workspace", "--example", example]).stdout(std::process::Stdio::null()))?;
    }
    Ok(())
}

pub(crate) fn run_tests() -> anyhow::Result<()> {
    // Always the whole workspace: selecting packages resolves other features and builds the dependencies anew.
    run(cargo().args(["test", "--workspace", "--all-targets"]))?;
    run(cargo().args(["test", "--workspace", "--doc"]))
}

pub(crate) fn run() -> anyhow::Result<()> {
    run_tests()?;
    run_examples()
}
