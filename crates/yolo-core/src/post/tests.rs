//! Post-processing against YOLOv5, torchvision and OpenCV; the data's and tables' makers are in `tests/data`.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{Device, Tensor};

use super::*;
use crate::picture::Placement;
use crate::picture::tests::{FNV, fnv, noise};
use crate::{Error, Mask};

fn golden(name: &str) -> HashMap<String, Tensor> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/post").join(name);
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Detections as YOLOv5's rows: box, confidence, class.
fn agree(found: &[Candidate], expected: &[Vec<f32>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.class as f32, expected[5], "{what}: class of row {index}");
        assert!((found.confidence - expected[4]).abs() <= 1e-4, "{what}: score of row {index}");
        for (got, want) in found.bbox.iter().zip(expected) {
            assert!((got - want).abs() <= 0.01, "{what}: row {index} has {:?}, expected {expected:?}", found.bbox);
        }
    }
}

#[test]
fn finds_what_yolov5_finds() {
    for (name, network) in [("bus_rect", (640, 480)), ("bus_square", (640, 640))] {
        let golden = golden(&format!("{name}.safetensors"));
        let output = &golden["output0"];
        let found = nms(&values(output), 85, &NmsOptions::default()).unwrap();
        agree(&found, &rows(&golden["nms"]), name);

        let many =
            NmsOptions { conf_thres: 0.001, iou_thres: 0.6, multi_label: true, max_det: 300, ..Default::default() };
        let found_many = nms(&values(output), 85, &many).unwrap();
        agree(&found_many, &rows(&golden["nms_multilabel"]), name);

        let mut boxes: Vec<_> = found.iter().map(|found| found.bbox).collect();
        scale_boxes(&mut boxes, &Placement::centred(network, (1080, 810)));
        round_boxes(&mut boxes);
        let expected = rows(&golden["boxes"]);
        assert_eq!(boxes.len(), expected.len());
        for (bbox, expected) in boxes.iter().zip(&expected) {
            assert_eq!(bbox, &expected[..4], "{name}");
        }
        let batch = Tensor::stack(&[output, output], 0).unwrap();
        assert_eq!(nms_batch(&batch, &NmsOptions::default()).unwrap(), [found.clone(), found]);
    }
}

/// A row: box by its corners, objectness, then the rest.
fn row(corners: [f32; 4], objectness: f32, rest: &[f32]) -> Vec<f32> {
    let [x1, y1, x2, y2] = corners;
    let mut row = vec![(x1 + x2) / 2.0, (y1 + y2) / 2.0, x2 - x1, y2 - y1, objectness];
    row.extend(rest);
    row
}

fn classes(found: &[Candidate]) -> Vec<(usize, f32)> {
    found.iter().map(|found| (found.class, found.confidence)).collect()
}

#[test]
fn thresholds_are_strict() {
    // Half of a 10x20 box under another: the overlap is 1/2 exactly.
    let (a, b) = ([0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 10.0, 10.0]);
    let rows = [row(a, 1.0, &[0.75]), row(b, 1.0, &[0.5])].concat();
    let kept = |conf_thres, iou_thres| {
        nms(&rows, 6, &NmsOptions { conf_thres, iou_thres, ..Default::default() }).unwrap().len()
    };
    assert_eq!(kept(0.25, 0.5), 2, "an overlap of the threshold stays");
    assert_eq!(kept(0.25, 0.499), 1);
    assert_eq!(kept(0.5, 0.5), 1, "a score of the threshold goes");
    assert_eq!(kept(1.0, 0.5), 0);
}

#[test]
fn classes_do_not_suppress_each_other_unless_asked() {
    let bbox = [10.0, 10.0, 50.0, 50.0];
    let rows = [row(bbox, 0.5, &[1.0, 0.75, 0.0]), row(bbox, 0.5, &[0.0, 0.875, 0.0])].concat();
    let found = |options: NmsOptions| classes(&nms(&rows, 8, &options).unwrap());
    assert_eq!(found(NmsOptions::default()), [(0, 0.5), (1, 0.4375)]);
    assert_eq!(found(NmsOptions { agnostic: true, ..Default::default() }), [(0, 0.5)]);
    let multi_label = NmsOptions { multi_label: true, ..Default::default() };
    assert_eq!(found(multi_label.clone()), [(0, 0.5), (1, 0.4375)]);
    assert_eq!(found(NmsOptions { iou_thres: 1.0, ..multi_label }), [(0, 0.5), (1, 0.4375), (1, 0.375)]);
    assert_eq!(found(NmsOptions { classes: Some(vec![1, 70]), ..Default::default() }), [(1, 0.4375)]);
    assert_eq!(found(NmsOptions { max_nms: 1, ..Default::default() }), [(0, 0.5)]);
    assert_eq!(found(NmsOptions { max_det: 0, ..Default::default() }), []);
}

