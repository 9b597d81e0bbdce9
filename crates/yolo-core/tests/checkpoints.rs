//! PyTorch checkpoints against what PyTorch itself reads from them, and files that must be refused.

use std::collections::HashMap;
use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use yolo_core::weights::checkpoint::{self, Origin};
use yolo_core::weights::{Weights, convert};

const GOOD: [&str; 7] = [
    "bare_module",
    "ema_f32_protocol4",
    "model_f16",
    "model_f16_old_layout",
    "no_checksums",
    "state_dict",
    "state_dict_nested",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

/// What PyTorch reads: the old layout is a copy of another file.
fn expected(name: &str) -> (Weights, Vec<String>) {
    let name = name.strip_suffix("_old_layout").unwrap_or(name);
    let names = fs::read_to_string(fixture(&format!("{name}.names"))).unwrap();
    (Weights::open(fixture(&format!("{name}.safetensors"))).unwrap(), names.lines().map(str::to_string).collect())
}

fn bytes_of(weights: &Weights) -> HashMap<String, (String, Vec<usize>, Vec<u8>)> {
    let sources = weights.sources().unwrap();
    let parts =
        |s: &yolo_core::weights::TensorSource<'_>| (s.dtype().to_string(), s.shape().to_vec(), s.bytes().into_owned());
    sources.iter().map(|source| (source.name().to_string(), parts(source))).collect()
}

#[test]
fn every_tensor_is_what_pytorch_reads() {
    for name in GOOD {
        let (expected, names) = expected(name);
        let read = checkpoint::read(fixture(&format!("{name}.pt"))).unwrap();
        assert_eq!(read.sources().map(|s| s.name().to_string()).collect::<Vec<_>>(), names, "{name}");

        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.safetensors");
        convert(fixture(&format!("{name}.pt")), &output, false).unwrap();
        assert_eq!(bytes_of(&Weights::open(&output).unwrap()), bytes_of(&expected), "{name}");
    }
}

#[test]
fn the_network_is_found_where_yolov5_puts_it() {
    for (name, origin) in [
        ("model_f16", Origin::Model),
        ("ema_f32_protocol4", Origin::Ema),
        ("bare_module", Origin::Module),
        ("state_dict", Origin::StateDict),
        ("state_dict_nested", Origin::StateDict),
    ] {
        assert_eq!(checkpoint::read(fixture(&format!("{name}.pt"))).unwrap().origin(), origin, "{name}");
    }
}

#[test]
fn yaml_names_and_sizes_come_along() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.safetensors");
    convert(fixture("model_f16.pt"), &output, true).unwrap();
    let metadata = Weights::open(&output).unwrap().metadata().clone();
    let yaml = "nc: 2\n\
        depth_multiple: 0.33\n\
        width_multiple: 1.0\n\
        activation: \"nn.SiLU()\"\n\
        anchors:\n  - [10, 13, 16.5, 30]\n  - [33, 23, 30, 61]\n\
        backbone:\n  - [-1, 1, Conv, [4, 3]]\n  - [-1, 1, Conv, [8, false]]\n\
        head:\n  - [-1, 1, nn.Upsample, [None, 2, nearest]]\n  - [[1, -1], 1, Detect, [nc, anchors]]\n\
        ch: 3\n\
        dynamic: {routing: softmax, temperature: 34.0, note: null, \"on\": true, list: []}\n";
    assert_eq!(metadata.yaml.as_deref(), Some(yaml));
    assert!(serde_yaml::from_str::<serde_yaml::Value>(yaml).is_ok());
    assert_eq!(metadata.names.as_deref(), Some(["person".to_string(), "traffic light".to_string()].as_slice()));
    assert_eq!((metadata.stride, metadata.imgsz), (Some(16), Some(640)));

    // The module has 3 classes, whatever its YAML says; its options tell the input size.
    let read = checkpoint::read(fixture("ema_f32_protocol4.pt")).unwrap();
    let metadata = read.metadata();
    assert!(metadata.yaml.as_deref().unwrap().starts_with("nc: 3\n"));
    assert_eq!(metadata.names.as_deref().unwrap(), ["yes", "a \"b\"", "猫"]);
    assert_eq!((metadata.stride, metadata.imgsz), (Some(16), Some(320)));
    assert_eq!(read.notes(), [""; 0]);

    let bare = checkpoint::read(fixture("state_dict.pt")).unwrap();
    assert_eq!((&bare.metadata().yaml, &bare.metadata().names), (&None, &None));
}

