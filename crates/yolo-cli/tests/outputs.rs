//! Where results go that cannot go there, or must not.

#[allow(dead_code, reason = "other tests use the rest")]
mod tiny;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage};
use tempfile::TempDir;
use yolo_core::weights::{NetworkMetadata, Weights, save};

/// Status and standard error of `yolo` with arguments, in a folder.
fn yolo(folder: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
    command.current_dir(folder).args(arguments);
    prepare(&mut command);
    let Output { status, stderr, .. } = command.output().unwrap();
    let told = String::from_utf8(stderr).unwrap();
    assert!(!told.contains("panicked"), "{told}");
    (status.code().unwrap_or(-1), told)
}

fn with_network() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    tiny::detection(&folder.path().join("tiny.safetensors"));
    folder
}

fn picture(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([90; 3])).save(path).unwrap();
}

const PREDICT: [&str; 7] = ["predict", "--weights", "tiny.safetensors", "--imgsz", "64", "--device", "cpu"];

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_output_is_told() {
    let folder = with_network();
    picture(&folder.path().join("in/a.png"));
    let full = |command: &mut Command| {
        command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    };
    let benchmark = ["benchmark", "--weights", "tiny.safetensors", "--imgsz", "64", "--warmup", "1", "--iters", "1"];
    let predict = [&PREDICT[..], &["--source", "in", "--nosave"]].concat();
    for arguments in [
        &["summary", "--cfg", "yolov5n"][..],
        &["summary", "--list"],
        &["summary", "--cfg", "yolov5n", "--json"],
        &["convert", "tiny.safetensors", "other.safetensors"],
        &["data", "shapes", "--out", "shapes", "--images", "2", "--size", "64"],
        &benchmark,
        &predict,
    ] {
        let (status, told) = yolo(folder.path(), arguments, full);
        assert_eq!(status, 2, "{arguments:?}: {told}");
        assert!(told.contains("error: standard output: "), "{arguments:?}: {told}");
    }
}

#[test]
fn forward_writes_over_nothing_that_it_reads() {
    let folder = with_network();
    let input = Tensor::zeros((1, 3, 64, 64), DType::F32, &Device::Cpu).unwrap();
    let tensors = Weights::from_tensors([("input".to_string(), input)].into(), NetworkMetadata::default());
    save(folder.path().join("input.safetensors"), tensors.sources().unwrap(), tensors.metadata()).unwrap();
    let forward = |output: &str| {
        let arguments =
            ["forward", "--weights", "tiny.safetensors", "--input", "input.safetensors", "--output", output];
        yolo(folder.path(), &arguments, |_| ())
    };
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    for name in ["input.safetensors", "tiny.safetensors"] {
        let before = read(name);
        let (status, told) = forward(&format!("./{name}"));
        assert!(status == 2 && told.contains("is read as well; name another file"), "{told}");
        assert!(read(name) == before, "{name} has changed");
    }
    assert_eq!(forward("output.safetensors").0, 0);
    assert_eq!(forward("output.safetensors").0, 0);
}

#[test]
fn the_table_of_a_folder_grows() {
    let folder = with_network();
    let table = folder.path().join("runs/detect/exp/predictions.csv");
    let predict = |source: &str, status: i32| {
        picture(&folder.path().join(source));
        let more = ["--source", source, "--exist-ok", "--save-csv", "--nosave"];
        let (got, told) = yolo(folder.path(), &[&PREDICT[..], &more].concat(), |_| ());
        assert_eq!(got, status, "{told}");
        told
    };
    predict("a.png", 0);
    predict("b.png", 0);
    let text = fs::read_to_string(&table).unwrap();
    let names: Vec<_> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(names, ["Image Name", "a.png", "a.png", "a.png", "b.png", "b.png", "b.png"]);
    // Somebody else's file stays as it is.
    fs::write(&table, "a,b\n1,2\n").unwrap();
    let told = predict("c.png", 2);
    assert!(told.contains("predictions.csv: expected a table of predictions, which begins with Image Name,"), "{told}");
    assert_eq!(fs::read_to_string(&table).unwrap(), "a,b\n1,2\n");
}

/// A crop gets a number more than its picture has.
#[cfg(unix)]
#[test]
fn a_name_that_is_too_long_spoils_one_picture() {
    let folder = with_network();
    let long = format!("{}.jpg", "a".repeat(251));
    picture(&folder.path().join("in").join(&long));
    picture(&folder.path().join("in/b.jpg"));
    let (status, told) = yolo(folder.path(), &[&PREDICT[..], &["--source", "in", "--save-crop"]].concat(), |_| ());
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("error: image 1/2: ") && !told.contains("image 2/2"), "{told}");
    assert!(folder.path().join("runs/detect/exp/b.jpg").is_file());
}

#[cfg(unix)]
#[test]
fn a_checkpoint_needs_no_cache() {
    let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("../yolo-core/tests/data/checkpoints");
    let folder = tempfile::tempdir().unwrap();
    let open = |checkpoint: PathBuf, cache: &Path| {
        let arguments = ["forward", "--cfg", "yolov5n", "--input", "none.safetensors", "--output", "x.safetensors"];
        yolo(folder.path(), &arguments, |command| {
            command.arg("--weights").arg(checkpoint).env("YOLO_CACHE", cache);
        })
    };
    // The weights are read before the input is found missing.
    let (status, told) = open(checkpoints.join("model_f16.pt"), Path::new("/dev/null/cache"));
    assert!(status == 2 && told.contains("none.safetensors"), "{told}");
    // A checkpoint that cannot be read leaves nothing in the cache.
    let cache = folder.path().join("cache");
    let (status, told) = open(checkpoints.join("evil.pt"), &cache);
    assert!(status == 2 && told.contains("evil.pt"), "{told}");
    assert_eq!(fs::read_dir(&cache).unwrap().count(), 0);
}

#[cfg(unix)]
#[test]
fn a_picture_without_an_end_is_refused() {
    let folder = with_network();
    std::os::unix::fs::symlink("/dev/zero", folder.path().join("zero.jpg")).unwrap();
    let (status, told) = yolo(folder.path(), &[&PREDICT[..], &["--source", "zero.jpg"]].concat(), |_| ());
    assert!(status == 2 && told.contains("larger than the 1073741824 bytes that are read"), "{told}");
}
