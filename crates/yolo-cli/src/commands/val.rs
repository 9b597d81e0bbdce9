//! `yolo val`: YOLOv5's val.py and segment/val.py.

mod files;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use candle_core::Device;
use clap::ValueEnum;
use yolo_core::NetworkConfig;
use yolo_train::data::{DatasetConfig, Loader, LoaderOptions, MaskOptions, Split};
use yolo_train::validate::coco::{
    CocoResults, Kind, Truth, coco_categories, coco_map, open_annotations, write_records,
};
use yolo_train::validate::{Network, Options, Report, Validator, figures, table, validate};

use crate::precision::{Precision, dtype};
use crate::predict::console::{Console, Lines};
use crate::predict::run_folder;
use crate::predict::text::boolean;
use crate::{device, fetch};
use files::LabelFiles;

/// Exit status where some pictures could not be used.
const PARTLY: u8 = 1;
/// Batches that are drawn.
const DRAWN: usize = 3;
/// Classes of COCO.
const COCO_CLASSES: usize = 80;

/// Measure how well a network finds the labelled objects of a data set: precision, recall and mAP of boxes, and of masks where
/// the network is one for segmentation.
///
/// Exit status: 0 all done, 1 some pictures could not be used, 2 nothing could be done.
#[derive(Debug, clap::Args)]
// As argparse has it: the start of a flag stands for the flag, and the last of several counts.
#[command(infer_long_args = true, args_override_self = true)]
pub(crate) struct Args {
    /// The data set's YAML
    #[arg(long, default_value = "data/coco128.yaml", value_name = "FILE")]
    data: PathBuf,

    /// Weights: a .safetensors or .pt file, the name of a published network, or of one that is built in
    #[arg(long, default_value = "yolov5s.pt", value_name = "FILE")]
    weights: String,

    /// Network of weights that do not describe their own: a name (yolov5s) or a YAML file
    #[arg(long, value_name = "NAME|FILE")]
    cfg: Option<String>,

    /// Pictures that go through the network at once
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    batch_size: u16,

    /// Longer side of what the network sees [default: what the weights say, else 640]
    #[arg(long, visible_aliases = ["img", "img-size"], value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=16384))]
    imgsz: Option<u32>,

    /// Smallest confidence of a detection [default: 0.001, for speed 0.25]
    #[arg(long, value_name = "0..1")]
    conf_thres: Option<f64>,

    /// Largest overlap (IoU) of two detections of a class [default: 0.6, for speed 0.45]
    #[arg(long, value_name = "0..1")]
    iou_thres: Option<f64>,

    /// Most detections a picture
    #[arg(long, default_value_t = 300, value_name = "N")]
    max_det: usize,

    /// Part of the data set to measure; speed is `val` in square batches, with the thresholds of use and no plots
    #[arg(long, value_enum, default_value_t = Task::Val)]
    task: Task,

    /// cpu, cuda, cuda:N, N, metal or mps; left out, a GPU where there is one
    #[arg(long, default_value = "", hide_default_value = true)]
    device: String,

    /// Most threads that read pictures
    #[arg(long, default_value_t = 8, value_name = "N")]
    workers: usize,

    /// Take all classes for one
    #[arg(long)]
    single_cls: bool,

    /// See each picture in three sizes, in one of them mirrored, as `yolo predict --augment` does (detection only)
    #[arg(long)]
    augment: bool,

    /// Print the row of every class, however many there are
    #[arg(long)]
    verbose: bool,

    /// Write labels/NAME.txt: class, centre, width and height (fractions of the picture) of every detection. Two pictures of one
    /// name do not overwrite each other: the second one's file is numbered
    #[arg(long)]
    save_txt: bool,

    /// Put confidences into labels
    #[arg(long)]
    save_conf: bool,

    /// Write WEIGHTS_predictions.json in COCO's form, and print mAP by COCO's own rule, too
    #[arg(long)]
    save_json: bool,

    /// COCO's annotations, to compare --save-json with instead of the labels
    #[arg(long, value_name = "FILE")]
    annotations: Option<PathBuf>,

    /// Folder of runs [default: runs/val, for segmentation runs/val-seg]
    #[arg(long, value_name = "FOLDER")]
    project: Option<PathBuf>,

