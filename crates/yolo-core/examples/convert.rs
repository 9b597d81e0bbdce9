//! Reads a PyTorch checkpoint without Python and tells what is in it: `cargo run --example convert -- IN.pt OUT.safetensors`.
#![allow(clippy::print_stdout, reason = "an example shows what it read")]

use yolo_core::weights::{Weights, convert};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = given.as_slice() else { return Err("usage: convert IN.pt OUT.safetensors".into()) };
    convert(input, output, false)?;
    let weights = Weights::open(output)?;
    let metadata = weights.metadata();
    println!("{} tensors, {} classes", weights.names().len(), metadata.names.as_ref().map_or(0, Vec::len));
    println!("{}", metadata.yaml.as_deref().unwrap_or("no network description"));
    Ok(())
}
