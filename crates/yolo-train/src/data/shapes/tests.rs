//! Drawn data sets: what is labelled is there, and a seed gives the same files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::scene::LEAST_VISIBLE;
use super::*;

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(files(&entry));
        } else {
            found.insert(entry.display().to_string(), fs::read(&entry).unwrap());
        }
    }
    found
}

#[test]
fn a_data_set_is_whole_and_the_same_for_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { images: 11, seed: 5, size: 64, val_fraction: 0.2 };
    let seen = AtomicUsize::new(0);
    let tick = || {
        seen.fetch_add(1, Ordering::Relaxed);
    };
    let report = generate(folder.path(), &options, &tick).unwrap();
    assert_eq!((report.train, report.val, seen.into_inner()), (9, 2, 11));
    let first = files(folder.path());
    assert_eq!(first.len(), 23);

    // Again into the same folder, by one thread.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| generate(folder.path(), &options, &|| {})).unwrap();
    assert!(files(folder.path()) == first);
    let other = Options { seed: 6, ..options };
    generate(folder.path(), &other, &|| {}).unwrap();
    let second = files(folder.path());
    assert!(first.iter().all(|(name, bytes)| !name.ends_with(".jpg") || second[name] != *bytes));
}

#[test]
fn labels_are_what_the_loader_reads() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { images: 12, seed: 1, size: 96, val_fraction: 0.0 };
    let report = generate(folder.path(), &options, &|| {}).unwrap();
    let mut rows = [0; NAMES.len()];
    for number in 0..12 {
        let text = fs::read_to_string(folder.path().join(format!("labels/train/{number:04}.txt"))).unwrap();
        for line in text.lines() {
            let numbers: Vec<f32> = line.split(' ').map(|word| word.parse().unwrap()).collect();
            assert!(numbers.len() >= 7 && numbers.len() % 2 == 1, "{line}");
            assert!(numbers[1..].iter().all(|v| (0.0..=1.0).contains(v)), "{line}");
            rows[numbers[0] as usize] += 1;
        }
        let image = yolo_core::picture::open(folder.path().join(format!("images/train/{number:04}.jpg"))).unwrap();
        assert_eq!(image.dimensions(), (96, 96));
    }
    assert_eq!(rows, report.shapes);
    assert!(rows.iter().sum::<usize>() > 24);
    let yaml = fs::read_to_string(folder.path().join("data.yaml")).unwrap();
    let yaml: serde_yaml::Value = serde_yaml::from_str(&yaml).unwrap();
    assert_eq!(yaml["val"], "images/train");
    assert_eq!(yaml["names"][4], "ring");
    assert!(folder.path().join(yaml["path"].as_str().unwrap()).join("images/train/0000.jpg").is_file());
}

#[test]
fn every_class_is_drawn_and_the_hidden_have_no_label() {
    let (mut counts, mut hidden, mut covered, mut empty) = ([0; NAMES.len()], 0, 0, 0);
    for number in 0..150 {
        let scene = Scene::new(7, number, 64);
        empty += usize::from(scene.shapes.is_empty());
        hidden += scene.hidden;
        for shape in &scene.shapes {
            assert!(shape.visible >= LEAST_VISIBLE && shape.visible <= 1.0);
            covered += usize::from(shape.visible < 0.8);
            counts[shape.class] += 1;
            assert!(outline::area(&shape.polygon) > 3.0, "{shape:?}");
        }
    }
    let total: usize = counts.iter().sum();
    assert!(counts.iter().all(|&count| count * 10 > total), "{counts:?}");
    // Shapes lie over each other, and some pictures are empty.
    assert!(covered * 12 > total, "{covered} of {total}");
    assert!(hidden > 0 && hidden * 8 < total, "{hidden} of {total}");
    assert!((1..=15).contains(&empty), "{empty}");
}

/// The uppermost shape's middle looks different from what is just outside of its box's corners.
#[test]
fn the_polygons_lie_on_the_shapes() {
    let (mut inside, mut all) = (0, 0);
    for number in 0..80 {
        let scene = Scene::new(11, number, 96);
        let Some(shape) = scene.shapes.last().filter(|shape| NAMES[shape.class] != "ring") else { continue };
        let centre = |f: fn(f32, f32) -> f32, axis: usize| shape.polygon.iter().map(|p| p[axis]).reduce(f).unwrap();
        let (x1, x2) = (centre(f32::min, 0), centre(f32::max, 0));
        let (y1, y2) = (centre(f32::min, 1), centre(f32::max, 1));
        let at = |x: f32, y: f32| {
            let [x, y] = [x, y].map(|v| v.clamp(0.0, 95.0) as u32);
            scene.image.get_pixel(x, y).0.map(f32::from)
        };
        let middle = at((x1 + x2) / 2.0, (y1 + y2) / 2.0);
        for corner in [[x1 - 3.0, y1 - 3.0], [x2 + 3.0, y1 - 3.0], [x1 - 3.0, y2 + 3.0], [x2 + 3.0, y2 + 3.0]] {
            all += 1;
            inside += usize::from(canvas::difference(middle, at(corner[0], corner[1])) > 60.0);
        }
    }
    assert!(all >= 200 && inside * 10 >= all * 8, "{inside} of {all}");
}

#[test]
fn options_out_of_range_are_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let good = Options { images: 1, size: 32, ..Options::default() };
    for (options, words) in [
        (Options { images: 0, ..good.clone() }, "images: expected 1 to"),
        (Options { size: 16, ..good.clone() }, "size: expected a side of 32"),
        (Options { val_fraction: 1.0, ..good.clone() }, "val-fraction: expected"),
        (Options { val_fraction: f64::NAN, ..good.clone() }, "val-fraction: expected"),
    ] {
        let error = generate(folder.path(), &options, &|| {}).unwrap_err().to_string();
        assert!(error.starts_with(words), "{error}");
    }
    assert!(files(folder.path()).is_empty());
    // A single picture is for training.
    let report = generate(folder.path(), &good, &|| {}).unwrap();
    assert_eq!((report.train, report.val), (1, 0));
}
