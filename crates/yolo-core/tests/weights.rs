//! Safetensors in and out, and weights against a network.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use proptest::prelude::*;
use yolo_core::weights::{Expected, NetworkMetadata, StoredType, TensorSource, Weights, convert, save, save_npz};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

fn metadata() -> NetworkMetadata {
    NetworkMetadata {
        yaml: Some("nc: 2\nhead: []\n".into()),
        names: Some(vec!["a, \"b\"".into(), "猫".into()]),
        imgsz: Some(640),
        stride: Some(32),
        extra: [("author".to_string(), "me".to_string())].into(),
    }
}

fn example() -> Weights {
    let tensors = [
        ("model.0.conv.weight", Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((2, 3, 2, 2)).unwrap()),
        ("model.0.bn.bias", Tensor::new(&[0.5f32, -1.25], &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap()),
        ("model.0.bn.weight", Tensor::new(&[3f32, 7.], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap()),
        ("model.0.bn.num_batches_tracked", Tensor::new(9i64, &Device::Cpu).unwrap()),
    ];
    Weights::from_tensors(tensors.into_iter().map(|(name, t)| (name.to_string(), t)).collect(), metadata())
}

fn write(weights: &Weights, path: &Path) -> Weights {
    save(path, weights.sources().unwrap(), weights.metadata()).unwrap();
    Weights::open(path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let memory = example();
    let file = write(&memory, &path);
    assert_eq!(file.metadata(), &metadata());
    assert_eq!(file.path(), path);
    for weights in [&memory, &file] {
        assert_eq!(weights.names().len(), 4);
        assert_eq!(weights.shape("model.0.conv.weight"), Some([2, 3, 2, 2].as_slice()));
        assert_eq!(weights.dtype("model.0.bn.bias"), Some(StoredType::F16));
        assert_eq!(weights.shape("absent"), None);
        let read = |name, dtype| weights.tensor(name, dtype, &Device::Cpu).unwrap();
        assert_eq!(read("model.0.bn.bias", DType::F32).to_vec1::<f32>().unwrap(), [0.5, -1.25]);
        assert_eq!(read("model.0.bn.weight", DType::F16).to_vec1::<half::f16>().unwrap()[1].to_f32(), 7.);
        let weight = read("model.0.conv.weight", DType::F32).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(weight, (0..24).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(read("model.0.bn.num_batches_tracked", DType::I64).to_scalar::<i64>().unwrap(), 9);

        let counter = weights.tensor("model.0.bn.num_batches_tracked", DType::F32, &Device::Cpu).unwrap_err();
        assert!(counter.to_string().contains("stored as I64"), "{counter}");
        let absent = weights.tensor("absent", DType::F32, &Device::Cpu).unwrap_err();
        assert!(absent.to_string().contains("no tensor `absent`"), "{absent}");

        let layers = weights.var_builder(DType::F32, &Device::Cpu).pp("model.0");
        assert_eq!(layers.get((2, 3, 2, 2), "conv.weight").unwrap().dims(), [2, 3, 2, 2]);
        assert!(layers.contains_tensor("bn.bias") && !layers.contains_tensor("bn.gamma"));
        let misshapen = layers.get((2, 3), "conv.weight").unwrap_err().to_string();
        assert!(
            misshapen.contains("`model.0.conv.weight` has shape [2, 3, 2, 2], the network expects [2, 3]"),
            "{misshapen}"
        );
    }
    // The same tensors, the same bytes.
    let again = folder.path().join("again.safetensors");
    write(&file, &again);
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn safetensors_own_reader_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write(&example(), &path);
    let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 4);
    assert_eq!(tensors["model.0.bn.bias"].dtype(), DType::F16);
    let bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(header % 8, 0, "the data is aligned");
}

#[test]
fn npz_is_what_numpy_expects() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.npz");
    save_npz(&path, example().sources().unwrap()).unwrap();
    let read: HashMap<_, _> = Tensor::read_npz(&path).unwrap().into_iter().collect();
    assert_eq!(read.len(), 4);
    for (name, dtype) in [
        ("model.0.conv.weight", DType::F32),
        ("model.0.bn.bias", DType::F16),
        ("model.0.bn.weight", DType::F32),
        ("model.0.bn.num_batches_tracked", DType::I64),
    ] {
        let expected = example().tensor(name, dtype, &Device::Cpu).unwrap();
        assert_eq!((read[name].dtype(), read[name].dims()), (dtype, expected.dims()), "{name}");
        assert_eq!(format!("{}", read[name]), format!("{expected}"), "{name}");
    }
    // The head of an .npy file, byte for byte as NumPy writes it but for the padding.
    let bytes = fs::read(&path).unwrap();
    let head = b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }";
    let at = bytes.windows(head.len()).position(|window| window == head).unwrap();
    assert_eq!(bytes[at + 127], b'\n');
}

#[test]
fn a_broken_source_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let source = |name: &str, bytes: &'static [u8]| {
        TensorSource::new(name, StoredType::F32, vec![1], move || Cow::Borrowed(bytes))
    };
    let short = save(&path, [source("a", &[0; 4]), source("b", &[0; 3])], &metadata()).unwrap_err();
    assert!(short.to_string().contains("`b` has 3 bytes, its shape needs 4"), "{short}");
    let twice = save(&path, [source("a", &[0; 4]), source("a", &[0; 4])], &metadata()).unwrap_err();
    assert!(twice.to_string().contains("two tensors are named `a`"), "{twice}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn half_rounds_to_nearest_and_refuses_what_it_cannot_hold() {
    let folder = tempfile::tempdir().unwrap();
    let (full, half) = (folder.path().join("full.safetensors"), folder.path().join("half.safetensors"));
    let numbers = [1.0f32, 0.1, -2049.0, 65504.0, 1e-8, f32::NEG_INFINITY];
    let one = |numbers: &[f32]| {
        let tensor = Tensor::new(numbers, &Device::Cpu).unwrap();
        Weights::from_tensors(HashMap::from([("w".to_string(), tensor)]), NetworkMetadata::default())
    };
    write(&one(&numbers), &full);
    convert(&full, &half, true).unwrap();
    let read = Weights::open(&half).unwrap().tensor("w", DType::F32, &Device::Cpu).unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(read, [1.0, 0.099975586, -2048.0, 65504.0, 0.0, f32::NEG_INFINITY]);

    write(&one(&[1.0, 70000.0]), &full);
    fs::remove_file(&half).unwrap();
    let error = convert(&full, &half, true).unwrap_err().to_string();
    assert!(error.contains("`w` holds 7e4") && !half.exists(), "{error}");
}

