//! `yolo predict`: YOLOv5's detect.py and segment/predict.py.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use candle_core::Device;
use clap::ArgAction;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use yolo_core::picture::Style;
use yolo_core::{DetectOptions, Detector, NetworkConfig};

use crate::precision::{Precision, dtype};
use crate::predict::console::{Console, Lines};
use crate::predict::record::{LabelForm, Place, Wanted};
use crate::predict::sources::{self, Found};
use crate::predict::text::{boolean, list, quoted_list};
use crate::predict::writer::Writer;
use crate::predict::{self, Job, Outcome, Run, run_folder};
use crate::{built_in, device, fetch};

/// Exit status where some pictures could not be used.
const PARTLY: u8 = 1;
/// Exit status where none could.
const NOTHING: u8 = 2;
/// Exit status after Ctrl-C, as shells have it.
const INTERRUPTED: u8 = 130;

/// Find objects in pictures, and their masks where the network is one for segmentation.
///
/// With neither --weights nor --source, a network that is built in looks at pictures that are built in.
///
/// Of YOLOv5's flags there are no --visualize, --view-img, --update, --dnn and --vid-stride.
///
/// Exit status: 0 all done, 1 some pictures could not be used, 2 nothing could be done.
#[derive(Debug, clap::Args)]
// As argparse has it: the start of a flag stands for the flag, and the last of several counts.
#[command(infer_long_args = true, args_override_self = true)]
pub(crate) struct Args {
    /// Weights: a .safetensors or .pt file, the name of a published network, or of one that is built in: shapes-n-ghostdyn
    /// or shapes-n-ghostdyn-seg [default: yolov5s.pt]
    #[arg(long, action = ArgAction::Set, num_args = 1.., value_name = "FILE")]
    weights: Vec<String>,

    /// Without effect, for command lines of YOLOv5's
    #[arg(long, value_name = "FILE", hide = true)]
    data: Option<PathBuf>,

    /// Network of weights that do not describe their own: a name (yolov5s) or a YAML file
    #[arg(long, value_name = "NAME|FILE")]
    cfg: Option<String>,

    /// Picture, folder, pattern ('dir/*.jpg'), list (.txt, a path a line, relative to the list), or - for the bytes of one
    /// picture on standard input; without, for a network that is built in, pictures that are too [default: data/images]
    #[arg(long, value_name = "SOURCE")]
    source: Option<PathBuf>,

    /// Size the network sees: one side, or height and width [default: what the weights say, else 640]
    #[arg(long, visible_aliases = ["img", "img-size"], action = ArgAction::Set, num_args = 1..=2, value_name = "PIXELS")]
    imgsz: Vec<usize>,

    /// Smallest confidence of a detection
    #[arg(long, default_value_t = 0.25, value_name = "0..1")]
    conf_thres: f64,

    /// Largest overlap (IoU) of two detections of a class
    #[arg(long, default_value_t = 0.45, value_name = "0..1")]
    iou_thres: f64,

    /// Most detections a picture
    #[arg(long, default_value_t = 1000, value_name = "N")]
    max_det: usize,

    /// cpu, cuda, cuda:N, N, metal or mps; left out, a GPU where there is one
    #[arg(long, default_value = "", hide_default_value = true)]
    device: String,

    /// Pictures that go through the network at once; those of one batch are padded to a common shape
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,

    /// Write labels/NAME.txt: class and place (fractions of the picture) of every object. Where the folder is used again
    /// (--exist-ok) a picture's file is replaced, not added to
    #[arg(long)]
    save_txt: bool,

    /// Place in labels: 0 centre, width and height (YOLO); 1 corners (Pascal VOC)
    #[arg(long, default_value_t = 0, value_name = "0|1", value_parser = clap::value_parser!(u8).range(0..=1))]
    save_format: u8,

    /// Write predictions.csv
    #[arg(long)]
    save_csv: bool,

    /// Put confidences into labels
    #[arg(long)]
    save_conf: bool,

    /// Write every object as a picture of its own: crops/CLASS/NAME.jpg
    #[arg(long)]
    save_crop: bool,

    /// Do not write pictures with what was found drawn in
    #[arg(long)]
    nosave: bool,

    /// Only these classes, by number
    #[arg(long, action = ArgAction::Set, num_args = 1.., value_name = "CLASS")]
    classes: Option<Vec<usize>>,

