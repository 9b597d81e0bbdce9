//! Gradients through whole networks.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use yolo_core::graph::{Op, ParamKind};
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig, TrainingOutputs};

/// Of the size of a gradient. Rounding leaves 1e-5; two neighbours in a pool's window that differ by less than rounding may
/// change places, which moves a part of the gradient by a pixel.
const TOLERANCE: f64 = 1e-3;

/// A network whose parameters are variables.
fn trainable(graph: Graph, tensors: &HashMap<String, Tensor>, dtype: DType) -> (Model, VarMap) {
    let variables = VarMap::new();
    for (name, tensor) in tensors {
        let variable = Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap();
        variables.data().lock().unwrap().insert(name.clone(), variable);
    }
    let model = Model::load(graph, VarBuilder::from_varmap(&variables, dtype, &Device::Cpu)).unwrap();
    (model, variables)
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A sum in which every value has its own weight, from -1 to 1.
fn loss(y: &Tensor) -> Tensor {
    let weights: Vec<f64> =
        (0..y.elem_count()).map(|i| f64::from((i as u32).wrapping_mul(2_654_435_761)) / 2f64.powi(31) - 1.0).collect();
    let weights = Tensor::from_vec(weights, y.dims(), &Device::Cpu).unwrap().to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().mean_all().unwrap().to_dtype(DType::F64).unwrap()
}

/// A golden network with its weights and its input.
fn golden(name: &str) -> (Graph, HashMap<String, Tensor>, Tensor) {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name).with_extension("yaml");
    let weights = Weights::open(case.with_extension("safetensors")).unwrap();
    let graph = Graph::new(&NetworkConfig::open(&case).unwrap()).unwrap();
    let load = |name: &str| weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
    let tensors = graph.params().iter().map(|p| (p.name.clone(), load(&p.name))).collect();
    (graph, tensors, load("input"))
}

const GOLDENS: [&str; 2] = ["net_n_detect_C3_GhostDynamicConv", "net_n_segment_C3_GhostDynamicConv"];

/// The gradient for every parameter with the kernels in f32, and with their plain twins in f64.
fn both_gradients(name: &str, total: impl Fn(&Model, &Tensor) -> Tensor) -> [HashMap<String, Option<Vec<f64>>>; 2] {
    let (graph, tensors, input) = golden(name);
    [DType::F32, DType::F64].map(|dtype| {
        let (model, variables) = trainable(graph.clone(), &tensors, dtype);
        let store = total(&model, &input.to_dtype(dtype).unwrap()).backward().unwrap();
        let variables = variables.data().lock().unwrap();
        let of = |(name, variable): (&String, &Var)| (name.clone(), store.get(variable).map(values));
        variables.iter().map(of).collect()
    })
}

/// Of the size of each gradient.
fn assert_alike(name: &str, single: &HashMap<String, Option<Vec<f64>>>, double: &HashMap<String, Option<Vec<f64>>>) {
    let mut worst = (0.0, String::new());
    for (name, double) in double {
        let (Some(single), Some(double)) = (&single[name], double) else { panic!("{name} has no gradient") };
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let size = norm(&mut double.iter().copied());
        assert!(size > 0.0, "the gradient for {name} is zero");
        let error = norm(&mut single.iter().zip(double).map(|(s, d)| s - d)) / size;
        if error.is_nan() || error > worst.0 {
            worst = (error, name.clone());
        }
    }
    assert!(worst.0 < TOLERANCE, "{name}: {:.1e} at {}", worst.0, worst.1);
}

/// The gradient for every parameter, by the kernels in f32 and by their plain twins in f64: through dynamic convolutions, SPPF's
/// pools, and maps that are enlarged and joined to others.
#[test]
fn networks_train_as_their_twin_in_f64() {
    for name in GOLDENS {
        let [single, double] = both_gradients(name, |model, input| {
            let outputs = model.run(input).unwrap();
            let total = loss(&outputs.main);
            outputs.prototypes.iter().fold(total, |total, prototypes| (total + loss(prototypes)).unwrap())
        });
        assert_alike(name, &single, &double);
    }
}

/// The same in training mode, where running statistics and anchors get no gradient.
#[test]
fn training_mode_agrees_with_its_twin_in_f64() {
    for name in GOLDENS {
        let [mut single, mut double] = both_gradients(name, |model, input| {
            let outputs = model.run_training(input).unwrap();
            let levels = outputs.levels.iter().map(loss).reduce(|a, b| (a + b).unwrap()).unwrap();
            outputs.prototypes.iter().fold(levels, |total, prototypes| (total + loss(prototypes)).unwrap())
        });
        for (name, gradient) in &double {
            let buffer = name.contains("running_") || name.ends_with("anchors");
            assert_eq!(gradient.is_some(), !buffer, "{name}");
            assert_eq!(single[name].is_some(), !buffer, "{name}");
        }
        single.retain(|_, gradient| gradient.is_some());
        double.retain(|_, gradient| gradient.is_some());
        assert_alike(name, &single, &double);
    }
}

