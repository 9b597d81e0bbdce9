//! `yolo predict`, run as users run it.
#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

mod tiny;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

/// A folder with a network, a working folder, and pictures.
struct Place {
    folder: TempDir,
}

impl Place {
    /// With the detection network.
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        tiny::detection(&place.at("tiny.safetensors"));
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        // As the program prints it, where the system's folder for temporary files is a link.
        self.folder.path().canonicalize().unwrap().join(name)
    }

    /// Writes noise of 64x64, which does not compress.
    fn picture(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut state = 1_u32;
        let image = RgbImage::from_fn(64, 64, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [_, r, g, b] = state.to_le_bytes();
            Rgb([r, g, b])
        });
        image.save(&path).unwrap();
        path
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// `yolo predict --weights tiny --imgsz 64 --device cpu` in the folder.
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
        command.current_dir(self.folder.path()).args(["predict", "--weights", "tiny.safetensors", "--imgsz", "64"]);
        command.args(["--device", "cpu"]);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command().args(arguments).output().unwrap())
    }

    fn listing(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at(folder)) else { return vec!["(no folder)".into()] };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }
}

struct Ran {
    status: i32,
    out: String,
    err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran =
            Self { status: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }

    #[track_caller]
    fn status(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    fn json(&self) -> Vec<serde_json::Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect()
    }
}

/// Label lines of the tiny network in a 64x64 picture, the least confident first.
const LABELS: &str = "0 0.25 0.25 0.125 0.125\n1 0.5 0.5 0.5 0.75\n0 0.5 0.5 0.25 0.25\n";

#[test]
fn a_folder_gives_yolov5s_lines_and_files() {
    let place = Place::new();
    let (a, b) = (place.picture("in/a.png"), place.picture("in/b.JPG"));
    let ran = place.run(&["--source", "in", "--save-txt", "--save-conf", "--save-crop", "--save-csv"]).status(0);

    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines[0].starts_with("detect: weights=['tiny.safetensors'], "), "{}", lines[0]);
    for part in
        ["source=in, ", "imgsz=[64, 64], ", "conf_thres=0.25, ", "save_txt=True, ", "classes=None, ", "name=exp, "]
    {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    // As Python's "%.1fms" gives it.
    let time = |text: &str| {
        let number = text.strip_suffix("ms").unwrap_or_else(|| panic!("{text}"));
        assert_eq!(number.rsplit_once('.').map(|(_, decimals)| decimals.len()), Some(1), "{text}");
        number.parse::<f64>().unwrap_or_else(|_| panic!("{text}"));
    };
    for (number, path) in [(1, &a), (2, &b)] {
        let start = format!("image {number}/2 {}: 64x64 2 cats, 1 dog, ", path.display());
        let line =
            lines.iter().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{start} in {}", ran.out));
        time(line);
    }
    let [speed, saved, labels] = lines[lines.len() - 3..] else { panic!("{}", ran.out) };
    let speed =
        speed.strip_prefix("Speed: ").and_then(|line| line.strip_suffix(" NMS per image at shape (1, 3, 64, 64)"));
    let parts: Vec<&str> = speed.unwrap_or_else(|| panic!("{}", ran.out)).split(' ').collect();
    assert_eq!(parts.len(), 5, "{parts:?}");
    assert_eq!([parts[1], parts[3]], ["pre-process,", "inference,"]);
    [0, 2, 4].into_iter().for_each(|i| time(parts[i]));
    assert_eq!(saved, "Results saved to runs/detect/exp");
    assert_eq!(labels, "2 labels saved to runs/detect/exp/labels");
    assert_eq!(ran.err, "");

    assert_eq!(place.listing("runs/detect/exp"), ["a.png", "b.JPG", "crops", "labels", "predictions.csv"]);
    assert_eq!(place.listing("runs/detect/exp/crops"), ["cat", "dog"]);
    assert_eq!(place.listing("runs/detect/exp/crops/cat"), ["a.jpg", "a2.jpg", "b.jpg", "b2.jpg"]);
    assert_eq!(place.listing("runs/detect/exp/labels"), ["a.txt", "b.txt"]);
    let label = place.read("runs/detect/exp/labels/a.txt");
    let expected: Vec<String> = LABELS.lines().map(String::from).collect();
    for ((line, place), (_, _, confidence)) in label.lines().zip(expected).zip(tiny::FOUND.iter().rev()) {
        let (start, last) = line.rsplit_once(' ').unwrap();
        assert_eq!(start, place);
        assert!((last.parse::<f64>().unwrap() - confidence).abs() < 2e-6, "{line}");
    }
    let table = "Image Name,Prediction,Confidence\r\na.png,cat,0.70\r\na.png,dog,0.78\r\na.png,cat,0.96\r\nb.JPG,cat,0.70\r\nb.JPG,dog,0.78\r\nb.JPG,cat,0.96\r\n";
    assert_eq!(place.read("runs/detect/exp/predictions.csv"), table);

    let before = image::open(&a).unwrap().into_rgb8();
    let drawn = image::open(place.at("runs/detect/exp/a.png")).unwrap().into_rgb8();
    assert_eq!(drawn.dimensions(), (64, 64));
    assert_ne!(before, drawn);
    // The first crop written is the small cat's: its box and 10 pixels more, from the picture without what is drawn.
    let crop = image::open(place.at("runs/detect/exp/crops/cat/a.jpg")).unwrap();
    assert_eq!((crop.width(), crop.height()), (19, 19));
}

