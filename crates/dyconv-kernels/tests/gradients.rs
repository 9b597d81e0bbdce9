//! A dynamic convolution, forward and backward, against PyTorch.

use std::path::Path;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor, Var};
use dyconv_kernels::{ConvConfig, Epilogue, Mixing, Routing, dynamic_conv2d};

/// Of the largest value; sums of up to a few hundred terms in f32.
const TOLERANCE: f32 = 1e-5;

fn difference(got: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(got.dims(), expected.dims());
    let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, expected) = (values(got), values(expected));
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    let worst = got.iter().zip(&expected).map(|(g, e)| (g - e).abs());
    worst.fold(0.0f32, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) }) / largest
}

fn check(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let number = |key: &str| metadata[key].parse::<usize>().unwrap();
    // SAFETY: nothing writes to the test data while the tests run.
    let file = unsafe { MmapedSafetensors::new(path) }.unwrap();
    let load = |name: &str| file.load(name, &Device::Cpu).unwrap();
    let variable = |name: &str| Var::from_tensor(&load(name)).unwrap();

    let (kernel, stride, dilation) = (number("kernel"), number("stride"), number("dilation"));
    let config = ConvConfig {
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (kernel / 2, kernel / 2),
        dilation: (dilation, dilation),
        groups: number("groups"),
    };
    let routing = match metadata["routing"].as_str() {
        "sigmoid" => Routing::Sigmoid,
        _ => Routing::Softmax { temperature: metadata["temperature"].parse().unwrap() },
    };
    let [x, weight, bias, experts] = ["x", "routing.weight", "routing.bias", "cond_conv.weight"].map(variable);
    let mixing = Mixing::Router { weight: &weight, bias: &bias, routing };
    let y = dynamic_conv2d(&x, mixing, &experts, None, &Epilogue::default(), &config).unwrap();
    let gradients = (&y * load("dy")).unwrap().sum_all().unwrap().backward().unwrap();
    let gradient = |variable: &Var| gradients.get(variable).unwrap().clone();
    // Tensors that want no gradient take the way of one fused operation.
    let [plain_weight, plain_bias] = ["routing.weight", "routing.bias"].map(load);
    let mixing = Mixing::Router { weight: &plain_weight, bias: &plain_bias, routing };
    let fused =
        dynamic_conv2d(&load("x"), mixing, &load("cond_conv.weight"), None, &Epilogue::default(), &config).unwrap();
    for (name, got) in [
        ("y", y.clone()),
        ("y", fused),
        ("dx", gradient(&x)),
        ("d.routing.weight", gradient(&weight)),
        ("d.routing.bias", gradient(&bias)),
        ("d.cond_conv.weight", gradient(&experts)),
    ] {
        let worst = difference(&got, &load(name));
        assert!(worst < TOLERANCE, "{}: {name}: {worst:e}", path.display());
    }
}

#[test]
fn values_and_gradients_agree_with_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let cases: Vec<_> = files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).collect();
    assert_eq!(cases.len(), 8);
    cases.iter().for_each(|case| check(case));
}
