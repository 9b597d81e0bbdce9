//! Compiled networks against PyTorch and against the model, their twin.

mod compare;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use compare::difference;
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig, Plan, PlanOptions, Precision};

/// Winograd's transforms cost a digit a convolution, of the largest value.
const TOLERANCE: f32 = 1e-5;

fn run(graph: &Graph, weights: &Weights, x: &Tensor, threads: usize) -> yolo_core::Outputs {
    let (batch, _, height, width) = x.dims4().unwrap();
    let options = PlanOptions { batch, size: (height, width), threads: Some(threads), ..PlanOptions::default() };
    let plan = Plan::compile(graph, weights, &options).unwrap();
    let mut session = plan.session().unwrap();
    // Twice: nothing may be left of the first run.
    plan.forward(&mut session, x, None).unwrap();
    plan.forward(&mut session, x, None).unwrap()
}

#[test]
fn goldens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut failures = Vec::new();
    let mut count = 0;
    for case in files.filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        count += 1;
        let weights = Weights::open(case.with_extension("safetensors")).unwrap();
        let graph = Graph::new(&NetworkConfig::open(&case).unwrap()).unwrap();
        let golden = |name: &str| weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let outputs = run(&graph, &weights, &golden("input"), 2);
        let mut worst = difference(&outputs.main, &golden("output0"));
        if let Some(prototypes) = &outputs.prototypes {
            worst = worst.max(difference(prototypes, &golden("output1")));
        }
        if worst > 1e-5 {
            failures.push(format!("{}: {worst:e}", case.file_stem().unwrap().display()));
        }
    }
    assert!(count >= 35, "{count} cases");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Weights at random, with statistics of batch normalisation that are no ones and zeros.
fn random_weights(graph: &Graph) -> Weights {
    let mut tensors = graph.init(3, &Device::Cpu).unwrap();
    for (index, (name, tensor)) in tensors.iter_mut().enumerate() {
        let wave = |tensor: &Tensor, low: f64, high: f64| {
            let count = tensor.elem_count();
            let phase = index as f64;
            let wave = (Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap() + phase).unwrap().sin().unwrap();
            let wave = wave.affine((high - low) / 2.0, f64::midpoint(high, low)).unwrap();
            wave.reshape(tensor.dims()).unwrap()
        };
        if name.ends_with("running_var") {
            *tensor = wave(tensor, 0.3, 1.2);
        } else if name.ends_with("running_mean") {
            *tensor = wave(tensor, -0.2, 0.2);
        }
    }
    Weights::from_tensors(tensors, Default::default())
}

fn wave(dims: [usize; 4]) -> Tensor {
    let count: usize = dims.iter().product();
    let x = (Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap() * 0.37).unwrap().sin().unwrap();
    ((x + 1.0).unwrap() / 2.0).unwrap().reshape(&dims).unwrap()
}

