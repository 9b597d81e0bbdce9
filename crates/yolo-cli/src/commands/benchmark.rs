//! `yolo benchmark`: how fast a network runs.

mod profile;

use std::fmt;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use candle_core::{DType, Device, Tensor};
use clap::builder::RangedU64ValueParser;
use clap::{ArgAction, ValueEnum};
use serde_json::json;
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, Plan, PlanOptions, PlanSession};

use super::network;
use crate::allocator;
use crate::fetch;
use crate::precision::Precision;
use crate::stdout::say;

/// Runs that are not timed, and for how long there are more of them, where --warmup does not say.
const WARM_UP: Length = Length { runs: 2, time: Duration::from_millis(300) };
/// Timed runs, where --iters does not say.
const MEASURE: Length = Length { runs: 10, time: Duration::from_secs(3) };
/// Seed of random weights: speed does not depend on them.
const SEED: u64 = 0;

/// Time a network on the CPU, from its input to decoded boxes.
///
/// Prints the network, its input, and the times of its runs; with --json, the last line is one object with cfg, batch, imgsz,
/// threads, precision, engine, median_ms, min_ms, p10_ms, p90_ms, runs, gflops_per_s, load_ms and compile_ms.
#[derive(Debug, clap::Args)]
// As argparse has it: the last of several counts.
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// Network: a name (yolov5s) or a YAML file; may be left out where the weights say it
    #[arg(long, value_name = "NAME|FILE", required_unless_present = "weights")]
    cfg: Option<String>,

    /// Weights: a .safetensors or .pt file, the name of a published network, or of one that is built in; without,
    /// random ones
    #[arg(long, value_name = "FILE")]
    weights: Option<String>,

    /// Pictures of one run
    #[arg(long, default_value_t = 1, value_parser = at_least(1, 4096), value_name = "N")]
    batch: usize,

    /// Size of a picture: one side, or height and width
    #[arg(long, visible_aliases = ["img", "img-size"], action = ArgAction::Set, num_args = 1..=2, default_values_t = [640],
          value_parser = at_least(1, 65536), value_name = "PIXELS")]
    imgsz: Vec<usize>,

    /// Threads; without, as many as the machine can run at once. Candle has some of its own, which only RAYON_NUM_THREADS limits
    #[arg(long, value_parser = at_least(1, 1024), value_name = "T")]
    threads: Option<usize>,

    /// Type of numbers that it computes with
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    precision: Precision,

    /// Choose each convolution's algorithm by measurement, once: what was fastest is kept in tuning.yaml in the cache folder
    #[arg(long)]
    tune: bool,

    /// What runs the network
    #[arg(long, value_enum, default_value_t = EngineKind::Plan)]
    engine: EngineKind,

    /// Timed runs; without, at least 10, for three seconds
    #[arg(long, value_parser = at_least(1, 1_000_000), value_name = "N")]
    iters: Option<usize>,

    /// Runs before those that are timed; without, at least 2, for 0.3 seconds
    #[arg(long, value_parser = at_least(0, 1_000_000), value_name = "N")]
    warmup: Option<usize>,

    /// Tell what each operation took
    #[arg(long)]
    profile: bool,

    /// Print one line of JSON at the end
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Height and width.
    fn size(&self) -> anyhow::Result<(usize, usize)> {
        match *self.imgsz.as_slice() {
            [side] => Ok((side, side)),
            [height, width] => Ok((height, width)),
            _ => bail!("--imgsz: expected one side, or height and width"),
        }
    }
}

fn at_least(least: u64, most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=most)
}

/// What can run a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EngineKind {
    /// The network compiled for this CPU
    Plan,
    /// Candle's tensors, layer by layer, with batch normalisation folded
    Candle,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Candle => "candle",
        })
    }
}

/// A network that is ready to run.
enum Engine {
    Plan { plan: Box<Plan>, session: Box<PlanSession> },
    Candle(Box<Model>),
}

impl Engine {
    fn new(args: &Args, graph: Graph, weights: Weights) -> anyhow::Result<Self> {
        match args.engine {
            EngineKind::Plan => {
                let options = PlanOptions {
                    batch: args.batch,
                    size: args.size()?,
                    threads: args.threads,
                    precision: args.precision.into(),
                    features: Vec::new(),
                    tuning: args.tune.then(fetch::tuning_file).transpose()?,
                };
                let plan = Plan::compile(&graph, &weights, &options)?;
                // The plan has its own copy; the maps take the place.
                drop(weights);
                allocator::give_back();
                let session = Box::new(plan.session()?);
                Ok(Self::Plan { plan: Box::new(plan), session })
            }
            EngineKind::Candle => {
                if args.precision != Precision::F32 {
                    bail!("--precision {}: the candle engine computes in f32", args.precision);
                }
                if args.tune {
                    bail!("--tune: the candle engine has nothing to choose from");
                }
                if args.profile {
                    bail!("--profile: what each operation took is known to the plan engine only, not to candle's");
                }
                let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32)?;
                Ok(Self::Candle(Box::new(model.fold_batch_norm()?)))
            }
        }
    }

    /// One forward pass.
    fn run(&mut self, x: &Input) -> anyhow::Result<()> {
        match self {
            Self::Plan { plan, session } => plan.run(session, &x.values, None)?,
            Self::Candle(model) => drop(black_box(model.run(&x.tensor)?)),
        }
        Ok(())
    }
}