    /// Let objects of different classes suppress each other
    #[arg(long)]
    agnostic_nms: bool,

    /// See each picture in three sizes, in one of them mirrored: more is found, in two to three times the time (detection only)
    #[arg(long)]
    augment: bool,

    /// Folder of runs [default: runs/detect, for segmentation runs/predict-seg]
    #[arg(long, value_name = "FOLDER")]
    project: Option<PathBuf>,

    /// Folder of this run in --project; a number is added where it is taken. Two pictures of one name do not overwrite each
    /// other: the second one's files are numbered
    #[arg(long, default_value = "exp")]
    name: String,

    /// Write into the folder even if it is there, without a number
    #[arg(long)]
    exist_ok: bool,

    /// Thickness of drawn boxes in pixels; 0 goes by the picture's size
    #[arg(long, default_value_t = 3, value_name = "PIXELS")]
    line_thickness: u32,

    /// Draw boxes without labels
    #[arg(long)]
    hide_labels: bool,

    /// Draw labels without confidences
    #[arg(long)]
    hide_conf: bool,

    /// Compute in 16 bits on a GPU (the CPU has --precision)
    #[arg(long)]
    half: bool,

    /// What convolutions multiply on the CPU
    #[arg(long, value_enum, default_value_t)]
    precision: Precision,

    /// Choose each convolution's algorithm on the CPU by measurement, once: what was fastest is kept in tuning.yaml in the cache
    /// folder
    #[arg(long)]
    tune: bool,

    /// Make masks at the picture's resolution
    #[arg(long)]
    retina_masks: bool,

    /// Pad pictures to the whole --imgsz instead of the least that the network takes
    #[arg(long)]
    square: bool,

    /// Print a line of JSON for each picture on standard output: path, width, height, and boxes with box (x1, y1, x2, y2),
    /// class, name, confidence and, of a segmentation network, polygon; or path and error. Other lines go to standard error
    #[arg(long)]
    json: bool,

    /// Print nothing but problems (and --json)
    #[arg(long)]
    quiet: bool,
}

impl Args {
    /// `--weights`, or what runs without.
    fn weights(&self) -> Vec<String> {
        match (self.weights.as_slice(), &self.source) {
            ([], None) => vec![built_in::NETWORKS[0].name.into()],
            ([], Some(_)) => vec!["yolov5s.pt".into()],
            (given, _) => given.to_vec(),
        }
    }

    /// `--source`, or YOLOv5's; none for the pictures that are built in.
    fn source(&self) -> Option<&Path> {
        let built_in = self.weights().iter().all(|name| built_in::network(name).is_some());
        self.source.as_deref().or((!built_in).then_some(Path::new("data/images")))
    }
}

/// Runs the command.
///
/// # Errors
/// Whatever keeps the run from starting, and results that cannot be written.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match predict(args) {
        // Whoever read our output has gone, as `head` does.
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {
            Ok(ExitCode::from(PARTLY))
        }
        result => result,
    }
}