#[test]
fn refusals_say_what_to_do_and_run_nothing() {
    for (name, words) in [
        ("legacy.pt", "PyTorch before 1.6"),
        ("legacy.pt", "save it again"),
        ("evil.pt", "posix.system"),
        ("evil.pt", "state_dict()"),
        ("evil_tensor.pt", "`bias` is posix.system"),
        ("stranger.pt", "`1` is elsewhere.layers.Stranger"),
        ("no_network.pt", "holds no network"),
        ("torchscript.pt", "TorchScript"),
        ("big_endian.pt", "big-endian"),
        ("README.md", "text file"),
        ("model_f16.safetensors", "safetensors"),
        ("absent.pt", "absent.pt"),
        ("", "folder"),
    ] {
        let error = checkpoint::read(fixture(name)).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: {error}");
        assert!(error.lines().count() == 1 && error.starts_with(fixture(name).to_str().unwrap()), "{name}: {error}");
    }
    assert!(!Path::new("evil-was-here").exists());
}

#[test]
fn a_flipped_bit_in_a_tensor_is_found_by_its_checksum() {
    let mut bytes = fs::read(fixture("model_f16.pt")).unwrap();
    let (expected, _) = expected("model_f16");
    let sources = expected.sources().unwrap();
    let weight = sources.iter().find(|s| s.name() == "model.0.conv.weight").unwrap().bytes().into_owned();
    let at = bytes.windows(weight.len()).position(|window| window == weight).unwrap();
    bytes[at] ^= 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flipped.pt");
    fs::write(&path, bytes).unwrap();
    let error = checkpoint::read(&path).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("download or copy"), "{error}");
}

/// Reads, converts and looks at a damaged checkpoint: it may fail, it may not panic.
fn survive(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.pt"), folder.path().join("out.safetensors"));
    fs::write(&input, bytes).unwrap();
    match convert(&input, &output, false) {
        Ok(_) => drop(Weights::open(&output).unwrap()),
        Err(error) => {
            assert!(!output.exists());
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = fs::read(fixture("state_dict.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.pt");
    for len in 0..bytes.len() {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(checkpoint::read(&path).is_err(), "cut to {len} of {} bytes", bytes.len());
    }
}

#[test]
fn every_byte_of_a_small_checkpoint_may_be_anything() {
    let bytes = fs::read(fixture("state_dict.pt")).unwrap();
    for at in 0..bytes.len() {
        for value in [bytes[at] ^ 1, bytes[at] ^ 0x80, 0, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            survive(&changed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Without checksums the damage reaches the unpickler.
    #[test]
    fn damage_that_no_checksum_finds(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = fs::read(fixture("no_checksums.pt")).unwrap();
        for (at, value) in changes {
            let at = at.index(2000);
            bytes[at] = value;
        }
        survive(&bytes);
    }

    #[test]
    fn damage_to_a_module(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>()) {
        let mut bytes = fs::read(fixture("ema_f32_protocol4.pt")).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(&bytes);
        survive(&bytes[..cut.index(bytes.len())]);
    }
}

/// The trained YOLOv5n, where it is to be had.
fn trained() -> Option<PathBuf> {
    let folder = std::env::var_os("YOLO_TEST_WEIGHTS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/weights"));
    let path = if folder.is_dir() { folder.join("yolov5n.pt") } else { folder };
    if !path.is_file() {
        // Not `eprintln!`, which the test harness keeps to itself.
        let _ = writeln!(stderr(), "skipped: the trained YOLOv5n is not at {} (set YOLO_TEST_WEIGHTS)", path.display());
        return None;
    }
    Some(path)
}

#[test]
fn trained_yolov5n() {
    let Some(path) = trained() else { return };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("yolov5n.safetensors");
    let start = std::time::Instant::now();
    let report = convert(path, &output, false).unwrap();
    assert!(start.elapsed().as_secs_f64() < 1.0, "converted in {:?}", start.elapsed());
    assert_eq!((report.tensors, report.parameters, report.origin), (349, 1_872_157, Some(Origin::Model)));
    let weights = Weights::open(&output).unwrap();
    let metadata = weights.metadata();
    assert_eq!(metadata.names.as_ref().map(Vec::len), Some(80));
    assert_eq!((metadata.stride, metadata.imgsz), (Some(32), Some(640)));
    let yaml: serde_yaml::Value = serde_yaml::from_str(metadata.yaml.as_deref().unwrap()).unwrap();
    assert_eq!(yaml["backbone"].as_sequence().unwrap().len() + yaml["head"].as_sequence().unwrap().len(), 25);
    assert_eq!(weights.shape("model.24.anchors"), Some([3, 3, 2].as_slice()));
}