#[test]
fn equal_scores_stay_in_order() {
    let rows: Vec<f32> =
        (0..50).flat_map(|i| row([i as f32 * 20.0, 0.0, i as f32 * 20.0 + 10.0, 10.0], 0.5, &[1.0])).collect();
    let found = nms(&rows, 6, &NmsOptions::default()).unwrap();
    assert!(found.iter().enumerate().all(|(i, found)| found.bbox[0] == i as f32 * 20.0) && found.len() == 50);
}

#[test]
fn mask_coefficients_carry_the_objectness() {
    let rows = row([0.0, 0.0, 8.0, 8.0], 0.5, &[0.25, 0.75, 2.0, -4.0]);
    let found = nms(&rows, 9, &NmsOptions { nm: 2, ..Default::default() }).unwrap();
    assert_eq!(found[0].coefficients, [1.0, -2.0]);
    assert_eq!((found[0].class, found[0].confidence), (1, 0.375));
}

#[test]
fn rows_that_are_not_numbers_are_left_out() {
    let good = row([0.0, 0.0, 8.0, 8.0], 0.5, &[0.75, 0.5]);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for column in 0..7 {
            let mut broken = good.clone();
            broken[column] = bad;
            let rows = [broken, good.clone()].concat();
            assert_eq!(nms(&rows, 7, &NmsOptions::default()).unwrap().len(), 1, "{bad} in column {column}");
        }
    }
    assert_eq!(nms(&[f32::MAX; 14], 7, &NmsOptions::default()).unwrap(), []);
}