#[test]
fn runs_are_numbered_and_labels_replaced() {
    let place = Place::new();
    place.picture("a.png");
    let label = "runs/detect/exp/labels/a.txt";
    place.run(&["--source", "a.png", "--save-txt", "--nosave"]).status(0);
    place.run(&["--source", "a.png", "--nosave", "--save-csv"]).status(0);
    assert_eq!(place.listing("runs/detect"), ["exp", "exp2"]);
    assert_eq!(place.listing("runs/detect/exp2"), ["predictions.csv"]);
    assert_eq!(place.read(label), LABELS);

    // Once more into the same folder: replaced, not added to; and gone where nothing is found any more.
    place.run(&["--source", "a.png", "--save-txt", "--nosave", "--exist-ok"]).status(0);
    assert_eq!(place.read(label), LABELS);
    let ran = place.run(&["--source", "a.png", "--save-txt", "--exist-ok", "--conf-thres", "0.99"]).status(0);
    assert!(ran.out.contains("a.png: 64x64 (no detections), "), "{}", ran.out);
    assert!(ran.out.ends_with("0 labels saved to runs/detect/exp/labels\n"), "{}", ran.out);
    assert!(!place.at(label).exists());

    // Nothing to write, no folder.
    let ran = place.run(&["--source", "a.png", "--nosave"]).status(0);
    assert!(!ran.out.contains("saved to"), "{}", ran.out);
    assert_eq!(place.listing("runs/detect"), ["exp", "exp2"]);

    place.run(&["--source", "a.png", "--project", "other/place", "--name", "x"]).status(0);
    assert_eq!(place.listing("other/place/x"), ["a.png"]);
}

#[test]
fn flags_say_what_is_found_and_how_it_is_written() {
    let place = Place::new();
    place.picture("a.png");
    let label = |name: &str| place.read(&format!("runs/detect/{name}/labels/a.txt"));
    let common = ["--source", "a.png", "--save-txt", "--nosave", "--name"];
    let run = |name: &'static str, more: &[&str]| place.run(&[&common[..], &[name], more].concat()).status(0);

    run("corners", &["--save-format", "1"]);
    assert_eq!(label("corners"), "0 0.1875 0.1875 0.3125 0.3125\n1 0.25 0.125 0.75 0.875\n0 0.375 0.375 0.625 0.625\n");
    run("dogs", &["--classes", "1", "2"]);
    assert_eq!(label("dogs"), "1 0.5 0.5 0.5 0.75\n");
    run("best", &["--max-det", "1"]);
    assert_eq!(label("best"), "0 0.5 0.5 0.25 0.25\n");
    // argparse takes the start of a flag for the flag, and YOLOv5's own examples count on it.
    run("sure", &["--conf", "0.9"]);
    assert_eq!(label("sure"), "0 0.5 0.5 0.25 0.25\n");
    // The dog and the first cat overlap by a sixth.
    run("agnostic", &["--agnostic-nms", "--iou-thres", "0.1"]);
    assert_eq!(label("agnostic"), "0 0.25 0.25 0.125 0.125\n0 0.5 0.5 0.25 0.25\n");

    let ran = place.run(&["--source", "a.png", "--nosave", "--img", "50", "60"]).status(0);
    assert!(
        ran.err.contains("--imgsz [50, 60] must be a multiple of the stride 64, going on with [64, 64]"),
        "{}",
        ran.err
    );
    assert!(ran.out.contains("imgsz=[64, 64]"), "{}", ran.out);
    let ran = place.run(&["--source", "a.png", "--nosave", "--half"]).status(0);
    assert!(ran.err.contains("warning: --half: the CPU computes in f32"), "{}", ran.err);
}