fn predict(args: &Args) -> anyhow::Result<ExitCode> {
    let Found { pictures, refused } = match args.source() {
        Some(source) => sources::find(source)?,
        None => sources::built_in(),
    };
    let lines = if args.quiet {
        Lines::Off
    } else if args.json {
        Lines::Stderr
    } else {
        Lines::Stdout
    };
    let console = Console::new(lines, pictures.len());
    for problem in &refused {
        console.problem(&format!("error: {problem}"));
    }
    let jobs = predict::jobs(pictures);
    if jobs.is_empty() {
        return Ok(ExitCode::from(NOTHING));
    }

    if let Some(data) = &args.data {
        console.problem(&format!("warning: --data {}: not read, weights bring their class names", data.display()));
    }
    let device = device::open(&args.device)?;
    let detector = load(args, &device, &console)?;
    let project = args.project.clone().unwrap_or_else(|| default_project(&detector));
    console.line(&arguments_line(args, &detector, &project))?;
    console.line(&format!("yolo {} {}\n\n{}", env!("CARGO_PKG_VERSION"), device::name(&device), detector.summary()))?;

    let lanes = lanes(&detector, jobs.len().div_ceil(usize::from(args.batch).max(1)));
    let detector = detector.with_lanes(lanes);
    let wanted = wanted(args, &detector)?;
    let mut writer = open_writer(args, &project, &wanted, &jobs)?;
    for job in jobs.iter().filter(|_| writer.is_some()) {
        job.tell_renamed(&wanted, &console);
    }
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_ctrl_c(&stop)?;
    let batch = usize::from(args.batch);
    let run = Run { jobs: &jobs, detector: &detector, batch, wanted: &wanted, console: &console, stop: &stop };
    let outcome = run.go(writer.as_mut());
    console.finish();
    // What was found before something went wrong is kept; what went wrong first is what is told.
    let finished = writer.as_mut().map_or(Ok(()), Writer::finish);
    let outcome = outcome?;
    finished?;

    let failed = outcome.failed + refused.len();
    if outcome.done > 0 {
        console.line(&predict::speed_line(&outcome, batch, detector.options().imgsz))?;
        tell_where(writer.as_ref(), &wanted, &console)?;
    } else if let Some(writer) = writer.as_ref().filter(|_| !args.exist_ok) {
        writer.remove_if_empty();
    }
    Ok(exit_status(&outcome, failed, jobs.len() + refused.len(), stop.load(Ordering::Relaxed), &console))
}

fn load(args: &Args, device: &Device, console: &Console) -> anyhow::Result<Detector> {
    let weights = args.weights();
    let [weights] = weights.as_slice() else {
        bail!("--weights: {} files were given; ensembles are not supported, give one", weights.len());
    };
    let config = args.cfg.as_deref().map(NetworkConfig::open).transpose()?;
    let weights = fetch::open_weights(weights)?;
    let dtype = dtype(args.half, args.precision, device, console)?;
    let wanted_size = match *args.imgsz.as_slice() {
        [] => [weights.metadata().imgsz.unwrap_or(640); 2],
        [side] => [side, side],
        [height, width] => [height, width],
        _ => bail!("--imgsz: expected one side, or height and width"),
    };
    let options = DetectOptions {
        imgsz: wanted_size,
        conf_thres: args.conf_thres,
        iou_thres: args.iou_thres,
        max_det: args.max_det,
        classes: args.classes.clone(),
        agnostic_nms: args.agnostic_nms,
        rect: !args.square,
        retina_masks: args.retina_masks,
        augment: args.augment,
    };
    let detector = Detector::load(&weights, config.as_ref(), device, dtype)?.with_options(options)?;
    let detector = if args.tune { detector.with_tuning(fetch::tuning_file()?) } else { detector };
    let size = detector.options().imgsz;
    if size != wanted_size {
        let stride = detector.stride();
        console.problem(&format!(
            "warning: --imgsz {wanted_size:?} must be a multiple of the stride {stride}, going on with {size:?}"
        ));
    }
    Ok(detector)
}

/// Batches that go through the network beside each other on the CPU, of so many. Threads that need not wait for each other are worth
/// more than a short time for each, as long as the weights stay in the caches: yolov5n is a tenth faster, yolov5s a twentieth,
/// yolov5l would be a tenth slower.
fn lanes(detector: &Detector, batches: usize) -> usize {
    const MOST: usize = 4;
    const CACHED: usize = 32 << 20;
    let most = if size_of::<f32>() * detector.graph().num_params() <= CACHED { MOST } else { 1 };
    rayon::current_num_threads().min(most).min(batches).max(1)
}

fn default_project(detector: &Detector) -> PathBuf {
    if detector.segments() { "runs/predict-seg" } else { "runs/detect" }.into()
}

fn wanted(args: &Args, detector: &Detector) -> anyhow::Result<Wanted> {
    let place = match (detector.segments(), args.save_format) {
        (true, 0) => Place::Outline,
        (true, _) => bail!("--save-format: labels of a segmentation network are outlines; leave it out"),
        (false, 0) => Place::Centre,
        (false, _) => Place::Corners,
    };
    Ok(Wanted {
        picture: !args.nosave,
        txt: args.save_txt,
        csv: args.save_csv,
        crops: args.save_crop,
        json: args.json,
        labels: LabelForm { place, confidence: args.save_conf },
        style: Style {
            line_thickness: Some(args.line_thickness).filter(|thickness| *thickness > 0),
            hide_labels: args.hide_labels,
            hide_conf: args.hide_conf,
            ..Style::default()
        },
    })
}