fn expected(name: &str, shape: &[usize]) -> Expected {
    Expected { name: name.into(), shape: shape.to_vec(), optional: false }
}

fn network() -> Vec<Expected> {
    vec![
        expected("model.0.conv.weight", &[2, 3, 2, 2]),
        expected("model.0.bn.weight", &[2]),
        expected("model.0.bn.bias", &[2]),
        expected("model.0.bn.num_batches_tracked", &[]),
        Expected { optional: true, ..expected("model.1.anchors", &[3, 3, 2]) },
    ]
}

#[test]
fn weights_that_fit_pass() {
    example().check(&network(), "toy").unwrap();
    let mut fewer = network();
    fewer.retain(|key| !key.name.contains("tracked"));
    example().check(&fewer, "toy").unwrap();
    let mut with_example = HashMap::new();
    for name in ["input", "output0", "output1"] {
        with_example.insert(name.to_string(), Tensor::new(1f32, &Device::Cpu).unwrap());
    }
    Weights::from_tensors(with_example, NetworkMetadata::default()).check(&[], "toy").unwrap();
}

#[test]
fn weights_that_do_not_fit_are_told_key_by_key() {
    let mut changed = network();
    changed[0].shape = vec![4, 3, 2, 2];
    changed[2].name = "model.0.bn.bia".into();
    changed[4].optional = false;
    let message = example().check(&changed, "toy.yaml").unwrap_err().to_string();
    let expected = "weights in memory: the weights do not fit the network toy.yaml
  2 missing from the file:
    model.0.bn.bia [2] (nearest: model.0.bn.bias)
    model.1.anchors [3, 3, 2]
  1 of another shape:
    model.0.conv.weight: the network expects [4, 3, 2, 2], the file has [2, 3, 2, 2]
  1 not expected by the network:
    model.0.bn.bias [2] (nearest: model.0.bn.bia)";
    assert_eq!(message, expected);
}

