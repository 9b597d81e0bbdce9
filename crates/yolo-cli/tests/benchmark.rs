//! `yolo benchmark`, as a user runs it.

use std::process::{Command, Output};

use serde_json::{Value, json};

fn benchmark(more: &[&str]) -> Output {
    let quick = ["benchmark", "--imgsz", "64", "--iters", "1", "--warmup", "0"];
    Command::new(env!("CARGO_BIN_EXE_yolo")).args(quick).args(more).output().unwrap()
}

/// The lines for people, and the object after them.
fn measured(more: &[&str]) -> (String, Value) {
    let output = benchmark(&[more, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let (lines, last) = text.trim_end().rsplit_once('\n').unwrap();
    (lines.to_owned(), serde_json::from_str(last).unwrap())
}

/// What a refused command tells; it must end with status 2.
fn refused(more: &[&str]) -> String {
    let output = benchmark(more);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{more:?}: {told}");
    assert!(!told.contains("panicked"), "{more:?}: {told}");
    told
}

#[test]
fn the_line_for_machines_has_its_keys() {
    let (lines, json) = measured(&["--cfg", "yolov5n", "--batch", "2", "--threads", "1", "--iters", "3"]);
    let keys = [
        "cfg",
        "batch",
        "imgsz",
        "threads",
        "precision",
        "engine",
        "median_ms",
        "min_ms",
        "p10_ms",
        "p90_ms",
        "runs",
        "gflops_per_s",
        "load_ms",
        "compile_ms",
    ];
    assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
    assert_eq!((&json["cfg"], &json["batch"], &json["threads"]), (&json!("yolov5n"), &json!(2), &json!(1)));
    assert_eq!((&json["precision"], &json["engine"]), (&json!("f32"), &json!("plan")));
    assert_eq!((&json["imgsz"], &json["runs"]), (&json!([64, 64]), &json!(3)));
    let [min, p10, median, p90] = ["min_ms", "p10_ms", "median_ms", "p90_ms"].map(|key| json[key].as_f64().unwrap());
    assert!(0.0 < min && min <= p10 && p10 <= median && median <= p90, "{json}");
    assert!(lines.starts_with("yolov5n: input 2x3x64x64, f32, engine plan, 1 thread\n"), "{lines}");
    assert!(lines.contains("pictures/s"), "{lines}");
    // Twice YOLOv5n's operations at 64x64.
    let gflop = json["gflops_per_s"].as_f64().unwrap() * median / 1e3;
    assert!((0.05..0.12).contains(&gflop), "{gflop}");
}

#[test]
fn dynamic_networks_and_oblong_pictures_are_timed() {
    let (lines, json) = measured(&["--cfg", "yolov5n_C3_GhostDynamicConv", "--img-size", "64", "96", "--threads", "2"]);
    assert_eq!((&json["imgsz"], &json["threads"]), (&json!([64, 96]), &json!(2)));
    assert!(lines.contains("1x3x64x96, f32, engine plan, 2 threads"), "{lines}");
}

#[test]
fn steps_are_told_with_their_kernels() {
    let (lines, _) = measured(&["--cfg", "yolov5n_C3_GhostDynamicConv", "--iters", "1", "--profile"]);
    for kernel in
        ["import", "direct silu", "depthwise silu", "mix 4 experts", "max-pool x3", "direct + decode", "GFLOP/s"]
    {
        assert!(lines.contains(kernel), "{kernel}: {lines}");
    }
    let (lines, json) = measured(&["--cfg", "yolov5n", "--iters", "1", "--engine", "candle"]);
    assert_eq!(json["engine"], json!("candle"));
    assert!(lines.contains("engine candle"), "{lines}");
}

/// Where the CPU has it; elsewhere a sentence.
#[test]
fn bf16_is_timed_or_refused() {
    let arguments = ["--cfg", "yolov5n", "--imgsz", "64", "--iters", "1", "--precision", "bf16"];
    let output = benchmark(&arguments);
    if output.status.success() {
        assert_eq!(measured(&arguments).1["precision"], "bf16");
    } else {
        assert!(refused(&arguments).contains("AVX512-BF16"));
    }
}

#[test]
fn tuning_is_kept_in_the_cache_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = |cache: &std::path::Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
        command.args(["benchmark", "--cfg", "yolov5n", "--imgsz", "64", "--iters", "1", "--warmup", "0", "--tune"]);
        command.env("YOLO_CACHE", cache).output().unwrap()
    };
    let output = run(&folder.path().join("cache"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(folder.path().join("cache/tuning.yaml")).unwrap();
    assert!(text.contains("channels"), "{text}");
    // A folder that cannot be made.
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = run(&file.join("cache"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && told.contains("cannot be written"), "{told}");
    assert!(refused(&["--cfg", "yolov5n", "--engine", "candle", "--tune"]).contains("--tune"));
}

#[test]
fn an_unknown_instruction_set_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_yolo")).args(["summary", "--list"]).env("DYCONV_ISA", "mmx").output();
    let output = output.unwrap();
    let problem = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && problem.contains("mmx") && problem.contains("scalar"), "{problem}");
}

#[test]
fn what_cannot_be_is_refused_in_a_sentence() {
    let cfg = ["--cfg", "yolov5n"];
    let with = |more: &[&str]| refused(&[&cfg, more].concat());
    assert!(refused(&[]).contains("--cfg <NAME|FILE>"));
    assert!(refused(&["--cfg", "yolov5q"]).contains("yolov5q"));
    assert!(with(&["--threads", "0"]).contains("0 is not in 1..=1024"));
    assert!(with(&["--batch", "0"]).contains("0 is not in 1..=4096"));
    assert!(with(&["--batch", "two"]).contains("invalid digit"));
    assert!(with(&["--iters", "-1"]).contains("-1"));
    assert!(with(&["--precision", "f8"]).contains("[possible values: f32, bf16]"));
    assert!(with(&["--engine", "torch"]).contains("possible values: "));
    assert!(with(&["--imgsz", "40"]).contains("multiple of the network's stride"));
    assert!(with(&["--weights", "nowhere.safetensors"]).contains("nowhere.safetensors"));
    assert!(with(&["--engine", "candle", "--precision", "bf16"]).contains("the candle engine computes in f32"));
    assert!(with(&["--engine", "candle", "--profile"]).contains("plan engine"));
}

/// `yolo summary | head` and the like.
#[test]
#[cfg(unix)]
fn output_that_nobody_reads_ends_it_quietly() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_yolo"));
    let mut child = command
        .args(["summary", "--cfg", "yolov5n"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(!output.status.success());
}
