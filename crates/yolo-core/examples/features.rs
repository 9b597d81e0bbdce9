//! A network as a part of one's own program: maps of some of its layers, on any Candle device, with gradients:
//! `cargo run --example features`.
#![allow(clippy::print_stdout, reason = "an example shows what it computed")]

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use yolo_core::{Graph, Model, NetworkConfig};

fn main() -> yolo_core::Result<()> {
    let device = Device::Cpu;
    let graph = Graph::new(&NetworkConfig::open("yolov5n_C3_DynamicConv")?)?;
    // New weights in a `VarMap`, where an optimiser finds them; `Weights::open(..)?.var_builder(..)` gives trained ones.
    let variables = VarMap::new();
    let model = Model::load(graph, VarBuilder::from_varmap(&variables, DType::F32, &device))?;

    let pictures = Tensor::rand(0f32, 1.0, (2, 3, 64, 96), &device)?;
    let outputs = model.run_with_features(&pictures, &[8, 13])?;
    println!("rows {:?}", outputs.main.dims());
    for map in &outputs.features {
        println!("map {:?}", map.dims());
    }
    let gradients = outputs.features[0].sqr()?.mean_all()?.backward()?;
    let trained = variables.all_vars().iter().filter(|variable| gradients.get(variable).is_some()).count();
    println!("{trained} of {} variables lie on the way to layer 8", variables.all_vars().len());
    Ok(())
}
