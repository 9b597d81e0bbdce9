//! Dynamic convolution beside static convolution, Candle's own and PyTorch's.
//!
//! `cargo xtask bench dyconv` runs it and prints the ratios.

#![allow(missing_docs, reason = "criterion's macros make functions")]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BatchSize, Criterion, SamplingMode, criterion_group};
use dyconv_kernels::{ConvConfig, Epilogue, Mixing, Routing, dynamic_conv2d};
use yolo_benches::{Case, Torch};

const THREADS: usize = 2;
const SHAPES: [Case; 4] = [
    Case { channels: (256, 256), kernel: 3, size: 20, groups: 1, batch: 1, experts: 4 },
    Case { channels: (512, 256), kernel: 1, size: 20, groups: 1, batch: 1, experts: 4 },
    Case { channels: (64, 64), kernel: 3, size: 80, groups: 1, batch: 1, experts: 4 },
    Case { channels: (256, 256), kernel: 3, size: 20, groups: 256, batch: 1, experts: 4 },
];

const BATCHES: [usize; 3] = [1, 8, 32];

struct Tensors {
    x: Tensor,
    experts: Tensor,
    weight: Tensor,
    bias: Tensor,
    config: ConvConfig,
}

impl Tensors {
    fn new(case: &Case) -> candle_core::Result<Self> {
        let Case { channels: (input, output), kernel, size, groups, batch, experts } = *case;
        let values = output * (input / groups) * kernel * kernel;
        Ok(Self {
            x: Tensor::randn(0f32, 1.0, (batch, input, size, size), &Device::Cpu)?,
            experts: Tensor::randn(0f32, 1.0, (experts, values), &Device::Cpu)?,
            weight: Tensor::randn(0f32, 0.1, (experts, input), &Device::Cpu)?,
            bias: Tensor::zeros(experts, candle_core::DType::F32, &Device::Cpu)?,
            config: ConvConfig {
                kernel: (kernel, kernel),
                stride: (1, 1),
                padding: (kernel / 2, kernel / 2),
                dilation: (1, 1),
                groups,
            },
        })
    }

    fn dynamic(&self) -> Tensor {
        let mixing = Mixing::Router { weight: &self.weight, bias: &self.bias, routing: Routing::Sigmoid };
        dynamic_conv2d(&self.x, mixing, &self.experts, None, &Epilogue::default(), &self.config).unwrap()
    }

    fn fixed(&self) -> Tensor {
        let expert = self.experts.narrow(0, 0, 1).unwrap();
        dynamic_conv2d(&self.x, Mixing::Single, &expert, None, &Epilogue::default(), &self.config).unwrap()
    }

    /// A kernel as Candle wants it.
    fn kernel(&self, kernels: &Tensor, sets: usize) -> Tensor {
        let (_, channels, ..) = self.x.dims4().unwrap();
        let ConvConfig { kernel, groups, .. } = self.config;
        kernels.reshape((sets, (), channels / groups, kernel.0, kernel.1)).unwrap().flatten(0, 1).unwrap()
    }

    /// Candle's static convolution.
    fn candle(&self, kernel: &Tensor) -> Tensor {
        self.x.conv2d(kernel, self.config.padding.0, 1, 1, self.config.groups).unwrap()
    }

    /// In Candle as in PyTorch: the batch folded into the groups of one convolution.
    fn candle_grouped(&self) -> Tensor {
        let (batch, channels, height, width) = self.x.dims4().unwrap();
        let pooled = self.x.mean((2, 3)).unwrap();
        let logits = pooled.matmul(&self.weight.t().unwrap()).unwrap().broadcast_add(&self.bias).unwrap();
        let routing = candle_nn::ops::sigmoid(&logits).unwrap();
        let kernel = self.kernel(&routing.matmul(&self.experts).unwrap(), batch);
        let x = self.x.reshape((1, batch * channels, height, width)).unwrap();
        let y = x.conv2d(&kernel, self.config.padding.0, 1, 1, batch * self.config.groups).unwrap();
        y.reshape((batch, (), height, width)).unwrap()
    }
}

fn benches(criterion: &mut Criterion) {
    let torch = Torch::start(THREADS).unwrap().map(RefCell::new);
    for shape in SHAPES {
        for batch in BATCHES {
            let case = Case { batch, ..shape };
            let tensors = Tensors::new(&case).unwrap();
            let mut group = criterion.benchmark_group(case.name());
            group.sample_size(10).sampling_mode(SamplingMode::Flat);
            group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(1000));
            group.bench_function("static", |b| b.iter(|| tensors.fixed()));
            group.bench_function("dynamic", |b| b.iter(|| tensors.dynamic()));
            if let Some(torch) = &torch {
                for (name, dynamic) in [("torch static", false), ("torch dynamic", true)] {
                    group.bench_function(name, |b| {
                        b.iter_custom(|count| torch.borrow_mut().time(&case, dynamic, count).unwrap());
                    });
                }
            }
            // Candle's time grows with batch times groups; its measure is taken where that is bearable.
            if batch == 1 {
                let kernel = tensors.kernel(&tensors.experts.narrow(0, 0, 1).unwrap(), 1);
                group.bench_function("candle static", |b| b.iter(|| tensors.candle(&kernel)));
            }
            if batch == 8 {
                group.bench_function("candle grouped", |b| {
                    b.iter_batched(|| (), |()| tensors.candle_grouped(), BatchSize::PerIteration);
                });
            }
            group.finish();
        }
    }
}

/// Prints a line a convolution from what criterion left behind in `folder`.
fn report(folder: &Path) {
    println!("\nmedians of one run, {THREADS} threads, 4 experts, sigmoid routing\n");
    println!(
        "| convolution | batch | static ms | GFLOP/s | dynamic ms | dynamic / static | PyTorch / dynamic | PyTorch / static \
         | Candle / static | Candle grouped / dynamic |\n|---|---|---|---|---|---|---|---|---|---|"
    );
    for (shape, batch) in SHAPES.into_iter().flat_map(|shape| BATCHES.map(|batch| (shape, batch))) {
        let case = Case { batch, ..shape };
        let time = |function: &str| median(&folder.join(case.name()).join(function));
        let (Some(fixed), Some(dynamic)) = (time("static"), time("dynamic")) else { continue };
        let over = |function: &str, ours: f64| time(function).map_or(String::new(), |t| format!("{:.2}", t / ours));
        println!(
            "| {} | {batch} | {:.3} | {:.0} | {:.3} | {:.3} | {} | {} | {} | {} |",
            shape.kind(),
            fixed / 1e6,
            case.operations() / fixed,
            dynamic / 1e6,
            dynamic / fixed,
            over("torch dynamic", dynamic),
            over("torch static", fixed),
            over("candle static", fixed),
            over("candle grouped", dynamic),
        );
    }
}

/// Criterion's median of a function in nanoseconds, where it was measured.
fn median(folder: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(folder.join("new/estimates.json")).ok()?;
    let estimates: serde_json::Value = serde_json::from_str(&text).ok()?;
    estimates["median"]["point_estimate"].as_f64()
}

criterion_group!(dyconv, benches);

fn main() {
    dyconv();
    Criterion::default().configure_from_args().final_summary();
    let testing = std::env::args().any(|argument| argument == "--test");
    if let (false, Some(folder)) = (testing, std::env::var_os("CRITERION_HOME")) {
        report(Path::new(&folder));
    }
}
