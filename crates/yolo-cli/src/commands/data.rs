//! `yolo data`: data sets, made and converted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use yolo_train::data::coco::{self, FromYolo, Source, ToYolo};
use yolo_train::data::{DatasetConfig, Split, label_path, shapes};

use crate::stdout::say;

/// Make a data set of drawn shapes, or convert one from COCO's form or to it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Shapes(ShapesArgs),
    Convert(ConvertArgs),
}

/// Draw pictures of shapes that lie over each other, with boxes and polygons: a data set to train on within minutes.
///
/// Circles, squares, triangles, stars and rings of many sizes and colours, on plain, striped, checked and cloudy backgrounds,
/// lit from a side, blurred and noisy. Writes images/train, images/val, labels/train, labels/val and, last, data.yaml. Labels
/// are polygons, which training with boxes reads too; a shape of which less than 35 % is to be seen has none. The same seed
/// gives the same files.
#[derive(Debug, clap::Args)]
struct ShapesArgs {
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Number of pictures
    #[arg(long, default_value_t = 1000, value_name = "N")]
    images: usize,

    /// Seed of the random numbers
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,

    /// Side of the square pictures
    #[arg(long, default_value_t = 320, value_name = "PIXELS")]
    size: u32,

    /// Share of the pictures that is for validation
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    val_fraction: f64,

    /// Write into a folder that has files in it; those of the same names are overwritten
    #[arg(long)]
    exist_ok: bool,
}

/// Convert COCO's JSON to YOLO's folders, or back.
///
/// JSON files become a folder with labels/SPLIT, images/SPLIT and data.yaml: one split a file, named as the file without
/// `instances_`. A data set's YAML becomes a JSON file. Crowds are left out; objects in several parts become one polygon.
///
/// Exit status: 0 all done, 1 some pictures are not there, 2 nothing could be done.
#[derive(Debug, clap::Args)]
struct ConvertArgs {
    /// COCO files (.json), or a data set (.yaml)
    #[arg(required = true, value_name = "FILE")]
    input: Vec<PathBuf>,

    /// Folder to write to, or the .json file where the input is a data set
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,

    /// Folder of the pictures of every JSON file, in their order: they are linked into the data set, or copied
    #[arg(long, value_name = "DIR", num_args = 1..)]
    images: Vec<PathBuf>,

    /// Split of the data set to convert, train, val (the default) or test; or what to call the split of the JSON file
    #[arg(long, value_name = "NAME")]
    split: Option<String>,

    /// Write polygons in place of boxes (a data set's polygons are always kept)
    #[arg(long)]
    segments: bool,

    /// Number the classes as COCO's 80, in its JSON as its categories 1 to 90
    #[arg(long)]
    coco80: bool,

    /// Write into a folder that has files in it; those of the same names are overwritten
    #[arg(long)]
    exist_ok: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Shapes(args) => run_shapes(args),
        Command::Convert(args) => run_convert(args),
    }
}

fn run_shapes(args: &ShapesArgs) -> anyhow::Result<ExitCode> {
    let ShapesArgs { out, images, seed, size, val_fraction, exist_ok } = args;
    let options = shapes::Options { images: *images, seed: *seed, size: *size, val_fraction: *val_fraction };
    refuse_full(out, *exist_ok)?;
    let bar = progress(*images, "pictures");
    let report = shapes::generate(out, &options, &|| bar.inc(1));
    bar.finish_and_clear();
    let shapes::Report { train, val, shapes, hidden, empty } = report?;
    let counts: Vec<_> = shapes::NAMES.iter().zip(shapes).map(|(name, count)| format!("{count} {name}s")).collect();
    say!("{train} pictures for training, {val} for validation, {empty} of them empty")?;
    say!("{} shapes: {}; {hidden} more are hidden", shapes.iter().sum::<usize>(), counts.join(", "))?;
    say!("Data set saved to {}", out.join("data.yaml").display())?;
    Ok(ExitCode::SUCCESS)
}

