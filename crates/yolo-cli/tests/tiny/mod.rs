//! A network with one cell whose detections are known in advance, whatever the picture shows.
//!
//! The weights of its head are zero, so that its biases alone decide: in the 64x64 input it sees a cat in the middle, a dog
//! around it and a small cat up left.

use std::path::Path;

use candle_core::{Device, Tensor};
use yolo_core::weights::{NetworkMetadata, Weights, save};
use yolo_core::{Graph, NetworkConfig};

/// What the network finds in a 64x64 picture, the most confident first: box, class, confidence.
pub(crate) const FOUND: [([f32; 4], &str, f64); 3] = [
    ([24.0, 24.0, 40.0, 40.0], "cat", 0.964_351),
    ([16.0, 8.0, 48.0, 56.0], "dog", 0.775_803),
    ([12.0, 12.0, 20.0, 20.0], "cat", 0.696_388),
];

/// Class names, one of which is no folder name.
pub(crate) const NAMES: [&str; 3] = ["cat", "dog", "bird/fish"];

const YAML: &str = "
nc: 3
depth_multiple: 1.0
width_multiple: 1.0
anchors:
  - [16, 16, 32, 48, 8, 8]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [8, 3, 2]]
head:
  - [[5], 1, HEAD]
";

/// Writes the weights of the detection network.
pub(crate) fn detection(path: &Path) {
    write(path, "Detect, [nc, anchors]", 0, true);
}

/// Writes the weights of the detection network without its description, and that beside it.
pub(crate) fn detection_bare(path: &Path, yaml: &Path) {
    write(path, "Detect, [nc, anchors]", 0, false);
    std::fs::write(yaml, YAML.replace("HEAD", "Detect, [nc, anchors]")).unwrap();
}

/// Writes the weights of the segmentation network: the same boxes, each filled by its mask.
pub(crate) fn segmentation(path: &Path) {
    write(path, "Segment, [nc, anchors, 32, 8]", 32, true);
}

fn write(path: &Path, head: &str, masks: usize, described: bool) {
    let yaml = YAML.replace("HEAD", head);
    let config = NetworkConfig::parse("tiny.yaml", &yaml).unwrap();
    let mut tensors = Graph::new(&config).unwrap().init(7, &Device::Cpu).unwrap();
    let mut set = |name: &str, values: Vec<f32>| {
        let tensor = tensors.get_mut(name).unwrap_or_else(|| panic!("no {name}"));
        *tensor = Tensor::from_vec(values, tensor.shape().clone(), &Device::Cpu).unwrap();
    };
    // x and y in the cell, width and height, objectness, cat, dog, bird; 0 is the cell's middle and the anchor's size.
    let corner = (0.375_f32 / 0.625).ln();
    let anchors = [
        [0.0, 0.0, 0.0, 0.0, 4.0, 4.0, -9.0, -9.0],
        [0.0, 0.0, 0.0, 0.0, 2.0, -9.0, 2.0, -9.0],
        [corner, corner, 0.0, 0.0, 1.0, 3.0, -9.0, -9.0],
    ];
    let bias: Vec<f32> =
        anchors.iter().flat_map(|anchor| anchor.iter().copied().chain(std::iter::repeat_n(1.0, masks))).collect();
    set("model.6.m.0.weight", vec![0.0; bias.len() * 8]);
    set("model.6.m.0.bias", bias);
    if masks > 0 {
        // Every prototype is SiLU(1) everywhere.
        set("model.6.proto.cv3.bn.weight", vec![0.0; masks]);
        set("model.6.proto.cv3.bn.bias", vec![1.0; masks]);
    }
    let metadata = NetworkMetadata {
        yaml: described.then_some(yaml),
        names: described.then(|| NAMES.map(String::from).into()),
        imgsz: described.then_some(64),
        stride: described.then_some(64),
        ..NetworkMetadata::default()
    };
    let weights = Weights::from_tensors(tensors, metadata.clone());
    save(path, weights.sources().unwrap(), &metadata).unwrap();
}