/// Modules that the goldens' networks lack: other activations, attention, mixed biases, strides of blocks, transposed
/// convolutions, normalisation without activation, maps with several readers.
const MODULES: &str = "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 2\nch: 3\nchannel_multiple: 1\n\
    dynamic: {routing: softmax, temperature: 2}\n\
    backbone: [[-1, 1, Focus, [6, 3]], [-1, 1, Conv, [8, 3, 2, 1, 1, 1, nn.LeakyReLU(0.1)]], [-1, 1, DyConv2d, [8, 3]],\n\
    [-1, 1, nn.BatchNorm2d, []], [[-1, 1], 1, Concat, [1]], [-1, 1, C3TR, [8]], [-1, 1, DynamicConv, [6, 3, 2]],\n\
    [-1, 1, DWConvTranspose2d, [6, 2, 2]], [-1, 1, CrossConv, [6, 3, 1]], [-1, 1, GhostConv, [8, 3, 1]],\n\
    [[-1, 5], 1, Concat, [1]], [-1, 1, C3SPP, [6]], [-1, 1, Contract, [2]], [-1, 1, Expand, [2]]]\n\
    head: [[-1, 1, MixConv2d, [6, [1, 3]]], [[-1, 13], 1, Detect, [nc, anchors]]]";

/// A network with values everywhere that no symmetry makes vanish, and a batch for it.
fn modules() -> (Graph, HashMap<String, Tensor>, Tensor) {
    let graph = Graph::new(&NetworkConfig::parse("modules", MODULES).unwrap()).unwrap();
    let wave = |count: usize, step: f64| (0..count).map(|i| (i as f64 * step).sin() as f32).collect::<Vec<_>>();
    let mut tensors = graph.init(5, &Device::Cpu).unwrap();
    for (i, param) in graph.params().iter().enumerate().filter(|(_, param)| param.kind != ParamKind::Buffer) {
        let count = param.shape.iter().product();
        let more = Tensor::from_vec(wave(count, 0.7 + i as f64 * 0.01), param.shape.as_slice(), &Device::Cpu).unwrap();
        let tensor = (&tensors[&param.name] + (more * 0.1).unwrap()).unwrap();
        tensors.insert(param.name.clone(), tensor);
    }
    (graph, tensors, Tensor::from_vec(wave(3 * 3 * 32 * 64, 0.37), (3, 3, 32, 64), &Device::Cpu).unwrap())
}

fn total_of(outputs: &TrainingOutputs) -> Tensor {
    outputs.levels.iter().map(loss).reduce(|a, b| (a + b).unwrap()).unwrap()
}

#[test]
fn other_modules_train_as_their_twin_in_f64() {
    let (graph, tensors, input) = modules();
    let [single, double] = [DType::F32, DType::F64].map(|dtype| {
        let (model, variables) = trainable(graph.clone(), &tensors, dtype);
        let outputs = model.run_training(&input.to_dtype(dtype).unwrap()).unwrap();
        assert_eq!(outputs.routing.len(), 2);
        let store = total_of(&outputs).backward().unwrap();
        let variables = variables.data().lock().unwrap();
        variables
            .iter()
            .map(|(name, variable)| (name.clone(), store.get(variable).map(values)))
            .collect::<HashMap<_, _>>()
    });
    let largest = |values: &[f64]| values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    let everywhere = double.values().flatten().map(|values| largest(values)).fold(0.0, f64::max);
    for param in graph.params().iter().filter(|param| param.kind != ParamKind::Buffer) {
        let double = double[&param.name].as_ref().unwrap_or_else(|| panic!("{} has no gradient", param.name));
        let single = single[&param.name].as_ref().unwrap();
        // What stands before a batch normalisation and only shifts has none: of that, rounding is left.
        let size = largest(double).max(1e-4 * everywhere);
        let worst = single.iter().zip(double).fold(0.0f64, |max, (s, d)| max.max((s - d).abs()));
        assert!(worst < TOLERANCE * size, "{}: {worst:.1e} of {size:.1e}", param.name);
    }
}

