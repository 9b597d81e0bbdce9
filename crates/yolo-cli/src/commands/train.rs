//! `yolo train`: YOLOv5's train.py and segment/train.py.

mod latest;
mod screen;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::builder::RangedU64ValueParser;
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args as _};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use yolo_core::NetworkConfig;
use yolo_core::weights::Weights;
use yolo_train::Hyp;
use yolo_train::loss::BoxLoss;
use yolo_train::optim::{NOMINAL_BATCH, OptimizerKind};
use yolo_train::trainer::{Event, Outcome, Stop, TrainOptions, Trainer, resume_command};

use crate::predict::run_folder;
use crate::predict::text::boolean;
use crate::stdout::say;
use crate::{device, fetch};
use latest::latest;
use screen::Screen;

/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;
/// What `--batch-size -1` means on a CPU, as in YOLOv5.
const AUTOMATIC_BATCH: usize = 16;

/// Train a network: boxes, and masks where the network is one for segmentation.
///
/// Ctrl-C ends after the batch at hand and saves; --resume goes on from there, to the same weights as a run that was not cut.
#[derive(Debug, clap::Args)]
// As argparse has it: the start of a flag stands for the flag, and the last of several counts.
#[command(infer_long_args = true, args_override_self = true)]
pub(crate) struct Args {
    /// Weights to start from: a .safetensors or .pt file, the name of a published network, or of one that is built in; ''
    /// starts from scratch
    /// [default: yolov5s.pt, from scratch where --cfg is given]
    #[arg(long, value_name = "FILE")]
    weights: Option<String>,

    /// Network: a name (yolov5n_C3_GhostDynamicConv; `yolo summary --list` names all) or a YAML file; left out, that of the
    /// weights
    #[arg(long, value_name = "NAME|FILE")]
    cfg: Option<String>,

    /// The data set's YAML
    #[arg(long, default_value = "data/coco128.yaml", value_name = "FILE")]
    data: PathBuf,

    /// Hyper-parameters: low, med, high, no-augmentation, or a YAML file
    #[arg(long, default_value = "low", value_name = "NAME|FILE")]
    hyp: String,

    /// Epochs
    #[arg(long, default_value_t = 100, value_name = "N")]
    epochs: usize,

    /// Pictures a batch; -1 chooses
    #[arg(long, visible_alias = "batch", default_value_t = 16, value_name = "N")]
    batch_size: i32,

    /// Side of the square input
    #[arg(long, visible_aliases = ["img", "img-size"], default_value_t = 640, value_name = "PIXELS")]
    imgsz: usize,

    /// Batches of pictures of like proportions, without mosaics
    #[arg(long)]
    rect: bool,

    /// Go on with a run that was cut: its folder or a file of its weights; without one, the latest in the working directory (or
    /// in --project)
    #[arg(long, num_args = 0..=1, value_name = "RUN")]
    resume: Option<Option<PathBuf>>,

    /// Save only the last epoch
    #[arg(long)]
    nosave: bool,

    /// Validate only the last epoch
    #[arg(long)]
    noval: bool,

    /// Keep the network's anchors, whether they fit the labels or not
    #[arg(long)]
    noautoanchor: bool,

    /// Draw no plots
    #[arg(long)]
    noplots: bool,

    /// Keep decoded pictures in ram or on the disk
    #[arg(long, num_args = 0..=1, default_missing_value = "ram", value_name = "ram|disk", value_parser = ["ram", "disk"])]
    cache: Option<String>,

    /// Show pictures of classes that do badly more often
    #[arg(long)]
    image_weights: bool,

    /// cpu, cuda, cuda:N, N, metal or mps; left out, a GPU where there is one
    #[arg(long, default_value = "", hide_default_value = true)]
    device: String,

    /// Another size of input for each batch, from half to one and a half of --imgsz
    #[arg(long)]
    multi_scale: bool,

    /// Take all classes for one
    #[arg(long)]
    single_cls: bool,

    /// SGD, Adam or AdamW
    #[arg(long, default_value_t = OptimizerKind::Sgd, value_name = "NAME")]
    optimizer: OptimizerKind,

