//! `yolo train`, run as users run it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const NETWORK: &str = "
nc: 80
depth_multiple: 1.0
width_multiple: 1.0
anchors:
  - [10, 10, 16, 24]
  - [24, 16, 28, 28]
backbone:
  - [-1, 1, Conv, [8, 6, 4, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, DynamicConv, [8, 3, 2]]
head:
  - [[1, 2], 1, Detect, [nc, anchors]]
";

/// A folder with a network and a data set of shapes.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        fs::write(place.at("tiny.yaml"), NETWORK).unwrap();
        let made = place.yolo(&["data", "shapes", "--out", "shapes", "--images", "12", "--seed", "1", "--size", "64"]);
        assert!(made.status.success(), "{made:?}");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    fn yolo(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The arguments of a short run.
    fn training<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let start = ["train", "--cfg", "tiny.yaml", "--data", "shapes/data.yaml", "--imgsz", "64", "--batch", "4"];
        let end = ["--workers", "1", "--device", "cpu", "--epochs", "3"];
        start.into_iter().chain(end).chain(more.iter().copied()).collect()
    }
}

/// Standard output and error of a command that ended with `status`.
#[track_caller]
fn lines(output: &Output, status: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!err.contains("panicked"), "{err}");
    assert_eq!(output.status.code(), Some(status), "{out}{err}");
    (out, err)
}

#[test]
fn a_run_prints_its_table_and_leaves_its_files() {
    let place = Place::new();
    let (out, _) = lines(&place.yolo(&place.training(&["--optimizer", "AdamW", "--box-loss", "siou"])), 0);
    assert!(out.starts_with("train: weights=, cfg=tiny.yaml, data=shapes/data.yaml, hyp=low, epochs=3, "), "{out}");
    assert!(out.contains("Overriding tiny nc=80 with nc=5"), "{out}");
    assert!(out.contains("optimizer: AdamW(lr=0.01) with parameter groups 3 weight(decay=0.0)"), "{out}");
    assert!(out.contains("\n      Epoch    GPU_mem   box_loss   obj_loss   cls_loss  Instances       Size\n"), "{out}");
    for epoch in ["0/2", "1/2", "2/2"] {
        assert!(out.lines().any(|line| line.starts_with(&format!("{epoch:>11}"))), "{out}");
    }
    assert!(
        out.contains("                 Class     Images  Instances          P          R      mAP50   mAP50-95\n"),
        "{out}"
    );
    let run = place.at("runs/train/exp");
    assert!(out.trim_end().ends_with("Results saved to runs/train/exp"), "{out}");
    let expected = ["hyp.yaml", "opt.yaml", "labels.jpg", "train_batch0.jpg", "val_batch0_pred.jpg", "results.png"];
    for file in expected.iter().chain(&["confusion_matrix.png", "weights/best.safetensors", "weights/last.safetensors"])
    {
        assert!(run.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_to_string(run.join("results.csv")).unwrap().lines().count(), 4);

    // What was trained can be used as it is, and trained on.
    lines(
        &place.yolo(&[
            "predict",
            "--weights",
            "runs/train/exp/weights/best.safetensors",
            "--source",
            "shapes/images/val",
        ]),
        0,
    );
    let weights =
        ["train", "--weights", "runs/train/exp/weights/best.safetensors", "--data", "shapes/data.yaml", "--noplots"];
    let (out, _) =
        lines(&place.yolo(&[&weights[..], &["--imgsz", "60", "--epochs", "1", "--freeze", "1"]].concat()), 0);
    assert!(out.contains("Transferred 25/25 items from "), "{out}");
    // A line each.
    assert!(out.contains("\nfreezing model.0.conv.weight\nfreezing model.0.bn.weight\n"), "{out}");
    assert!(out.contains("Results saved to runs/train/exp2"), "{out}");
}

/// Killed after the first save, the program goes on to the same weights as one that was left alone.
#[test]
fn a_killed_run_is_resumed() {
    let place = Place::new();
    let uncut = place.training(&["--noplots", "--epochs", "12", "--name", "uncut"]);
    lines(&place.yolo(&uncut), 0);
    let cut = place.training(&["--noplots", "--epochs", "12", "--project", "work/my rüns", "--name", "cut"]);
    let mut child = place.command(&cut).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let state = place.at("work/my rüns/cut/weights/resume.safetensors");
    let start = Instant::now();
    while !state.is_file() && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no save within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success() && state.is_file(), "the run was over before it was killed");

    // What the run began with counts; of the rest, only where to compute.
    let flags = ["--epochs", "1", "--batch", "2", "--imgsz", "96", "--device", "cpu"];
    let (out, err) = lines(&place.yolo(&[&["train", "--resume"], &flags[..]].concat()), 0);
    assert_eq!(
        err.lines().next(),
        Some("warning: --resume goes on with the run's own options: --epochs, --batch-size and --imgsz are ignored")
    );
    assert!(out.starts_with("Resuming training from work/my rüns/cut\n"), "{out}");
    for file in ["results.csv", "weights/last.safetensors", "weights/best.safetensors"] {
        let read = |run: &str| fs::read(place.at(run).join(file)).unwrap();
        assert!(read("work/my rüns/cut") == read("runs/train/uncut"), "{file} differs");
    }
    let again = ["train", "--resume", "work/my rüns/cut", "--device", "cpu", "--project", "work"];
    let (_, err) = lines(&place.yolo(&again), 2);
    assert!(err.contains("--project is ignored"), "{err}");
    assert!(err.contains("the run is finished"), "{err}");
}