/// The same picture in both forms.
struct Input {
    tensor: Tensor,
    values: Vec<f32>,
}

/// How long something is repeated: so often, and until so much time has gone.
#[derive(Debug, Clone, Copy)]
struct Length {
    runs: usize,
    time: Duration,
}

impl Length {
    /// What the user wants, or this.
    fn or(self, wanted: Option<usize>) -> Self {
        wanted.map_or(self, |runs| Self { runs, time: Duration::ZERO })
    }

    /// What each run took, in milliseconds.
    fn repeat(self, engine: &mut Engine, x: &Input) -> anyhow::Result<Vec<f64>> {
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < self.runs || start.elapsed() < self.time {
            let run = Instant::now();
            engine.run(x)?;
            times.push(milliseconds(run));
        }
        Ok(times)
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (height, width) = args.size()?;
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("--threads")?;
    }
    let threads = rayon::current_num_threads();

    let start = Instant::now();
    let (graph, weights) = network::open(args.cfg.as_deref(), args.weights.as_deref(), SEED)?;
    let load_ms = milliseconds(start);
    let (stem, channels) = (graph.config().stem().to_owned(), graph.config().channels);
    let gflop = graph.cost(height, width)?.iter().map(|cost| cost.total()).sum::<f64>() * args.batch as f64 / 1e9;
    let start = Instant::now();
    let mut ready = Engine::new(args, graph, weights)?;
    let compile_ms = milliseconds(start);

    let tensor = noise(&[args.batch, channels, height, width])?;
    let x = Input { values: tensor.flatten_all()?.to_vec1()?, tensor };
    WARM_UP.or(args.warmup).repeat(&mut ready, &x)?;
    let mut times = MEASURE.or(args.iters).repeat(&mut ready, &x)?;
    times.sort_by(f64::total_cmp);

    let [min, p10, median, p90] = [0.0, 0.1, 0.5, 0.9].map(|part| quantile(&times, part));
    let (runs, batch, precision, engine) = (times.len(), args.batch, args.precision, args.engine);
    let speed = gflop / median * 1e3;
    say!(
        "{stem}: input {batch}x{channels}x{height}x{width}, {precision}, engine {engine}, {threads} {}",
        plural(threads, "thread")
    )?;
    say!("ready after {load_ms:.1} ms for its weights and {compile_ms:.1} ms for the engine")?;
    say!("median {median:.2} ms, least {min:.2}, p10 to p90 {p10:.2} to {p90:.2}, {runs} {}", plural(runs, "run"))?;
    say!("{:.2} pictures/s, {speed:.1} GFLOP/s", batch as f64 / median * 1e3)?;
    if let (true, Engine::Plan { plan, session }) = (args.profile, &mut ready) {
        profile::print(plan, session, &x.values)?;
    }
    if args.json {
        let line = json!({
            "cfg": args.cfg.as_deref().unwrap_or(&stem),
            "batch": batch,
            "imgsz": [height, width],
            "threads": threads,
            "precision": precision.to_string(),
            "engine": engine.to_string(),
            "median_ms": rounded(median),
            "min_ms": rounded(min),
            "p10_ms": rounded(p10),
            "p90_ms": rounded(p90),
            "runs": runs,
            "gflops_per_s": rounded(speed),
            "load_ms": rounded(load_ms),
            "compile_ms": rounded(compile_ms),
        });
        say!("{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Values from 0 to 1, the same ones each time.
fn noise(shape: &[usize]) -> anyhow::Result<Tensor> {
    const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;
    let count: usize = shape.iter().product();
    let mut values: Vec<f32> = Vec::new();
    values.try_reserve_exact(count).with_context(|| format!("there is no room for an input of {shape:?} values"))?;
    values.extend((0..count).map(|i| (i as f64 * GOLDEN_RATIO).fract() as f32));
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The value below which `part` of the sorted values lie, between two of them where it must.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    at(place.floor()) + (at(place.ceil()) - at(place.floor())) * place.fract()
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.into() } else { format!("{word}s") }
}

#[cfg(test)]
mod tests {
    use super::{noise, quantile};

    #[test]
    fn quantiles_lie_between_values() {
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.0), 1.0);
    }

    #[test]
    fn the_input_is_a_picture() {
        let values = noise(&[2, 3, 8, 8]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
