//! Every module of the zoo, and whole networks, against PyTorch.

mod compare;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::Module;
use compare::difference;
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig};

/// f32 sums of a few thousand terms in another order differ by less than this part of the largest value.
const TOLERANCE: f32 = 1e-5;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens")
}

fn cases() -> Vec<PathBuf> {
    let files = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "yaml")).collect();
    cases.sort();
    cases
}

/// As they are, and with batch normalisation folded into the convolutions.
#[test]
fn networks_agree_with_pytorch() {
    let cases = cases();
    assert!(cases.len() >= 35, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        let weights = Weights::open(case.with_extension("safetensors")).unwrap();
        let graph = Graph::new(&NetworkConfig::open(case).unwrap()).unwrap();
        let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap();
        let golden = |name: &str| weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let outputs = model.run(&golden("input")).unwrap();
        let mut worst = difference(&outputs.main, &golden("output0"));
        assert_eq!(outputs.prototypes.is_some(), weights.shape("output1").is_some(), "{}", case.display());
        if let Some(prototypes) = &outputs.prototypes {
            worst = worst.max(difference(prototypes, &golden("output1")));
        }
        let folded = model.fold_batch_norm().unwrap().run(&golden("input")).unwrap();
        worst = worst.max(difference(&folded.main, &golden("output0")));
        if worst > TOLERANCE {
            failures.push(format!("{}: {worst:e}", case.file_stem().unwrap().display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Every module that a YAML may name stands in some case or in the zoo, whose tables the unit tests check.
#[test]
fn every_module_has_a_case() {
    let zoo = yolo_core::zoo::names();
    let networks = cases().into_iter().map(|path| path.display().to_string()).chain(zoo);
    let used: std::collections::HashSet<String> = networks
        .flat_map(|name| NetworkConfig::open(name).unwrap().layers().map(|l| l.module.clone()).collect::<Vec<_>>())
        .collect();
    let elsewhere = ["nn.Conv2d", "Contract", "Expand", "GhostModule"];
    let missing: Vec<_> = yolo_core::layers::registry::names()
        .filter(|name| !used.contains(*name) && !elsewhere.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn tiny(layers: &str, channels: usize) -> Model {
    let yaml = format!(
        "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nch: {channels}\nchannel_multiple: 1\nbackbone: {layers}\nhead: []"
    );
    let graph = Graph::new(&NetworkConfig::parse("tiny", &yaml).unwrap()).unwrap();
    let weights = Weights::from_tensors(graph.init(7, &Device::Cpu).unwrap(), Default::default());
    Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap()
}

fn counting(shape: (usize, usize, usize, usize)) -> Tensor {
    let count = shape.0 * shape.1 * shape.2 * shape.3;
    Tensor::arange(0f32, count as f32, &Device::Cpu).unwrap().reshape(shape).unwrap()
}

/// `Contract`, then `Expand`, on numbers whose places can be followed by hand.
#[test]
fn contract_and_expand_move_pixels() {
    let y = tiny("[[-1, 1, Contract, [2]]]", 1).forward(&counting((1, 1, 2, 4))).unwrap();
    assert_eq!(y.dims(), [1, 4, 1, 2]);
    assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 2., 1., 3., 4., 6., 5., 7.]);
    let both = tiny("[[-1, 1, Contract, [2]], [-1, 1, Expand, [2]]]", 3);
    let x = counting((2, 3, 4, 6));
    assert_eq!(difference(&both.forward(&x).unwrap(), &x), 0.0);
}

#[test]
fn a_plain_convolution_takes_its_channels_as_they_stand() {
    let model = tiny("[[-1, 1, nn.Conv2d, [3, 5, [3, 1], 2, [1, 0]]]]", 3);
    assert_eq!(model.forward(&counting((1, 3, 8, 8))).unwrap().dims(), [1, 5, 4, 4]);
    let names: Vec<_> = model.graph().params().iter().map(|p| (p.name.as_str(), p.shape.clone())).collect();
    assert_eq!(names, [("model.0.weight", vec![5, 3, 3, 1]), ("model.0.bias", vec![5])]);
}

/// A sample's result does not depend on the others in its batch, though each has its own kernels.
#[test]
fn dynamic_convolutions_keep_samples_apart() {
    let layers = "[[-1, 1, GhostModule, [7]], [-1, 1, DyConv2d, [6, 3, 2]], [-1, 1, C3_DynamicConv, [8, True]]]";
    let model = tiny(layers, 4);
    let x = (counting((3, 4, 6, 9)) / 100.0).unwrap().sin().unwrap();
    let together = model.forward(&x).unwrap();
    for i in 0..3 {
        let alone = model.forward(&x.narrow(0, i, 1).unwrap()).unwrap();
        assert!(difference(&together.narrow(0, i, 1).unwrap(), &alone) < 1e-6);
    }
    let text = format!(
        "{:?}",
        together
            .narrow(0, 0, 1)
            .unwrap()
            .sub(&together.narrow(0, 1, 1).unwrap())
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
    );
    assert!(!text.contains("[0.]"), "different samples must give different results");
}

#[test]
fn a_softmax_network_weighs_experts_to_one() {
    let yaml = |dynamic: &str| {
        format!(
            "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nch: 4\n{dynamic}\nbackbone: [[-1, 1, DynamicConv, [8, 3]]]\nhead: []"
        )
    };
    let shape = |dynamic: &str| {
        let graph = Graph::new(&NetworkConfig::parse("dynamic", &yaml(dynamic)).unwrap()).unwrap();
        graph.params().iter().find(|p| p.name == "model.0.conv.0.cond_conv.weight").unwrap().shape.clone()
    };
    assert_eq!(shape(""), [4, 8 * 4 * 9]);
    assert_eq!(shape("dynamic: {routing: softmax, temperature: 30, num_experts: 6}"), [6, 8 * 4 * 9]);
    // Experts that are all the same: weights that sum to one mix them to themselves, whatever the routing says.
    let run = |dynamic: &str| {
        let graph = Graph::new(&NetworkConfig::parse("dynamic", &yaml(dynamic)).unwrap()).unwrap();
        let mut tensors = graph.init(3, &Device::Cpu).unwrap();
        let experts = tensors.get_mut("model.0.conv.0.cond_conv.weight").unwrap();
        *experts = experts.narrow(0, 0, 1).unwrap().broadcast_as(experts.shape()).unwrap().contiguous().unwrap();
        let weights = Weights::from_tensors(tensors, Default::default());
        let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap();
        model.forward(&(counting((2, 4, 5, 5)) / 50.0).unwrap().cos().unwrap()).unwrap()
    };
    let (cold, hot) =
        (run("dynamic: {routing: softmax, temperature: 1}"), run("dynamic: {routing: softmax, temperature: 30}"));
    assert!(difference(&cold, &hot) < 1e-6);
    assert!(difference(&cold, &run("")) > 1e-2, "sigmoid weights do not sum to one");
}

#[test]
fn features_and_mistakes() {
    let model = tiny("[[-1, 1, Conv, [4, 3, 2]], [-1, 1, Conv, [6, 3, 2]]]", 3);
    let x = counting((2, 3, 8, 8));
    let outputs = model.run_with_features(&x, &[1, 0]).unwrap();
    assert_eq!(outputs.features[1].dims(), [2, 4, 4, 4]);
    assert_eq!(difference(&outputs.features[0], &outputs.main), 0.0);
    for (error, expected) in [
        (model.run_with_features(&x, &[2]).unwrap_err(), "there is no layer 2, the last one is 1"),
        (model.run(&counting((1, 4, 8, 8))).unwrap_err(), "expected [batch, 3, height, width], got [1, 4, 8, 8]"),
    ] {
        assert!(error.to_string().contains(expected), "{error}");
    }
}
