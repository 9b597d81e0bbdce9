//! `cargo xtask test`: every test of the workspace, and the examples that need no weights.

use std::process::{Command, Stdio};

use crate::process::{cargo, run as execute, target};

/// Examples that run to the end on their own.
const EXAMPLES: [&str; 2] = ["build_network", "features"];

pub(crate) fn run() -> anyhow::Result<()> {
    // Always the whole workspace: selecting packages resolves other features and builds the dependencies anew.
    execute(cargo().args(["test", "--workspace", "--all-targets"]))?;
    execute(cargo().args(["test", "--workspace", "--doc"]))?;
    execute(cargo().args(["build", "--workspace", "--examples"]))?;
    for example in EXAMPLES {
        let program = target().join("debug/examples").join(example).with_extension(std::env::consts::EXE_EXTENSION);
        execute(Command::new(program).stdout(Stdio::null()))?;
    }
    Ok(())
}

/// All mutants of the GPU kernels; `test` runs a few.
pub(crate) fn mutants() -> anyhow::Result<()> {
    execute(
        cargo().args(["test", "--workspace", "--test", "mutants", "--", "--nocapture"]).env("DYCONV_MUTANTS", "all"),
    )
}
