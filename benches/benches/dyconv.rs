//! Dynamic convolution beside static convolution, Candle's own and PyTorch's.
//!
//! `cargo xtask bench dyconv` runs it and prints the ratios.

#![allow(missing_docs, reason = "criterion's macros make functions")]
#![allow(clippy::print_stdout, reason = "the table is what it is for")]

use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use criterion::{Criterion, SamplingMode, criterion_group};
use dyconv_kernels::{ConvConfig, Epilogue, Mixing, Routing, dynamic_conv2d};
use yolo_benches::{COMPARE, Case, Torch};

/// As in the program `yolo`: the pages of a result are kept for the next one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// What criterion keeps from run to run: our own kernels.
fn benches(criterion: &mut Criterion) {
    for (shape, batch) in SHAPES.into_iter().flat_map(|shape| BATCHES.map(|batch| (shape, batch))) {
        let case = Case { batch, ..shape };
        let tensors = Tensors::new(&case).unwrap();
        let mut group = criterion.benchmark_group(case.name());
        group.sample_size(10).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
        group.bench_function("static", |b| b.iter(|| tensors.fixed()));
        group.bench_function("dynamic", |b| b.iter(|| tensors.dynamic()));
        group.finish();
    }
}

/// Rounds of a comparison: in each, every function runs in turn, so that what disturbs the machine disturbs all of them.
const ROUNDS: usize = 9;
/// A function's turn lasts about so long.
const TURN: Duration = Duration::from_millis(60);

/// A function under comparison: runs so often, and says how long that took.
type Timed<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

/// Seconds of each function in each round.
fn rounds(functions: &mut [Timed<'_>]) -> Vec<Vec<f64>> {
    let counts: Vec<u64> = functions
        .iter_mut()
        .map(|function| {
            let once = (0..3).map(|_| function(1)).min().unwrap_or_default();
            (TURN.as_secs_f64() / once.as_secs_f64().max(1e-6)).clamp(1.0, 1e4) as u64
        })
        .collect();
    let turn = |(function, count): (&mut Timed<'_>, &u64)| function(*count).as_secs_f64() / *count as f64;
    let round = |_| functions.iter_mut().zip(&counts).map(turn).collect();
    (0..ROUNDS).map(round).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn timed<'a>(mut function: impl FnMut() -> Tensor + 'a) -> Timed<'a> {
    Box::new(move |count| {
        let start = Instant::now();
        (0..count).for_each(|_| drop(black_box(function())));
        start.elapsed()
    })
}

/// Prints a line a convolution whose name contains `only`: times, and medians of the rounds' ratios.
fn compare(only: &str) {
    let torch = Torch::start(THREADS).unwrap().map(RefCell::new);
    println!(
        "\n{THREADS} threads, 4 experts, sigmoid routing; ratios are medians of {ROUNDS} rounds in which all took turns\n"
    );
    println!(
        "| convolution | batch | static ms | GFLOP/s | dynamic ms | dynamic / static | PyTorch dynamic / dynamic | \
         PyTorch static / static | Candle / static | Candle grouped / dynamic |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    );
    for (shape, batch) in SHAPES.into_iter().flat_map(|shape| BATCHES.map(|batch| (shape, batch))) {
        let case = Case { batch, ..shape };
        if !case.name().contains(only) {
            continue;
        }
        let tensors = Tensors::new(&case).unwrap();
        let kernel = tensors.kernel(&tensors.experts.narrow(0, 0, 1).unwrap(), 1);
        let mut functions = vec![timed(|| tensors.fixed()), timed(|| tensors.dynamic())];
        let mut places = [None; 4];
        if let Some(torch) = &torch {
            for (place, dynamic) in [(0, true), (1, false)] {
                places[place] = Some(functions.len());
                let case = &case;
                functions.push(Box::new(move |count| torch.borrow_mut().time(case, dynamic, count).unwrap()));
            }
        }
        places[2] = Some(functions.len());
        functions.push(timed(|| tensors.candle(&kernel)));
        // Candle's grouped convolution takes seconds where batch times groups is large.
        if batch * case.groups <= 2048 {
            places[3] = Some(functions.len());
            functions.push(timed(|| tensors.candle_grouped()));
        }
        let rounds = rounds(&mut functions);
        let time = |function: usize| median(rounds.iter().map(|round| round[function]));
        let over = |place: Option<usize>, ours: usize| {
            place.map_or(String::new(), |place| format!("{:.2}", median(rounds.iter().map(|r| r[place] / r[ours]))))
        };
        println!(
            "| {} | {batch} | {:.3} | {:.0} | {:.3} | {:.3} | {} | {} | {} | {} |",
            shape.kind(),
            time(0) * 1e3,
            case.operations() / time(0) / 1e9,
            time(1) * 1e3,
            median(rounds.iter().map(|round| round[1] / round[0])),
            over(places[0], 1),
            over(places[1], 0),
            over(places[2], 0),
            over(places[3], 1),
        );
    }
}

criterion_group!(dyconv, benches);

fn main() {
    dyconv();
    Criterion::default().configure_from_args().final_summary();
    if let Ok(only) = std::env::var(COMPARE) {
        compare(&only);
    }
}