#[test]
fn detect_is_another_name() {
    let place = Place::new();
    let picture = place.picture("a.png");
    let output = Command::new(env!("CARGO_BIN_EXE_yolo"))
        .args(["detect", "--imgsz", "64", "--nosave", "--weights"])
        .args([place.at("tiny.safetensors").as_path(), Path::new("--source"), &picture])
        .output()
        .unwrap();
    assert!(Ran::of(output).status(0).out.contains("2 cats, 1 dog"));
}

#[test]
fn weights_without_a_description_need_cfg() {
    let place = Place::new();
    place.picture("a.png");
    tiny::detection_bare(&place.at("bare.safetensors"), &place.at("tiny.yaml"));
    let bare = ["--source", "a.png", "--nosave", "--weights", "bare.safetensors"];
    let output = |more: &[&str]| {
        let arguments = [&["predict", "--imgsz", "64"][..], &bare, more].concat();
        let output = Command::new(env!("CARGO_BIN_EXE_yolo")).current_dir(place.folder.path()).args(arguments).output();
        Ran::of(output.unwrap())
    };
    let ran = output(&["--cfg", "tiny.yaml"]).status(0);
    assert!(ran.out.contains(": 64x64 2 "), "{}", ran.out);
    assert!(output(&[]).status(2).err.contains("--cfg"));
}

#[test]
fn json_is_a_line_a_picture() {
    let place = Place::new();
    let a = place.picture("in/a.png");
    let b = place.file("in/b.png", b"no picture");
    // In a batch too, the lines come in the order of the pictures.
    let ran = place.run(&["--source", "in", "--nosave", "--json", "--batch", "2"]).status(1);
    let lines = ran.json();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["path"], a.to_str().unwrap());
    assert_eq!((&lines[0]["width"], &lines[0]["height"]), (&64.into(), &64.into()));
    let boxes = lines[0]["boxes"].as_array().unwrap();
    assert_eq!(boxes.len(), 3);
    for (found, (corners, name, confidence)) in boxes.iter().zip(tiny::FOUND) {
        assert_eq!(found["box"], serde_json::json!(corners));
        assert_eq!(found["name"], name);
        assert_eq!(found["class"], tiny::NAMES.iter().position(|n| *n == name).unwrap());
        assert!((found["confidence"].as_f64().unwrap() - confidence).abs() < 2e-6, "{found}");
        assert!(found.get("polygon").is_none());
    }
    assert_eq!(lines[1]["path"], b.to_str().unwrap());
    assert!(lines[1]["error"].as_str().unwrap().contains("b.png"));
    // YOLOv5's lines are on the other side.
    assert!(ran.err.contains("detect: weights=") && ran.err.contains("2 cats, 1 dog") && ran.err.contains("Speed: "));

    let ran = place.run(&["--source", "in/a.png", "--nosave", "--json", "--quiet"]).status(0);
    assert_eq!((ran.json().len(), ran.err.as_str()), (1, ""));
    let ran = place.run(&["--source", "in/a.png", "--quiet"]).status(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    assert_eq!(place.listing("runs/detect/exp"), ["a.png"]);
}

