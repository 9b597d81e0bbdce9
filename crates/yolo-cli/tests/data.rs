//! `yolo data`, run as users run it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn yolo(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_yolo")).current_dir(folder).arg("data").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn shapes_are_made_converted_and_converted_back() {
    let folder = tempfile::tempdir().unwrap();
    let made = yolo(folder.path(), &["shapes", "--out", "shapes", "--images", "10", "--seed", "3", "--size", "64"]);
    let output = text(&made.stdout);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(output.starts_with("8 pictures for training, 2 for validation"), "{output}");
    assert!(output.ends_with("Data set saved to shapes/data.yaml\n"), "{output}");

    let again = yolo(folder.path(), &["shapes", "--out", "shapes", "--images", "1"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("shapes: the folder is not empty; name another, or add --exist-ok"));
    let again = ["shapes", "--out", "shapes", "--images", "10", "--seed", "3", "--size", "64", "--exist-ok"];
    assert!(yolo(folder.path(), &again).status.success());

    let to_coco = yolo(folder.path(), &["convert", "shapes/data.yaml", "--split", "train", "--out", "train.json"]);
    assert!(to_coco.status.success(), "{}", text(&to_coco.stderr));
    let json: Value = serde_json::from_str(&fs::read_to_string(folder.path().join("train.json")).unwrap()).unwrap();
    let (images, objects) = (json["images"].as_array().unwrap(), json["annotations"].as_array().unwrap());
    assert_eq!(images.len(), 8);
    assert!(text(&to_coco.stdout).contains(&format!("{0} objects, {0} with outlines, on 8 pictures", objects.len())));

    let to_yolo = ["convert", "train.json", "--images", "shapes/images/train", "--segments", "--out", "back"];
    let to_yolo = yolo(folder.path(), &to_yolo);
    assert!(to_yolo.status.success(), "{}", text(&to_yolo.stderr));
    assert!(text(&to_yolo.stdout).contains(&format!("train: {} objects on 8 pictures", objects.len())));
    for number in 0..8 {
        let rows = |root: &str| -> Vec<f64> {
            let path = folder.path().join(format!("{root}/labels/train/{number:04}.txt"));
            fs::read_to_string(path).unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect()
        };
        let (first, second) = (rows("shapes"), rows("back"));
        assert_eq!(first.len(), second.len());
        assert!(first.iter().zip(&second).all(|(a, b)| (a - b).abs() < 1e-4), "{number}");
        assert!(folder.path().join(format!("back/images/train/{number:04}.jpg")).is_file());
    }
}

#[test]
fn wrong_arguments_are_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let config = "train: images\nval: images\nnames: [a]\n";
    fs::write(folder.path().join("a.yaml"), config).unwrap();
    fs::write(folder.path().join("a.json"), "{}").unwrap();
    for (args, words) in [
        (&["shapes", "--out", "x", "--images", "0"][..], "error: images: expected 1 to"),
        (&["shapes", "--out", "a.json"], "a.json: expected a folder"),
        (&["convert", "a.txt", "--out", "x"], "expected COCO files that end in .json"),
        (&["convert", "a.yaml", "--out", "x"], "--out x: expected the name of a .json file"),
        (&["convert", "a.yaml", "--out", "x.json"], "a.yaml"),
        (&["convert", "a.yaml", "--out", "x.json", "--split", "best"], "--split best: expected train, val or test"),
        (&["convert", "a.json", "--out", "x"], "a.json: not a COCO file"),
        (
            &["convert", "a.json", "--out", "x", "--images", "b", "c"],
            "expected one folder a JSON file, 1 of them, got 2",
        ),
    ] {
        let output = yolo(folder.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains(words), "{args:?}: {}", text(&output.stderr));
    }
    assert!(!folder.path().join("x").exists());
}
