//! What plots show, at the places where it must be.

use candle_core::{Device, Tensor};
use image::Rgb;
use yolo_core::picture::colour;
use yolo_core::{Detection, Mask};

use super::*;
use crate::data::batch::Origin;
use crate::data::{Batch, Masks, Target};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|class| format!("class {class}")).collect()
}

/// Pixels of this very colour.
fn count(picture: &RgbImage, colour: [u8; 3]) -> usize {
    picture.pixels().filter(|pixel| pixel.0 == colour).count()
}

#[test]
fn curves_reach_the_places_of_their_numbers() {
    let x: Vec<f64> = (0..200).map(|i| f64::from(i) / 199.0).collect();
    let falling = |level: f64| x.iter().map(|x| level * (1.0 - x * x)).collect::<Vec<f64>>();
    let (classes, names) = ([falling(0.9), falling(0.5)], names(2));
    let curves = MetricCurves { names: &names, x: &x, classes: &classes };
    let pictures = [pr_curve(curves, &[0.6, 0.3]), f1_curve(curves), p_curve(curves), r_curve(curves)];
    for picture in &pictures {
        assert_eq!(picture.dimensions(), (1800, 1200));
        for class in 0..2 {
            assert!(count(picture, colours::curve(class)) > 1000);
        }
        // The mean is the thickest.
        assert!(count(picture, colours::STRONG) > 3 * count(picture, colours::curve(0)));
        // The better class lies above the other.
        let top = |class: usize| {
            let found = picture.enumerate_pixels().find(|(x, _, p)| *x < 1200 && p.0 == colours::curve(class));
            found.map(|(_, y, _)| y).unwrap()
        };
        assert!(top(0) + 300 < top(1));
    }
    assert_ne!(pictures[0], pictures[1]);
}

#[test]
fn curves_of_nothing_and_of_many_classes_are_drawn() {
    let empty = MetricCurves { names: &[], x: &[], classes: &[] };
    assert_eq!(pr_curve(empty, &[]).dimensions(), f1_curve(empty).dimensions());
    let (x, names) = (vec![0.0, 1.0], names(80));
    let classes = vec![vec![1.0, f64::NAN]; 80];
    f1_curve(MetricCurves { names: &names, x: &x, classes: &classes });
}

#[test]
fn labels_show_every_class_and_any_box() {
    let mut boxes: Vec<(usize, [f32; 4])> =
        (0..300).map(|i| (i % 3, [i as f32 / 300.0, 0.5, 0.1 + 0.3 * (i % 7) as f32 / 7.0, 0.2])).collect();
    let picture = super::labels(&boxes, &names(3));
    assert_eq!(picture.dimensions(), (1600, 1600));
    for class in 0..2 {
        assert!(count(&picture, colour(class)) > 10_000, "{class}");
    }
    // The third is nearly white, and drawn darker.
    assert!(count(&picture, [177; 3]) > 10_000);
    boxes.extend([(2, [f32::NAN; 4]), (900_000, [5.0, -3.0, 1e30, f32::INFINITY])]);
    super::labels(&boxes, &names(3));
    super::labels(&[], &[]);
    super::labels(&boxes[..5], &names(80));
}

fn batch(pictures: usize, masks: Option<Masks>, targets: Vec<Target>) -> Batch {
    let images = Tensor::full(0.2_f32, (pictures, 3, 64, 96), &Device::Cpu).unwrap();
    let origin = |index| Origin {
        path: format!("folder/{index:04}.jpg").into(),
        size: (64, 96),
        ratio: (1.0, 1.0),
        pad: (0.0, 0.0),
    };
    Batch { images, targets, masks, origins: (0..pictures).map(origin).collect() }
}

