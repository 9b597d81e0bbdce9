//! `yolo predict` with what the program carries: networks and pictures that it was not trained on.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// Class and corners.
type Shape = (u64, [f64; 4]);

/// The shapes of every picture, from the generator's labels.
const SHAPES: [(&str, &[Shape]); 4] = [
    (
        "shapes-1.jpg",
        &[
            (4, [138., 270., 347., 480.]),
            (0, [0., 84., 179., 325.]),
            (2, [19., 276., 171., 414.]),
            (3, [315., 207., 380., 271.]),
            (1, [151., 146., 202., 195.]),
            (0, [189., 346., 278., 434.]),
        ],
    ),
    (
        "shapes-2.jpg",
        &[
            (1, [43., 71., 114., 157.]),
            (2, [375., 194., 480., 339.]),
            (0, [305., 149., 367., 203.]),
            (1, [119., 301., 299., 468.]),
            (4, [138., 224., 376., 418.]),
            (3, [78., 207., 133., 263.]),
        ],
    ),
    (
        "shapes-3.jpg",
        &[
            (4, [180., 138., 220., 182.]),
            (1, [313., 191., 424., 301.]),
            (1, [351., 354., 479., 480.]),
            (4, [320., 384., 375., 439.]),
            (3, [96., 240., 234., 399.]),
            (1, [360., 87., 480., 236.]),
            (2, [268., 0., 380., 120.]),
        ],
    ),
    (
        "shapes-4.jpg",
        &[
            (3, [262., 372., 315., 424.]),
            (0, [147., 6., 242., 86.]),
            (4, [107., 102., 153., 145.]),
            (4, [0., 47., 103., 170.]),
            (3, [254., 217., 480., 475.]),
            (4, [209., 0., 376., 142.]),
        ],
    ),
];

fn predict(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
    // What is built in needs no cache.
    command.current_dir(folder).env("YOLO_CACHE", "/dev/null/cache").arg("predict").args(more);
    command.output().unwrap()
}

fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let area = |[left, top, right, bottom]: [f64; 4]| (right - left).max(0.0) * (bottom - top).max(0.0);
    let both = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    both / (area(a) + area(b) - both)
}

/// Of all shapes, how many are found, and how much is found besides.
fn found(more: &[&str]) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let output = predict(folder.path(), &[&["--json", "--nosave"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (mut right, mut besides) = (0, 0);
    for (line, (name, shapes)) in String::from_utf8(output.stdout).unwrap().lines().zip(SHAPES) {
        let picture: Value = serde_json::from_str(line).unwrap();
        assert_eq!(picture["path"], name);
        let mut left = shapes.to_vec();
        for own in picture["boxes"].as_array().unwrap() {
            let corners: Vec<f64> = own["box"].as_array().unwrap().iter().map(|side| side.as_f64().unwrap()).collect();
            let place: [f64; 4] = corners.try_into().unwrap();
            let class = own["class"].as_u64().unwrap();
            match left.iter().position(|(other, shape)| *other == class && overlap(place, *shape) > 0.5) {
                Some(index) => {
                    left.remove(index);
                    right += 1;
                }
                None => besides += 1,
            }
        }
    }
    (right, besides)
}

#[test]
fn without_arguments_shapes_are_found_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let output = predict(folder.path(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(out.contains("image 1/4 shapes-1.jpg: "), "{out}");
    assert!(out.contains("Results saved to runs/detect/exp"), "{out}");
    for (name, _) in SHAPES {
        let picture = image::open(folder.path().join("runs/detect/exp").join(name)).unwrap();
        assert_eq!((picture.width(), picture.height()), (480, 480));
    }
}

#[test]
fn networks_that_are_built_in_have_learned() {
    let all: usize = SHAPES.iter().map(|(_, shapes)| shapes.len()).sum();
    for name in ["shapes-n-ghostdyn", "shapes-n-ghostdyn-seg.safetensors"] {
        let (right, besides) = found(&["--weights", name]);
        assert!(right * 10 >= all * 8 && besides * 10 <= all * 2, "{name}: {right} of {all}, {besides} besides");
    }
}

#[test]
fn masks_are_drawn_by_the_other_network() {
    let folder = tempfile::tempdir().unwrap();
    let output = predict(folder.path(), &["--weights", "shapes-n-ghostdyn-seg", "--save-txt"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let labels = fs::read_to_string(folder.path().join("runs/predict-seg/exp/labels/shapes-1.txt")).unwrap();
    // Outlines have more than the four numbers of a box.
    assert!(labels.lines().any(|line| line.split(' ').count() > 20), "{labels}");
}

#[test]
fn a_source_without_weights_asks_for_yolov5s() {
    let folder = tempfile::tempdir().unwrap();
    image::RgbImage::new(8, 8).save(folder.path().join("a.png")).unwrap();
    let output = predict(folder.path(), &["--source", "a.png"]);
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && problem.contains("/dev/null/cache"), "{problem}");
}