/// All of them.
#[test]
fn networks_of_the_zoo() {
    let mut failures = Vec::new();
    for name in yolo_core::zoo::names() {
        let graph = Graph::new(&NetworkConfig::open(&name).unwrap()).unwrap();
        let weights = random_weights(&graph);
        let stride = graph.stride();
        let sizes = [(1, stride, 2 * stride), (3, 5 * stride, 3 * stride)];
        // The smallest ones at two sizes, the others once.
        let count = if name.starts_with("yolov5n") { 2 } else { 1 };
        for (batch, height, width) in sizes.into_iter().take(count) {
            let x = wave([batch, 3, height, width]);
            let model = Model::from_weights(graph.clone(), &weights, &Device::Cpu, DType::F32).unwrap();
            let expected = model.run(&x).unwrap();
            let got = run(&graph, &weights, &x, 1 + batch % 2);
            let mut worst = difference(&got.main, &expected.main);
            if let (Some(got), Some(expected)) = (&got.prototypes, &expected.prototypes) {
                worst = worst.max(difference(got, expected));
            }
            if worst > TOLERANCE {
                failures.push(format!("{name} {batch}x{height}x{width}: {worst:e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Too large to go through at once: each picture gives what it gives alone, boxes, prototypes and layers.
#[test]
fn a_batch_in_passes_is_its_pictures() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n-seg_C3_GhostDynamicConv").unwrap()).unwrap();
    let weights = random_weights(&graph);
    let x = wave([3, 3, 640, 448]);
    let run = |x: &Tensor| {
        let (batch, _, height, width) = x.dims4().unwrap();
        let options = PlanOptions { batch, size: (height, width), features: vec![3], ..PlanOptions::default() };
        let plan = Plan::compile(&graph, &weights, &options).unwrap();
        let mut session = plan.session().unwrap();
        let one = PlanOptions { batch: 1, ..options };
        let memory = Plan::compile(&graph, &weights, &one).unwrap().memory();
        assert!(plan.memory() < batch * memory || batch == 1, "{batch} pictures went through at once");
        plan.forward(&mut session, x, None).unwrap()
    };
    let all = run(&x);
    for index in 0..3 {
        let one = run(&x.narrow(0, index, 1).unwrap());
        let pairs = [(&all.main, &one.main), (&all.features[0], &one.features[0])];
        let prototypes = (all.prototypes.as_ref().unwrap(), one.prototypes.as_ref().unwrap());
        for (all, one) in pairs.into_iter().chain([prototypes]) {
            assert_eq!(difference(&all.narrow(0, index, 1).unwrap(), one), 0.0);
        }
    }
}

/// Where the CPU has it, near what f32 gives; elsewhere a sentence.
#[test]
fn bf16_is_near_or_refused() {
    for name in ["yolov5n", "yolov5n_C3_GhostDynamicConv"] {
        let graph = Graph::new(&NetworkConfig::open(name).unwrap()).unwrap();
        let weights = random_weights(&graph);
        let x = wave([2, 3, 96, 64]);
        let options = |precision| PlanOptions { batch: 2, size: (96, 64), precision, ..PlanOptions::default() };
        let exact = run(&graph, &weights, &x, 2).main;
        match Plan::compile(&graph, &weights, &options(Precision::Bf16)) {
            Ok(plan) => {
                assert!(plan.steps().iter().any(|step| step.kernel.contains("bf16")));
                let got = plan.forward(&mut plan.session().unwrap(), &x, None).unwrap().main;
                let far = difference(&got, &exact);
                assert!(far > 0.0 && far < 2e-2, "{name}: {far}");
            }
            Err(error) => {
                assert!(error.to_string().contains("AVX512-BF16"), "{error}");
                assert!(Precision::Bf16.check().is_err());
            }
        }
    }
}

/// What was measured is kept, and chosen the next time whatever it says; the results are those of the model either way.
#[test]
fn tuning_is_kept_and_obeyed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tuning.yaml");
    let graph = Graph::new(&NetworkConfig::open("yolov5n_C3_GhostDynamicConv").unwrap()).unwrap();
    let weights = random_weights(&graph);
    let x = wave([1, 3, 64, 96]);
    let options =
        PlanOptions { size: (64, 96), threads: Some(2), tuning: Some(file.clone()), ..PlanOptions::default() };
    let exact = Model::from_weights(graph.clone(), &weights, &Device::Cpu, DType::F32).unwrap().run(&x).unwrap().main;
    let kernels = |wanted: &str| {
        let plan = Plan::compile(&graph, &weights, &options).unwrap();
        let got = plan.forward(&mut plan.session().unwrap(), &x, None).unwrap().main;
        assert!(difference(&got, &exact) <= TOLERANCE);
        plan.steps().iter().filter(|step| step.kernel.contains(wanted)).count()
    };
    kernels("winograd");
    let text = std::fs::read_to_string(&file).unwrap();
    let entries = text.lines().filter(|line| line.contains(": direct") || line.contains(": winograd")).count();
    assert!(entries >= 3 && text.lines().all(|line| line.starts_with('#') || line.contains("channels")), "{text}");
    // The same again: nothing is measured, the file stays.
    kernels("winograd");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    std::fs::write(&file, text.replace(": winograd", ": direct")).unwrap();
    assert_eq!(kernels("winograd"), 0);
    std::fs::write(&file, text.replace(": direct", ": winograd")).unwrap();
    assert!(kernels("winograd") >= entries);
    for damaged in [&b"- no map"[..], b"\xff\xfe"] {
        std::fs::write(&file, damaged).unwrap();
        let error = Plan::compile(&graph, &weights, &options).unwrap_err().to_string();
        assert!(error.contains("tuning.yaml") && error.contains("remove it"), "{error}");
    }
}

/// Plans of one network and size differ in memory and steps all the same.
#[test]
fn sessions_of_other_plans_are_refused() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let weights = random_weights(&graph);
    let plan = |size| Plan::compile(&graph, &weights, &PlanOptions { size, ..PlanOptions::default() }).unwrap();
    let (own, same, other) = (plan((64, 64)), plan((64, 64)), plan((64, 96)));
    for plan in [same, other] {
        let mut session = plan.session().unwrap();
        let run = own.run(&mut session, &vec![0.5; 3 * 64 * 64], None).unwrap_err().to_string();
        for text in [run, own.outputs(&session).unwrap_err().to_string()] {
            assert!(text.starts_with("session: it was made by another plan"), "{text}");
        }
    }
}

#[test]
fn models_tell_inputs_of_another_type() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let weights = random_weights(&graph);
    let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap();
    let text = model.run(&wave([1, 3, 64, 64]).to_dtype(DType::F64).unwrap()).unwrap_err().to_string();
    assert_eq!(text, "the network's input: expected f32 on Cpu, as its weights, got f64 on Cpu");
}

/// Layers that are asked for are what the model gives, though they would be fused away otherwise.
#[test]
fn features_are_those_of_the_model() {
    // In the first, a layer's result goes into the next layer's operation and nowhere else.
    let fused = "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nhead: []\nbackbone:\n  - [-1, 1, nn.Conv2d, [3, 8, 3, 1, 1]]\n  - [-1, 1, nn.BatchNorm2d, []]\n  - [-1, 1, nn.MaxPool2d, [3, 1, 1]]\n  - [-1, 1, nn.MaxPool2d, [3, 1, 1]]\n  - [-1, 1, Conv, [8]]\n";
    let fused = NetworkConfig::parse("fused.yaml", fused).unwrap();
    for config in [fused, NetworkConfig::open("yolov5n_C3_GhostDynamicConv").unwrap()] {
        let graph = Graph::new(&config).unwrap();
        let weights = random_weights(&graph);
        let x = wave([1, 3, 64, 96]);
        let layers: Vec<usize> = (0..graph.layers().len() - 1).collect();
        let options = PlanOptions { size: (64, 96), features: layers.clone(), ..PlanOptions::default() };
        let plan = Plan::compile(&graph, &weights, &options).unwrap();
        let got = plan.forward(&mut plan.session().unwrap(), &x, None).unwrap();
        let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap();
        let expected = model.run_with_features(&x, &layers).unwrap();
        for (layer, (got, expected)) in got.features.iter().zip(&expected.features).enumerate() {
            let difference = difference(got, expected);
            assert!(difference < TOLERANCE, "{} layer {layer}: {difference:e}", config.name);
        }
    }
}

/// Three sizes, one of them mirrored: `DetectionModel(...).eval()(input, augment=True)` of YOLOv5 on the golden's input.
#[test]
fn augmented_rows_are_those_of_pytorch() {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens/net_n_detect_C3_GhostDynamicConv");
    let weights = Weights::open(case.with_extension("safetensors")).unwrap();
    let graph = Graph::new(&NetworkConfig::open(case.with_extension("yaml")).unwrap()).unwrap();
    let input = weights.tensor("input", DType::F32, &Device::Cpu).unwrap();
    let once = |x: &Tensor| -> yolo_core::Result<Tensor> { Ok(run(&graph, &weights, x, 2).main) };
    let rows = yolo_core::augment::augmented(&graph, &input, once).unwrap();
    assert_eq!(rows.dims(), [2, 2640, 85]);
    let expected: [(usize, [f32; 5]); 6] = [
        (0, [3.704652, 4.082403, 8.540277, 14.21025, 0.001339439]),
        (1199, [120.8269, 151.9284, 63.69487, 113.8498, 0.00510333]),
        (1200, [123.5365, 4.918547, 10.28945, 17.12083, 0.001339441]),
        (2459, [-7.963638, 171.8413, 423.48, 385.8482, 0.01902495]),
        (2460, [11.75675, 12.81868, 50.25872, 87.21623, 0.004826709]),
        (2639, [120.6714, 165.1168, 524.6094, 477.991, 0.01902497]),
    ];
    for (row, expected) in expected {
        let got = rows.get(1).unwrap().get(row).unwrap().to_vec1::<f32>().unwrap();
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-5 + 1e-4 * expected.abs(), "row {row}: {got} is not {expected}");
        }
    }
    let sums = rows.get(1).unwrap().sum(0).unwrap().to_vec1::<f32>().unwrap();
    for (got, expected) in sums.iter().zip([153876.8, 234841.7, 102545.7, 129293.6, 7.41491, 19.94097]) {
        assert!((got - expected).abs() <= 1e-4 * expected.abs(), "{got} is not {expected}");
    }
}

