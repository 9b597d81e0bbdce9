//! `yolo val`, run as users run it.

#[allow(dead_code, reason = "other tests use the rest")]
mod tiny;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use image::{Rgb, RgbImage};
use tempfile::TempDir;

/// What the tiny network finds in a 64x64 picture that lies in the middle of a 128x128 input, which is four of its cells: a cat in
/// each corner and a dog at each side, cut off by the edges; and four small cats, three of them outside.
const LABELS: &str = "0 0.0625 0.0625 0.125 0.125
0 0.9375 0.0625 0.125 0.125
0 0.0625 0.9375 0.125 0.125
0 0.9375 0.9375 0.125 0.125
1 0.125 0.1875 0.25 0.375
1 0.875 0.1875 0.25 0.375
1 0.125 0.8125 0.25 0.375
1 0.875 0.8125 0.25 0.375
";

/// A folder with a network and a data set of three pictures, the third of which has no labels.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        tiny::detection(&place.at("tiny.safetensors"));
        for folder in ["set/images/val", "set/labels/val"] {
            fs::create_dir_all(place.at(folder)).unwrap();
        }
        for (index, name) in ["1", "2", "c"].iter().enumerate() {
            let grey = 40 + 80 * index as u8;
            RgbImage::from_pixel(64, 64, Rgb([grey; 3])).save(place.at(&format!("set/images/val/{name}.png"))).unwrap();
            if *name != "c" {
                fs::write(place.at(&format!("set/labels/val/{name}.txt")), LABELS).unwrap();
            }
        }
        fs::write(place.at("set.yaml"), "path: set\nval: images/val\nnames: [cat, dog, bird/fish]\n").unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `yolo val --data set.yaml --weights tiny --imgsz 64 --device cpu` in the folder; status, standard output and error.
    #[track_caller]
    fn run(&self, arguments: &[&str], status: i32) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
        command.current_dir(self.folder.path()).args(["val", "--data", "set.yaml", "--weights", "tiny.safetensors"]);
        command.args(["--imgsz", "64", "--device", "cpu"]).args(arguments);
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(!err.contains("panicked"), "{err}");
        assert_eq!(output.status.code(), Some(status), "stdout: {out}\nstderr: {err}");
        (out, err)
    }

    fn listing(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at(folder)) else { return vec!["(no folder)".into()] };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn the_table_and_files_are_yolov5s() {
    let place = Place::new();
    let (out, err) = place.run(&["--batch-size", "2", "--save-txt", "--save-conf", "--save-json"], 0);
    assert_eq!(err, "");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("val: data=set.yaml, weights=tiny.safetensors, "), "{}", lines[0]);
    for part in ["batch_size=2, ", "imgsz=64, ", "conf_thres=0.001, ", "iou_thres=0.6, ", "max_det=300, ", "task=val, "]
    {
        assert!(lines[0].contains(part), "{part} in {}", lines[0]);
    }
    assert!(lines.contains(&"val: set.yaml: 2 images, 1 backgrounds, 0 corrupt"), "{out}");
    let header = "                 Class     Images  Instances          P          R      mAP50   mAP50-95";
    let table = lines.iter().position(|line| *line == header).unwrap_or_else(|| panic!("{out}"));
    // All labels are found, and half as much again in the picture without labels: 8 right of 12 of each class. Precision is that
    // at a confidence of 0.726, where the smoothed F1 is greatest: of cats, on the line from 8/12 at 0.964 to 8/13, the first
    // small cat, at 0.696.
    assert_eq!(
        lines[table + 1..table + 4],
        [
            "                   all          3         16      0.644          1      0.995      0.995",
            "                   cat          3          8      0.621          1      0.995      0.995",
            "                   dog          3          8      0.667          1      0.995      0.995",
        ]
    );
    let speed = lines[table + 4];
    assert!(speed.starts_with("Speed: ") && speed.ends_with(" NMS per image at shape (2, 3, 64, 64)"), "{speed}");
    assert_eq!(lines[table + 5], "COCO's rule for boxes, runs/val/exp/tiny_predictions.json against the labels:");
    assert_eq!(lines[table + 6], " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 1.000");
    assert_eq!(lines[table + 18..], ["Results saved to runs/val/exp", "3 labels saved to runs/val/exp/labels"]);

    assert_eq!(place.listing("runs/val/exp/labels"), ["1.txt", "2.txt", "c.txt"]);
    let labels = fs::read_to_string(place.at("runs/val/exp/labels/c.txt")).unwrap();
    assert_eq!(labels.lines().count(), 12);
    assert_eq!(labels.lines().next(), Some("0 0.0625 0.0625 0.125 0.125 0.964351"));
    let text = fs::read_to_string(place.at("runs/val/exp/tiny_predictions.json")).unwrap();
    let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(records.len(), 36);
    assert_eq!(
        records[0],
        serde_json::json!({"image_id": 1, "category_id": 0, "bbox": [0.0, 0.0, 8.0, 8.0], "score": 0.96435})
    );
    assert_eq!(records[35]["image_id"], "c");
}