    /// Pictures that a step of the optimiser is for: gradients of smaller batches are gathered up to it
    #[arg(long, default_value_t = NOMINAL_BATCH, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    nominal_batch: usize,

    /// Threads that make batches; the batches do not depend on their number
    #[arg(long, default_value_t = 8, value_name = "N")]
    workers: usize,

    /// Folder of runs [default: runs/train, for segmentation runs/train-seg]
    #[arg(long, value_name = "FOLDER")]
    project: Option<PathBuf>,

    /// Folder of this run in --project; a number is added where it is taken
    #[arg(long, default_value = "exp")]
    name: String,

    /// Write into the folder even if it is there, without a number
    #[arg(long)]
    exist_ok: bool,

    /// Lower the learning rate along a cosine instead of a straight line
    #[arg(long)]
    cos_lr: bool,

    /// What is taken from a box's own class and shared among all
    #[arg(long, default_value_t = 0.0, value_name = "0..1")]
    label_smoothing: f64,

    /// Epochs without a better one after which training stops; 0 never stops
    #[arg(long, default_value_t = 100, value_name = "EPOCHS")]
    patience: usize,

    /// Layers that are not trained: their number, counted from the first, or a list of them
    #[arg(long, action = ArgAction::Set, num_args = 1.., default_values_t = [0], value_name = "LAYER")]
    freeze: Vec<usize>,

    /// Save every so many epochs under a name of their own; below 1 does not
    #[arg(long, default_value_t = -1, value_name = "EPOCHS")]
    save_period: i64,

    /// What chance depends on
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,

    /// What a box's loss measures: ciou, diou, giou, eiou, siou, wiou or focal-eiou
    #[arg(long, default_value_t = BoxLoss::Ciou, value_name = "NAME")]
    box_loss: BoxLoss,

    /// Input pixels a pixel of the labels' masks (segmentation)
    #[arg(long, default_value_t = 4, value_name = "N")]
    mask_ratio: u32,

    /// Give each object's mask a map of its own, instead of one map a picture (segmentation)
    #[arg(long)]
    no_overlap: bool,
}