/// A network that is too large for any memory is an error, not the end of the process.
#[test]
fn memory_that_the_system_does_not_give_is_an_error() {
    let yaml = "nc: 1\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nhead: []\nbackbone:\n  - [-1, 1, Conv, [4]]\n";
    let graph = Graph::new(&NetworkConfig::parse("one.yaml", yaml).unwrap()).unwrap();
    let weights = random_weights(&graph);
    // Larger than the addresses that a process has.
    let options = PlanOptions { batch: 1024, size: (1 << 16, 1 << 17), ..PlanOptions::default() };
    let plan = Plan::compile(&graph, &weights, &options).unwrap();
    let problem = plan.session().unwrap_err().to_string();
    assert!(problem.contains("a batch of 1024 at 65536x131072 takes") && problem.contains("smaller"), "{problem}");
}

/// A file may nest what moves nothing deeper than the stack of a thread is.
#[test]
fn joined_and_enlarged_maps_nest_to_any_depth() {
    let start = "nc: 1\nch: 8\ndepth_multiple: 60\nwidth_multiple: 1\nanchors: 3\nhead: []\nbackbone:\n  - [-1, 1, Conv, [8]]\n";
    let enlarged = "  - [-1, 1000, nn.Upsample, [None, 1, nearest]]\n";
    let joined = "  - [[-1], 1, Concat, [1]]\n".repeat(4000);
    for nested in [enlarged, &joined] {
        // The last one takes its input in one piece.
        let yaml = format!("{start}{nested}  - [-1, 1, nn.MaxPool2d, [3, 1, 1]]\n");
        let graph = Graph::new(&NetworkConfig::parse("deep.yaml", &yaml).unwrap()).unwrap();
        let weights = random_weights(&graph);
        let x = wave([1, 8, 4, 4]);
        let model = Model::from_weights(graph.clone(), &weights, &Device::Cpu, DType::F32).unwrap();
        let expected = model.run(&x).unwrap().main;
        assert!(difference(&run(&graph, &weights, &x, 1).main, &expected) < TOLERANCE);
    }
}