#[test]
fn weights_of_another_network_are_called_so() {
    let other: Vec<_> = (0..30).map(|i| expected(&format!("backbone.stage{i}.w"), &[1])).collect();
    let message = example().check(&other, "other").unwrap_err().to_string();
    assert!(message.contains("belong to another network than other: 0 of the 30 tensors"), "{message}");
    assert!(message.contains("30 missing") && message.contains("and 22 more"), "{message}");
    assert!(message.contains("3 not expected"), "{message}");
}

#[test]
fn damaged_files_get_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let whole = fs::read(fixture("model_f16.safetensors")).unwrap();
    let mut longer = whole.clone();
    longer.push(0);
    let mut flipped = whole.clone();
    flipped[20] ^= 0x80;
    // Eight tensors that end 8 bytes below 2^64: adding the header's length to that would overflow.
    const SIDE: u64 = (1 << 61) - 1;
    let one = |i: u64| {
        format!(r#""t{i}":{{"dtype":"U8","shape":[{SIDE}],"data_offsets":[{},{}]}}"#, i * SIDE, (i + 1) * SIDE)
    };
    let vast = format!("{{{}}}", (0..8).map(one).collect::<Vec<_>>().join(","));
    let vast = [(vast.len() as u64).to_le_bytes().as_slice(), vast.as_bytes()].concat();
    let names = br#"{"__metadata__":{"names":"{not json"}}"#;
    let names = [(names.len() as u64).to_le_bytes().as_slice(), names].concat();
    for (bytes, words) in [
        (vec![], "the file is empty"),
        (vec![1, 2, 3], "cut off"),
        (whole[..100].to_vec(), "cut off within its header"),
        (whole[..whole.len() - 1].to_vec(), "the file is cut off: its header announces"),
        (longer, "goes on after its last tensor"),
        (flipped, "header is damaged"),
        (vast, "its header announces 18446744073709551608 bytes"),
        (names, "not a JSON list"),
        (b"Hello, this is a text file.\n".to_vec(), "text file"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        (fs::read(fixture("model_f16.pt")).unwrap(), "yolo convert"),
        (vec![0xff; 64], "no safetensors file"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = Weights::open(&path).unwrap_err().to_string();
        assert!(error.contains(words) && error.lines().count() == 1, "{words}: {error}");
    }
    assert!(Weights::open(folder.path()).unwrap_err().to_string().contains("is a folder"));
    assert!(Weights::open(folder.path().join("absent")).unwrap_err().to_string().contains("absent: "));
}

/// Opens and reads everything of a damaged file: it may fail, it may not panic.
fn survive(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    if let Ok(weights) = Weights::open(file.path()) {
        for name in weights.names() {
            let _ = weights.tensor(name, DType::F32, &Device::Cpu);
        }
        let _ = weights.check(&network(), "toy");
    }
}

#[test]
fn every_byte_of_a_header_may_be_anything() {
    let bytes = fs::read(fixture("state_dict.safetensors")).unwrap();
    for at in 0..bytes.len() {
        for value in [bytes[at] ^ 1, bytes[at] ^ 0x10, bytes[at] ^ 0x80, b'9', b'"'] {
            let mut changed = bytes.clone();
            changed[at] = value;
            survive(&changed);
        }
        survive(&bytes[..at]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damage_to_safetensors(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut bytes = fs::read(fixture("model_f16.safetensors")).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        survive(&bytes);
    }
}