/// Parameters that are no variables get no gradient, and the others the same as without frozen ones; a pass back needs the maps
/// of its own pass forward.
#[test]
fn frozen_parameters_and_second_passes() {
    let (graph, tensors, input) = modules();
    let (model, all) = trainable(graph.clone(), &tensors, DType::F32);
    let outputs = model.run_training(&input).unwrap();
    let total = total_of(&outputs);
    let complete = total.backward().unwrap();
    let text = total.backward().unwrap_err().to_string();
    assert!(text.contains("one backward pass"), "{text}");
    for frozen in [1, 6, 10] {
        let freezes = |name: &str| name.split('.').nth(1).unwrap().parse::<usize>().unwrap() < frozen;
        let all = all.data().lock().unwrap();
        let given = all.iter().map(|(name, variable)| {
            (name.clone(), if freezes(name) { variable.as_tensor().detach() } else { variable.as_tensor().clone() })
        });
        let vb = VarBuilder::from_tensors(given.collect(), DType::F32, &Device::Cpu);
        let store =
            total_of(&Model::load(graph.clone(), vb).unwrap().run_training(&input).unwrap()).backward().unwrap();
        for param in graph.params().iter().filter(|param| param.kind != ParamKind::Buffer) {
            let (got, expected) = (store.get(&all[&param.name]), complete.get(&all[&param.name]).unwrap());
            if freezes(&param.name) {
                assert!(got.is_none(), "{}", param.name);
            } else {
                assert_eq!(values(got.unwrap()), values(expected), "{} with {frozen} layers frozen", param.name);
            }
        }
    }
}

/// A network whose running statistics are the batch's gives in evaluation what it gave in training, and the maps of evaluation
/// are those that the boxes are made of.
#[test]
fn running_statistics_lead_from_training_to_evaluation() {
    for name in GOLDENS {
        let (graph, mut tensors, input) = golden(name);
        let double = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let run = |tensors: &HashMap<String, Tensor>| {
            let tensors = tensors.iter().map(|(name, t)| (name.clone(), double(t))).collect();
            Model::load(graph.clone(), VarBuilder::from_tensors(tensors, DType::F64, &Device::Cpu)).unwrap()
        };
        let trained = run(&tensors).run_training(&double(&input)).unwrap();
        let names: Vec<_> = trained.statistics.iter().flat_map(|s| [&s.mean, &s.var]).collect();
        assert_eq!(names.len(), tensors.keys().filter(|name| name.contains("running_")).count());
        let (batch, _, height, width) = input.dims4().unwrap();
        let shapes = graph.shapes(height, width).unwrap();
        let norms = graph.nodes().iter().zip(shapes).filter(|(node, _)| matches!(node.op, Op::BatchNorm { .. }));
        for (statistics, (node, shape)) in trained.statistics.iter().zip(norms) {
            let n = (batch * shape.elements() / node.channels) as f64;
            let biased = (&statistics.batch_var_unbiased * ((n - 1.0) / n)).unwrap();
            tensors.insert(statistics.mean.clone(), statistics.batch_mean.clone());
            tensors.insert(statistics.var.clone(), biased);
        }
        let (outputs, levels) = run(&tensors).run_with_levels(&double(&input)).unwrap();
        assert_eq!(levels.len(), trained.levels.len());
        for (evaluated, trained) in levels.iter().zip(&trained.levels) {
            assert_eq!(evaluated.dims(), trained.dims());
            let (evaluated, trained) = (values(evaluated), values(trained));
            let largest = trained.iter().fold(0.0f64, |max, v| max.max(v.abs()));
            // Evaluation makes its scales and shifts in f32.
            let worst = evaluated.iter().zip(&trained).fold(0.0f64, |max, (e, t)| max.max((e - t).abs()));
            assert!(worst < 1e-5 * largest, "{name}: {worst} of {largest}");
        }
        assert_eq!(outputs.prototypes.is_some(), trained.prototypes.is_some());
        // Objectness of the first row.
        let map = values(&levels[0].flatten_all().unwrap());
        let row = values(&outputs.main.get(0).unwrap().get(0).unwrap());
        assert!((1.0 / (1.0 + (-map[4]).exp()) - row[4]).abs() < 1e-6);
        for (name, weights) in &trained.routing {
            assert!(tensors.contains_key(&format!("{name}.weight")), "{name}");
            assert_eq!(weights.dims()[0], input.dims()[0]);
        }
        let routers = graph.params().iter().filter(|param| param.name.ends_with("routing.weight")).count();
        assert_eq!(trained.routing.len(), routers);
    }
}

