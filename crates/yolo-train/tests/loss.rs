//! The loss against PyTorch's, and its less usual settings against a plain twin in Candle's operations.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use yolo_core::weights::Weights;
use yolo_train::Hyp;
use yolo_train::data::{Masks, Target};
use yolo_train::loss::{BoxLoss, Loss, LossParts};

/// Of the largest value of a gradient.
const TOLERANCE: f32 = 1e-5;

struct Golden(Weights);

impl Golden {
    fn open(name: &str) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).with_extension("safetensors");
        Self(Weights::open(file).unwrap())
    }

    fn tensor(&self, name: &str) -> Tensor {
        self.0.tensor(name, DType::F32, &Device::Cpu).unwrap()
    }

    fn var(&self, name: &str) -> Var {
        Var::from_tensor(&self.tensor(name)).unwrap()
    }

    fn targets(&self) -> Vec<Target> {
        let rows: Vec<Vec<f32>> = self.tensor("targets").to_vec2().unwrap();
        let target = |row: &Vec<f32>| Target {
            image: row[0] as usize,
            class: row[1] as usize,
            xywh: [row[2], row[3], row[4], row[5]],
        };
        rows.iter().map(target).collect()
    }

    fn anchors(&self) -> Vec<Vec<[f32; 2]>> {
        let anchors: Vec<Vec<Vec<f32>>> = self.tensor("anchors").to_vec3().unwrap();
        anchors.iter().map(|level| level.iter().map(|a| [a[0], a[1]]).collect()).collect()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_near(what: &str, got: &Tensor, expected: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), expected.dims(), "{what}");
    let (got, expected) = (numbers(got), numbers(expected));
    let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(largest > 0.0, "{what} is zero");
    let error = got.iter().zip(&expected).fold(0.0f32, |max, (g, e)| {
        let error = (g - e).abs();
        if error.is_nan() { f32::INFINITY } else { max.max(error) }
    });
    assert!(error <= tolerance * largest, "{what}: off by {error:e}, the largest value is {largest:e}");
}

fn check(
    golden: &Golden,
    levels: &[Var],
    prototypes: Option<&Var>,
    masks: Option<&Masks>,
    parts: impl Fn(&LossParts) -> Vec<f32>,
) {
    let coefficients = prototypes.map_or(0, |p| p.dim(1).unwrap());
    let loss = Loss::new(&Hyp::default(), 5, coefficients, golden.anchors(), BoxLoss::Ciou);
    let maps: Vec<Tensor> = levels.iter().map(|v| v.as_tensor().clone()).collect();
    let output = loss.compute(&maps, prototypes.map(|p| p.as_tensor()), &golden.targets(), masks).unwrap();
    assert_near("loss", &output.total.reshape(1).unwrap(), &golden.tensor("loss"), TOLERANCE);
    let got = Tensor::new(parts(&output.parts), &Device::Cpu).unwrap();
    assert_near("parts", &got, &golden.tensor("parts"), TOLERANCE);
    let gradients = output.total.backward().unwrap();
    for (name, level) in ["d_p3", "d_p4", "d_p5"].iter().zip(levels) {
        assert_near(name, gradients.get(level).unwrap(), &golden.tensor(name), TOLERANCE);
    }
    if let Some(prototypes) = prototypes {
        assert_near("d_proto", gradients.get(prototypes).unwrap(), &golden.tensor("d_proto"), TOLERANCE);
    }
}

#[test]
fn detection_as_pytorch() {
    let golden = Golden::open("loss_detect");
    let levels = ["p3", "p4", "p5"].map(|name| golden.var(name));
    check(&golden, &levels, None, None, |p| vec![p.boxes, p.objectness, p.classes]);
}

