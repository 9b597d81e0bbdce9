//! YAMLs, lists, label files and their cache.

use yolo_train::data::{Dataset, DatasetConfig, Split, label_path};

use crate::world::World;

fn open(world: &World, split: Split) -> Dataset {
    Dataset::open(&DatasetConfig::open(world.yaml()).unwrap(), split, false, &|_, _| {}).unwrap()
}

#[test]
fn names_come_as_list_or_map_and_splits_as_folders_lists_and_several() {
    let world = World::new(3, false);
    world.write("val.txt", "./images/val/001.png\n\n./images/val/000.png\n./images/val/notes.md\n");
    let folders = "path: .\ntrain: [images/train, images/val]\n";
    world.write("data.yaml", format!("{folders}val: val.txt\nnc: 3\nnames: {{0: red, 1: 7, 2: true}}\n"));
    let config = DatasetConfig::open(world.yaml()).unwrap();
    assert_eq!(config.classes(), ["red", "7", "true"]);
    let names = |split| -> Vec<String> {
        let pictures = config.pictures(split).unwrap();
        pictures.iter().map(|path| path.strip_prefix(world.root()).unwrap().to_str().unwrap().to_owned()).collect()
    };
    let both = ["train/000", "train/001", "train/002", "val/000", "val/001", "val/002"];
    assert_eq!(names(Split::Train), both.map(|name| format!("images/{name}.png")));
    assert_eq!(names(Split::Val), ["images/val/000.png", "images/val/001.png"]);
    assert!(!config.has(Split::Test) && config.has(Split::Val));

    world.write("data.yaml", "train: ../images/train\nnc: 2\n");
    let config = DatasetConfig::open(world.yaml()).unwrap();
    assert_eq!(config.classes(), ["class0", "class1"]);
    assert_eq!(config.pictures(Split::Train).unwrap().len(), 3);
}

#[test]
fn labels_lie_beside_the_last_images_folder() {
    for (picture, label) in [
        ("images/a.jpg", "labels/a.txt"),
        ("/images/x/images/train/a.b.png", "/images/x/labels/train/a.b.txt"),
        ("pictures/a.png", "pictures/a.txt"),
        ("my_images/images.png", "my_images/images.txt"),
    ] {
        assert_eq!(label_path(picture.as_ref()), std::path::Path::new(label));
    }
}

#[test]
fn labels_are_counted_and_bad_ones_named() {
    let world = World::new(4, false);
    let text = std::fs::read_to_string(world.path("labels/train/000.txt")).unwrap();
    let first = text.lines().next().unwrap();
    world.write("labels/train/000.txt", format!("{text}{first}\n{first}\n"));
    world.write("labels/train/001.txt", "0 0.5 0.5 2.5 0.5\n");
    world.write("labels/train/002.txt", "\n");
    std::fs::remove_file(world.path("labels/train/003.txt")).unwrap();
    world.add("train", "004", (9, 40), &[], false);
    world.add("train", "005", (40, 40), &[], false);
    world.write("labels/train/005.txt", "3 0.5 0.5 0.5 0.5\n");
    let bytes = std::fs::read(world.path("images/train/000.png")).unwrap();
    world.write("images/train/006.png", &bytes[..bytes.len() / 2]);
    world.write("images/train/007.jpg", "no picture");

    let set = open(&world, Split::Train);
    let counts = set.counts();
    assert_eq!((counts.found, counts.missing, counts.empty, counts.corrupt), (2, 1, 1, 5));
    assert_eq!(set.labels().len(), 3);
    assert_eq!(set.labels()[0].size, (64, 96));
    assert_eq!(set.class_counts(), [1, 1, 1]);
    let expected = [
        ("000.txt", "2 duplicate rows removed"),
        ("001.txt", "line 1: 2.5 is more than 1"),
        ("004.png", "the picture is 9x40 pixels; a side needs at least 10"),
        ("005.png", "class 3 is beyond the data set's 3 (0 to 2)"),
        ("006.png", "damaged or cut off"),
        ("007.jpg", "not a picture of a known kind"),
    ];
    assert_eq!(set.messages().len(), expected.len(), "{:#?}", set.messages());
    for ((file, problem), message) in expected.iter().zip(set.messages()) {
        assert!(message.contains(file) && message.contains(problem), "{message}");
    }
    // Remembered, with its messages.
    let again = open(&world, Split::Train);
    assert!(again.from_cache() && !set.from_cache());
    assert_eq!((again.labels(), again.messages(), again.counts()), (set.labels(), set.messages(), counts));
}

#[test]
fn one_class_takes_any_number() {
    let world = World::new(2, false);
    world.write("labels/train/001.txt", "70 0.5 0.5 0.5 0.5\n");
    let config = DatasetConfig::open(world.yaml()).unwrap();
    let set = Dataset::open(&config, Split::Train, true, &|_, _| {}).unwrap();
    assert_eq!((set.class_counts(), set.classes().len()), (vec![4], 1));
}

#[test]
fn a_stale_cache_is_not_used() {
    let world = World::new(3, true);
    let cache = world.path("labels/train.cache");
    assert!(!open(&world, Split::Train).from_cache());
    assert!(cache.is_file());
    assert!(open(&world, Split::Train).from_cache());
    // Its own cache each.
    assert!(!open(&world, Split::Val).from_cache());
    assert!(open(&world, Split::Train).from_cache());

    world.write("labels/train/001.txt", "2 0.5 0.5 0.25 0.5\n");
    let set = open(&world, Split::Train);
    assert!(!set.from_cache());
    assert_eq!((set.labels()[1].classes.as_slice(), set.labels()[1].boxes[0]), ([2].as_slice(), [0.5, 0.5, 0.25, 0.5]));
    assert!(open(&world, Split::Train).from_cache());

    world.add("train", "new", (40, 40), &[], false);
    assert!(!open(&world, Split::Train).from_cache());
    std::fs::remove_file(world.path("images/train/new.png")).unwrap();
    assert!(!open(&world, Split::Train).from_cache());
    assert!(open(&world, Split::Train).from_cache());

    let mut bytes = std::fs::read(&cache).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&cache, bytes).unwrap();
    assert!(!open(&world, Split::Train).from_cache());
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let world = World::new(2, false);
    // A folder in its place: not even root can write a file there.
    std::fs::create_dir(world.path("labels/train.cache")).unwrap();
    let set = open(&world, Split::Train);
    assert_eq!(set.labels().len(), 2);
    assert!(set.messages()[0].starts_with("labels are not cached: "), "{:?}", set.messages());
    let left: Vec<_> =
        std::fs::read_dir(world.path("labels")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn progress_is_told() {
    let world = World::new(5, false);
    let most = std::sync::atomic::AtomicUsize::new(0);
    let config = DatasetConfig::open(world.yaml()).unwrap();
    let progress = |done: usize, all: usize| {
        assert_eq!(all, 5);
        most.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
    };
    Dataset::open(&config, Split::Train, false, &progress).unwrap();
    assert_eq!(most.into_inner(), 5);
}