fn run_convert(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let is = |path: &Path, endings: &[&str]| {
        path.extension().is_some_and(|ending| endings.iter().any(|known| ending.eq_ignore_ascii_case(known)))
    };
    if args.input.iter().all(|path| is(path, &["json"])) {
        return to_yolo(args);
    }
    match args.input.as_slice() {
        [yaml] if is(yaml, &["yaml", "yml"]) && is(&args.out, &["json"]) => from_yolo(args, yaml),
        [yaml] if is(yaml, &["yaml", "yml"]) => {
            bail!("--out {}: expected the name of a .json file, as the input is a data set", args.out.display())
        }
        _ => bail!("expected COCO files that end in .json, or one data set that ends in .yaml"),
    }
}

fn to_yolo(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let ConvertArgs { input, out, images, split, segments, coco80, exist_ok } = args;
    if !images.is_empty() && images.len() != input.len() {
        bail!("--images: expected one folder a JSON file, {} of them, got {}", input.len(), images.len());
    }
    if split.is_some() && input.len() > 1 {
        bail!("--split names the split of one JSON file, but there are {}: convert them one by one", input.len());
    }
    refuse_full(out, *exist_ok)?;
    let source = |(index, json): (usize, &PathBuf)| Source {
        json: json.clone(),
        split: split.clone(),
        pictures: images.get(index).cloned(),
    };
    let sources: Vec<_> = input.iter().enumerate().map(source).collect();
    let reports = coco::to_yolo(&sources, out, ToYolo { segments: *segments, coco80: *coco80 })?;
    let mut missing = 0;
    for report in &reports {
        let coco::ToYoloReport { split, pictures, empty, objects, .. } = report;
        say!("{split}: {objects} objects on {pictures} pictures, {empty} of them empty")?;
        for (count, what) in [
            (report.crowds, "crowds are left out"),
            (report.flat, "objects without an area in their picture are left out"),
            (report.clipped, "objects are cut at their picture's sides"),
            (report.joined, "objects in several parts are joined to one polygon"),
            (report.boxes, "objects have no outline: their boxes are written as polygons"),
        ] {
            if count > 0 {
                say!("{split}: {count} {what}")?;
            }
        }
        if let Some(first) = report.missing.first() {
            eprintln!("{split}: {} pictures are not there, {} the first", report.missing.len(), first.display());
        }
        missing += report.missing.len();
    }
    if images.is_empty() {
        say!("The pictures belong into {}", out.join("images").join(&reports[0].split).display())?;
    }
    say!("Data set saved to {}", out.join("data.yaml").display())?;
    Ok(ExitCode::from(u8::from(missing > 0)))
}

fn from_yolo(args: &ConvertArgs, yaml: &Path) -> anyhow::Result<ExitCode> {
    if !args.images.is_empty() || args.segments {
        bail!("--images and --segments are for JSON files: a data set names its pictures and keeps its polygons");
    }
    let split = match args.split.as_deref() {
        Some("train") => Split::Train,
        None | Some("val") => Split::Val,
        Some("test") => Split::Test,
        Some(other) => bail!("--split {other}: expected train, val or test"),
    };
    let config = DatasetConfig::open(yaml)?;
    let pictures = config.pictures(split)?.into_iter().map(|path| (path.clone(), label_path(&path))).collect();
    let source = FromYolo { pictures, names: config.classes().to_vec(), coco80: args.coco80 };
    let report = coco::from_yolo(&source, &args.out)?;
    let coco::FromYoloReport { pictures, empty, objects, outlines } = report;
    say!("{objects} objects, {outlines} with outlines, on {pictures} pictures, {empty} of them empty")?;
    say!("Saved to {}", args.out.display())?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses a folder that has something in it, and what is no folder.
fn refuse_full(folder: &Path, exist_ok: bool) -> anyhow::Result<()> {
    match std::fs::read_dir(folder).map(|mut entries| entries.next().is_some()) {
        Ok(true) if !exist_ok => {
            bail!("{}: the folder is not empty; name another, or add --exist-ok to write into it", folder.display())
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{}: expected a folder", folder.display())),
    }
}

/// A bar on standard error, where that is a terminal.
fn progress(count: usize, unit: &str) -> ProgressBar {
    let template = format!("{{wide_bar}} {{pos}}/{{len}} {unit}, {{elapsed}} (left: {{eta}})");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(count as u64).with_style(style)
}