#[test]
fn segmentation_as_pytorch() {
    let golden = Golden::open("loss_segment");
    let levels = ["p3", "p4", "p5"].map(|name| golden.var(name));
    let prototypes = golden.var("proto");
    let overlap = golden.tensor("masks");
    let parts = |p: &LossParts| vec![p.boxes, p.masks, p.objectness, p.classes];
    check(&golden, &levels, Some(&prototypes), Some(&Masks::Overlap(overlap.clone())), parts);

    // A map an object says the same as one map with numbers.
    let (_, height, width) = overlap.dims3().unwrap();
    let overlap: Vec<Vec<Vec<f32>>> = overlap.to_vec3().unwrap();
    let mut seen = HashMap::new();
    let mut separate = Vec::new();
    for target in golden.targets() {
        let number = seen.entry(target.image).or_insert(0.0f32);
        *number += 1.0;
        separate.extend(overlap[target.image].iter().flatten().map(|v| if v == number { 1.0f32 } else { 0.0 }));
    }
    let separate = Tensor::from_vec(separate, (golden.targets().len(), height, width), &Device::Cpu).unwrap();
    check(&golden, &levels, Some(&prototypes), Some(&Masks::Separate(separate)), parts);
}

/// Objectness and classes in Candle's operations, in f64: focal loss, smoothing and weights of the positives included. The
/// targets of the objectness come from the loss itself through its gradient at zero gain elsewhere, so boxes are left out.
#[test]
fn focal_smoothed_and_weighed_as_the_plain_twin() {
    let golden = Golden::open("loss_detect");
    let hyp = Hyp { box_gain: 0.0, obj: 0.0, fl_gamma: 1.5, label_smoothing: 0.1, cls_pw: 1.7, ..Hyp::default() };
    // One anchor and one object in the middle of a cell of the coarsest level: three cells predict it.
    let anchors = vec![vec![[2.0, 2.0]]];
    let level = golden.tensor("p5").narrow(1, 0, 1).unwrap().contiguous().unwrap();
    let (batch, _, height, width, _) = level.dims5().unwrap();
    let target = Target {
        image: 1,
        class: 3,
        xywh: [2.3 / width as f32, 1.8 / height as f32, 1.5 / width as f32, 2.5 / height as f32],
    };
    let var = Var::from_tensor(&level).unwrap();
    let loss = Loss::new(&hyp, 5, 0, anchors, BoxLoss::Ciou);
    let output = loss.compute(&[var.as_tensor().clone()], None, &[target], None).unwrap();
    let gradient = output.total.backward().unwrap().get(&var).unwrap().clone();

    let twin = Var::from_tensor(&level.to_dtype(DType::F64).unwrap()).unwrap();
    // Cells (y, x): the centre's, its left neighbour, its lower neighbour.
    let rows: Vec<Tensor> = [(1, 2), (1, 1), (2, 2)]
        .iter()
        .map(|&(y, x)| {
            let row = twin.get(1).unwrap().get(0).unwrap().get(y).unwrap().get(x).unwrap();
            row.narrow(0, 5, 5).unwrap()
        })
        .collect();
    let x = Tensor::stack(&rows, 0).unwrap();
    let t = Tensor::new(&[[0.05f64, 0.05, 0.05, 0.95, 0.05]], &Device::Cpu).unwrap().broadcast_as((3, 5)).unwrap();
    let one = t.ones_like().unwrap();
    let p = candle_nn::ops::sigmoid(&x).unwrap();
    let q = (&one - &p).unwrap();
    let rest = (&one - &t).unwrap();
    let cross = ((&t * p.log().unwrap()).unwrap() * -hyp.cls_pw).unwrap() - (&rest * q.log().unwrap()).unwrap();
    let near = ((&t * &p).unwrap() + (&rest * &q).unwrap()).unwrap();
    let share = ((&t * 0.25).unwrap() + (&rest * 0.75).unwrap()).unwrap();
    let focal = (cross.unwrap() * share).unwrap() * (one - near).unwrap().powf(1.5).unwrap();
    let total = (focal.unwrap().mean_all().unwrap() * (hyp.cls * batch as f64)).unwrap();
    let expected = total.backward().unwrap().get(&twin).unwrap().to_dtype(DType::F32).unwrap();
    assert_near(
        "focal loss",
        &output.total.reshape(1).unwrap(),
        &total.to_dtype(DType::F32).unwrap().reshape(1).unwrap(),
        TOLERANCE,
    );
    assert_near("its gradient", &gradient, &expected, TOLERANCE);
}