/// At a high temperature all experts weigh the same; a network without softmax stays as it is.
#[test]
fn temperatures_reach_every_router() {
    let yaml = |dynamic: &str| {
        format!(
            "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nch: 3\n{dynamic}\nhead: [[[-1], 1, Detect, [nc, anchors]]]\n\
             backbone: [[-1, 1, Conv, [8, 3, 2]], [-1, 1, DynamicConv, [8, 3, 2]], [-1, 1, C3_GhostDynamicConv, [16]]]"
        )
    };
    let spread = |dynamic: &str, temperature: Option<f64>| {
        let graph = Graph::new(&NetworkConfig::parse("tiny", &yaml(dynamic)).unwrap()).unwrap();
        let tensors = graph.init(3, &Device::Cpu).unwrap();
        let mut model = Model::load(graph, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap();
        if let Some(temperature) = temperature {
            model.set_temperature(temperature).unwrap();
            assert!(model.set_temperature(0.0).is_err() && model.set_temperature(f64::NAN).is_err());
        }
        let x: Vec<f32> = (0..2 * 3 * 32 * 32).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Tensor::from_vec(x, (2, 3, 32, 32), &Device::Cpu).unwrap();
        let routing = model.run_training(&x).unwrap().routing;
        assert_eq!(routing.len(), 3);
        let weights: Vec<f64> = routing.iter().flat_map(|(_, weights)| values(weights)).collect();
        let most = weights.iter().fold(0.0f64, |max, v| max.max(*v));
        most - weights.iter().fold(1.0f64, |min, v| min.min(*v))
    };
    let softmax = "dynamic: {routing: softmax, temperature: {start: 30, end: 1, epochs: 10}}";
    assert!(spread(softmax, None) > 0.01);
    assert!(spread(softmax, Some(1e6)) < 1e-5);
    assert_eq!(spread("", None), spread("", Some(1e6)));
}

/// What cannot be trained says why.
#[test]
fn misfits_are_named() {
    let features = "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nch: 2\nhead: []\nbackbone: [[-1, 1, Conv, [8, 3, 2]]]";
    let model = |yaml: &str| {
        let graph = Graph::new(&NetworkConfig::parse("tiny", yaml).unwrap()).unwrap();
        let tensors = graph.init(3, &Device::Cpu).unwrap();
        Model::load(graph, VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)).unwrap()
    };
    let x = |side: usize| Tensor::zeros((1, 2, side, side), DType::F32, &Device::Cpu).unwrap();
    let text = model(features).run_training(&x(32)).unwrap_err().to_string();
    assert!(text.contains("no detection head"), "{text}");
    let detector = features.replace("head: []", "head: [[[-1], 1, Detect, [nc, anchors]]]");
    let text = model(&detector).fold_batch_norm().unwrap().run_training(&x(32)).unwrap_err().to_string();
    assert!(text.contains("folded"), "{text}");
    let text = model(&detector).run_training(&x(2)).unwrap_err().to_string();
    assert!(text.contains("layer 0 (Conv)") && text.contains("at least two values a channel"), "{text}");
}

/// A map that is enlarged and read once more beside: the sum of both readers' gradients arrives.
#[test]
fn an_enlarged_map_with_another_reader() {
    // The pool takes back the enlargement, so the result is the map twice.
    let yaml = "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nch: 2\nchannel_multiple: 1\nhead: []\n\
                backbone: [[-1, 1, nn.Conv2d, [2, 2, 1]], [-1, 1, nn.Upsample, [None, 2, nearest]],\n\
                [-1, 1, nn.MaxPool2d, [2]], [[-1, 0], 1, Concat, [1]]]";
    let graph = Graph::new(&NetworkConfig::parse("tiny", yaml).unwrap()).unwrap();
    let identity = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu).unwrap().reshape((2, 2, 1, 1)).unwrap();
    let bias = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
    let tensors = HashMap::from([("model.0.weight".to_string(), identity), ("model.0.bias".to_string(), bias)]);
    let (model, _) = trainable(graph, &tensors, DType::F32);
    let x =
        Var::from_tensor(&Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap().reshape((1, 2, 3, 4)).unwrap()).unwrap();
    let y = model.run(x.as_tensor()).unwrap().main;
    assert_eq!(values(&y), [values(&x), values(&x)].concat());
    let weights = Tensor::arange(1f32, 49.0, &Device::Cpu).unwrap();
    let gradients = (y.flatten_all().unwrap() * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let expected: Vec<f64> = (1..25).map(|i| f64::from(i + i + 24)).collect();
    assert_eq!(values(gradients.get(&x).unwrap()), expected);
}
