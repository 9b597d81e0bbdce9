//! `yolo convert`: from one weights file to another.

use std::path::PathBuf;
use std::process::ExitCode;

use yolo_core::weights::{self, Report};

use crate::stdout::say;

/// Convert weights: .pt or .safetensors to .safetensors or .npz.
///
/// Names are those of PyTorch's state_dict(). Numbers keep the type that they are stored as (YOLOv5's checkpoints hold
/// f16); the network's YAML, class names, input size and stride go along into .safetensors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A PyTorch checkpoint (.pt) or safetensors.
    input: PathBuf,
    /// The file to write, ending in .safetensors or .npz.
    output: PathBuf,
    /// Store floating-point numbers as f16, half the size of f32.
    #[arg(long)]
    half: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = weights::convert(&args.input, &args.output, args.half)?;
    for note in &report.notes {
        eprintln!("note: {note}");
    }
    say!("{}: {}", args.output.display(), describe(&report, args.output.extension().is_some_and(|e| e == "npz")))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(report: &Report, numbers_only: bool) -> String {
    let Report { tensors, parameters, bytes, origin, metadata, .. } = report;
    let source = origin.map_or_else(|| "safetensors".to_string(), |origin| origin.to_string());
    let counts = format!("{tensors} tensors, {parameters} parameters, {bytes} bytes");
    if numbers_only {
        return format!("{counts} from {source}");
    }
    let names = metadata.names.as_ref().map(|names| format!("{} class names", names.len()));
    let facts: Vec<_> = metadata.yaml.as_ref().map(|_| "YAML".to_string()).into_iter().chain(names).collect();
    let facts = if facts.is_empty() { "no YAML or class names".into() } else { facts.join(" and ") };
    format!("{counts}; {facts} from {source}")
}