/// Makes the run's folder, if anything is to be written at all.
fn open_writer(args: &Args, project: &Path, wanted: &Wanted, jobs: &[Job]) -> anyhow::Result<Option<Writer>> {
    if !(wanted.picture || wanted.txt || wanted.csv || wanted.crops) {
        return Ok(None);
    }
    let folder = run_folder::create(project, &args.name, args.exist_ok)?;
    if wanted.picture && args.exist_ok {
        let real = folder.canonicalize().with_context(|| folder.display().to_string())?;
        let source = jobs.iter().find(|job| {
            job.source.folder() == Some(&real) && fs::exists(real.join(&job.files.picture)).unwrap_or(true)
        });
        if let Some(job) = source {
            bail!("{}: the drawn picture would overwrite it; choose another --name, or give --nosave", job.source);
        }
    }
    Writer::new(folder, wanted).map(Some)
}

/// The first Ctrl-C lets the batch in hand be finished and written; the second ends the program.
fn stop_on_ctrl_c(stop: &Arc<AtomicBool>) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag down, and raises it.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(stop))
            .and_then(|_| flag::register(signal, Arc::clone(stop)))
            .context("Ctrl-C cannot be handled")?;
    }
    Ok(())
}

/// YOLOv5's first line: what the run was called with.
fn arguments_line(args: &Args, detector: &Detector, project: &Path) -> String {
    let script = if detector.segments() { "segment/predict" } else { "detect" };
    let options = detector.options();
    let none = || "None".to_string();
    let values = [
        ("weights", quoted_list(&args.weights())),
        ("cfg", args.cfg.clone().unwrap_or_else(none)),
        ("source", args.source().map_or_else(|| "built in".into(), |source| source.display().to_string())),
        ("imgsz", list(&options.imgsz)),
        ("conf_thres", format!("{:?}", args.conf_thres)),
        ("iou_thres", format!("{:?}", args.iou_thres)),
        ("max_det", args.max_det.to_string()),
        ("device", args.device.clone()),
        ("batch", args.batch.to_string()),
        ("save_txt", boolean(args.save_txt).into()),
        ("save_format", args.save_format.to_string()),
        ("save_csv", boolean(args.save_csv).into()),
        ("save_conf", boolean(args.save_conf).into()),
        ("save_crop", boolean(args.save_crop).into()),
        ("nosave", boolean(args.nosave).into()),
        ("classes", args.classes.as_deref().map_or_else(none, list)),
        ("agnostic_nms", boolean(args.agnostic_nms).into()),
        ("augment", boolean(args.augment).into()),
        ("project", project.display().to_string()),
        ("name", args.name.clone()),
        ("exist_ok", boolean(args.exist_ok).into()),
        ("line_thickness", args.line_thickness.to_string()),
        ("hide_labels", boolean(args.hide_labels).into()),
        ("hide_conf", boolean(args.hide_conf).into()),
        ("half", boolean(args.half).into()),
        ("retina_masks", boolean(args.retina_masks).into()),
        ("square", boolean(args.square).into()),
    ];
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{script}: {}", values.join(", "))
}

/// YOLOv5's last lines: where the results are.
fn tell_where(writer: Option<&Writer>, wanted: &Wanted, console: &Console) -> anyhow::Result<()> {
    let Some(writer) = writer else { return Ok(()) };
    console.line(&format!("Results saved to {}", writer.folder().display()))?;
    if wanted.txt {
        console.line(&format!("{} labels saved to {}", writer.count_labels(), writer.labels_folder().display()))?;
    }
    Ok(())
}

fn exit_status(outcome: &Outcome, failed: usize, asked: usize, stopped: bool, console: &Console) -> ExitCode {
    if failed > 0 {
        console.problem(&format!("error: {failed} of {asked} could not be used"));
    }
    if stopped && outcome.done + failed < asked {
        console.problem(&format!("interrupted: {} of {asked} pictures done", outcome.done));
        return ExitCode::from(INTERRUPTED);
    }
    match (outcome.done, failed) {
        (0, _) => ExitCode::from(NOTHING),
        (_, 0) => ExitCode::SUCCESS,
        _ => ExitCode::from(PARTLY),
    }
}
