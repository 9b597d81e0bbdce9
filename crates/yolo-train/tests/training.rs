//! Whole runs of a small network on drawn shapes.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig};
use yolo_train::Hyp;
use yolo_train::data::shapes;
use yolo_train::optim::OptimizerKind;
use yolo_train::trainer::{Event, Outcome, Stop, TrainOptions, Trainer};

const HEAD: &str = "[[[2, 3, 4], 1, HEAD]]";
const NETWORK: &str = "
nc: 5
depth_multiple: 1.0
width_multiple: 1.0
anchors:
  - [10, 10, 16, 24]
  - [24, 16, 28, 28]
  - [40, 40, 60, 50]
dynamic: {routing: softmax, temperature: {start: 30, end: 1, epochs: 2}}
backbone:
  - [-1, 1, Conv, [8, 6, 2, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, DynamicConv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
";

/// A data set, a network and a folder for runs.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(images: usize, head: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = shapes::Options { images, seed: 3, size: 64, val_fraction: 0.34 };
        shapes::generate(&folder.path().join("data"), &options, &|| {}).unwrap();
        let yaml = format!("{NETWORK}head: {}\n", HEAD.replace("HEAD", head));
        fs::write(folder.path().join("network.yaml"), yaml).unwrap();
        Self { folder }
    }

    fn options(&self, name: &str) -> TrainOptions {
        let path = |name: &str| self.folder.path().join(name);
        let mut options = TrainOptions::new(path("data").join("data.yaml"), path(name));
        options.cfg = Some(path("network.yaml").to_string_lossy().into_owned());
        options.epochs = 3;
        options.batch_size = 3;
        options.imgsz = 64;
        options.workers = 1;
        options.noplots = true;
        options
    }
}

fn start(options: TrainOptions, hyp: Hyp) -> Trainer {
    Trainer::new(options, hyp, &Device::Cpu, &mut |_: Event<'_>| {}).unwrap()
}

fn resume(folder: &Path) -> Trainer {
    Trainer::resume(folder, |_| Ok(Device::Cpu), &mut |_: Event<'_>| {}).unwrap()
}

/// Runs to the end, or until `stop_after` batches of this run are done.
fn run(trainer: &mut Trainer, stop_after: Option<usize>) -> Outcome {
    let stop = Stop::default();
    let mut batches = 0;
    let asked = stop.clone();
    let mut listener = move |event: Event<'_>| {
        if let Event::Batch(_) = event {
            batches += 1;
            if Some(batches) == stop_after {
                asked.ask();
            }
        }
    };
    trainer.run(&stop, &mut listener).unwrap()
}

fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    let path = folder.join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_same_run(a: &Path, b: &Path) {
    assert_eq!(fs::read_to_string(a.join("results.csv")).unwrap(), fs::read_to_string(b.join("results.csv")).unwrap());
    for name in ["weights/last.safetensors", "weights/best.safetensors"] {
        assert!(bytes(a, name) == bytes(b, name), "{name} of {} and {} differ", a.display(), b.display());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(|_| ()).unwrap()
        }
    }
}

/// The same weights to the last bit, whether a run was stopped within an epoch, killed between two saves, or neither.
#[test]
fn a_cut_run_goes_on_as_if_it_had_not_been_cut() {
    let place = Place::new(14, "Detect, [nc, anchors]");
    let mut options = place.options("uncut");
    options.multi_scale = true;
    options.image_weights = true;
    let Outcome::Finished(finished) = run(&mut start(options.clone(), Hyp::default()), None) else { panic!("stopped") };
    assert_eq!((finished.epochs, finished.folder.as_path()), (3, options.save_dir.as_path()));
    assert!(!options.save_dir.join("weights/resume.safetensors").exists());

    // Stopped after the second of three batches of the second epoch.
    let mut stopped = options.clone();
    stopped.save_dir = place.folder.path().join("stopped");
    let outcome = run(&mut start(stopped.clone(), Hyp::default()), Some(5));
    assert!(matches!(outcome, Outcome::Interrupted { epoch: 1, batch: 2, .. }), "{outcome:?}");
    assert!(matches!(run(&mut resume(&stopped.save_dir), None), Outcome::Finished(_)));
    assert_same_run(&options.save_dir, &stopped.save_dir);

    // What lies on the disk in the middle of the third epoch is what a killed run leaves.
    let mut killed = options.clone();
    killed.save_dir = place.folder.path().join("going on");
    let left = place.folder.path().join("killed");
    let (from, to) = (killed.save_dir.clone(), left.clone());
    let mut batches = 0;
    let mut listener = move |event: Event<'_>| {
        if let Event::Batch(_) = event {
            batches += 1;
            if batches == 8 {
                copy(&from, &to);
            }
        }
    };
    start(killed, Hyp::default()).run(&Stop::default(), &mut listener).unwrap();
    assert!(matches!(run(&mut resume(&left), None), Outcome::Finished(_)));
    assert_same_run(&options.save_dir, &left);
}

