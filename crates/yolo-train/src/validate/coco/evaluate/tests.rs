//! COCO's figures on cases small enough for a pencil.

use super::super::Rle;
use super::*;

fn truth(objects: &[(u64, u64, [f64; 4])]) -> Truth {
    let annotation = |&(image, category_id, bbox): &(u64, u64, [f64; 4])| Annotation {
        image_id: ImageId::Number(image),
        category_id,
        bbox,
        area: bbox[2] * bbox[3],
        crowd: false,
        segmentation: None,
    };
    Truth { images: (0..10).map(ImageId::Number).collect(), annotations: objects.iter().map(annotation).collect() }
}

fn found(image: u64, category_id: u64, bbox: [f64; 4], score: f64) -> Record {
    Record { image_id: ImageId::Number(image), category_id, bbox, score, segmentation: None }
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

const A: [f64; 4] = [10.0, 10.0, 20.0, 20.0];
const B: [f64; 4] = [60.0, 60.0, 50.0, 50.0];
const C: [f64; 4] = [200.0, 100.0, 100.0, 100.0];

#[test]
fn labels_found_as_they_are_are_perfect() {
    let labels = [(1, 5, A), (1, 5, B), (2, 5, C), (3, 9, A)];
    let records: Vec<Record> = labels.iter().map(|&(image, class, bbox)| found(image, class, bbox, 0.9)).collect();
    let stats = coco_map(&truth(&labels), &records, Kind::Boxes).unwrap();
    // 1 by this rule, where the trapezoidal one gives 0.995. Only one detection a picture and class: 3 of the 4 objects, 2/3 of
    // a class and all of the other.
    assert!(near(stats.ap, 1.0) && near(stats.ap50, 1.0) && near(stats.ap75, 1.0), "{stats:?}");
    assert!(stats.ap_sizes.iter().chain(&stats.ar_sizes).all(|ap| near(*ap, 1.0)), "{stats:?}");
    assert!(near(stats.ar[0], (2.0 / 3.0 + 1.0) / 2.0) && near(stats.ar[1], 1.0), "{stats:?}");
}

#[test]
fn half_of_the_objects_by_hand() {
    // Right, wrong, right of four objects: precision 1 up to a recall of 1/4 and 2/3 up to 1/2.
    let labels = [(1, 1, A), (1, 1, B), (2, 1, A), (3, 1, A)];
    let records = [found(1, 1, A, 0.9), found(4, 1, A, 0.8), found(2, 1, A, 0.7)];
    let stats = coco_map(&truth(&labels), &records, Kind::Boxes).unwrap();
    // 0.00, 0.01, ... 0.25 are 26 samples, 0.26 to 0.50 are 25.
    assert!(near(stats.ap50, (26.0 + 25.0 * 2.0 / 3.0) / 101.0), "{stats:?}");
    assert!(near(stats.ar[2], 0.5));
    // No large objects at all; the medium one is missed.
    assert_eq!((stats.ap_sizes[2], stats.ap_sizes[1]), (-1.0, 0.0));
}

#[test]
fn the_most_confident_takes_what_it_overlaps_most() {
    // The first detection overlaps both objects, and takes the second, which it overlaps more; the other takes what is left.
    let (low, high) = ([0.0, 0.0, 100.0, 100.0], [20.0, 0.0, 100.0, 100.0]);
    let records = [found(1, 1, [15.0, 0.0, 100.0, 100.0], 0.9), found(1, 1, [10.0, 0.0, 100.0, 100.0], 0.8)];
    let stats = coco_map(&truth(&[(1, 1, low), (1, 1, high)]), &records, Kind::Boxes).unwrap();
    // Overlaps: first 85/115 and 95/105 = 0.905; second 90/110 = 0.818 with both. Both are right up to 0.80, one up to 0.90.
    let (both, one) = (1.0, 51.0 / 101.0);
    assert!(near(stats.ap, (7.0 * both + 2.0 * one) / 10.0), "{stats:?}");
}

#[test]
fn detections_in_a_crowd_and_of_other_sizes_do_not_count() {
    let mut truth = truth(&[(1, 1, A), (1, 1, C)]);
    truth.annotations[1].crowd = true;
    let inside = [210.0, 110.0, 20.0, 20.0];
    let records = [found(1, 1, inside, 0.95), found(1, 1, inside, 0.94), found(1, 1, A, 0.5)];
    let stats = coco_map(&truth, &records, Kind::Boxes).unwrap();
    assert!(near(stats.ap, 1.0) && near(stats.ap_sizes[0], 1.0), "{stats:?}");
    // A large detection of nothing is no mistake among small objects.
    let records = [found(2, 1, C, 0.9), found(1, 1, A, 0.5)];
    let stats = coco_map(&truth, &records, Kind::Boxes).unwrap();
    assert!(near(stats.ap, 0.5) && near(stats.ap_sizes[0], 1.0), "{stats:?}");
}

#[test]
fn nothing_found_or_nothing_there() {
    assert_eq!(coco_map(&truth(&[(1, 1, A)]), &[], Kind::Boxes).unwrap().ap, 0.0);
    assert_eq!(coco_map(&truth(&[]), &[found(1, 1, A, 0.5)], Kind::Boxes).unwrap().ap, -1.0);
    let error = coco_map(&truth(&[]), &[found(77, 1, A, 0.5)], Kind::Boxes).unwrap_err().to_string();
    assert!(error.contains("no picture 77"), "{error}");
    let error = coco_map(&truth(&[(1, 1, A)]), &[], Kind::Masks).unwrap_err().to_string();
    assert!(error.contains("picture 1 has no mask"), "{error}");
}

#[test]
fn masks_are_compared_by_pixels() {
    let square =
        |left: f64, right: f64| Some(Rle::of_outlines(&[vec![left, 0.0, right, 0.0, right, 10.0, left, 10.0]], 20, 40));
    let mut truth = truth(&[(1, 1, A)]);
    truth.annotations[0].segmentation = square(0.0, 10.0);
    // The box is right, the mask overlaps by 72 of 120 pixels... of which 0.60 is the last overlap that counts.
    let record = Record { segmentation: square(2.5, 12.5), ..found(1, 1, A, 0.9) };
    assert!(near(coco_map(&truth, std::slice::from_ref(&record), Kind::Boxes).unwrap().ap, 1.0));
    let pixels = |mask: &Option<Rle>| mask.clone().unwrap();
    let (a, b) = (pixels(&truth.annotations[0].segmentation), pixels(&record.segmentation));
    let overlap = a.intersection(&b) as f64 / (a.area() + b.area() - a.intersection(&b)) as f64;
    let levels = thresholds().iter().filter(|level| **level <= overlap).count();
    assert!(levels > 0 && levels < 10, "{overlap}");
    let stats = coco_map(&truth, &[record], Kind::Masks).unwrap();
    assert!(near(stats.ap, levels as f64 / 10.0), "{stats:?} {overlap}");
}