#[test]
fn rows_of_the_wrong_length_are_errors() {
    let shape = |rows: &[f32], columns, nm| nms(rows, columns, &NmsOptions { nm, ..Default::default() });
    assert!(matches!(shape(&[0.0; 13], 6, 0), Err(Error::Shape { .. })));
    assert!(matches!(shape(&[], 0, 0), Err(Error::Shape { .. })));
    assert!(matches!(shape(&[0.0; 37], 37, usize::MAX), Err(Error::Shape { .. })));
    let error = shape(&[0.0; 37], 37, 32).unwrap_err().to_string();
    assert_eq!(
        error,
        "predictions: expected at least 38 columns (box, objectness, one class, 32 mask coefficients), got 37 columns"
    );
    let thresholds = NmsOptions { conf_thres: f64::NAN, ..Default::default() };
    assert!(matches!(nms(&[], 6, &thresholds), Err(Error::Argument { .. })));
    let flat = Tensor::zeros((3, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(matches!(nms_batch(&flat, &NmsOptions::default()), Err(Error::Shape { .. })));
}

#[test]
fn the_lower_of_equal_classes_wins() {
    let rows = row([0.0, 0.0, 8.0, 8.0], 0.5, &[0.5, 0.75, 0.75]);
    assert_eq!(classes(&nms(&rows, 8, &NmsOptions::default()).unwrap()), [(1, 0.375)]);
}

#[test]
fn boxes_are_scaled_as_yolov5() {
    let boxes = [[10.25, 20.5, 300.75, 222.125], [-4.0, 30.0, 639.0, 400.0], [100.0, 13.1, 101.0, 13.2]];
    // YOLOv5's scale_boxes, without and with a ratio and padding given.
    let from_shapes = [
        [20.548_048, 16.696_093, 602.909_8, 420.891_2],
        [0.0, 35.740_623, 1_280.995_4, 721.0],
        [200.468_75, 1.861_406_2, 202.473_43, 2.061_874],
    ];
    let given = [[17.5, 27.0, 598.5, 430.25], [0.0, 46.0, 1275.0, 721.0], [197.0, 12.200_001, 199.0, 12.4]];
    let centred = Placement::centred((384, 640), (721, 1283));
    let exact = Placement { gain: (0.5, 0.5), pad: (1.5, 7.0), ..centred };
    for (placement, expected) in [(centred, from_shapes), (exact, given)] {
        let mut scaled = boxes;
        scale_boxes(&mut scaled, &placement);
        for (got, want) in scaled.iter().flatten().zip(expected.iter().flatten()) {
            assert!((got - want).abs() <= 1e-4, "{scaled:?}");
        }
    }
}

#[test]
fn boxes_are_clipped_and_rounded_to_even() {
    let mut boxes = [[-5.0, 2.5, 3.5, 900.0], [f32::NAN, 0.5, 1.5, 2.0]];
    clip_boxes(&mut boxes, (100, 200));
    round_boxes(&mut boxes);
    assert_eq!(boxes[0], [0.0, 2.0, 4.0, 100.0]);
    assert_eq!(boxes[1][1..], [0.0, 2.0, 2.0]);
    assert!(boxes[1][0].is_nan());
}

fn coefficients(tensor: &Tensor) -> Vec<Vec<f32>> {
    rows(tensor)
}

fn boxes(tensor: &Tensor) -> Vec<[f32; 4]> {
    rows(tensor).iter().map(|row| [row[0], row[1], row[2], row[3]]).collect()
}

#[test]
fn masks_are_those_of_yolov5() {
    let golden = golden("masks.safetensors");
    let lists = coefficients(&golden["coefficients"]);
    let lists: Vec<&[f32]> = lists.iter().map(Vec::as_slice).collect();
    let boxes = boxes(&golden["boxes"]);
    for (upsample, name, sides) in [(true, "mask", (160, 128)), (false, "mask_low", (40, 32))] {
        let masks = process_mask(&golden["proto"], &lists, &boxes, (160, 128), upsample).unwrap();
        let expected: Vec<u8> = golden[name].flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(masks.len() * sides.0 * sides.1, expected.len());
        for (mask, expected) in masks.iter().zip(expected.chunks_exact(sides.0 * sides.1)) {
            assert_eq!((mask.height as usize, mask.width as usize), sides);
            let differ = mask.data.iter().zip(expected).filter(|(a, b)| a != b).count();
            assert_eq!(differ, 0, "{name}: pixels that differ");
        }
    }
}

#[test]
fn native_masks_are_those_of_yolov5() {
    let golden = golden("masks.safetensors");
    let lists = coefficients(&golden["coefficients"]);
    let lists: Vec<&[f32]> = lists.iter().map(Vec::as_slice).collect();
    let masks = process_mask_native(&golden["proto"], &lists, &boxes(&golden["native_boxes"]), (150, 110)).unwrap();
    let expected: Vec<u8> = golden["native_mask"].flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(masks.len(), 5);
    for (mask, expected) in masks.iter().zip(expected.chunks_exact(150 * 110)) {
        assert_eq!((mask.height, mask.width), (150, 110));
        assert!(mask.data == expected, "the pixels differ");
    }
}

#[test]
fn segments_are_scaled_as_yolov5() {
    let points = [[0.0, 0.0], [3.0, 20.0], [17.0, 31.0], [63.0, 47.0], [40.0, 12.0]];
    let placement = Placement::centred((48, 64), (150, 110));
    let scaled = scale_segments(&points, &placement, false);
    assert_eq!(scaled, [[0.0, 0.0], [0.0, 62.5], [8.125_001, 96.875], [110.0, 146.875], [80.0, 37.5]]);
    let fractions = scale_segments(&points, &placement, true);
    for (fraction, pixel) in fractions.iter().zip(&scaled) {
        assert_eq!(*fraction, [pixel[0] / 110.0, pixel[1] / 150.0]);
    }
}

#[test]
fn outlines_are_those_of_opencv() {
    // `python opencv.py` in tests/data.
    #[rustfmt::skip]
    let cases: [(usize, usize, usize, u8, u64, u64); 13] = [
        (1, 1, 1, 128, 0x18c7f2119ffafcb9, 0x9a6b96711693e4ea),
        (1, 12, 1, 128, 0xf187847ff1d70cc7, 0x8518c957d87a02b6),
        (12, 1, 1, 128, 0xce6633c2053b3ee1, 0xf38c8b90ae23e05a),
        (3, 3, 1, 128, 0xf83fc56a7e83a992, 0x39c8df8764bb30b0),
        (8, 8, 1, 60, 0x39ca7b4a4a3c165b, 0xabd74a731af022a2),
        (8, 8, 1, 200, 0x310f7801ef522d35, 0xc1f37d593519a642),
        (16, 11, 1, 100, 0x809226bacbfc7b9c, 0xd2fe608e3d51b2ca),
        (16, 11, 1, 150, 0xe2359722553830e4, 0x5f2b6b164c162754),
        (24, 24, 1, 250, 0xe1545e9daae7965a, 0xb78c5b88532b6c9a),
        (24, 24, 1, 20, 0x7cdd2a7283553125, 0xba3a7cec073ddb64),
        (30, 20, 3, 110, 0xc4346724539a1bb7, 0x5ac7af32da00ff76),
        (40, 40, 5, 150, 0x4a9539a7cab1a818, 0xf60698b92e18a4d8),
        (64, 48, 2, 128, 0x30acc9f920219ec1, 0x2e2f6e38c53a2660),
    ];
    for (width, height, block, threshold, expected, expected_largest) in cases {
        let (mut every, mut largest) = (FNV, FNV);
        for seed in 1..=40 {
            let stride = width / block + 1;
            let small = noise((height / block + 1) * stride, seed * 7919);
            let inside = |at: usize| u8::from(small[at / width / block * stride + at % width / block] < threshold);
            let data = (0..width * height).map(inside).collect();
            let mask = Mask { width: width as u32, height: height as u32, data };
            let found = contours(&mask);
            every = fnv([found.len() as u64], every);
            for outline in &found {
                every = fnv([outline.len() as u64], every);
                every = fnv(outline.iter().flatten().map(|&side| side as u64), every);
            }
            let best = largest_contour(&mask);
            assert_eq!(best.is_empty(), found.is_empty());
            if !best.is_empty() {
                largest = fnv([best.len() as u64], largest);
                largest = fnv(best.iter().flatten().map(|&side| side as u64), largest);
            }
        }
        assert_eq!(every, expected, "all outlines of {width}x{height}, blocks of {block}, threshold {threshold}");
        assert_eq!(largest, expected_largest, "largest outlines of {width}x{height}, blocks of {block}");
    }
}

#[test]
fn a_mask_without_pixels_has_no_outline() {
    assert!(largest_contour(&Mask { width: 0, height: 0, data: vec![] }).is_empty());
    assert!(largest_contour(&Mask { width: 3, height: 2, data: vec![0; 6] }).is_empty());
    assert!(largest_contour(&Mask { width: 3, height: 2, data: vec![1; 5] }).is_empty(), "the data do not match");
}

#[test]
fn wrong_counts_of_coefficients_are_errors() {
    let proto = Tensor::zeros((2, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    let one: &[f32] = &[1.0, 2.0];
    let bbox = [0.0, 0.0, 9.0, 9.0];
    assert_eq!(process_mask(&proto, &[], &[], (16, 16), true).unwrap(), []);
    assert!(process_mask(&proto, &[one], &[], (16, 16), true).is_err());
    assert!(process_mask(&proto, &[&one[..1]], &[bbox], (16, 16), true).is_err());
    assert!(process_mask(&proto, &[one], &[bbox], (0, 16), true).is_err());
    assert!(process_mask_native(&proto.flatten_all().unwrap(), &[one], &[bbox], (16, 16)).is_err());
    let largest = (u32::MAX, u32::MAX);
    let text = process_mask_native(&proto, &[one], &[bbox], largest).unwrap_err().to_string();
    assert!(text.contains("at most 268435456 pixels"), "{text}");
    assert!(process_mask(&proto, &[one], &[bbox], largest, true).is_err());
    assert!(scale_mask(&Mask { width: 1, height: 1, data: vec![1] }, largest).is_err());
    for odd in [[f32::NAN; 4], [f32::INFINITY; 4], [9.0, 9.0, 0.0, 0.0], [-1e30, -1e30, 1e30, 1e30]] {
        assert_eq!(process_mask(&proto, &[one], &[odd], (16, 16), true).unwrap()[0].data.len(), 256);
        assert_eq!(process_mask_native(&proto, &[one], &[odd], (1, 5000)).unwrap()[0].data.len(), 5000);
    }
}

#[test]
fn crops_and_scales_masks() {
    let mut mask = Mask { width: 4, height: 3, data: vec![1; 12] };
    crop_mask(&mut mask, [0.5, 1.0, 2.1, 7.0]);
    assert_eq!(mask.data, [0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0]);
    // A 4x4 input that holds a 4x2 picture in its middle; the picture has twice the pixels.
    let mask = Mask { width: 4, height: 4, data: vec![1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1] };
    let scaled = scale_mask(&mask, (4, 8)).unwrap();
    assert_eq!((scaled.width, scaled.height), (8, 4));
    assert_eq!(scaled.data[..8], [1, 1, 1, 1, 0, 0, 0, 0]);
    assert_eq!(scaled.data[24..], [0; 8]);
    // Of half the size, each pixel is the average of four: cv2.resize of [[1,0,0,0],[1,0,0,0],[1,1,0,0],[0,1,1,0]] gives [[1,0],[1,0]].
    let mask_of = |data: [u8; 16]| Mask { width: 4, height: 4, data: data.to_vec() };
    let half = scale_mask(&mask_of([1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0]), (2, 2)).unwrap();
    assert_eq!(half.data, [1, 0, 1, 0]);
    // cv2.resize of [[0,1],[1,1],[1,1],[1,0]] to 3x3: 7/12 inside at two corners is lost in OpenCV's few bits.
    let tall = Mask { width: 2, height: 4, data: vec![0, 1, 1, 1, 1, 1, 1, 0] };
    assert_eq!(unpad_mask(&tall, (0.0, 0.0), (3, 3)).unwrap().data, [0, 0, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(unpad_mask(&tall, (0.0, 1.5), (2, 2)).unwrap().data, [1; 4]);
    assert!(scale_mask(&Mask { width: 4, height: 4, data: vec![1; 15] }, (4, 8)).is_err());
    assert!(scale_mask(&mask, (0, 8)).is_err());
}
