//! `yolo forward`: a network on a tensor from a file.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use yolo_core::weights::{NetworkMetadata, Weights, save};
use yolo_core::{Graph, Model, Outputs, Plan, PlanOptions};

use super::network;
use crate::device;
use crate::precision::Precision;

/// Run a network on the tensor `input` of a safetensors file and write what it gives.
///
/// The output has `output0` (boxes of a detection network, else the last layer's map), of a segmentation network `output1`
/// (prototypes), and `features.L` for each layer L of --features. All in f32.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Network: a name (yolov5s) or a YAML file; may be left out where the weights say it
    #[arg(long, value_name = "NAME|FILE", required_unless_present = "weights")]
    cfg: Option<String>,

    /// Weights: a .safetensors or .pt file, the name of a published network, or of one that is built in; without,
    /// random ones
    #[arg(long, value_name = "FILE")]
    weights: Option<String>,

    /// Safetensors file with the tensor `input`, [batch, channels, height, width]
    #[arg(long, value_name = "FILE")]
    input: PathBuf,

    /// Safetensors file to write
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Layers whose results are written as well, by their index in the YAML
    #[arg(long, value_delimiter = ',', value_name = "LAYER,...")]
    features: Vec<usize>,

    /// What the plan's convolutions multiply
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,

    /// What runs the network: plan (compiled for this CPU) or candle; without, plan on the CPU
    #[arg(long, value_enum, value_name = "ENGINE")]
    engine: Option<Engine>,

    /// Seed of random weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,

    /// cpu, cuda, cuda:N, N, metal or mps
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// What can run a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Engine {
    /// The network compiled for this CPU
    Plan,
    /// Candle's tensors, layer by layer
    Candle,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    check_output(args)?;
    let device = device::open(&args.device)?;
    let (graph, weights) = network::open(args.cfg.as_deref(), args.weights.as_deref(), args.seed)?;
    let input = Weights::open(&args.input)?.tensor("input", DType::F32, &device)?;
    let engine = args.engine.unwrap_or(if device.is_cpu() { Engine::Plan } else { Engine::Candle });
    let outputs = match engine {
        Engine::Plan if !device.is_cpu() => bail!("--engine plan: it runs on the CPU, not on --device {}", args.device),
        Engine::Plan => planned(&graph, &weights, &input, args)?,
        Engine::Candle if args.precision != Precision::F32 => {
            bail!("--precision {}: the candle engine computes in f32", args.precision)
        }
        Engine::Candle => {
            let model = Model::from_weights(graph, &weights, &device, DType::F32)?;
            model.run_with_features(&input, &args.features)?
        }
    };

    let mut named: Vec<(String, Tensor)> = vec![("output0".into(), outputs.main)];
    named.extend(outputs.prototypes.map(|prototypes| ("output1".into(), prototypes)));
    named.extend(args.features.iter().zip(outputs.features).map(|(layer, map)| (format!("features.{layer}"), map)));
    let on_cpu = |(name, tensor): (String, Tensor)| anyhow::Ok((name, tensor.to_device(&Device::Cpu)?.contiguous()?));
    let tensors = named.into_iter().map(on_cpu).collect::<anyhow::Result<_>>()?;
    let tensors = Weights::from_tensors(tensors, NetworkMetadata::default());
    save(&args.output, tensors.sources()?, tensors.metadata()).context("--output")?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses to write over what is read.
fn check_output(args: &Args) -> anyhow::Result<()> {
    let output = &args.output;
    let Ok(real) = output.canonicalize() else { return Ok(()) };
    let is = |path: &Path| path.canonicalize().is_ok_and(|path| path == real);
    if is(&args.input) || args.weights.as_ref().is_some_and(|weights| is(Path::new(weights))) {
        bail!("--output {} is read as well; name another file", output.display());
    }
    Ok(())
}

fn planned(graph: &Graph, weights: &Weights, input: &Tensor, args: &Args) -> anyhow::Result<Outputs> {
    Plan::check(graph, weights)?;
    let channels = graph.config().channels;
    let (batch, height, width) = match *input.dims() {
        [batch, own, height, width] if own == channels => (batch, height, width),
        ref got => {
            bail!("the network's input: expected [batch, {channels}, height, width], got {got:?}");
        }
    };
    let (precision, features) = (args.precision.into(), args.features.clone());
    let options = PlanOptions { batch, size: (height, width), precision, features, ..PlanOptions::default() };
    let plan = Plan::compile(graph, weights, &options)?;
    Ok(plan.forward(&mut plan.session()?, input, None)?)
}