/// The first column whose name starts so.
fn column(csv: &Path, name: &str) -> Vec<f64> {
    let text = fs::read_to_string(csv).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::trim).collect::<Vec<_>>());
    let place =
        lines.next().unwrap().iter().position(|column| column.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    lines.map(|line| line[place].parse().unwrap()).collect()
}

#[test]
fn a_network_learns_a_few_pictures_by_heart() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let mut options = place.options("run");
    options.epochs = 150;
    // All pictures in one batch, and a step each.
    options.batch_size = 64;
    options.optimizer = OptimizerKind::Adam;
    options.noval = true;
    let hyp = Hyp { lr0: 0.005, ..Hyp::default().without_augmentation() };
    run(&mut start(options.clone(), hyp), None);
    let csv = options.save_dir.join("results.csv");
    // What the objectness learns, the overlap, grows while boxes get better: its loss need not fall.
    for part in ["train/box_loss", "train/cls_loss"] {
        let losses = column(&csv, part);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.8 * first, "{part} fell from {first} to {last} only");
    }
    // Experts that are weighed evenly at first are told apart later.
    let entropy = column(&csv, "routing/model.3.");
    assert!(entropy[0] > 0.99 && entropy.iter().all(|e| (0.0..=1.0001).contains(e)), "{entropy:?}");

    let weights = Weights::open(options.save_dir.join("weights/best.safetensors")).unwrap();
    assert_eq!(weights.metadata().names.as_deref().unwrap().len(), 5);
    assert_eq!((weights.metadata().imgsz, weights.metadata().stride), (Some(64), Some(32)));
    let config = NetworkConfig::of_weights(&weights).unwrap();
    Model::from_weights(Graph::new(&config).unwrap(), &weights, &Device::Cpu, DType::F32).unwrap();
}

/// A number of anchors instead of their sizes, from the network's YAML or the hyper-parameters, is placeholders that begin with 0.
#[test]
fn weights_of_a_mere_number_of_anchors_are_read_again() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let yaml = fs::read_to_string(place.folder.path().join("network.yaml")).unwrap();
    let (start_of_lists, end_of_lists) = (yaml.find("anchors:").unwrap(), yaml.find("dynamic:").unwrap());
    let number = format!("{}anchors: 3\n{}", &yaml[..start_of_lists], &yaml[end_of_lists..]);
    fs::write(place.folder.path().join("network.yaml"), number).unwrap();
    for (name, anchors, count) in [("network", None, 3), ("hyp", Some(5.0), 5)] {
        let mut options = place.options(name);
        options.epochs = 1;
        options.noautoanchor = true;
        let hyp = Hyp { anchors, ..Hyp::default() };
        assert!(matches!(run(&mut start(options.clone(), hyp), None), Outcome::Finished(_)));
        for file in ["weights/best.safetensors", "weights/last.safetensors"] {
            let weights = Weights::open(options.save_dir.join(file)).unwrap();
            let config = NetworkConfig::of_weights(&weights).unwrap();
            assert_eq!(weights.shape("model.5.anchors"), Some(&[3, count, 2][..]), "{name} {file}");
            Model::from_weights(Graph::new(&config).unwrap(), &weights, &Device::Cpu, DType::F32).unwrap();
        }
    }
}

#[test]
fn masks_are_trained_and_judged() {
    let place = Place::new(9, "Segment, [nc, anchors, 8, 8]");
    for overlap in [true, false] {
        let mut options = place.options(if overlap { "overlap" } else { "separate" });
        options.epochs = 2;
        options.overlap_mask = overlap;
        let Outcome::Finished(finished) = run(&mut start(options.clone(), Hyp::default()), None) else {
            panic!("stopped")
        };
        assert!(finished.report.masks.is_some() || finished.report.labels() == 0);
        let csv = options.save_dir.join("results.csv");
        assert!(column(&csv, "train/seg_loss").iter().all(|loss| *loss > 0.0));
        assert_eq!(column(&csv, "metrics/mAP_0.5:0.95(M)").len(), 2);
    }
}

#[test]
fn a_run_that_comes_to_nothing_leaves_the_last_good_weights() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let mut options = place.options("run");
    options.epochs = 200;
    options.noval = true;
    let hyp = Hyp { warmup_epochs: 0.0, warmup_bias_lr: 0.0, lr0: 1e9, momentum: 0.99, ..Hyp::default() };
    let mut trainer = start(options.clone(), hyp);
    let error = trainer.run(&Stop::default(), &mut |_: Event<'_>| {}).unwrap_err().to_string();
    assert!(error.contains("epoch ") && error.contains("lr0") && error.contains("diverged"), "{error}");
    let last = options.save_dir.join("weights/last.safetensors");
    if last.exists() {
        assert!(error.contains("--resume"), "{error}");
        let weights = Weights::open(last).unwrap();
        for name in weights.names() {
            let values = weights.tensor(name, DType::F32, &Device::Cpu).unwrap().flatten_all().unwrap();
            assert!(values.to_vec1::<f32>().unwrap().iter().all(|value| value.is_finite()), "{name}");
        }
    } else {
        assert!(error.contains("nothing was saved"), "{error}");
    }
}