#[test]
fn masks_become_outlines() {
    let place = Place::new();
    tiny::segmentation(&place.at("tiny.safetensors"));
    place.picture("a.png");
    let ran = place.run(&["--source", "a.png", "--save-txt", "--json", "--max-det", "1"]).status(0);
    assert!(ran.err.starts_with("segment/predict: weights="), "{}", ran.err);
    assert_eq!(place.listing("runs/predict-seg/exp"), ["a.png", "labels"]);
    let polygon: Vec<[f64; 2]> = serde_json::from_value(ran.json()[0]["boxes"][0]["polygon"].clone()).unwrap();
    assert!(polygon.len() >= 4, "{polygon:?}");
    assert!(polygon.iter().flatten().all(|side| (0.0..64.0).contains(side)), "{polygon:?}");

    let label = place.read("runs/predict-seg/exp/labels/a.txt");
    let numbers: Vec<f64> = label.split_whitespace().map(|number| number.parse().unwrap()).collect();
    let expected: Vec<f64> = std::iter::once(0.0).chain(polygon.iter().flatten().map(|side| side / 64.0)).collect();
    assert_eq!(numbers, expected);
    assert_eq!(label.lines().count(), 1);

    let error = place.run(&["--source", "a.png", "--save-txt", "--save-format", "1"]).status(2).err;
    assert!(error.contains("--save-format"), "{error}");
}

#[test]
fn broken_pictures_are_told_and_the_rest_goes_on() {
    let place = Place::new();
    place.picture("in/a.png");
    let whole = fs::read(place.picture("in/e.png")).unwrap();
    place.file("in/b.jpg", b"");
    place.file("in/c.png", &whole[..whole.len() / 2]);
    place.file("in/d.mp4", b"film");
    for batch in ["1", "2", "9"] {
        let ran = place.run(&["--source", "in", "--batch", batch, "--save-txt", "--nosave", "--name", batch]).status(1);
        for part in
            ["error: image 2/4: ", "b.jpg: ", "error: image 3/4: ", "c.png: ", "d.mp4: videos are not supported"]
        {
            assert!(ran.err.contains(part), "{part} in {}", ran.err);
        }
        assert!(ran.err.contains("error: 3 of 5 could not be used"), "{}", ran.err);
        assert!(ran.out.contains("image 1/4 ") && ran.out.contains("image 4/4 "), "{}", ran.out);
        assert!(ran.out.contains(&format!("at shape ({batch}, 3, 64, 64)")), "{}", ran.out);
        let labels = format!("runs/detect/{batch}/labels");
        assert_eq!(place.listing(&labels), ["a.txt", "e.txt"]);
        assert_eq!(place.read(&format!("{labels}/e.txt")), LABELS);
    }

    // None of them at all: no folder stays behind.
    let ran = place.run(&["--source", "in/c.png", "--save-txt"]).status(2);
    assert!(ran.err.contains("c.png: ") && !ran.out.contains("Speed"), "{}{}", ran.out, ran.err);
    assert_eq!(place.listing("runs/detect"), ["1", "2", "9"]);
}

