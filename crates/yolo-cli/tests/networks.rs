//! `yolo summary` and `yolo forward`, as a user runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device};
use serde_json::Value;
use yolo_core::weights::Weights;

fn yolo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_yolo")).args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a refused command tells; it must end with status 2.
fn refused(arguments: &[&str]) -> String {
    let output = yolo(arguments);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {told}");
    told
}

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../yolo-core/tests/data/goldens")
}

#[test]
fn the_table_is_yolov5s() {
    let table = printed(&yolo(&["summary", "--cfg", "yolov5l_C3_GhostDynamicConv"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(
        lines[1],
        "                 from  n    params  module                                  arguments                     "
    );
    assert_eq!(
        lines[2],
        "  0                -1  1      7040  models.common.Conv                      [3, 64, 6, 2, 2]              "
    );
    assert_eq!(
        lines[13],
        " 11                -1  1         0  torch.nn.modules.upsampling.Upsample    [None, 2, 'nearest']          "
    );
    let last = "YOLOv5l_C3_GhostDynamicConv summary: 405 layers, 38750125 parameters, 38750125 gradients, 97.1 GFLOPs";
    assert!(lines.contains(&last), "{table}");
    assert!(table.contains("YOLOv5 itself prints 97.0 GFLOPs"), "{table}");
}

#[test]
fn the_summary_for_machines_has_its_keys() {
    let text = printed(&yolo(&["summary", "--cfg", "yolov5n-seg", "--json"]));
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(summary["params"], 1991549);
    assert_eq!(summary["modules"], 225);
    assert_eq!(summary["strides"], serde_json::json!([8.0, 16.0, 32.0]));
    assert_eq!(summary["gflops_printed"], 7.1875);
    assert_eq!(summary["gflops"], 7.0699);
    let last = &summary["layers"][24];
    assert_eq!((&last["i"], &last["module"], &last["n"]), (&24.into(), &"Segment".into(), &1.into()));
    assert_eq!(last["from"], serde_json::json!([17, 20, 23]));
    assert_eq!(last["args"][3], 64);
    assert_eq!(summary["layers"][2]["args"], serde_json::json!([32, 32, 1]));
}

#[test]
fn names_of_the_zoo_are_listed() {
    let names = printed(&yolo(&["summary", "--list"]));
    assert_eq!(names.lines().count(), 43);
    assert!(names.lines().any(|name| name == "yolov5x-seg_C3_GhostDynamicConv"));
}

#[test]
fn forward_gives_what_pytorch_gives() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let case = goldens().join("net_n_segment_C3_GhostDynamicConv");
    let (cfg, weights) = (case.with_extension("yaml"), case.with_extension("safetensors"));
    let [cfg, weights, out] = [&cfg, &weights, &output].map(|path| path.to_str().unwrap());
    printed(&yolo(&[
        "forward",
        "--cfg",
        cfg,
        "--weights",
        weights,
        "--input",
        weights,
        "--output",
        out,
        "--features",
        "8,17",
    ]));
    let (golden, got) = (Weights::open(weights).unwrap(), Weights::open(&output).unwrap());
    let names: Vec<&str> = got.names().collect();
    assert_eq!(names, ["features.17", "features.8", "output0", "output1"]);
    assert_eq!(got.shape("features.8"), Some(&[2, 256, 5, 4][..]));
    for name in ["output0", "output1"] {
        let values = |weights: &Weights| {
            let tensor = weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (got, expected) = (values(&got), values(&golden));
        assert_eq!(got.len(), expected.len());
        let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        assert!(got.iter().zip(&expected).all(|(g, e)| (g - e).abs() <= 1e-5 * largest), "{name}");
    }
}

#[test]
fn forward_without_weights_is_the_same_for_the_same_seed() {
    let folder = tempfile::tempdir().unwrap();
    let input = goldens().join("c3.safetensors");
    let cfg = goldens().join("c3.yaml");
    let run = |seed: &str, name: &str| {
        let output = folder.path().join(name);
        let [cfg, input, out] = [&cfg, &input, &output].map(|path| path.to_str().unwrap());
        printed(&yolo(&["forward", "--cfg", cfg, "--input", input, "--output", out, "--seed", seed]));
        std::fs::read(&output).unwrap()
    };
    assert_eq!(run("1", "a"), run("1", "b"));
    assert_ne!(run("1", "c"), run("2", "d"));
}

#[test]
fn mistakes_get_a_sentence_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    let out = output.to_str().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file(
        "unknown.yaml",
        "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nbackbone: [[-1, 1, C33, [8]]]\nhead: []\n",
    );
    let forward = file(
        "forward.yaml",
        "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nbackbone: [[1, 1, C3, [8]]]\nhead: []\n",
    );
    let picture = file("not.safetensors", "hello, this is no tensor");
    let c3 = goldens().join("c3.safetensors");
    let c3 = c3.to_str().unwrap();
    let cases: [(&[&str], &str); 9] = [
        (&["summary", "--cfg", &unknown], "layer 0 (C33): there is no such module; the nearest names are C3"),
        (&["summary", "--cfg", &forward], "layer 0 (C3): `from` 1 is not a layer before it"),
        (&["summary", "--cfg", "yolov5"], "no such file, and no built-in network of that name"),
        (&["summary", "--cfg", "yolov5n", "--nc", "-1"], "invalid value '-1' for '--nc <N>': -1 is not in 1..=65535"),
        (&["forward", "--cfg", "yolov5n", "--input", &picture, "--output", out], "not.safetensors: "),
        (
            &["forward", "--cfg", "yolov5n", "--input", c3, "--output", out],
            "the network's input: expected [batch, 3, height, width], got [2, 16, 20, 12]",
        ),
        (
            &["forward", "--cfg", "yolov5n", "--weights", c3, "--input", c3, "--output", out],
            "belong to another network than yolov5n",
        ),
        (
            &["forward", "--cfg", "yolov5n", "--input", c3, "--output", out, "--device", "tpu"],
            "--device tpu: no such device",
        ),
        (&["forward", "--weights", c3, "--input", c3, "--output", out], "does not say which network it belongs to"),
    ];
    for (arguments, expected) in cases {
        let told = refused(arguments);
        assert!(told.starts_with("error: ") && told.contains(expected), "{arguments:?}: {told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    assert!(!output.exists());
}