/// Too few batches for a loss to tell: the weights do.
#[test]
fn a_run_that_diverges_in_its_last_step_says_so() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    for (name, lr0) in [("large", 1e30), ("larger", 1e38)] {
        let mut options = place.options(name);
        options.epochs = 1;
        let hyp = Hyp { lr0, ..Hyp::default() };
        let Err(error) = start(options, hyp).run(&Stop::default(), &mut |_: Event<'_>| {}) else {
            panic!("{lr0} did not diverge")
        };
        let error = error.to_string();
        assert!(error.contains("epoch 0") && error.contains("the training has diverged"), "{error}");
        assert!(error.contains("`lr0`") && !error.contains("download"), "{error}");
        assert!(error.ends_with("nothing was saved yet"), "{error}");
    }
}

/// As on a full disk: of an epoch's files the first is written, the next is not.
#[test]
fn a_file_that_cannot_be_written_ends_the_run_and_those_before_are_named() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let options = place.options("run");
    let mut trainer = start(options.clone(), Hyp::default());
    let weights = options.save_dir.join("weights");
    fs::create_dir_all(weights.join("last.safetensors")).unwrap();
    let error = trainer.run(&Stop::default(), &mut |_: Event<'_>| {}).unwrap_err().to_string();
    assert!(error.contains("last.safetensors:"), "{error}");
    let best = weights.join("best.safetensors");
    assert!(error.contains(&format!("the last good weights are in {}", best.display())), "{error}");
    assert!(Weights::open(best).is_ok());
}

fn refused(options: TrainOptions, hyp: Hyp) -> String {
    Trainer::new(options, hyp, &Device::Cpu, &mut |_: Event<'_>| {}).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_trained_is_told() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let mut nothing = place.options("none");
    nothing.cfg = None;
    assert!(refused(nothing, Hyp::default()).contains("--cfg or --weights"));
    let mut frozen = place.options("frozen");
    frozen.freeze = vec![6];
    assert!(refused(frozen, Hyp::default()).contains("every layer is frozen"));
    let mut missing = place.options("missing");
    missing.data = PathBuf::from("no/such.yaml");
    assert!(refused(missing, Hyp::default()).contains("no/such.yaml"));

    // Labels without a single object.
    let labels = place.folder.path().join("data/labels/train");
    for label in fs::read_dir(&labels).unwrap() {
        fs::write(label.unwrap().path(), "").unwrap();
    }
    assert!(refused(place.options("empty"), Hyp::default()).contains("no labels"));
}

#[test]
fn a_folder_keeps_its_run() {
    let place = Place::new(9, "Detect, [nc, anchors]");
    let mut options = place.options("run");
    options.imgsz = 60;
    let mut warnings = Vec::new();
    let mut listener = |event: Event<'_>| {
        if let Event::Warning(text) = event {
            warnings.push(text);
        }
    };
    let mut trainer = Trainer::new(options.clone(), Hyp::default(), &Device::Cpu, &mut listener).unwrap();
    assert!(warnings.iter().any(|warning| warning.contains("60") && warning.contains("64")), "{warnings:?}");
    assert!(refused(options.clone(), Hyp::default()).contains("another run"));
    assert!(matches!(run(&mut trainer, Some(1)), Outcome::Interrupted { epoch: 0, batch: 1, .. }));
    drop(trainer);
    assert!(refused(options.clone(), Hyp::default()).contains("--resume"));

    // Another network's weights in the place of the run's state.
    let state = options.save_dir.join("weights/resume.safetensors");
    let kept = fs::read(&state).unwrap();
    fs::copy(options.save_dir.join("weights/last.safetensors"), &state).unwrap();
    let foreign =
        Trainer::resume(&options.save_dir, |_| Ok(Device::Cpu), &mut |_: Event<'_>| {}).unwrap_err().to_string();
    assert!(foreign.contains("no state of a training run"), "{foreign}");
    fs::write(&state, kept).unwrap();
    assert!(matches!(run(&mut resume(&options.save_dir), None), Outcome::Finished(_)));
    let finished =
        Trainer::resume(&options.save_dir, |_| Ok(Device::Cpu), &mut |_: Event<'_>| {}).unwrap_err().to_string();
    assert!(finished.contains("finished"), "{finished}");
}