/// Reading, network and writing overlap; nothing of that is to be seen.
#[test]
fn many_pictures_keep_their_order() {
    let place = Place::new();
    fs::create_dir(place.at("in")).unwrap();
    // Of different sizes, so that some take longer than others; 4 is broken, and 7 too thin for the network.
    for number in 0..12_u32 {
        let name = format!("in/{number:02}.png");
        match number {
            4 => drop(place.file(&name, b"no picture")),
            7 => RgbImage::new(1, 2000).save(place.at(&name)).unwrap(),
            _ => {
                let side = if number % 3 == 0 { 700 } else { 40 + number };
                RgbImage::from_pixel(side, side, Rgb([number as u8 * 20; 3])).save(place.at(&name)).unwrap();
            }
        }
    }
    let arguments = ["--source", "in", "--save-txt", "--save-csv", "--save-crop", "--json", "--name"];
    let mut runs = Vec::new();
    for batch in ["1", "3", "12"] {
        let ran = place.run(&[&arguments[..], &[batch, "--batch", batch]].concat()).status(1);
        // "image 5/12 PATH: 64x64 2 cats, 1 dog, 3.4ms", without the time.
        let told = ran.err.lines().filter(|line| line.contains("image ") && !line.starts_with("Speed"));
        let end = |line: &str| line.rfind(' ').filter(|_| line.ends_with("ms")).unwrap_or(line.len());
        let told: Vec<String> = told.map(|line| line[..end(line)].to_string()).collect();
        let folder = format!("runs/detect/{batch}");
        let mut files = Vec::new();
        for part in ["", "/labels", "/crops/cat", "/crops/dog"] {
            for name in place.listing(&format!("{folder}{part}")) {
                let path = format!("{folder}{part}/{name}");
                files.push((format!("{part}/{name}"), fs::read(place.at(&path)).unwrap_or_default()));
            }
        }
        runs.push((told, ran.out, files));
    }
    let (told, json, files) = &runs[0];
    for (number, line) in told.iter().enumerate() {
        let (before, after) = if [4, 7].contains(&number) { ("error: ", ":") } else { ("", "") };
        let path = place.at(&format!("in/{number:02}.png"));
        let start = format!("{before}image {}/12{after} {}: ", number + 1, path.display());
        assert!(line.starts_with(&start), "{start} in {line}");
    }
    assert_eq!((told.len(), json.lines().count()), (12, 12));
    assert_eq!(files.iter().filter(|(name, _)| name.starts_with("/labels/")).count(), 10);
    for run in &runs[1..] {
        assert!(run.0 == *told && run.1 == *json, "{:?}\n{:?}", run.0, told);
        assert!(run.2 == *files, "the files differ");
    }
}

