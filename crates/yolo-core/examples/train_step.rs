//! Times a training step of a network: forward, a loss that is a mean of squares, backward.
//!
//! `cargo run --release --example train_step -- yolov5n_C3_GhostDynamicConv 8 320 20`: network, batch, side of the pictures,
//! steps. Threads are `RAYON_NUM_THREADS`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use yolo_core::graph::ParamKind;
use yolo_core::{Graph, Model, NetworkConfig};

/// As in `yolo train`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "yolov5n_C3_GhostDynamicConv".into());
    let mut number = |default: usize| args.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (batch, side, steps) = (number(8)?, number(320)?, number(20)?.max(1));
    let device = Device::Cpu;
    let graph = Graph::new(&NetworkConfig::open(&name)?.with_classes(5))?;
    let variables = VarMap::new();
    for (name, tensor) in graph.init(0, &device)? {
        let mut data = variables.data().lock().map_err(|_| "another thread failed")?;
        data.insert(name, Var::from_tensor(&tensor)?);
    }
    let model = Model::load(graph, VarBuilder::from_varmap(&variables, DType::F32, &device))?;
    let x = Tensor::rand(0f32, 1.0, (batch, 3, side, side), &device)?;
    let mut times = Vec::new();
    for step in 0..steps + 2 {
        let start = Instant::now();
        let outputs = model.run_training(&x)?;
        let forward = start.elapsed();
        let losses = outputs.levels.iter().chain(&outputs.prototypes).map(|map| map.sqr()?.mean_all());
        let losses = losses.collect::<candle_core::Result<Vec<_>>>()?;
        let gradients = Tensor::stack(&losses, 0)?.sum_all()?.backward()?;
        if step >= 2 {
            times.push((start.elapsed(), forward));
        }
        let trained = model.graph().params().iter().filter(|param| param.kind != ParamKind::Buffer);
        for param in trained {
            let variable = model.param(&param.name).ok_or("a parameter is missing")?;
            gradients.get(variable).ok_or_else(|| format!("{} has no gradient", param.name))?;
        }
    }
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (total, forward) = times[0];
    println!("{name}, batch {batch} at {side}x{side}, {} threads", rayon::current_num_threads());
    println!("fastest step {:.1} ms, of which forward {:.1} ms", ms(total), ms(forward));
    println!("median {:.1} ms of {} steps", ms(times[times.len() / 2].0), times.len());
    if let Some(peak) = std::fs::read_to_string("/proc/self/status").ok().as_deref().and_then(peak_of) {
        println!("peak memory {peak}");
    }
    Ok(())
}

/// The most memory that the process has had, where the system says so.
fn peak_of(status: &str) -> Option<&str> {
    status.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim)
}