#[test]
fn a_batch_is_drawn_with_its_boxes() {
    let target = |image, class| Target { image, class, xywh: [0.5, 0.5, 0.5, 0.5] };
    let plain = batch(3, None, vec![target(0, 3), target(2, 12)]);
    let picture = label_mosaic(&plain, &names(20)).unwrap();
    // Pictures of 96x64 are enlarged to 320, two by two.
    assert_eq!(picture.dimensions(), (640, 426));
    let quarter = |x: u32, y: u32| image::imageops::crop_imm(&picture, x, y, 320, 213).to_image();
    let (first, second, third) = (quarter(0, 0), quarter(320, 0), quarter(0, 213));
    assert!(count(&first, colour(3)) > 300 && count(&third, colour(12)) > 300);
    assert!(count(&second, colour(3)) + count(&second, colour(12)) == 0 && count(&second, [51; 3]) > 50_000);
    // The box's line is where the box is.
    assert!((80..84).any(|x| first.get_pixel(x, 110).0 == colour(3)));
}

#[test]
fn masks_belong_to_their_objects() {
    let target = |image, class| Target { image, class, xywh: [0.5, 0.5, 1.0, 1.0] };
    let targets = vec![target(0, 0), target(1, 7), target(1, 8)];
    let tinted = |picture: &RgbImage, class: usize| {
        count(picture, colour(class).map(|c| (f32::from(c) * 0.45 + 51.0 * 0.55).round() as u8))
    };
    // The left half of the second picture belongs to its second object.
    let overlap: Vec<f32> = (0..2 * 16 * 24).map(|i| if i >= 16 * 24 && i % 24 < 12 { 2.0 } else { 0.0 }).collect();
    let overlap = Tensor::from_vec(overlap, (2, 16, 24), &Device::Cpu).unwrap();
    let picture = label_mosaic(&batch(2, Some(Masks::Overlap(overlap)), targets.clone()), &names(9)).unwrap();
    assert!(tinted(&picture, 8) > 20_000 && tinted(&picture, 7) == 0 && tinted(&picture, 0) == 0);
    let separate: Vec<f32> = (0..3 * 16 * 24).map(|i| f32::from(u8::from(i / (16 * 24) == 1))).collect();
    let separate = Tensor::from_vec(separate, (3, 16, 24), &Device::Cpu).unwrap();
    let picture = label_mosaic(&batch(2, Some(Masks::Separate(separate)), targets), &names(9)).unwrap();
    assert!(tinted(&picture, 7) > 40_000 && tinted(&picture, 8) == 0);
}

#[test]
fn predictions_are_drawn_where_they_are_sure() {
    let found = |class, confidence| Detection {
        bbox: [10.0, 10.0, 60.0, 50.0],
        class,
        confidence,
        mask: Some(Mask { width: 2, height: 2, data: vec![0; 4] }),
        polygon: None,
    };
    let plain = batch(20, None, Vec::new());
    let detections = vec![vec![found(3, 0.9), found(5, 0.2)], Vec::new(), vec![found(6, 0.26)]];
    let picture = prediction_mosaic(&plain, &detections, &names(9)).unwrap();
    // Sixteen pictures at most.
    assert_eq!(picture.dimensions(), (1280, 852));
    assert!(count(&picture, colour(3)) > 100 && count(&picture, colour(6)) > 100 && count(&picture, colour(5)) == 0);
    assert!(prediction_mosaic(&batch(1, None, Vec::new()), &[], &[]).is_ok());
    assert!(mosaic(&[], &[], true).width() > 0);
}

#[test]
fn pictures_are_saved_by_their_ending() {
    let folder = tempfile::tempdir().unwrap();
    let picture = RgbImage::from_pixel(8, 4, Rgb([1, 2, 3]));
    for name in ["a.png", "a.JPG"] {
        save(folder.path().join(name), &picture).unwrap();
        assert_eq!(yolo_core::picture::open(folder.path().join(name)).unwrap().dimensions(), (8, 4));
    }
    let error = save(folder.path().join("a.gif"), &picture).unwrap_err().to_string();
    assert!(error.contains("expected a name that ends in .png or .jpg"), "{error}");
}
