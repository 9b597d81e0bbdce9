//! `yolo summary`: YOLOv5's table of a network's layers.

use std::process::ExitCode;

use candle_core::Device;
use yolo_core::weights::{NetworkMetadata, Weights};
use yolo_core::{Graph, NetworkConfig, Plan, PlanOptions};

use crate::precision::Precision;
use crate::stdout::say;

/// Print a network's layers, parameters and operations.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Network: a name (yolov5s; `yolo summary --list` names all) or a YAML file
    #[arg(long, value_name = "NAME|FILE", required_unless_present = "list")]
    cfg: Option<String>,

    /// Number of classes, instead of the network's own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nc: Option<u16>,

    /// Side of the square picture that operations are counted for
    #[arg(long, visible_aliases = ["img", "img-size"], default_value_t = 640, value_name = "PIXELS")]
    imgsz: u16,

    /// Print JSON: name, params, modules, gflops, gflops_printed, flops, imgsz, strides, layers
    #[arg(long)]
    json: bool,

    /// Print the steps that the network is compiled to for this CPU: kernel, shape and place of what each writes
    #[arg(long, conflicts_with = "json")]
    plan: bool,

    /// What the plan's convolutions multiply
    #[arg(long, value_enum, default_value_t = Precision::F32, requires = "plan")]
    precision: Precision,

    /// Print the names of the built-in networks
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(cfg) = args.cfg.as_ref().filter(|_| !args.list) else {
        for name in yolo_core::zoo::names() {
            say!("{name}")?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut config = NetworkConfig::open(cfg)?;
    if let Some(classes) = args.nc {
        config = config.with_classes(usize::from(classes));
    }
    if args.plan {
        return plan(&Graph::new(&config)?, usize::from(args.imgsz), args.precision);
    }
    let summary = Graph::new(&config)?.summary(usize::from(args.imgsz))?;
    if args.json {
        say!("{}", serde_json::to_string(&summary.to_json())?)?;
    } else {
        say!("{summary}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The compiled plan. Weights are random: it does not depend on them.
fn plan(graph: &Graph, size: usize, precision: Precision) -> anyhow::Result<ExitCode> {
    let weights = Weights::from_tensors(graph.init(0, &Device::Cpu)?, NetworkMetadata::default());
    let options = PlanOptions { size: (size, size), precision: precision.into(), ..PlanOptions::default() };
    let plan = Plan::compile(graph, &weights, &options)?;
    say!("{:>4}  {:<36} {:<28} {:>14} {:>11} {:>6}", "step", "name", "kernel", "result", "at value", "apart")?;
    for (index, step) in plan.steps().iter().enumerate() {
        let output = step.output.map_or_else(String::new, |view| {
            let shape = format!("{}x{}x{}", view.channels, view.height, view.width);
            format!(" {shape:>14} {:>11} {:>6}{}", view.offset, view.pixel, if view.bf16 { " bf16" } else { "" })
        });
        say!("{index:>4}  {:<36} {:<28}{output}", step.name, step.kernel)?;
    }
    say!("\n{:.1} MB of memory besides the weights", plan.memory() as f64 / 1e6)?;
    Ok(ExitCode::SUCCESS)
}