    /// Folder of this run in --project; a number is added where it is taken
    #[arg(long, default_value = "exp")]
    name: String,

    /// Write into the folder even if it is there, without a number
    #[arg(long)]
    exist_ok: bool,

    /// Compute in 16 bits on a GPU (the CPU has --precision)
    #[arg(long)]
    half: bool,

    /// What convolutions multiply on the CPU
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,

    /// Draw no plots
    #[arg(long)]
    noplots: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Task {
    Train,
    Val,
    Test,
    Speed,
}

impl Task {
    fn split(self) -> Split {
        match self {
            Self::Train => Split::Train,
            Self::Val | Self::Speed => Split::Val,
            Self::Test => Split::Test,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
            Self::Speed => "speed",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the run from starting or ending, and results that cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let console = Console::new(Lines::Stdout, 0);
    check_annotations(args, &console)?;
    let device = device::open(&args.device)?;
    let (mut network, named, trained) = load(args, &device, &console)?;
    // Before a run that may take hours, not after it.
    let given = args.annotations.as_deref().filter(|_| wants_json(args));
    let given = given.map(|file| open_annotations(file, network.segments())).transpose()?;
    let imgsz = args.imgsz.or(trained).unwrap_or(640);
    let stride = network.graph().stride().max(1) as u32;
    let size = imgsz.next_multiple_of(stride);
    let config = DatasetConfig::open(&args.data)?;
    let project = args.project.clone().unwrap_or_else(|| default_project(&network));
    console.line(&arguments_line(args, imgsz, &network, &project))?;
    console.line(&format!(
        "yolo {} {}\n\n{}",
        env!("CARGO_PKG_VERSION"),
        device::name(&device),
        network.graph().summary(size as usize)?.line()
    ))?;
    if size != imgsz {
        console.problem(&format!(
            "warning: --imgsz {imgsz} must be a multiple of the stride {stride}, going on with {size}"
        ));
    }

    let loader = open_loader((args, size, stride), &config, &network, &console)?;
    let set = loader.dataset();
    let names = if named && !args.single_cls { network.names() } else { set.classes() }.to_vec();
    let coco = wants_json(args).then(|| categories(&config, set.classes().len()));
    let validator = Validator::new(set.classes().len(), options(args, coco))?;
    let (found_classes, classes) = (network.names().len(), set.classes().len());
    if !args.single_cls && found_classes != classes {
        bail!(
            "{}: the network has {found_classes} classes, {} has {classes}: validate on the data that it was trained on, or \
             give --single-cls",
            args.weights,
            args.data.display()
        );
    }

    let folder = run_folder::create(&project, &args.name, args.exist_ok)?;
    let mut labels = args.save_txt.then(|| LabelFiles::new(&folder, set.labels(), args.save_conf)).transpose()?;
    let plots = !args.noplots && args.task != Task::Speed;
    let progress = Console::new(Lines::Stdout, set.labels().len());
    let mut number = 0;
    let outcome = validate(&mut network, validator, loader.epoch(0), |batch, found| {
        if plots && number < DRAWN {
            figures::save_batch(number, batch, found, &names, &folder)?;
        }
        number += 1;
        if let Some(labels) = &mut labels {
            labels.write(batch, found)?;
        }
        batch.origins.iter().for_each(|_| progress.step());
        Ok(())
    });
    progress.finish();
    let report = outcome?;
    if plots {
        figures::save_curves(&report, &names, &folder)?;
    }

    print_table(args, &report, &names, &console)?;
    let size = loader.options().size as usize;
    console.line(&table::speed(&report, [usize::from(args.batch_size), 3, size, size]))?;
    if let Some(results) = &report.coco {
        save_json((args, given), &config, results, report.masks.is_some(), &folder, &console)?;
    }
    console.line(&format!("Results saved to {}", folder.display()))?;
    if let Some(labels) = &labels {
        console.line(&format!("{} labels saved to {}", labels.count(), labels.folder().display()))?;
    }
    let corrupt = set.counts().corrupt;
    if corrupt > 0 {
        console.problem(&format!("error: {corrupt} of {} could not be used", corrupt + set.labels().len()));
    }
    Ok(if corrupt > 0 { ExitCode::from(PARTLY) } else { ExitCode::SUCCESS })
}

/// The network, whether its weights name its classes, and the side that they say it was trained at.
fn load(args: &Args, device: &Device, console: &Console) -> anyhow::Result<(Network, bool, Option<u32>)> {
    let config = args.cfg.as_deref().map(NetworkConfig::open).transpose()?;
    let weights = fetch::open_weights(&args.weights)?;
    let dtype = dtype(args.half, args.precision, device, console)?;
    let named = weights.metadata().names.is_some();
    let trained = weights.metadata().imgsz.and_then(|side| u32::try_from(side).ok()).filter(|side| *side > 0);
    let network = Network::load(&weights, config.as_ref(), device, dtype)?;
    Ok((if args.augment { network.augmented()? } else { network }, named, trained))
}

fn default_project(network: &Network) -> PathBuf {
    if network.segments() { "runs/val-seg" } else { "runs/val" }.into()
}

fn open_loader(
    (args, size, stride): (&Args, u32, u32),
    config: &DatasetConfig,
    network: &Network,
    console: &Console,
) -> anyhow::Result<Loader> {
    let batch = usize::from(args.batch_size);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let defaults = LoaderOptions::validation(size, batch);
    let speed = args.task == Task::Speed;
    let options = LoaderOptions {
        stride,
        workers: args.workers.min(threads),
        single_class: args.single_cls,
        segments: network.segments().then_some(MaskOptions { ratio: 1, overlap: false }),
        rect: !speed,
        pad: if speed { 0.0 } else { defaults.pad },
        ..defaults
    };
    let loader = Loader::open(config, args.task.split(), options, &|_, _| {})?;
    let set = loader.dataset();
    for message in set.messages().iter().chain(loader.warnings()) {
        console.problem(&format!("warning: {message}"));
    }
    let counts = set.counts();
    console.line(&format!(
        "{}: {}: {} images, {} backgrounds, {} corrupt",
        args.task.name(),
        args.data.display(),
        counts.found,
        counts.missing + counts.empty,
        counts.corrupt
    ))?;
    Ok(loader)
}

fn options(args: &Args, coco: Option<Vec<u64>>) -> Options {
    let defaults = Options::default();
    let (conf_thres, iou_thres) = match args.task {
        Task::Speed => (0.25, 0.45),
        _ => (defaults.conf_thres, defaults.iou_thres),
    };
    Options {
        conf_thres: args.conf_thres.unwrap_or(conf_thres),
        iou_thres: args.iou_thres.unwrap_or(iou_thres),
        max_det: args.max_det,
        single_cls: args.single_cls,
        coco,
    }
}

/// Results on COCO itself are always written, as its servers want them.
fn wants_json(args: &Args) -> bool {
    let coco = args.data.file_name().is_some_and(|name| name == "coco.yaml");
    args.task != Task::Speed && (args.save_json || coco)
}

/// Before anything is fetched or read: whether there is what --annotations names.
fn check_annotations(args: &Args, console: &Console) -> anyhow::Result<()> {
    let Some(file) = &args.annotations else { return Ok(()) };
    if !wants_json(args) {
        let reason = if args.task == Task::Speed { "with --task speed" } else { "without --save-json" };
        console.problem(&format!("warning: --annotations has no effect {reason}"));
        return Ok(());
    }
    let context = || format!("--annotations {}: COCO's annotations cannot be read", file.display());
    File::open(file).with_context(context)?;
    if file.is_dir() {
        bail!("--annotations {}: this is a folder, expected a .json file of COCO's annotations", file.display());
    }
    Ok(())
}

/// The numbers that go into a results file: COCO's own for COCO, else those of the labels.
fn categories(config: &DatasetConfig, classes: usize) -> Vec<u64> {
    if is_coco(config, classes) { coco_categories() } else { (0..classes as u64).collect() }
}

fn is_coco(config: &DatasetConfig, classes: usize) -> bool {
    classes == COCO_CLASSES && config.root().file_name().is_some_and(|name| name == "coco")
}

fn print_table(args: &Args, report: &Report, names: &[String], console: &Console) -> anyhow::Result<()> {
    console.line(&table::header(report.masks.is_some()))?;
    console.line(&table::total(report))?;
    if report.labels() == 0 {
        console.problem(&format!(
            "warning: there are no labels in `{}`: nothing can be measured without them",
            args.task.split().name()
        ));
    }
    if table::shows_classes(args.verbose, false, report.instances.len()) {
        for row in table::class_rows(report, names) {
            console.line(&row)?;
        }
    }
    Ok(())
}

/// Writes the results file, and prints what COCO's rule makes of it.
fn save_json(
    (args, given): (&Args, Option<Truth>),
    config: &DatasetConfig,
    results: &CocoResults,
    masks: bool,
    folder: &Path,
    console: &Console,
) -> anyhow::Result<()> {
    let stem = Path::new(&args.weights).file_stem().unwrap_or_default().to_string_lossy();
    let file = folder.join(format!("{stem}_predictions.json"));
    write_records(&file, &results.records)?;
    let own = config.root().join("annotations/instances_val2017.json");
    let coco = is_coco(config, config.classes().len()) && args.task == Task::Val && own.is_file();
    let annotations = match (&args.annotations, given) {
        (Some(path), Some(truth)) => Some((path.as_path(), truth)),
        _ if coco => Some((own.as_path(), open_annotations(&own, masks)?)),
        _ => None,
    };
    let (truth, against) = match annotations {
        None => (None, "the labels".to_string()),
        Some((path, truth)) => (Some(annotated(truth, path, results)?), path.display().to_string()),
    };
    let truth = truth.as_ref().unwrap_or(&results.truth);
    for kind in [Kind::Boxes, Kind::Masks].into_iter().take(1 + usize::from(masks)) {
        let what = if kind == Kind::Boxes { "boxes" } else { "masks" };
        console.line(&format!("COCO's rule for {what}, {} against {against}:", file.display()))?;
        for line in coco_map(truth, &results.records, kind)?.lines() {
            console.line(&line)?;
        }
    }
    Ok(())
}

/// A file's annotations of the pictures that were looked at.
fn annotated(mut truth: Truth, path: &Path, results: &CocoResults) -> anyhow::Result<Truth> {
    let seen = &results.truth.images;
    truth.annotations.retain(|annotation| seen.contains(&annotation.image_id));
    truth.images.retain(|image| seen.contains(image));
    if truth.images.is_empty() {
        let example = seen.first().map(ToString::to_string).unwrap_or_default();
        return Err(anyhow::anyhow!("none of the pictures is in it, such as {example}"))
            .with_context(|| path.display().to_string());
    }
    Ok(truth)
}

/// YOLOv5's first line: what the run was called with.
fn arguments_line(args: &Args, imgsz: u32, network: &Network, project: &Path) -> String {
    let script = if network.segments() { "segment/val" } else { "val" };
    let Options { conf_thres, iou_thres, .. } = options(args, None);
    let none = || "None".to_string();
    let values = [
        ("data", args.data.display().to_string()),
        ("weights", args.weights.clone()),
        ("cfg", args.cfg.clone().unwrap_or_else(none)),
        ("batch_size", args.batch_size.to_string()),
        ("imgsz", imgsz.to_string()),
        ("conf_thres", format!("{conf_thres:?}")),
        ("iou_thres", format!("{iou_thres:?}")),
        ("max_det", args.max_det.to_string()),
        ("task", args.task.name().into()),
        ("device", args.device.clone()),
        ("workers", args.workers.to_string()),
        ("single_cls", boolean(args.single_cls).into()),
        ("augment", boolean(args.augment).into()),
        ("verbose", boolean(args.verbose).into()),
        ("save_txt", boolean(args.save_txt).into()),
        ("save_conf", boolean(args.save_conf).into()),
        ("save_json", boolean(wants_json(args)).into()),
        ("annotations", args.annotations.as_deref().map_or_else(none, |path| path.display().to_string())),
        ("project", project.display().to_string()),
        ("name", args.name.clone()),
        ("exist_ok", boolean(args.exist_ok).into()),
        ("half", boolean(args.half).into()),
        ("noplots", boolean(args.noplots).into()),
    ];
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{script}: {}", values.join(", "))
}