/// Runs the command; `matches` are what `args` were read from.
///
/// # Errors
/// Whatever keeps the run from starting, a loss that is no number, and files that cannot be written.
pub(crate) fn run(args: &Args, matches: Option<&ArgMatches>) -> anyhow::Result<ExitCode> {
    let mut screen = Screen::default();
    let mut trainer = match &args.resume {
        Some(run) => {
            let ignored = matches.map(|matches| beside_resume(matches, run.is_none())).unwrap_or_default();
            if let Some(sentence) = ignored_flags(&ignored) {
                screen.show(&Event::Warning(sentence));
            }
            resume(args, run.as_deref(), &mut screen)?
        }
        None => begin(args, &mut screen)?,
    };
    let stop = Stop::default();
    stop_on_ctrl_c(&stop)?;
    let outcome = trainer.run(&stop, &mut |event: Event<'_>| screen.show(&event));
    screen.finish();
    match outcome? {
        Outcome::Interrupted { folder, epoch, batch } => {
            eprintln!(
                "interrupted: saved before batch {batch} of epoch {epoch}; go on with\n  {}",
                resume_command(&folder)
            );
            Ok(ExitCode::from(INTERRUPTED))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A new run.
fn begin(args: &Args, screen: &mut Screen) -> anyhow::Result<Trainer> {
    let weights = match (args.weights.as_deref(), &args.cfg) {
        (Some(""), None) => bail!("--cfg: name a network, or give --weights to start from"),
        (Some(""), _) | (None, Some(_)) => None,
        (Some(name), _) => Some(fetch::resolve_weights(name)?),
        (None, None) => Some(fetch::resolve_weights("yolov5s.pt")?),
    };
    let config = match (&args.cfg, &weights) {
        (Some(cfg), _) => NetworkConfig::open(cfg)?,
        (None, Some(file)) => NetworkConfig::of_weights(&Weights::open(file)?)?,
        (None, None) => bail!("--cfg: name a network"),
    };
    let segments = config.layers().last().is_some_and(|layer| layer.module == "Segment");
    let project = args.project.clone().unwrap_or_else(|| if segments { "runs/train-seg" } else { "runs/train" }.into());
    let hyp = hyper_parameters(&args.hyp, screen)?;
    let device = device::open(&args.device)?;
    let mut options = options(args, weights)?;
    say!("{}", arguments_line(args, &options, segments, &project))?;
    say!("yolo {} {}\n", env!("CARGO_PKG_VERSION"), device::name(&device))?;
    say!("{}\n", hyper_parameters_line(&hyp)?)?;

    let folder = run_folder::create(&project, &args.name, args.exist_ok)?;
    options.save_dir.clone_from(&folder);
    Trainer::new(options, hyp, &device, &mut |event: Event<'_>| screen.show(&event)).map_err(|error| {
        if !args.exist_ok {
            remove_if_unused(&folder);
        }
        error.into()
    })
}

/// A run that was cut.
fn resume(args: &Args, run: Option<&Path>, screen: &mut Screen) -> anyhow::Result<Trainer> {
    let run = match run {
        Some(run) => run.to_path_buf(),
        None => latest(args.project.as_deref())?,
    };
    say!("Resuming training from {}", run.display())?;
    let mut problem = None;
    let open = |options: &TrainOptions| {
        let name = if args.device.is_empty() { &options.device } else { &args.device };
        device::open(name).map_err(|error| {
            let text = format!("{error:#}");
            problem = Some(error);
            yolo_train::Error::Training(text)
        })
    };
    let trainer = Trainer::resume(&run, open, &mut |event: Event<'_>| screen.show(&event));
    match (trainer, problem) {
        (Err(_), Some(problem)) => Err(problem),
        (trainer, _) => Ok(trainer?),
    }
}

/// Flags of the command line that a resumed run does not heed. `bare` is a `--resume` that names no run: it is looked for below
/// --project.
fn beside_resume(matches: &ArgMatches, bare: bool) -> Vec<String> {
    let given = |arg: &clap::Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let heeded = |flag: &str| matches!(flag, "resume" | "device") || (bare && flag == "project");
    let command = Args::augment_args(clap::Command::new("train"));
    let flags = command.get_arguments().filter(|arg| given(arg)).filter_map(clap::Arg::get_long);
    flags.filter(|flag| !heeded(flag)).map(|flag| format!("--{flag}")).collect()
}

/// What is told about them.
fn ignored_flags(flags: &[String]) -> Option<String> {
    let (last, others) = flags.split_last()?;
    let names = if others.is_empty() { last.clone() } else { format!("{} and {last}", others.join(", ")) };
    let verb = if others.is_empty() { "is" } else { "are" };
    Some(format!("--resume goes on with the run's own options: {names} {verb} ignored"))
}

fn options(args: &Args, weights: Option<PathBuf>) -> anyhow::Result<TrainOptions> {
    let batch_size = match args.batch_size {
        -1 => {
            say!("--batch-size -1: going on with {AUTOMATIC_BATCH}")?;
            AUTOMATIC_BATCH
        }
        size => usize::try_from(size)
            .ok()
            .filter(|size| *size > 0)
            .with_context(|| format!("--batch-size {size}: expected a number of pictures, or -1"))?,
    };
    Ok(TrainOptions {
        weights,
        cfg: args.cfg.clone(),
        epochs: args.epochs,
        batch_size,
        nominal_batch: args.nominal_batch,
        imgsz: args.imgsz,
        rect: args.rect,
        nosave: args.nosave,
        noval: args.noval,
        noautoanchor: args.noautoanchor,
        noplots: args.noplots,
        cache: args.cache.clone(),
        image_weights: args.image_weights,
        device: args.device.clone(),
        multi_scale: args.multi_scale,
        single_cls: args.single_cls,
        optimizer: args.optimizer,
        workers: args.workers,
        cos_lr: args.cos_lr,
        label_smoothing: args.label_smoothing,
        patience: args.patience,
        freeze: args.freeze.clone(),
        save_period: usize::try_from(args.save_period).unwrap_or(0),
        seed: args.seed,
        box_loss: args.box_loss,
        mask_ratio: args.mask_ratio,
        overlap_mask: !args.no_overlap,
        // A run may be resumed from another folder.
        ..TrainOptions::new(std::path::absolute(&args.data).unwrap_or_else(|_| args.data.clone()), PathBuf::new())
    })
}

/// Reads them; YOLOv5's own files are built in, and known by their names where there are none.
fn hyper_parameters(name: &str, screen: &mut Screen) -> anyhow::Result<Hyp> {
    let file = Path::new(name).file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    let built_in = match file.as_str() {
        "hyp.scratch-low.yaml" => "low",
        "hyp.scratch-med.yaml" => "med",
        "hyp.scratch-high.yaml" => "high",
        "hyp.no-augmentation.yaml" => "no-augmentation",
        _ => name,
    };
    let known = !Path::new(name).exists();
    let mut warn = |warning| screen.show(&Event::Warning(warning));
    Ok(Hyp::open(if known { built_in } else { name }, &mut warn)?)
}

fn hyper_parameters_line(hyp: &Hyp) -> anyhow::Result<String> {
    let serde_json::Value::Object(map) = serde_json::to_value(hyp)? else { return Ok(String::new()) };
    let values: Vec<String> = map.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(format!("hyperparameters: {}", values.join(", ")))
}

/// YOLOv5's first line: what the run was called with.
fn arguments_line(args: &Args, options: &TrainOptions, segments: bool, project: &Path) -> String {
    let none = || "None".to_string();
    let mut values = vec![
        ("weights", options.weights.as_ref().map_or_else(String::new, |file| file.display().to_string())),
        ("cfg", args.cfg.clone().unwrap_or_default()),
        ("data", args.data.display().to_string()),
        ("hyp", args.hyp.clone()),
        ("epochs", args.epochs.to_string()),
        ("batch_size", args.batch_size.to_string()),
        ("imgsz", args.imgsz.to_string()),
        ("rect", boolean(args.rect).into()),
        ("resume", boolean(false).into()),
        ("nosave", boolean(args.nosave).into()),
        ("noval", boolean(args.noval).into()),
        ("noautoanchor", boolean(args.noautoanchor).into()),
        ("noplots", boolean(args.noplots).into()),
        ("cache", args.cache.clone().unwrap_or_else(none)),
        ("image_weights", boolean(args.image_weights).into()),
        ("device", args.device.clone()),
        ("multi_scale", boolean(args.multi_scale).into()),
        ("single_cls", boolean(args.single_cls).into()),
        ("optimizer", args.optimizer.to_string()),
        ("workers", args.workers.to_string()),
        ("project", project.display().to_string()),
        ("name", args.name.clone()),
        ("exist_ok", boolean(args.exist_ok).into()),
        ("cos_lr", boolean(args.cos_lr).into()),
        ("label_smoothing", format!("{:?}", args.label_smoothing)),
        ("patience", args.patience.to_string()),
        ("freeze", format!("{:?}", args.freeze)),
        ("save_period", args.save_period.to_string()),
        ("seed", args.seed.to_string()),
        ("box_loss", args.box_loss.to_string()),
        ("nominal_batch", args.nominal_batch.to_string()),
    ];
    if segments {
        values.push(("mask_ratio", args.mask_ratio.to_string()));
        values.push(("no_overlap", boolean(args.no_overlap).into()));
    }
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{}: {}", if segments { "segment/train" } else { "train" }, values.join(", "))
}

/// Takes back the folder of a run that could not start.
fn remove_if_unused(folder: &Path) {
    let weights = folder.join("weights");
    // Each fails where something else lies there, which is right; an empty folder left behind does no harm.
    let _lock = std::fs::remove_file(weights.join(".lock"));
    let _weights = std::fs::remove_dir(weights);
    let _folder = std::fs::remove_dir(folder);
}

/// The first Ctrl-C lets the batch at hand be finished and all be saved; the second ends the program.
fn stop_on_ctrl_c(stop: &Stop) -> anyhow::Result<()> {
    let flag: Arc<_> = stop.flag();
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down, and raises it.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&flag))
            .and_then(|_| flag::register(signal, Arc::clone(&flag)))
            .context("Ctrl-C cannot be handled")?;
    }
    Ok(())
}