#[test]
fn plots_are_drawn_unless_told_otherwise() {
    let place = Place::new();
    place.run(&["--batch-size", "2"], 0);
    let curves = ["F1_curve.png", "PR_curve.png", "P_curve.png", "R_curve.png", "confusion_matrix.png"];
    let batches = ["val_batch0_labels.jpg", "val_batch0_pred.jpg", "val_batch1_labels.jpg", "val_batch1_pred.jpg"];
    assert_eq!(place.listing("runs/val/exp"), [&curves[..], &batches].concat());
    for name in place.listing("runs/val/exp") {
        assert!(image::open(place.at("runs/val/exp").join(&name)).is_ok(), "{name}");
    }
    place.run(&["--noplots"], 0);
    assert!(place.listing("runs/val/exp2").is_empty());
    let (out, _) = place.run(&["--task", "speed", "--project", "speed", "--name", "a"], 0);
    // Square batches without a border: one cell, in which nothing lies where the labels do.
    assert!(out.contains("conf_thres=0.25, iou_thres=0.45, ") && out.contains("at shape (32, 3, 64, 64)"), "{out}");
    assert!(
        out.contains("                   all          3         16          0          0          0          0"),
        "{out}"
    );
    assert!(place.listing("speed/a").is_empty());
}

#[test]
fn a_segmentation_network_is_told_by_itself() {
    let place = Place::new();
    tiny::segmentation(&place.at("tiny.safetensors"));
    // Outlines around the same boxes, for the masks fill them.
    let outline = |line: &str| {
        let values: Vec<f64> = line.split(' ').map(|value| value.parse().unwrap()).collect();
        let [class, x, y, w, h] = values[..] else { panic!("{line}") };
        let (x1, y1, x2, y2) = (x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0);
        format!("{class} {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}\n")
    };
    for name in ["1", "2"] {
        let labels: String = LABELS.lines().map(outline).collect();
        fs::write(place.at(&format!("set/labels/val/{name}.txt")), labels).unwrap();
    }
    let (out, _) = place.run(&["--noplots", "--save-json"], 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("segment/val: "), "{out}");
    let header = "                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95)     Mask(P          R      mAP50  mAP50-95)";
    let table = lines.iter().position(|line| *line == header).unwrap_or_else(|| panic!("{out}"));
    let all: Vec<&str> = lines[table + 1].split_whitespace().collect();
    assert_eq!(all[..7], ["all", "3", "16", "0.644", "1", "0.995", "0.995"], "{out}");
    assert_eq!(all.len(), 11);
    assert!(lines.iter().any(|line| line.starts_with("COCO's rule for masks, ")), "{out}");
    let text = fs::read_to_string(place.at("runs/val-seg/exp/tiny_predictions.json")).unwrap();
    let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(records[0]["segmentation"]["size"], serde_json::json!([64, 64]));
}

#[test]
fn what_is_skipped_is_told_and_the_rest_measured() {
    let place = Place::new();
    fs::write(place.at("set/images/val/bad.png"), "no picture").unwrap();
    let (out, err) = place.run(&["--noplots"], 1);
    assert!(out.contains("0.644          1      0.995      0.995"), "{out}");
    assert!(err.contains("bad.png") && err.contains("error: 1 of 4 could not be used"), "{err}");
}

