//! Pictures to detections, by plans and by the model.

use super::*;
use crate::Model;

#[test]
fn weights_that_are_no_numbers_are_not_an_empty_picture() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let picture = RgbImage::new(64, 64);
    let mut tensors = graph.init(1, &Device::Cpu).unwrap();
    let detect = |tensors: &std::collections::HashMap<_, _>| {
        let weights = Weights::from_tensors(tensors.clone(), Default::default());
        let detector = Detector::load(&weights, Some(graph.config()), &Device::Cpu, DType::F32).unwrap();
        detector.with_options(DetectOptions { imgsz: [64, 64], ..Default::default() }).unwrap().detect(&picture)
    };
    assert!(detect(&tensors).is_ok());
    let weight = tensors.get_mut("model.3.conv.weight").unwrap();
    *weight = (&*weight * f64::NAN).unwrap();
    let text = detect(&tensors).unwrap_err().to_string();
    assert!(text.contains("not numbers (NaN)"), "{text}");
}

#[test]
fn pictures_finished_one_by_one_are_those_of_the_batch() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n-seg").unwrap()).unwrap();
    let weights = Weights::from_tensors(graph.init(1, &Device::Cpu).unwrap(), Default::default());
    let detector = Detector::load(&weights, Some(graph.config()), &Device::Cpu, DType::F32).unwrap();
    let options = DetectOptions { imgsz: [64, 64], conf_thres: 0.0, max_det: 3, ..Default::default() };
    let detector = detector.with_options(options).unwrap();
    // Different shapes, which get a common one.
    let pictures = [(64, 64, 9), (90, 40, 200), (20, 60, 100)]
        .map(|(width, height, grey)| RgbImage::from_pixel(width, height, image::Rgb([grey; 3])));
    let batch = detector.detect_batch(&pictures).unwrap();
    assert_eq!(batch.network_shape, [64, 64]);
    assert!(batch.pictures.iter().all(|found| found.len() == 3));

    let prepared = detector.prepare(&pictures).unwrap();
    assert_eq!(prepared.len(), 3);
    let raw = detector.infer(&prepared).unwrap().split().unwrap();
    let each: Vec<_> = raw.iter().map(|raw| detector.finish(raw).unwrap()).collect();
    let apart: Vec<_> = each.iter().flat_map(|batch| batch.pictures.clone()).collect();
    assert_eq!(apart, batch.pictures);
    assert!(each.iter().all(|batch| batch.speed.inference == each[0].speed.inference));
}

#[test]
fn a_model_sees_what_a_plan_sees() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let weights = Weights::from_tensors(graph.init(1, &Device::Cpu).unwrap(), Default::default());
    let options = DetectOptions { imgsz: [64, 64], conf_thres: 0.0, max_det: 3, ..Default::default() };
    let plan = Detector::load(&weights, Some(graph.config()), &Device::Cpu, DType::F32).unwrap();
    let plan = plan.with_options(options.clone()).unwrap();
    let model = Model::from_weights(graph, &weights, &Device::Cpu, DType::F32).unwrap();
    let model = Detector { engine: Engine::Model(Box::new(model)), ..plan.clone() };
    let colour = |x: u32, y: u32| image::Rgb([2 * x as u8, 2 * y as u8, (x * y) as u8]);
    let pictures = [(64, 40), (90, 64)].map(|(width, height)| RgbImage::from_fn(width, height, colour));
    let [mut whole, mut augmented] = [Vec::new(), Vec::new()];
    for (augment, all) in [(false, &mut whole), (true, &mut augmented)] {
        let options = DetectOptions { augment, ..options.clone() };
        let [plan, model] = [&plan, &model].map(|detector| detector.clone().with_options(options.clone()).unwrap());
        let (expected, got) = (model.detect_batch(&pictures).unwrap(), plan.detect_batch(&pictures).unwrap());
        assert_eq!(got.network_shape, expected.network_shape);
        for (got, expected) in got.pictures.iter().flatten().zip(expected.pictures.iter().flatten()) {
            assert_eq!((got.bbox, got.class), (expected.bbox, expected.class));
            assert!((got.confidence - expected.confidence).abs() < 1e-4 * expected.confidence, "{got:?} {expected:?}");
        }
        assert_eq!(got.pictures.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
        all.extend(got.pictures);
    }
    assert_ne!(whole, augmented);
    assert!(plan.detect_batch(&[]).unwrap_err().to_string().contains("at least one picture"));
}

#[test]
fn runs_beside_each_other_give_what_each_gives_alone() {
    let graph = Graph::new(&NetworkConfig::open("yolov5n").unwrap()).unwrap();
    let weights = Weights::from_tensors(graph.init(1, &Device::Cpu).unwrap(), Default::default());
    let options = DetectOptions { imgsz: [128, 128], conf_thres: 0.0, max_det: 3, ..Default::default() };
    let alone = Detector::load(&weights, Some(graph.config()), &Device::Cpu, DType::F32).unwrap();
    let alone = alone.with_options(options).unwrap();
    let together = alone.clone().with_lanes(3);
    assert_eq!((alone.lanes(), together.lanes()), (1, 3));
    let pictures: Vec<_> =
        (0..12u8).map(|i| RgbImage::from_pixel(64 + 40 * u32::from(i % 2), 64, image::Rgb([20 * i; 3]))).collect();
    let expected: Vec<_> = pictures.iter().map(|picture| alone.detect(picture).unwrap()).collect();
    let got: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = pictures.iter().map(|picture| scope.spawn(|| together.detect(picture).unwrap())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(got, expected);
    assert!(expected.iter().any(|found| *found != expected[0]));
}

#[test]
fn every_class_of_the_head_has_a_name() {
    let yaml = "nc: 2\ndepth_multiple: 1\nwidth_multiple: 1\nanchors: 3\nbackbone:\n  - [-1, 1, Conv, [8, 6, 4, 2]]\n  - [-1, 1, Conv, [8, 3, 2]]\nhead:\n  - [[0, 1], 1, Detect, [7, anchors]]\n";
    let config = NetworkConfig::parse("own.yaml", yaml).unwrap();
    let graph = Graph::new(&config).unwrap();
    let weights = Weights::from_tensors(graph.init(1, &Device::Cpu).unwrap(), Default::default());
    let detector = Detector::load(&weights, Some(&config), &Device::Cpu, DType::F32).unwrap();
    assert_eq!(detector.names().len(), 7);
}
