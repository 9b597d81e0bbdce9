//! `cargo xtask bench peers`: our binary beside ONNX Runtime and OpenVINO, on networks exported from our own graph.

use std::process::Command;

use super::{program, python, release};
use crate::process::{cargo, root, run as execute, target};

/// The packages of the other engines.
const PACKAGES: &str = include_str!("../../../benches/peers/requirements.txt");

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let python = python("peers-python", PACKAGES)?;
    let binaries = release(&mut cargo(), &target())?;
    let mut script = Command::new(python);
    script.current_dir(root()).arg(root().join("benches/peers/peers.py"));
    script.arg(binaries.join(program("yolo"))).arg(binaries.join("examples").join(program("graph_json")));
    // No compiled Python beside the sources.
    execute(script.args(options).env("PYTHONDONTWRITEBYTECODE", "1"))
}