/// A picture of one column would have none left in the network's input; the others of its batch are not lost.
#[test]
fn a_picture_that_spoils_a_batch_is_told() {
    let place = Place::new();
    place.picture("in/a.png");
    RgbImage::new(1, 2000).save(place.at("in/b.png")).unwrap();
    RgbImage::new(1, 1).save(place.at("in/c.png")).unwrap();
    place.picture("in/d.png");
    for batch in ["1", "4"] {
        let ran = place.run(&["--source", "in", "--batch", batch, "--save-txt", "--name", batch]).status(1);
        assert!(ran.err.starts_with("error: image 2/4: ") && ran.err.contains("in/b.png: "), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
        assert_eq!(place.listing(&format!("runs/detect/{batch}")), ["a.png", "c.png", "d.png", "labels"]);
        assert_eq!(place.read(&format!("runs/detect/{batch}/labels/d.txt")), LABELS);
    }
}

#[test]
fn what_cannot_start_is_one_sentence() {
    let place = Place::new();
    place.picture("a.png");
    place.file("film.mov", b"film");
    place.file("list.txt", b"\n");
    place.file("file", b"");
    fs::create_dir(place.at("empty")).unwrap();
    let cases: [(&[&str], &str); 16] = [
        (&["--source", "empty"], "no pictures in this folder"),
        (&["--source", "gone.jpg"], "gone.jpg: does not exist"),
        (&["--source", "*.bmp"], "no pictures"),
        (&["--source", "list.txt"], "the list is empty"),
        (&["--source", "film.mov"], "videos are not supported"),
        (&["--source", "0"], "webcams are not supported"),
        (&["--source", "https://example.com/a.jpg"], "URLs and streams are not supported"),
        (&["--source", "a.png", "--device", "gpu"], "--device gpu: no such device"),
        (&["--source", "a.png", "--weights", "gone.safetensors"], "gone.safetensors"),
        (&["--source", "a.png", "--weights", "a.png"], "a.png"),
        (&["--source", "a.png", "--weights", "tiny.safetensors", "tiny.safetensors"], "ensembles are not supported"),
        (&["--source", "a.png", "--conf-thres", "1.5"], "conf"),
        (&["--source", "a.png", "--iou-thres", "-0.5"], "iou"),
        (&["--source", "a.png", "--imgsz", "0"], "imgsz"),
        (&["--source", "a.png", "--project", "file"], "file: the folder cannot be made"),
        (&["--source", "a.png", "--project", "/proc/nowhere"], "/proc/nowhere"),
    ];
    for (arguments, part) in cases {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--exist-ok"]).collect();
        // Of a flag that is given twice the last one counts.
        let ran = place.run(&arguments).status(2);
        assert!(ran.err.starts_with("error: ") && ran.err.contains(part), "{arguments:?}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{arguments:?}: {}", ran.err);
    }
    assert_eq!(place.listing("runs"), ["(no folder)"]);
}

#[test]
fn a_drawn_picture_never_overwrites_its_source() {
    let place = Place::new();
    let before = fs::read(place.picture("in/a.png")).unwrap();
    let ran = place.run(&["--source", "in", "--project", ".", "--name", "in", "--exist-ok"]).status(2);
    assert!(ran.err.contains("would overwrite it"), "{}", ran.err);
    assert_eq!(fs::read(place.at("in/a.png")).unwrap(), before);
}

#[test]
fn pictures_of_one_name_do_not_overwrite_each_other() {
    let place = Place::new();
    for name in ["x/a.png", "y/a.png", "y/a.jpg"] {
        place.picture(name);
    }
    place.file("list.txt", b"x\ny\n");
    let ran = place.run(&["--source", "list.txt", "--save-txt"]).status(0);
    assert_eq!(place.listing("runs/detect/exp"), ["a.jpg", "a.png", "a2.png", "labels"]);
    assert_eq!(place.listing("runs/detect/exp/labels"), ["a.txt", "a2.txt", "a3.txt"]);
    assert!(ran.err.contains("y/a.jpg: saved as a2.txt, "), "{}", ran.err);
    assert!(ran.err.contains("y/a.png: saved as a2.png, a3.txt, "), "{}", ran.err);
}

#[test]
fn a_picture_comes_through_standard_input() {
    let place = Place::new();
    let bytes = fs::read(place.picture("a.png")).unwrap();
    let piped = |bytes: &[u8]| {
        let mut command = place.command();
        command
            .args(["--source", "-", "--save-txt"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(bytes).unwrap();
        Ran::of(child.wait_with_output().unwrap())
    };
    let ran = piped(&bytes).status(0);
    assert!(ran.out.contains("image 1/1 -: 64x64 2 cats, 1 dog, "), "{}", ran.out);
    assert_eq!(place.listing("runs/detect/exp"), ["labels", "stdin.jpg"]);
    assert_eq!(place.read("runs/detect/exp/labels/stdin.txt"), LABELS);
    assert!(piped(b"").status(2).err.contains("standard input: "));
}

/// A limit on the size of files stands for a disk that is full.
#[test]
#[cfg(unix)]
fn a_result_that_cannot_be_written_leaves_nothing() {
    let place = Place::new();
    place.picture("a.png");
    let script = format!(
        "trap '' XFSZ; ulimit -f 1; exec '{}' predict --weights tiny.safetensors --imgsz 64 --source a.png",
        env!("CARGO_BIN_EXE_yolo")
    );
    let output = Command::new("sh").current_dir(place.folder.path()).args(["-c", &script]).output().unwrap();
    let ran = Ran::of(output).status(2);
    assert!(ran.err.starts_with("error: runs/detect/exp/a.png: "), "{}", ran.err);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert_eq!(place.listing("runs/detect/exp"), [""; 0]);
}

#[test]
#[cfg(unix)]
fn ctrl_c_finishes_the_batch_in_hand() {
    let place = Place::new();
    let picture = place.picture("a.png");
    place.file("list.txt", format!("{}\n", picture.display()).repeat(20_000).as_bytes());
    let mut command = place.command();
    command.args(["--source", "list.txt", "--nosave", "--save-csv"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("image 3/20000 ")));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let more = lines.filter(|line| line.starts_with("image ")).count();
    let ran = Ran::of(child.wait_with_output().unwrap()).status(130);
    let done = 3 + more;
    assert!(done < 20_000);
    assert_eq!(ran.err, format!("interrupted: {done} of 20000 pictures done\n"));
    assert_eq!(place.listing("runs/detect/exp"), ["predictions.csv"]);
    assert_eq!(place.read("runs/detect/exp/predictions.csv").lines().count(), 1 + 3 * done);
}

#[test]
fn a_reader_that_goes_away_ends_the_run() {
    let place = Place::new();
    let picture = place.picture("a.png");
    place.file("list.txt", format!("{}\n", picture.display()).repeat(5000).as_bytes());
    let mut command = place.command();
    command
        .args(["--source", "list.txt", "--nosave", "--json", "--quiet"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("{\"path\":"));
    drop(lines);
    assert_eq!(Ran::of(child.wait_with_output().unwrap()).status(1).err, "");
}

/// YOLOv5n on bus.jpg, as YOLOv5's detect.py prints and saves it: class, centre, width, height, confidence.
const BUS: [[f64; 6]; 5] = [
    [5.0, 0.511728, 0.46713, 0.966667, 0.512037, 0.491809],
    [0.0, 0.0444444, 0.678704, 0.0888889, 0.296296, 0.519067],
    [0.0, 0.346914, 0.589815, 0.160494, 0.422222, 0.786979],
    [0.0, 0.921605, 0.577778, 0.15679, 0.475926, 0.804741],
    [0.0, 0.164198, 0.595833, 0.192593, 0.45463, 0.87576],
];

#[test]
fn the_trained_network_finds_what_yolov5_finds() {
    let Some(weights) = trained_weights() else {
        println!("skipped: no yolov5n.pt (set YOLO_TEST_WEIGHTS to its folder)");
        return;
    };
    let place = Place::new();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // OpenCV's decoding of the JPEG file is what YOLOv5 saw. A JPEG decoder may differ from it by a level: a box by a pixel
    // of 810, a confidence by half a percent. Winograd's algorithm moves confidences in their sixth digit.
    let mut table = String::from("Image Name,Prediction,Confidence\r\n");
    let pictures = [("../yolo-core/tests/data/pictures/bus.png", 3e-6), ("tests/data/bus.jpg", 0.005)];
    for (picture, tolerance) in pictures {
        let output = Command::new(env!("CARGO_BIN_EXE_yolo"))
            .current_dir(place.folder.path())
            .env("YOLO_CACHE", place.at("cache"))
            .args(["predict", "--device", "cpu", "--save-txt", "--save-conf", "--save-crop", "--save-csv", "--weights"])
            .args([weights.as_path(), Path::new("--source"), &here.join(picture), Path::new("--exist-ok")])
            .output()
            .unwrap();
        let ran = Ran::of(output).status(0);
        assert!(ran.out.contains(": 640x480 4 persons, 1 bus, "), "{}", ran.out);
        let labels = place.read("runs/detect/exp/labels/bus.txt");
        assert_eq!(labels.lines().count(), BUS.len(), "{labels}");
        for (line, expected) in labels.lines().zip(BUS) {
            let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            assert_eq!(numbers.len(), 6, "{line}");
            for (number, expected) in numbers.iter().zip(expected) {
                assert!((number - expected).abs() <= tolerance, "{picture}: {line}: expected {expected}");
            }
        }
        let found = [("bus", "0.49"), ("person", "0.52"), ("person", "0.79"), ("person", "0.80"), ("person", "0.88")];
        let name = here.join(picture).file_name().unwrap().to_str().unwrap().to_string();
        let rows: String = found.map(|(class, confidence)| format!("{name},{class},{confidence}\r\n")).concat();
        // Both go to one folder, whose table grows.
        table.push_str(&rows);
        assert_eq!(place.read("runs/detect/exp/predictions.csv"), table);
    }
    let crops: Vec<String> = (1..=8).map(|n| if n == 1 { "bus.jpg".into() } else { format!("bus{n}.jpg") }).collect();
    assert_eq!(place.listing("runs/detect/exp/crops/person"), crops);
    assert_eq!(place.listing("runs/detect/exp/crops/bus"), crops[..2]);
}

/// The trained YOLOv5n, which is not part of this project: in `$YOLO_TEST_WEIGHTS` or beside the checkout.
fn trained_weights() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let given = std::env::var_os("YOLO_TEST_WEIGHTS").map(PathBuf::from);
    let folder = given.unwrap_or_else(|| root.join("../shared/weights"));
    let file = if folder.is_file() { folder } else { folder.join("yolov5n.pt") };
    file.is_file().then_some(file)
}