/// A small step against the gradient lowers the loss, whatever measures the boxes. But for Focal-EIoU: its weight grows as the
/// box gets better, and is held fixed in the gradient.
#[test]
fn every_box_loss_falls_along_its_gradient() {
    let golden = Golden::open("loss_detect");
    let hyp = Hyp { obj: 0.0, cls: 0.0, ..Hyp::default() };
    for (name, kind) in BoxLoss::NAMES.into_iter().filter(|(_, kind)| *kind != BoxLoss::FocalEiou) {
        let levels = ["p3", "p4", "p5"].map(|name| golden.var(name));
        let loss = Loss::new(&hyp, 5, 0, golden.anchors(), kind);
        let value = |levels: &[Tensor]| loss.compute(levels, None, &golden.targets(), None).unwrap();
        let maps: Vec<Tensor> = levels.iter().map(|v| v.as_tensor().clone()).collect();
        let before = value(&maps);
        let gradients = before.total.backward().unwrap();
        let squares: f64 =
            levels.iter().flat_map(|v| numbers(gradients.get(v).unwrap())).map(|g| f64::from(g).powi(2)).sum();
        let step = 1e-2 / squares.sqrt();
        let moved: Vec<Tensor> =
            levels.iter().map(|v| (v.as_tensor() - (gradients.get(v).unwrap() * step).unwrap()).unwrap()).collect();
        let fall =
            f64::from(before.total.to_scalar::<f32>().unwrap() - value(&moved).total.to_scalar::<f32>().unwrap());
        assert!(fall > 0.5 * step * squares, "{name}: fell by {fall:e}, expected about {:e}", step * squares);
    }
}

#[test]
fn pictures_without_objects_teach_their_objectness() {
    let golden = Golden::open("loss_detect");
    let levels = ["p3", "p4", "p5"].map(|name| golden.var(name));
    let maps: Vec<Tensor> = levels.iter().map(|v| v.as_tensor().clone()).collect();
    let output =
        Loss::new(&Hyp::default(), 5, 0, golden.anchors(), BoxLoss::Ciou).compute(&maps, None, &[], None).unwrap();
    assert!(output.parts.objectness > 0.0 && output.parts.boxes == 0.0 && output.parts.classes == 0.0);
    let gradients = output.total.backward().unwrap();
    assert!(numbers(gradients.get(&levels[0]).unwrap()).iter().all(|g| g.is_finite()));
}

#[test]
fn what_does_not_fit_is_told() {
    let golden = Golden::open("loss_detect");
    let maps: Vec<Tensor> = ["p3", "p4", "p5"].iter().map(|name| golden.tensor(name)).collect();
    let loss = |classes, masks| Loss::new(&Hyp::default(), classes, masks, golden.anchors(), BoxLoss::Ciou);
    let error = |loss: Loss, maps: &[Tensor], targets: &[Target]| {
        loss.compute(maps, None, targets, None).unwrap_err().to_string()
    };
    assert!(error(loss(6, 0), &maps, &[]).contains("[2, 3, height, width, 11]"));
    assert!(error(loss(5, 0), &maps[..2], &[]).contains("3 levels"));
    let target = Target { image: 0, class: 5, xywh: [0.5; 4] };
    assert!(error(loss(5, 0), &maps, &[target]).contains("class 5"));
    assert!(error(loss(5, 0), &maps, &[Target { image: 2, class: 0, ..target }]).contains("picture 2"));
    let segment = Golden::open("loss_segment");
    let maps: Vec<Tensor> = ["p3", "p4", "p5"].iter().map(|name| segment.tensor(name)).collect();
    let proto = segment.tensor("proto");
    let missing = loss(5, 32).compute(&maps, Some(&proto), &segment.targets(), None).unwrap_err().to_string();
    assert!(missing.contains("no masks"), "{missing}");
}