#[test]
fn one_class_of_all() {
    let place = Place::new();
    let (out, _) = place.run(&["--noplots", "--single-cls"], 0);
    // In falling confidence: 8 right, 4 wrong, 8 right, ...: a precision of 1 to half of the recall, and 16/20 from there on.
    // That is 49 trapezoids of 1, one between, 49 of 0.8, and one that falls to 0.
    let row = out.lines().find(|line| line.trim_start().starts_with("all ")).unwrap_or_else(|| panic!("{out}"));
    let values: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(values[..3], ["all", "3", "16"]);
    assert_eq!(values[5..], ["0.895", "0.895"], "{row}");
    assert!(!out.contains("  item  "), "{out}");
}

/// The network has a single level, of which YOLOv5's rule leaves out the first and the last view: what counts is the mirrored one.
#[test]
fn pictures_are_seen_in_three_sizes() {
    let place = Place::new();
    let (out, _) = place.run(&["--noplots", "--augment"], 0);
    assert!(out.contains("augment=True, "), "{out}");
    let total = out.lines().find(|line| line.trim_start().starts_with("all ")).unwrap_or_else(|| panic!("{out}"));
    let columns: Vec<&str> = total.split_whitespace().collect();
    assert_eq!(columns[..3], ["all", "3", "16"], "{out}");

    tiny::segmentation(&place.at("tiny.safetensors"));
    let (_, err) = place.run(&["--augment"], 2);
    assert_eq!(
        err,
        "error: augment: masks of several sizes cannot be put together: it takes a network for detection\n"
    );
}

#[test]
fn without_labels_there_are_zeros_and_a_warning() {
    let place = Place::new();
    fs::remove_dir_all(place.at("set/labels")).unwrap();
    let (out, err) = place.run(&["--save-json"], 0);
    assert!(out.contains("all          3          0          0          0          0          0"), "{out}");
    assert!(out.contains("= -1.000"), "{out}");
    assert!(err.contains("there are no labels in `val`"), "{err}");
}

#[test]
fn what_cannot_be_done_is_a_sentence() {
    let place = Place::new();
    let told = |arguments: &[&str], text: &str| {
        let (_, err) = place.run(arguments, 2);
        assert!(err.contains(text) && err.lines().count() <= 2, "{err}");
    };
    told(&["--task", "test"], "set.yaml: there is no `test`");
    told(&["--data", "none.yaml"], "none.yaml");
    told(&["--conf-thres", "2"], "conf_thres: must be from 0 to 1");
    told(&["--max-det", "0"], "max_det");
    fs::write(place.at("two.yaml"), "path: set\nval: images/val\nnames: [cat, dog]\n").unwrap();
    told(&["--data", "two.yaml"], "the network has 3 classes, two.yaml has 2");
    told(&["--save-json", "--annotations", "nope.json"], "--annotations nope.json: ");
    told(&["--save-json", "--annotations", "set"], "--annotations set: this is a folder");
    fs::write(place.at("list.json"), "[1]").unwrap();
    told(&["--save-json", "--annotations", "list.json"], "list.json: not annotations in COCO's form");
    assert_eq!(place.listing("runs"), ["(no folder)"], "a run began though its annotations cannot be read");
    fs::write(place.at("none.json"), r#"{"images": [], "annotations": []}"#).unwrap();
    told(&["--noplots", "--save-json", "--annotations", "none.json"], "none of the pictures is in it, such as 1");
}

#[test]
fn annotations_that_nothing_is_compared_with_are_told() {
    let place = Place::new();
    let (_, err) = place.run(&["--noplots", "--annotations", "nope.json"], 0);
    assert_eq!(err, "warning: --annotations has no effect without --save-json\n");
    let (_, err) = place.run(&["--task", "speed", "--save-json", "--annotations", "nope.json"], 0);
    assert_eq!(err, "warning: --annotations has no effect with --task speed\n");
}

#[test]
fn sizes_are_rounded_up_to_the_stride() {
    let place = Place::new();
    let (out, err) = place.run(&["--noplots", "--imgsz", "60"], 0);
    assert!(err.contains("--imgsz 60 must be a multiple of the stride 64, going on with 64"), "{err}");
    assert!(out.contains("at shape (32, 3, 64, 64)"), "{out}");
    // A network whose maps join at multiples of the stride only: it comes as far as its classes.
    let (_, err) = place.run(&["--weights", "shapes-n-ghostdyn", "--imgsz", "100"], 2);
    assert!(err.contains("going on with 128") && err.contains("the network has 5 classes"), "{err}");
}
