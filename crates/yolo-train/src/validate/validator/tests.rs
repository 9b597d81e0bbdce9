//! Whole validations of detections that are known.

use std::path::PathBuf;

use candle_core::Device;

use super::super::coco::{Kind, coco_map};
use super::*;
use crate::data::batch::Target;

/// The network's input, and where a picture of 150x200 lies in it: doubled, 10 pixels from the left and 20 from the top.
const SIZE: (usize, usize) = (340, 420);

fn origin(name: &str) -> Origin {
    Origin { path: PathBuf::from(name), size: (150, 200), ratio: (2.0, 2.0), pad: (10.0, 20.0) }
}

/// A label by its corners in the input.
fn target(image: usize, class: usize, [x1, y1, x2, y2]: [f32; 4]) -> Target {
    let (width, height) = (SIZE.1 as f32, SIZE.0 as f32);
    let xywh = [(x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height, (x2 - x1) / width, (y2 - y1) / height];
    Target { image, class, xywh }
}

fn batch(targets: Vec<Target>, names: &[&str]) -> Batch {
    let images = Tensor::zeros((names.len(), 3, SIZE.0, SIZE.1), DType::F32, &Device::Cpu).unwrap();
    Batch { images, targets, masks: None, origins: names.iter().map(|name| origin(name)).collect() }
}

/// A row of a network of three classes that is sure of one.
fn row([x1, y1, x2, y2]: [f32; 4], class: usize, confidence: f32) -> Vec<f32> {
    let mut row = vec![(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1, confidence, 0.0, 0.0, 0.0];
    row[5 + class] = 1.0;
    row
}

/// As many rows for each picture as the longest list has, the rest zeros.
fn tensor(pictures: &[Vec<Vec<f32>>]) -> Tensor {
    let columns = pictures.iter().flatten().map(Vec::len).max().unwrap_or(8);
    let rows = pictures.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let mut values = Vec::new();
    for picture in pictures {
        let mut flat = picture.concat();
        flat.resize(rows * columns, 0.0);
        values.extend(flat);
    }
    Tensor::from_vec(values, (pictures.len(), rows, columns), &Device::Cpu).unwrap()
}

const A: [f32; 4] = [20.0, 30.0, 120.0, 130.0];
const B: [f32; 4] = [200.0, 100.0, 300.0, 180.0];
const C: [f32; 4] = [320.0, 200.0, 400.0, 300.0];

fn validator(options: Options) -> Validator {
    let classes = if options.single_cls { 1 } else { 3 };
    Validator::new(classes, options).unwrap()
}

#[test]
fn labels_as_detections_are_perfect() {
    let targets = vec![target(0, 0, A), target(0, 1, B), target(1, 0, C), target(1, 2, A)];
    let batch = batch(targets, &["a.png", "b.png"]);
    let rows = tensor(&[vec![row(A, 0, 0.9), row(B, 1, 0.8)], vec![row(C, 0, 0.9), row(A, 2, 0.7)]]);
    let mut validator = validator(Options { coco: Some(vec![1, 2, 3]), ..Options::default() });
    let found = validator.add(&batch, &rows, None).unwrap();
    assert_eq!(found[0].boxes[0], [5.0, 5.0, 55.0, 55.0], "half the size, without the border");
    let report = validator.finish();
    assert_eq!((report.images, report.instances.as_slice(), report.labels()), (2, &[2, 1, 1][..], 4));
    let mean = report.boxes.mean;
    assert!((mean.map50 - 0.995).abs() < 1e-9 && (mean.map - 0.995).abs() < 1e-9, "{mean:?}");
    assert_eq!((mean.precision, mean.recall), (1.0, 1.0));
    assert!((report.fitness() - 0.995).abs() < 1e-9);
    assert_eq!((report.confusion.count(0, 0), report.confusion.counts().iter().sum::<u64>()), (2, 4));
    let coco = report.coco.unwrap();
    assert_eq!(coco.records[0].bbox, [5.0, 5.0, 50.0, 50.0]);
    assert!((coco_map(&coco.truth, &coco.records, Kind::Boxes).unwrap().ap - 1.0).abs() < 1e-9);
}

/// Of cameras that each count from 1.
#[test]
fn pictures_of_one_name_stay_two() {
    let batch = batch(vec![target(0, 0, A), target(1, 1, B)], &["left/1.png", "right/01.png"]);
    let rows = tensor(&[vec![row(A, 0, 0.9)], vec![row(B, 1, 0.8)]]);
    let mut validator = validator(Options { coco: Some(vec![1, 2, 3]), ..Options::default() });
    validator.add(&batch, &rows, None).unwrap();
    let coco = validator.finish().coco.unwrap();
    let ids: Vec<String> = coco.truth.images.iter().map(ToString::to_string).collect();
    assert_eq!(ids, ["1", "right/01.png"]);
    assert!(coco.records[1].image_id == coco.truth.annotations[1].image_id && coco.truth.images.len() == 2);
    assert!((coco_map(&coco.truth, &coco.records, Kind::Boxes).unwrap().ap - 1.0).abs() < 1e-9);
}

#[test]
fn a_picture_without_labels_costs_precision_and_one_without_detections_recall() {
    let batch = batch(vec![target(1, 0, A), target(2, 0, A)], &["a.png", "b.png", "c.png"]);
    let rows = tensor(&[vec![row(A, 0, 0.9)], vec![row(A, 0, 0.8)], vec![]]);
    let mut validator = validator(Options::default());
    validator.add(&batch, &rows, None).unwrap();
    let report = validator.finish();
    // Wrong, right of two labels: a precision of 1/2 at a recall of 1/2, falling to 0 at 1.
    let area: f64 = (0..100)
        .map(|i| [i, i + 1].map(|x| if x <= 50 { 0.5 } else { 0.5 * (100 - x) as f64 / 50.0 }))
        .map(|[a, b]| (a + b) / 200.0)
        .sum();
    // The envelope is level from the start: nothing is better than what the right one has.
    let first = (1.0 - 0.5) / 200.0;
    assert!((report.boxes.mean.map50 - area).abs() < first + 1e-9, "{} {area}", report.boxes.mean.map50);
    assert_eq!(report.images, 3);
    // The picture without labels has no part in the matrix.
    assert_eq!((report.confusion.count(0, 0), report.confusion.count(3, 0), report.confusion.count(0, 3)), (1, 1, 0));
}

#[test]
fn nothing_found_at_all() {
    let batch = batch(vec![target(0, 2, A)], &["a.png"]);
    let mut validator = validator(Options::default());
    let found = validator.add(&batch, &tensor(&[vec![]]), None).unwrap();
    assert!(found[0].candidates.is_empty());
    let report = validator.finish();
    assert_eq!((report.boxes.mean.map, report.fitness(), report.instances[2]), (0.0, 0.0, 1));
    assert_eq!(report.confusion.count(3, 2), 1);
    assert!(report.masks.is_none() && report.coco.is_none());
}

#[test]
fn no_picture_at_all() {
    let report = validator(Options::default()).finish();
    assert_eq!((report.images, report.labels(), report.fitness()), (0, 0, 0.0));
}

#[test]
fn rows_that_are_no_numbers_are_left_out() {
    let batch = batch(vec![target(0, 0, A)], &["a.png"]);
    let mut bad = row(A, 0, 0.95);
    bad[2] = f32::NAN;
    let mut validator = validator(Options::default());
    validator.add(&batch, &tensor(&[vec![bad, row(A, 0, 0.9), row(B, 0, f32::NAN)]]), None).unwrap();
    assert!((validator.finish().boxes.mean.map50 - 0.995).abs() < 1e-9);
}

#[test]
fn one_class_takes_all() {
    let batch = batch(vec![target(0, 0, A), target(0, 0, B)], &["a.png"]);
    // The second box of A is of another class, and suppressed all the same.
    let rows = tensor(&[vec![row(A, 2, 0.9), row(A, 0, 0.8), row(B, 1, 0.7)]]);
    let mut validator = validator(Options { single_cls: true, ..Options::default() });
    let found = validator.add(&batch, &rows, None).unwrap();
    assert_eq!(found[0].candidates.iter().map(|candidate| candidate.class).collect::<Vec<_>>(), [0, 0]);
    assert!((validator.finish().boxes.mean.map - 0.995).abs() < 1e-9);
}

/// Three objects of which masks fill the boxes' left halves; prototypes that say so at a quarter of the size.
fn segmented() -> (Batch, Tensor, Tensor) {
    let objects = [(0, A), (1, B), (2, C)];
    let (height, width) = SIZE;
    let (low_height, low_width) = (height / 4, width / 4);
    let mut planes = vec![0f32; objects.len() * height * width];
    let mut proto = vec![-9f32; low_height * low_width];
    let mut rows = Vec::new();
    let mut targets = Vec::new();
    for (index, &(class, bbox)) in objects.iter().enumerate() {
        let [x1, y1, x2, y2] = bbox.map(|side| side as usize);
        let half = (x1 + x2) / 2;
        for y in y1..y2 {
            planes[index * height * width + y * width..][x1..half].fill(1.0);
        }
        for y in y1 / 4..y2 / 4 {
            proto[y * low_width..][x1 / 4..half / 4].fill(9.0);
        }
        targets.push(target(0, class, bbox));
        let mut row = row(bbox, class, 0.9);
        row.push(1.0);
        rows.push(row);
    }
    let planes = Tensor::from_vec(planes, (objects.len(), height, width), &Device::Cpu).unwrap();
    let batch = Batch { masks: Some(Masks::Separate(planes)), ..batch(targets, &["a.png"]) };
    let proto = Tensor::from_vec(proto, (1, 1, low_height, low_width), &Device::Cpu).unwrap();
    (batch, tensor(&[rows]), proto)
}

#[test]
fn masks_are_judged_apart_from_boxes() {
    let (mut batch, rows, proto) = segmented();
    let judge = |batch: &Batch, rows: &Tensor, proto: &Tensor| {
        let mut validator = validator(Options::default());
        validator.add(batch, rows, Some(proto)).unwrap();
        validator.finish()
    };
    let report = judge(&batch, &rows, &proto);
    let masks = report.masks.as_ref().unwrap();
    assert!((report.boxes.mean.map - 0.995).abs() < 1e-9);
    assert!((masks.mean.map50 - 0.995).abs() < 1e-9 && masks.mean.map > 0.85, "{:?}", masks.mean);
    assert!((report.fitness() - report.boxes.mean.fitness() - masks.mean.fitness()).abs() < 1e-12);

    // The same as one map of indices.
    let Some(Masks::Separate(planes)) = &batch.masks else { panic!("masks") };
    let index = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap().reshape((3, 1, 1)).unwrap();
    let map = planes.broadcast_mul(&index).unwrap().sum_keepdim(0).unwrap();
    batch.masks = Some(Masks::Overlap(map));
    assert_eq!(judge(&batch, &rows, &proto).masks.unwrap().mean, masks.mean);

    // Masks that are all wrong leave the boxes right.
    let report = judge(&batch, &rows, &proto.neg().unwrap().affine(1.0, -20.0).unwrap());
    assert!((report.boxes.mean.map - 0.995).abs() < 1e-9);
    assert_eq!(report.masks.unwrap().mean.map, 0.0);

    batch.masks = None;
    let error = validator(Options::default()).add(&batch, &rows, Some(&proto)).unwrap_err().to_string();
    assert!(error.contains("no outlines"), "{error}");
}

#[test]
fn masks_of_cocos_form_have_the_pictures_size() {
    let (batch, rows, proto) = segmented();
    let mut validator = validator(Options { coco: Some(vec![1, 2, 3]), ..Options::default() });
    let found = validator.add(&batch, &rows, Some(&proto)).unwrap();
    assert_eq!((found[0].masks[0].height, found[0].masks[0].width), (340, 420));
    let report = validator.finish();
    assert!((report.masks.unwrap().mean.map50 - 0.995).abs() < 1e-9);
    let coco = report.coco.unwrap();
    let mask = coco.records[0].segmentation.as_ref().unwrap();
    assert_eq!(mask.size(), (150, 200));
    // Half of 50x50 pixels, prototypes being coarse.
    assert!((1150..=1350).contains(&mask.area()), "{}", mask.area());
    assert_eq!(coco.truth.annotations[0].area, 1250.0);
    assert!(coco_map(&coco.truth, &coco.records, Kind::Masks).unwrap().ap50 > 0.99);
}

#[test]
fn what_does_not_fit_is_told() {
    let good = batch(vec![target(0, 0, A)], &["a.png"]);
    let rows = tensor(&[vec![row(A, 0, 0.9)]]);
    let told = |validator: &mut Validator, batch: &Batch, rows: &Tensor, text: &str| {
        let error = validator.add(batch, rows, None).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    let mut five = Validator::new(5, Options::default()).unwrap();
    told(&mut five, &good, &rows, "the network has 3 classes, the data set 5");
    let mut validator = validator(Options::default());
    told(&mut validator, &batch(vec![target(0, 3, A)], &["a.png"]), &rows, "a label of class 3");
    told(&mut validator, &batch(vec![target(1, 0, A)], &["a.png"]), &rows, "in picture 1");
    told(&mut validator, &batch(vec![], &["a.png", "b.png"]), &rows, "2 pictures with");
    for options in [
        Options { conf_thres: -0.1, ..Options::default() },
        Options { iou_thres: f64::NAN, ..Options::default() },
        Options { max_det: 0, ..Options::default() },
        Options { single_cls: true, ..Options::default() },
        Options { coco: Some(vec![1]), ..Options::default() },
    ] {
        assert!(Validator::new(2, options).is_err());
    }
    assert!(Validator::new(0, Options::default()).is_err());
}
