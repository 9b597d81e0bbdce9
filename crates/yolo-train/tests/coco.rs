//! mAP by COCO's rule, against `pycocotools`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use yolo_train::validate::coco::{CocoStats, Kind, coco_map, open_annotations, open_records};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn figures_are_those_of_pycocotools() {
    let expected: HashMap<String, Vec<f64>> =
        serde_json::from_str(&fs::read_to_string(data("coco_stats.json")).unwrap()).unwrap();
    let records = open_records(data("coco_found.json")).unwrap();
    let truth = open_annotations(data("coco_truth.json"), true).unwrap();
    for (kind, name) in [(Kind::Boxes, "bbox"), (Kind::Masks, "segm")] {
        let CocoStats { ap, ap50, ap75, ap_sizes, ar, ar_sizes } = coco_map(&truth, &records, kind).unwrap();
        let got = [&[ap, ap50, ap75][..], &ap_sizes, &ar, &ar_sizes].concat();
        assert_eq!(got.len(), expected[name].len());
        for (index, (got, expected)) in got.iter().zip(&expected[name]).enumerate() {
            assert!((got - expected).abs() < 1e-12, "{name}, figure {index}: {got}, pycocotools has {expected}");
        }
    }
}

#[test]
fn lines_are_those_of_pycocotools() {
    let stats = CocoStats {
        ap: 0.3735,
        ap50: 0.5678,
        ap75: -1.0,
        ap_sizes: [0.25; 3],
        ar: [0.1, 0.2, 0.3],
        ar_sizes: [0.0; 3],
    };
    let lines = stats.lines();
    assert_eq!(lines.len(), 12);
    assert_eq!(lines[1], " Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.568");
    assert_eq!(lines[2], " Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = -1.000");
    assert_eq!(lines[7], " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.200");
    assert_eq!(lines[11], " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.000");
}
