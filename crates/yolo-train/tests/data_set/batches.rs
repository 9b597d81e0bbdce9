//! Batches: repeatable, complete, and with labels that lie where the pixels do.

use candle_core::Tensor;
use proptest::prelude::*;
use yolo_train::Hyp;
use yolo_train::data::augment::flip;
use yolo_train::data::{Batch, DatasetConfig, Loader, LoaderOptions, MaskOptions, Masks, PictureCache, Split, Target};

use crate::world::{COLOURS, World};

fn open(world: &World, split: Split, options: LoaderOptions) -> Loader {
    Loader::open(&DatasetConfig::open(world.yaml()).unwrap(), split, options, &|_, _| {}).unwrap()
}

fn epoch(loader: &Loader, number: usize) -> Vec<Batch> {
    loader.epoch(number).collect::<Result<_, _>>().unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn mask_values(batch: &Batch) -> Vec<f32> {
    match &batch.masks {
        Some(Masks::Overlap(tensor) | Masks::Separate(tensor)) => values(tensor),
        None => Vec::new(),
    }
}

/// Everything at its strongest; no two pictures of an epoch come out alike.
fn wild() -> Hyp {
    Hyp {
        degrees: 20.0,
        shear: 5.0,
        perspective: 0.0005,
        flipud: 0.5,
        mixup: 0.5,
        copy_paste: 0.5,
        mosaic: 0.7,
        ..Hyp::default()
    }
}

/// Moves and sizes things, but leaves their colours and right angles.
fn gentle() -> Hyp {
    Hyp { hsv_h: 0.0, hsv_s: 0.0, hsv_v: 0.0, flipud: 0.5, ..Hyp::default() }
}

/// The class whose colour a pixel has.
fn class_at(batch: &Batch, image: usize, x: usize, y: usize) -> Option<usize> {
    let pixel: Vec<f32> =
        batch.images.get(image).unwrap().narrow(1, y, 1).unwrap().narrow(2, x, 1).map(|pixel| values(&pixel)).unwrap();
    COLOURS.iter().position(|colour| {
        colour.iter().zip(&pixel).all(|(&level, &value)| (f32::from(level) / 255.0 - value).abs() < 0.1)
    })
}

#[test]
fn the_same_seed_gives_the_same_batches_whatever_the_workers() {
    let world = World::new(7, true);
    let loaded = |workers, seed, number| {
        let segments = Some(MaskOptions::default());
        let options = LoaderOptions {
            workers,
            seed,
            segments,
            cache: PictureCache::Ram,
            ..LoaderOptions::training(64, 2, wild())
        };
        let batches = epoch(&open(&world, Split::Train, options), number);
        assert_eq!(batches.len(), 4);
        batches
            .iter()
            .map(|batch| (values(&batch.images), batch.targets.clone(), mask_values(batch)))
            .collect::<Vec<_>>()
    };
    let first = loaded(1, 3, 2);
    assert_eq!(first, loaded(3, 3, 2));
    assert_eq!(first, loaded(0, 3, 2));
    for other in [loaded(1, 4, 2), loaded(1, 3, 1)] {
        assert!(first.iter().zip(&other).all(|(a, b)| a.0 != b.0));
    }
}

#[test]
fn labels_lie_where_their_pixels_do() {
    let world = World::new(8, false);
    for mosaic in [0.0, 1.0] {
        let hyp = Hyp { mosaic, ..gentle() };
        let loader = open(&world, Split::Train, LoaderOptions { workers: 1, ..LoaderOptions::training(128, 4, hyp) });
        let mut seen = 0;
        for batch in (0..4).flat_map(|number| epoch(&loader, number)) {
            assert_eq!(batch.images.dims()[1..], [3, 128, 128]);
            for target in &batch.targets {
                // Thin ones are nothing but edge.
                if target.xywh[2].min(target.xywh[3]) * 128.0 < 5.0 {
                    continue;
                }
                let [x, y] = [target.xywh[0], target.xywh[1]].map(|share| (share * 128.0) as usize);
                assert_eq!(class_at(&batch, target.image, x, y), Some(target.class), "{target:?}");
                seen += 1;
            }
        }
        assert!(seen > 60, "{seen}");
    }
}

#[test]
fn boxes_are_tight() {
    // One rectangle a picture: beyond the box there is none of its colour, and its sides touch the box's.
    let world = World::empty();
    for index in 0..6 {
        world.add("train", &index.to_string(), (90, 70), &[(index % 3, 20, 15, 60, 50)], index % 2 == 0);
    }
    let hyp = Hyp { mosaic: 0.0, ..gentle() };
    let loader = open(&world, Split::Train, LoaderOptions::training(128, 1, hyp));
    let mut seen = 0;
    for batch in (0..3).flat_map(|number| epoch(&loader, number)) {
        let [target] = batch.targets[..] else { continue };
        let places: Vec<(usize, usize)> = (0..128 * 128)
            .map(|at| (at % 128, at / 128))
            .filter(|&(x, y)| class_at(&batch, 0, x, y) == Some(target.class))
            .collect();
        let [x, y, width, height] = target.xywh.map(|share| share * 128.0);
        let sides = [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0];
        let found = [
            places.iter().map(|place| place.0).min().unwrap() as f32,
            places.iter().map(|place| place.1).min().unwrap() as f32,
            places.iter().map(|place| place.0).max().unwrap() as f32 + 1.0,
            places.iter().map(|place| place.1).max().unwrap() as f32 + 1.0,
        ];
        for (side, found) in sides.iter().zip(found) {
            // An edge that is blurred by the enlargement, half a pixel between corners' and centres' coordinates.
            assert!((side - found).abs() <= 2.6, "{sides:?} {found:?}");
        }
        seen += 1;
    }
    assert!(seen > 10, "{seen}");
}

#[test]
fn masks_cover_their_objects() {
    let world = World::new(8, true);
    let hyp = Hyp { degrees: 25.0, shear: 5.0, perspective: 0.0005, copy_paste: 0.5, ..gentle() };
    for overlap in [true, false] {
        let options = LoaderOptions {
            segments: Some(MaskOptions { ratio: 2, overlap }),
            ..LoaderOptions::training(128, 4, hyp.clone())
        };
        let loader = open(&world, Split::Train, options);
        let (mut right, mut outside, mut all) = (0, 0, 0);
        for batch in (0..3).flat_map(|number| epoch(&loader, number)) {
            let planes = mask_values(&batch);
            let plane = 64 * 64;
            assert_eq!(planes.len(), plane * if overlap { 4 } else { batch.targets.len() });
            let mut place = 0;
            for (index, target) in batch.targets.iter().enumerate() {
                place = if index > 0 && batch.targets[index - 1].image == target.image { place + 1 } else { 1 };
                let (mask, value) = if overlap {
                    (&planes[target.image * plane..][..plane], place as f32)
                } else {
                    (&planes[index * plane..][..plane], 1.0)
                };
                for at in (0..plane).filter(|&at| mask[at] == value) {
                    let (x, y) = (at % 64, at / 64);
                    let [cx, cy, width, height] = target.xywh.map(|share| share * 64.0);
                    let within =
                        |at: usize, centre: f32, side: f32| (at as f32 + 0.5 - centre).abs() <= side / 2.0 + 1.6;
                    outside += usize::from(!within(x, cx, width) || !within(y, cy, height));
                    all += 1;
                    right += usize::from(class_at(&batch, target.image, 2 * x, 2 * y) == Some(target.class));
                }
            }
        }
        // What is wrong is outlines, and objects that a pasted one lies on.
        assert!(all > 10_000 && right * 100 > all * 80, "{right} of {all}");
        // Boxes hold their masks, but where an outline just above or left of the picture is drawn on its first pixels.
        assert!(outside * 100 <= all, "{outside} of {all}");
    }
}

#[test]
fn overlapping_masks_are_numbered_by_falling_area() {
    let world = World::empty();
    let outlined = [(0, 40, 40, 60, 60), (1, 10, 10, 90, 90), (2, 30, 30, 70, 70)];
    world.add("val", "0", (96, 96), &outlined, true);
    let options =
        LoaderOptions { segments: Some(MaskOptions { ratio: 4, overlap: true }), ..LoaderOptions::validation(96, 1) };
    let batch = epoch(&open(&world, Split::Val, options), 0).remove(0);
    assert_eq!(batch.targets.iter().map(|target| target.class).collect::<Vec<_>>(), [1, 2, 0]);
    // Half a stride to spare makes 128 of 96: the picture begins 16 pixels from the corner.
    let masks = mask_values(&batch);
    assert_eq!(masks.len(), 32 * 32);
    let at = |x: usize, y: usize| masks[(y + 16) / 4 * 32 + (x + 16) / 4];
    assert_eq!([at(0, 0), at(20, 20), at(34, 50), at(50, 50), at(80, 50), at(94, 50)], [0.0, 1.0, 2.0, 3.0, 1.0, 0.0]);
}

#[test]
fn validation_batches_are_rectangles_and_boxes_find_their_way_back() {
    let world = World::new(8, false);
    for size in [64, 128, 320] {
        let loader = open(&world, Split::Val, LoaderOptions { workers: 2, ..LoaderOptions::validation(size, 2) });
        let batches = epoch(&loader, 0);
        assert_eq!(batches.len(), loader.len());
        let mut paths = Vec::new();
        let mut shapes = Vec::new();
        for batch in &batches {
            let (_, _, height, width) = batch.images.dims4().unwrap();
            assert!(height % 32 == 0 && width % 32 == 0);
            shapes.push((height, width));
            for (image, origin) in batch.origins.iter().enumerate() {
                let labels = loader.labels().iter().find(|labels| labels.picture == origin.path).unwrap();
                let found: Vec<&Target> = batch.targets.iter().filter(|target| target.image == image).collect();
                assert_eq!(found.len(), labels.boxes.len());
                for (target, bbox) in found.iter().zip(&labels.boxes) {
                    let x = (target.xywh[0] * width as f32 - origin.pad.0) / origin.ratio.1 / origin.size.1 as f32;
                    let y = (target.xywh[1] * height as f32 - origin.pad.1) / origin.ratio.0 / origin.size.0 as f32;
                    assert!((x - bbox[0]).abs() < 1e-4 && (y - bbox[1]).abs() < 1e-4, "{target:?} {bbox:?} {origin:?}");
                }
                paths.push(origin.path.clone());
            }
        }
        paths.sort();
        assert_eq!(paths, loader.labels().iter().map(|labels| labels.picture.clone()).collect::<Vec<_>>());
        // Two pictures each of 120x50, 96x64, 80x80 and 64x96: wide ones first.
        let side = |share: f64| ((share * f64::from(size) / 32.0 + 0.5).ceil() * 32.0) as usize;
        let expected = [
            (side(50.0 / 120.0), side(1.0)),
            (side(64.0 / 96.0), side(1.0)),
            (side(1.0), side(1.0)),
            (side(1.0), side(64.0 / 96.0)),
        ];
        assert_eq!(shapes, expected);
    }
}

#[test]
fn what_nobody_changes_is_the_picture_itself() {
    let world = World::new(4, false);
    let options = LoaderOptions { rect: false, ..LoaderOptions::validation(96, 4) };
    let loader = open(&world, Split::Val, options);
    let batch = epoch(&loader, 0).remove(0);
    let picture = image::open(world.path("images/val/000.png")).unwrap().to_rgb8();
    // 96x64 in 96x96: 16 rows of grey above and below.
    let input = values(&batch.images.get(0).unwrap());
    for (channel, y, x) in (0..3 * 96 * 96).map(|at| (at / 96 / 96, at / 96 % 96, at % 96)) {
        let level = if (16..80).contains(&y) { picture.get_pixel(x as u32, y as u32 - 16).0[channel] } else { 114 };
        assert_eq!(input[(channel * 96 + y) * 96 + x], f32::from(level) / 255.0);
    }
    assert_eq!((batch.origins[0].pad, batch.origins[0].ratio), ((0.0, 16.0), (1.0, 1.0)));
}

#[test]
fn every_picture_comes_once_an_epoch_and_weights_change_that() {
    let world = World::new(5, false);
    let hyp = Hyp { mosaic: 0.0, ..gentle() };
    let mut loader = open(&world, Split::Train, LoaderOptions::training(64, 2, hyp));
    let paths = |loader: &Loader, number| -> Vec<_> {
        epoch(loader, number).iter().flat_map(|batch| batch.origins.iter().map(|origin| origin.path.clone())).collect()
    };
    let (first, second) = (paths(&loader, 0), paths(&loader, 1));
    assert_ne!(first, second);
    let sorted = |mut paths: Vec<_>| {
        paths.sort();
        paths
    };
    assert_eq!(sorted(first), sorted(second));
    loader.set_image_weights(Some(vec![0.0, 0.0, 1.0, 0.0, 0.0])).unwrap();
    assert!(paths(&loader, 0).iter().all(|path| path.ends_with("002.png")));
    assert_eq!(epoch(&loader, 0).iter().map(|batch| batch.images.dims()[0]).collect::<Vec<_>>(), [2, 2, 1]);
}

#[test]
fn an_epoch_can_be_left_at_any_batch() {
    let world = World::new(6, false);
    let options = LoaderOptions { workers: 3, ..LoaderOptions::training(64, 1, wild()) };
    let loader = open(&world, Split::Train, options);
    for taken in 0..4 {
        let mut batches = loader.epoch(taken);
        assert_eq!(batches.len(), 6);
        assert_eq!(batches.by_ref().take(taken).count(), taken);
    }
}

#[test]
fn flips_undo_themselves() {
    let picture = image::RgbImage::from_fn(7, 5, |x, y| image::Rgb([x as u8, y as u8, 9]));
    let targets = vec![Target { image: 0, class: 1, xywh: [0.25, 0.125, 0.5, 0.25] }];
    let (mut flipped, mut moved) = (picture.clone(), targets.clone());
    flip::left_right(&mut flipped, &mut moved);
    assert_eq!((flipped.get_pixel(0, 0).0[0], moved[0].xywh), (6, [0.75, 0.125, 0.5, 0.25]));
    flip::up_down(&mut flipped, &mut moved);
    assert_eq!((flipped.get_pixel(0, 0).0, moved[0].xywh), ([6, 4, 9], [0.75, 0.875, 0.5, 0.25]));
    flip::up_down(&mut flipped, &mut moved);
    flip::left_right(&mut flipped, &mut moved);
    assert_eq!((flipped, moved), (picture, targets));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever a label file holds and whatever is done to the pictures, boxes stay in the picture.
    #[test]
    fn boxes_stay_in_the_picture(
        rows in prop::collection::vec(prop::collection::vec(-0.05f32..1.05, 4..12), 1..6),
        seed in any::<u64>(),
        strength in 0.0f64..1.0,
    ) {
        let world = World::new(2, false);
        let text: Vec<String> = rows
            .iter()
            .map(|row| format!("1 {}", row.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")))
            .collect();
        world.write("labels/train/000.txt", text.join("\n"));
        let hyp = Hyp {
            degrees: 180.0 * strength,
            translate: strength,
            scale: strength,
            shear: 60.0 * strength,
            perspective: 0.01 * strength,
            ..wild()
        };
        let options = LoaderOptions {
            seed,
            segments: Some(MaskOptions { ratio: 8, overlap: seed % 2 == 0 }),
            ..LoaderOptions::training(64, 2, hyp)
        };
        let loader = open(&world, Split::Train, options);
        for batch in (0..3).flat_map(|number| epoch(&loader, number)) {
            for target in &batch.targets {
                let [x, y, width, height] = target.xywh;
                prop_assert!(width >= 0.0 && height >= 0.0, "{target:?}");
                for (centre, side) in [(x, width), (y, height)] {
                    prop_assert!(centre - side / 2.0 >= -1e-6 && centre + side / 2.0 <= 1.0 + 1e-6, "{target:?}");
                }
            }
            prop_assert!(values(&batch.images).iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }
}
