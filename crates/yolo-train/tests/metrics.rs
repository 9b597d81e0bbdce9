//! Metrics against the reference implementation's.

use std::path::Path;

use safetensors::SafeTensors;
use yolo_train::validate::average_precision::{Statistics, ap_per_class, mean};
use yolo_train::validate::matching::{box_iou, match_detections};

fn numbers<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|chunk| read(chunk.try_into().unwrap())).collect()
}

#[test]
fn figures_are_those_of_the_reference_to_the_last_digit() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/metrics_ap.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let detections = numbers(&data("detections"), f32::from_le_bytes);
    let labels = numbers(&data("labels"), f32::from_le_bytes);

    let corners = |row: &[f32]| [row[0], row[1], row[2], row[3]];
    let boxes: Vec<[f32; 4]> = detections.chunks_exact(6).map(corners).collect();
    let label_boxes: Vec<[f32; 4]> = labels.chunks_exact(5).map(|row| corners(&row[1..])).collect();
    let classes: Vec<usize> = detections.chunks_exact(6).map(|row| row[5] as usize).collect();
    let label_classes: Vec<usize> = labels.chunks_exact(5).map(|row| row[0] as usize).collect();
    let correct = match_detections(&box_iou(&label_boxes, &boxes), &label_classes, &classes);
    let expected = data("correct");
    let got: Vec<u8> = correct.iter().flatten().map(|&right| u8::from(right)).collect();
    assert_eq!(got, expected);

    let statistics = Statistics {
        correct,
        confidence: detections.chunks_exact(6).map(|row| row[4]).collect(),
        class: classes,
        labels: label_classes,
    };
    let result = ap_per_class(&statistics);
    let floats = |name: &str| numbers(&data(name), f64::from_le_bytes);
    let classes: Vec<usize> =
        numbers(&data("classes"), i64::from_le_bytes).into_iter().map(|class| class as usize).collect();
    assert_eq!(result.classes, classes);
    assert_eq!(result.ap.concat(), floats("ap"));
    assert_eq!(result.precision, floats("precision"));
    assert_eq!(result.recall, floats("recall"));
    assert_eq!(result.f1, floats("f1"));
    assert!(mean(&result.ap.concat()) > 0.1, "the data have something to tell");
}
