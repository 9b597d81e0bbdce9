//! What cannot be used is told in a sentence that names the file.

use yolo_train::Hyp;
use yolo_train::data::{Dataset, DatasetConfig, Loader, LoaderOptions, MaskOptions, Split};

use crate::world::World;

fn config_error(world: &World, yaml: &str) -> String {
    world.write("data.yaml", yaml);
    let error = DatasetConfig::open(world.yaml()).unwrap_err().to_string();
    assert!(error.contains("data.yaml"), "{error}");
    error
}

fn open_error(world: &World) -> String {
    let config = DatasetConfig::open(world.yaml()).unwrap();
    let options = LoaderOptions::training(64, 2, Hyp::default());
    Loader::open(&config, Split::Train, options, &|_, _| {}).unwrap_err().to_string()
}

#[test]
fn yamls() {
    let world = World::empty();
    for (yaml, expected) in [
        ("train: [", "not a data set's YAML"),
        ("just text", "not a data set's YAML"),
        ("", "not a data set's YAML (expected path, train, val, names): the file is empty"),
        ("train: 5\nnames: [a]", "`train` is 5, expected a folder, a file that lists pictures, or a list of these"),
        ("val: [a, 5]\nnames: [a]", "`val` has 5 in its list, expected a folder"),
        ("path: 5\nnames: [a]", "`path` is 5, expected a folder"),
        ("nc: 2.5\nnames: [a]", "`nc` is 2.5, expected the number of classes"),
        ("names: abc", "`names` is abc, expected a list of class names, or a map of them from 0 on"),
        ("names: [1, 2.5, true, null, 5]", "`names`: class 3 is null, expected a name"),
        ("names: {0: a, 1: [b]}", "`names`: class 1 is [\"b\"], expected a name"),
        ("names: {a: 0}", "`names` has the key a, expected the number of a class"),
        ("train: images", "expected `names` of 1 to"),
        ("train: images\nnames: []", "got 0"),
        ("train: images\nnc: 0", "got 0"),
        ("train: images\nnc: 4000000000", "got 4000000000"),
        ("train: images\nnc: 3\nnames: [a, b]", "nc is 3, but `names` has 2 classes"),
        ("train: images\nnames: {0: a, 2: b}", "1 is missing, 2 is there"),
        ("path: nowhere\ntrain: images\nnames: [a]", "`path` is nowhere: there is no such folder beside the YAML"),
        ("path: x\ndownload: https://x\nnames: [a]", "fetch the data set by hand"),
    ] {
        let error = config_error(&world, yaml);
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
    let missing = DatasetConfig::open(world.path("other.yaml")).unwrap_err().to_string();
    assert!(missing.contains("other.yaml"), "{missing}");
}

#[test]
fn sets_without_pictures_or_labels() {
    let world = World::empty();
    assert!(open_error(&world).contains("`train` has no pictures: looked for bmp, jpeg"));
    world.write("data.yaml", "val: images/val\nnames: [a]");
    assert!(open_error(&world).contains("there is no `train`"));
    world.write("data.yaml", "train: images/none\nnames: [a]");
    assert!(open_error(&world).contains("images/none: "));

    world.write("data.yaml", "train: images/train\nnames: [a]");
    world.add("train", "0", (1, 1), &[], false);
    let error = open_error(&world);
    assert!(error.contains("none of the 1 pictures of `train` can be used") && error.contains("1x1 pixels"), "{error}");

    world.add("train", "1", (20, 20), &[], false);
    world.add("train", "2", (20, 20), &[], false);
    std::fs::remove_file(world.path("labels/train/2.txt")).unwrap();
    let error = open_error(&world);
    let expected = "no labels: 1 pictures without a label file, 1 with an empty one";
    assert!(error.contains("data.yaml (train)") && error.contains(expected), "{error}");
    // For validation, pictures of nothing are fine.
    let config = DatasetConfig::open(world.yaml()).unwrap();
    let loader = Loader::open(&config, Split::Train, LoaderOptions::validation(64, 2), &|_, _| {}).unwrap();
    assert!(loader.epoch(0).all(|batch| batch.unwrap().targets.is_empty()));
}

#[test]
fn options_out_of_range() {
    let world = World::new(2, false);
    let config = DatasetConfig::open(world.yaml()).unwrap();
    let good = LoaderOptions::training(64, 2, Hyp::default());
    let masks = |ratio| Some(MaskOptions { ratio, overlap: true });
    for (options, expected) in [
        (LoaderOptions { size: 65, ..good.clone() }, "size: 65 is no multiple of the stride 32"),
        (LoaderOptions { size: 0, ..good.clone() }, "size: 0"),
        (LoaderOptions { stride: 0, ..good.clone() }, "size: 64 is no multiple of the stride 0"),
        (LoaderOptions { batch: 0, ..good.clone() }, "batch: 0"),
        (LoaderOptions { workers: 1000, ..good.clone() }, "workers: 1000"),
        (LoaderOptions { pad: f64::NAN, ..good.clone() }, "pad: NaN"),
        (LoaderOptions { segments: masks(3), ..good.clone() }, "mask ratio: 3 does not divide the stride 32"),
        (LoaderOptions { segments: masks(0), ..good.clone() }, "mask ratio: 0"),
        (LoaderOptions { image_weights: Some(vec![1.0]), ..good.clone() }, "image weights: expected 2 numbers"),
        (LoaderOptions { image_weights: Some(vec![1.0, -1.0]), ..good.clone() }, "image weights: expected 2"),
        (LoaderOptions { image_weights: Some(vec![0.0, 0.0]), ..good.clone() }, "image weights: expected 2"),
    ] {
        let error = Loader::open(&config, Split::Train, options, &|_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_picture_that_vanishes_is_named_and_the_others_still_come() {
    let world = World::new(4, false);
    let config = DatasetConfig::open(world.yaml()).unwrap();
    for workers in [0, 2] {
        let options = LoaderOptions { workers, ..LoaderOptions::validation(64, 1) };
        let set = Dataset::open(&config, Split::Val, false, &|_, _| {}).unwrap();
        let loader = Loader::new(set, options).unwrap();
        let path = world.path("images/val/002.png");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let batches: Vec<_> = loader.epoch(0).collect();
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(batches.len(), 4);
        let errors: Vec<String> = batches.into_iter().filter_map(|batch| Some(batch.err()?.to_string())).collect();
        assert!(matches!(&errors[..], [error] if error.contains("002.png")), "{errors:?}");
    }
}