/// Images are those with a label file, backgrounds those without one or with an empty one.
#[test]
fn pictures_are_counted_as_val_counts_them() {
    let place = Place::new();
    let mut labels: Vec<_> =
        fs::read_dir(place.at("shapes/labels/train")).unwrap().map(|entry| entry.unwrap().path()).collect();
    labels.sort();
    let all = labels.len();
    fs::remove_file(&labels[0]).unwrap();
    fs::write(&labels[1], "").unwrap();
    let filled = labels[2..].iter().filter(|label| !fs::read_to_string(label).unwrap().trim().is_empty()).count();
    let counts = format!("{} images, {} backgrounds, 0 corrupt", all - 1, all - filled);
    let (out, _) = lines(&place.yolo(&place.training(&["--noplots", "--epochs", "1"])), 0);
    assert!(out.contains(&format!("train: {counts}\n")), "{counts}: {out}");
    let best = "runs/train/exp/weights/best.safetensors";
    let measure = ["val", "--data", "shapes/data.yaml", "--weights", best, "--task", "train", "--noplots"];
    let (out, _) = lines(&place.yolo(&[&measure[..], &["--device", "cpu"]].concat()), 0);
    assert!(out.contains(&format!("train: shapes/data.yaml: {counts}\n")), "{counts}: {out}");
}

#[test]
fn what_cannot_be_trained_is_told_and_leaves_nothing() {
    let place = Place::new();
    let told = |arguments: &[&str], sentence: &str| {
        let (_, err) = lines(&place.yolo(&place.training(arguments)), 2);
        assert!(err.contains(sentence), "{err}");
    };
    told(&["--data", "nothing.yaml"], "nothing.yaml: ");
    told(&["--cfg", "nothing"], "no built-in network of that name");
    told(&["--weights", "", "--cfg", "tiny.yaml", "--hyp", "none.yaml"], "none.yaml: no such file, and none of");
    let low = "lr0: 0.01\nlrf: 0.01\nmomentum: 0.937\nweight_decay: 0.0005\nwarmup_epochs: 3\nwarmup_momentum: 0.8\n\
        warmup_bias_lr: 0.1\nbox: 0.05\ncls: 0.5\ncls_pw: 1\nobj: 1\nobj_pw: 1\niou_t: 0.2\nanchor_t: 4\nhsv_h: 0\nhsv_s: 0\n\
        hsv_v: 0\ndegrees: 0\ntranslate: 0\nscale: 0\nshear: 0\nperspective: 0\nflipud: 0\nfliplr: 0.5\nmixup: 0\n";
    fs::write(place.at("hyp.yaml"), format!("{low}mosaic: 2\n")).unwrap();
    told(&["--hyp", "hyp.yaml"], "hyp.yaml: hyper-parameters: `mosaic` is 2, expected a probability, from 0 to 1");
    fs::write(place.at("hyp.yaml"), format!("{low}mosaic: 0\nmosiac: 1\n")).unwrap();
    told(&["--hyp", "hyp.yaml", "--epochs", "0"], "warning: hyp.yaml: `mosiac` is not one of the hyper-parameters");
    told(&["--batch-size", "0"], "--batch-size 0: ");
    told(&["--box-loss", "iou"], "expected one of ciou, diou");
    told(&["--epochs", "0"], "epochs: ");
    told(&["--freeze", "9"], "every layer is frozen");
    let (_, err) = lines(&place.yolo(&["train", "--resume"]), 2);
    assert!(err.contains("--resume: no run"), "{err}");
    let runs = fs::read_dir(place.at("runs/train")).map_or(0, Iterator::count);
    assert_eq!(runs, 0, "folders of runs that did not start are left");
}
