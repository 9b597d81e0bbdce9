//! Prints a network's operations, parameters and shapes as JSON, for programs that build it elsewhere:
//! `cargo run --example graph_json -- NAME|FILE HEIGHT WIDTH`.
//!
//! `nodes` has each operation with its attributes, the nodes that it reads and its channels; numbers in attributes called
//! `weight`, `bias`, `experts`... are indices of `params`. `shapes` are those of the nodes' results, without the batch; `layers`
//! the node with the result of each layer of the YAML.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example shows what it built, or why not")]

use std::process::ExitCode;

use serde_json::json;
use yolo_core::{Graph, NetworkConfig};

fn main() -> ExitCode {
    if let Err(error) = print() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn print() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [network, height, width] = given.as_slice() else {
        return Err("usage: graph_json NAME|FILE HEIGHT WIDTH".into());
    };
    let graph = Graph::new(&NetworkConfig::open(network)?)?;
    let layers: Vec<usize> = graph.layers().iter().map(|layer| layer.node).collect();
    let network = json!({
        "name": graph.config().stem(),
        "nodes": graph.nodes(),
        "shapes": graph.shapes(height.parse()?, width.parse()?)?,
        "params": graph.params(),
        "layers": layers,
        "output": graph.output(),
        "strides": graph.strides(),
    });
    println!("{network}");
    Ok(())
}
