//! Gradients through whole networks.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig};

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

/// The gradient for every parameter, by the kernels in f32 and by their plain twins in f64: through dynamic convolutions, SPPF's
/// pools, and maps that are enlarged and joined to others.
#[test]
fn networks_train_as_their_twin_in_f64() {
    for name in ["net_n_detect_C3_GhostDynamicConv", "net_n_segment_C3_GhostDynamicConv"] {
        let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/goldens").join(name).with_extension("yaml");
        let weights = Weights::open(case.with_extension("safetensors")).unwrap();
        let graph = Graph::new(&NetworkConfig::open(&case).unwrap()).unwrap();
        let load = |name: &str| weights.tensor(name, DType::F32, &Device::Cpu).unwrap();
        let tensors = graph.params().iter().map(|p| (p.name.clone(), load(&p.name))).collect();
        let input = load("input");
        let gradients = |dtype: DType| {
            let (model, variables) = trainable(graph.clone(), &tensors, dtype);
            let outputs = model.run(&input.to_dtype(dtype).unwrap()).unwrap();
            let mut total = loss(&outputs.main);
            if let Some(prototypes) = &outputs.prototypes {
                total = (total + loss(prototypes)).unwrap();
            }
            let store = total.backward().unwrap();
            let variables = variables.data().lock().unwrap();
            let of = |(name, variable): (&String, &Var)| (name.clone(), store.get(variable).map(values));
            variables.iter().map(of).collect::<HashMap<_, _>>()
        };
        let (single, double) = (gradients(DType::F32), gradients(DType::F64));
        let mut worst = (0.0, String::new());
        for (name, double) in &double {
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
