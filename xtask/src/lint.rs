//! `cargo xtask lint`: what a reviewer should not have to look for.

use crate::process::{cargo, run as execute};
use crate::{deny, tidy};

pub(crate) fn run() -> anyhow::Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    execute(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    execute(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    deny::run()
}
