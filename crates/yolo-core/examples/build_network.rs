//! Builds a network of one's own from YAML and tells its layers, its cost and the names of its weights:
//! `cargo run --example build_network`.
#![allow(clippy::print_stdout, reason = "an example shows what it built")]

use yolo_core::{Graph, NetworkConfig};

/// A small detector at two strides whose last block of the backbone is dynamic.
const YAML: &str = "
nc: 3
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 13, 30, 40], [60, 80, 150, 160]]
dynamic: {routing: softmax, temperature: 30, num_experts: 4}
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 2, C3, [64]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 2, C3_GhostDynamicConv, [128]]
head:
  - [[3, 5], 1, Detect, [nc, anchors]]
";

fn main() -> yolo_core::Result<()> {
    let graph = Graph::new(&NetworkConfig::parse("two_strides", YAML)?)?;
    println!("{}", graph.summary(320)?);
    for param in graph.params().iter().filter(|param| param.layer == 5) {
        println!("{} {:?}", param.name, param.shape);
    }
    Ok(())
}
