//! Pictures against OpenCV and YOLOv5; the data's and tables' makers are in `tests/data`.

use std::io::Cursor;
use std::path::PathBuf;

use candle_core::Device;
use image::{ImageFormat, Rgb, RgbImage};

use super::*;
use crate::{Detection, Error, Mask};

/// The high bytes of a xorshift32 stream.
pub(crate) fn noise(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 24) as u8
    };
    (0..count).map(next).collect()
}

/// FNV-1a over whole numbers.
pub(crate) fn fnv(values: impl IntoIterator<Item = u64>, state: u64) -> u64 {
    values.into_iter().fold(state, |state, value| (state ^ value).wrapping_mul(0x100_0000_01B3))
}

pub(crate) const FNV: u64 = 0xCBF2_9CE4_8422_2325;

fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_raw(width, height, noise(width as usize * height as usize * 3, seed)).unwrap()
}

fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/pictures").join(name)
}

fn encoded(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Tiff];

#[test]
fn resizes_as_opencv() {
    // `python opencv.py` in tests/data.
    #[rustfmt::skip]
    let cases = [
        ((1, 1), (7, 5), 0x92eaeef8a3e9dbb2),
        ((7, 5), (1, 1), 0xf07a991abcecebac),
        ((1, 9), (4, 3), 0x8afe715e18893e91),
        ((9, 1), (3, 4), 0x087503ae9f553bb5),
        ((2, 2), (1, 1), 0x25d1ba1adb86a33c),
        ((40, 30), (20, 15), 0x1bee2fe4c2914aa5),
        ((41, 31), (20, 15), 0xefe3b46697179d2c),
        ((20, 15), (40, 30), 0xdf7e4041518030ca),
        ((37, 23), (64, 11), 0x56a7d87cdbcd6afb),
        ((64, 11), (37, 23), 0xaeefbd1dfec85933),
        ((50, 50), (49, 51), 0x19c27926182b5b07),
        ((90, 60), (30, 20), 0x4f9d80bd821bba46),
        ((13, 17), (13, 40), 0x22e9b9f8263fd5c4),
        ((13, 17), (50, 17), 0xb5ce511fe4453a4e),
        ((120, 80), (7, 3), 0x5b049932a2e9274b),
        ((33, 33), (200, 1), 0xb693348100ae96f1),
        ((3, 3), (33, 65), 0x78c9e64280e87f4a),
        ((100, 70), (99, 69), 0xf61ef361469d1bc2),
    ];
    for (seed, ((w, h), (width, height), expected)) in (1..).zip(cases) {
        let resized = resize_bilinear(&picture(w, h, seed), width, height).unwrap();
        assert_eq!(resized.dimensions(), (width, height));
        let sum = fnv(resized.as_raw().iter().map(|&sample| u64::from(sample)), FNV);
        assert_eq!(sum, expected, "{w}x{h} to {width}x{height}");
    }
}

#[test]
fn resizes_as_its_plain_twin() {
    // Sizes around what fills a vector, whole ratios (which copy pixels), enlargement one way and shrinking the other.
    let sides = [1, 2, 3, 5, 8, 16, 17, 31, 48, 51];
    let mut seed = 0;
    for (w, h) in [(1, 1), (1, 40), (48, 1), (17, 51), (48, 24), (51, 33)] {
        for (width, height) in sides.iter().flat_map(|&width| sides.map(|height| (width, height))) {
            seed += 1;
            let image = picture(w, h, seed);
            let expected = reference::resize_bilinear(&image, width, height).unwrap();
            assert!(resize_bilinear(&image, width, height).unwrap() == expected, "{w}x{h} to {width}x{height}");
        }
    }
}

#[test]
fn a_letterboxed_picture_is_the_resized_one_in_grey() {
    for (w, h, shape) in [(96, 54, (64, 64)), (33, 77, (64, 96)), (97, 31, (60, 100)), (64, 64, (64, 64))] {
        let image = picture(w, h, w);
        for auto in [true, false] {
            let options = LetterboxOptions { auto, ..Default::default() };
            let boxed = letterbox(&image, shape, &options).unwrap();
            let (height, width) = letterbox_shape((h, w), shape, &options).unwrap();
            assert_eq!(boxed.image.dimensions(), (width, height));
            let inner = [w, h].map(|side| (f64::from(side) * boxed.ratio.0).round_ties_even() as u32);
            let resized = reference::resize_bilinear(&image, inner[0], inner[1]).unwrap();
            let left = (boxed.pad.0 - 0.1).round_ties_even() as u32;
            let top = (boxed.pad.1 - 0.1).round_ties_even() as u32;
            let mut expected = RgbImage::from_pixel(width, height, Rgb([114; 3]));
            image::imageops::replace(&mut expected, &resized, left.into(), top.into());
            assert!(boxed.image == expected, "{w}x{h} into {shape:?}, auto {auto}");
        }
    }
}

#[test]
fn resizing_to_nothing_or_too_much_is_refused() {
    for (width, height) in [(0, 5), (5, 0), (1 << 16, 1 << 16), (u32::MAX, u32::MAX)] {
        assert!(matches!(resize_bilinear(&picture(4, 4, 1), width, height), Err(Error::Argument { .. })));
    }
}

#[test]
fn letterboxes_the_golden_photograph() {
    let bus = open(data("bus.png")).unwrap();
    assert_eq!(bus.dimensions(), (810, 1080));
    let rect = letterbox(&bus, (640, 640), &LetterboxOptions::default()).unwrap();
    assert!(rect.image == open(data("bus_rect.png")).unwrap(), "rect: the pixels differ");
    let square = LetterboxOptions { auto: false, ..Default::default() };
    let square = letterbox(&bus, (640, 640), &square).unwrap();
    assert!(square.image == open(data("bus_square.png")).unwrap(), "square: the pixels differ");
    assert_eq!(square.placement, Placement::centred((640, 640), (1080, 810)));
}

#[test]
fn letterboxes_as_yolov5() {
    let options = |auto, scale_fill, scale_up, stride| LetterboxOptions { auto, scale_fill, scale_up, stride };
    // YOLOv5's letterbox on black pictures: (from, shape, options, to, where the black is, half the padding).
    #[rustfmt::skip]
    let cases = [
        ((810, 1080), (640, 640), options(true, false, true, 32), (480, 640), [0, 0, 480, 640], (0.0, 0.0)),
        ((810, 1080), (640, 640), options(false, false, true, 32), (640, 640), [80, 0, 560, 640], (80.0, 0.0)),
        ((500, 375), (640, 640), options(true, false, true, 32), (640, 480), [0, 0, 640, 480], (0.0, 0.0)),
        ((375, 500), (640, 640), options(true, false, false, 32), (384, 512), [4, 6, 379, 506], (4.5, 6.0)),
        ((333, 77), (320, 416), options(false, false, true, 32), (416, 320), [0, 112, 416, 208], (0.0, 112.0)),
        ((1, 1), (640, 640), options(true, false, true, 32), (640, 640), [0, 0, 640, 640], (0.0, 0.0)),
        ((101, 99), (64, 64), options(true, false, true, 64), (64, 64), [0, 0, 64, 63], (0.0, 0.5)),
        ((1283, 721), (640, 640), options(true, false, true, 32), (640, 384), [0, 12, 640, 372], (0.0, 12.0)),
        ((1283, 721), (640, 640), options(false, false, true, 32), (640, 640), [0, 140, 640, 500], (0.0, 140.0)),
        ((721, 1283), (640, 640), options(false, false, true, 32), (640, 640), [140, 0, 500, 640], (140.0, 0.0)),
        ((640, 480), (640, 640), options(false, true, true, 32), (640, 640), [0, 0, 640, 640], (0.0, 0.0)),
        ((97, 31), (100, 60), options(false, false, true, 32), (60, 100), [0, 40, 60, 59], (0.0, 40.5)),
        ((4000, 13), (640, 640), options(true, false, true, 32), (640, 32), [0, 15, 640, 17], (0.0, 15.0)),
        ((205, 410), (100, 99), options(true, false, true, 8), (51, 100), [0, 0, 50, 100], (0.5, 0.0)),
    ];
    for ((w, h), shape, options, to, [left, top, right, bottom], pad) in cases {
        let boxed = letterbox(&RgbImage::new(w, h), shape, &options).unwrap();
        assert_eq!((boxed.image.dimensions(), boxed.pad), (to, pad), "{w}x{h}");
        for (x, y, pixel) in boxed.image.enumerate_pixels() {
            let inside = (left..right).contains(&x) && (top..bottom).contains(&y);
            assert_eq!(pixel.0, [if inside { 0 } else { 114 }; 3], "{w}x{h} at {x},{y}");
        }
    }
}

#[test]
fn a_picture_too_thin_for_the_network_is_named() {
    let error = letterbox(&RgbImage::new(2500, 1), (640, 640), &LetterboxOptions::default()).unwrap_err().to_string();
    assert_eq!(
        error,
        "picture: 2500x1 pixels is too long and thin: fitted into 640x640, its shorter side has no pixel"
    );
    let none = LetterboxOptions { stride: 0, ..Default::default() };
    assert!(letterbox(&RgbImage::new(5, 5), (640, 640), &none).is_err());
    assert!(letterbox(&RgbImage::new(5, 5), (0, 640), &LetterboxOptions::default()).is_err());
    let square = LetterboxOptions { auto: false, ..Default::default() };
    assert!(letterbox(&RgbImage::new(4000, 1), (u32::MAX, u32::MAX), &square).is_err());
}

#[test]
fn tensors_are_planes_of_unit_samples() {
    let images = [picture(5, 3, 1), picture(5, 3, 2)];
    let tensor = to_tensor(&images, &Device::Cpu).unwrap();
    assert_eq!(tensor.dims(), [2, 3, 3, 5]);
    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (b, image) in images.iter().enumerate() {
        for (x, y, pixel) in image.enumerate_pixels() {
            for c in 0..3 {
                let at = ((b * 3 + c) * 3 + y as usize) * 5 + x as usize;
                assert_eq!(values[at], f32::from(pixel.0[c]) / 255.0);
            }
        }
    }
    let error = to_tensor(&[picture(5, 3, 1), picture(3, 5, 1)], &Device::Cpu).unwrap_err().to_string();
    assert_eq!(error, "picture 1 of a batch: expected 5x3 pixels, as the first, got 3x5");
    assert!(to_tensor(&[], &Device::Cpu).is_err());
}

#[test]
fn deep_grey_and_transparent_pictures_become_what_opencv_makes_of_them() {
    let cases = [
        ("rgb16.png", "rgb16_expected.png"),
        ("rgba16.png", "rgb16_expected.png"),
        ("grey16.png", "grey16_expected.png"),
        ("rgb16.tiff", "rgb16_tiff_expected.png"),
    ];
    for (name, expected) in cases {
        assert_eq!(open(data(name)).unwrap(), open(data(expected)).unwrap(), "{name}");
    }
}

#[test]
fn every_format_is_known_by_its_content() {
    let image = picture(1, 1, 3);
    for format in FORMATS {
        let read = from_bytes(&encoded(&image, format), "x.txt").unwrap();
        assert_eq!(read.dimensions(), (1, 1));
        assert!(format == ImageFormat::Jpeg || read == image, "{format:?}");
    }
}

#[test]
fn exif_orientation_is_applied() {
    // White in the corner that each orientation brings to the top left; (x, y) from (orientation, side at the right, at the bottom).
    let corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0, 1), (1, 1), (1, 0)];
    for (orientation, (right, bottom)) in (1u8..).zip(corners) {
        let white = |x, y| (x >= 16) == (right == 1) && (y >= 8) == (bottom == 1);
        let image = RgbImage::from_fn(32, 16, |x, y| Rgb([if white(x, y) { 255 } else { 0 }; 3]));
        let mut bytes = encoded(&image, ImageFormat::Jpeg);
        let mut exif = b"\xFF\xE1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        bytes.splice(2..2, exif);
        let read = from_bytes(&bytes, "x").unwrap();
        let expected = if orientation < 5 { (32, 16) } else { (16, 32) };
        assert_eq!(read.dimensions(), expected, "orientation {orientation}");
        let sample = |x: u32, y: u32| read.get_pixel(x * (read.width() - 1), y * (read.height() - 1)).0[0] > 128;
        let shown = [sample(0, 0), sample(1, 0), sample(0, 1), sample(1, 1)];
        assert_eq!(shown, [true, false, false, false], "orientation {orientation}");
    }
}

#[test]
fn damaged_pictures_are_errors() {
    let image = picture(40, 30, 5);
    for format in FORMATS {
        let bytes = encoded(&image, format);
        for len in (0..bytes.len() * 9 / 10).step_by(7) {
            let result = from_bytes(&bytes[..len], "cut.img");
            assert!(matches!(result, Err(Error::Picture { .. })), "{format:?} cut to {len} of {}", bytes.len());
        }
        for (round, flips) in noise(400 * 3, 7).chunks_exact(3).enumerate() {
            let mut bytes = bytes.clone();
            // Headers, where a flip does most, half the time.
            let range = if round % 2 == 0 { bytes.len() } else { bytes.len().min(64) };
            let at = (usize::from(flips[0]) * 256 + usize::from(flips[1])) % range;
            bytes[at] ^= 1 << (flips[2] % 8);
            // Some flips only change a colour; none may panic.
            assert!(matches!(from_bytes(&bytes, "flipped.img"), Ok(_) | Err(Error::Picture { .. })));
        }
    }
}

#[test]
fn errors_say_what_came() {
    let text = |bytes: &[u8]| from_bytes(bytes, "a.jpg").unwrap_err().to_string();
    assert_eq!(text(b""), "a.jpg: the file is empty");
    assert_eq!(
        text(b"hello, this is a text"),
        "a.jpg: not a picture of a known kind (expected JPEG, PNG, BMP, WebP or TIFF)"
    );
    assert!(text(b"GIF89a\x01\0\x01\0\0\0\0").ends_with("(expected JPEG, PNG, BMP, WebP or TIFF)"));
    let bytes = encoded(&picture(64, 64, 1), ImageFormat::Jpeg);
    assert_eq!(text(&bytes[..bytes.len() - 20]), "a.jpg: the JPEG data is cut off: it has no end marker");
    // A bitmap's header may claim any size.
    let mut bytes = encoded(&picture(4, 4, 1), ImageFormat::Bmp);
    bytes[18..22].copy_from_slice(&20_000u32.to_le_bytes());
    bytes[22..26].copy_from_slice(&20_000u32.to_le_bytes());
    assert_eq!(text(&bytes), "a.jpg: 20000x20000 pixels is too large: at most 268435456 pixels are read");
    assert!(matches!(open("no/such/file.png"), Err(Error::Io { .. })));
}

#[test]
fn crops_as_yolov5() {
    // Each pixel tells where it is.
    let image = RgbImage::from_fn(200, 100, |x, y| Rgb([x as u8, y as u8, 0]));
    // YOLOv5's save_one_box: left, top, width, height of the crop.
    let cases = [
        ([50.0, 40.0, 90.0, 70.0], (44, 34, 51, 41)),
        ([0.0, 0.0, 20.0, 10.0], (0, 0, 25, 15)),
        ([190.0, 95.0, 200.0, 100.0], (184, 89, 16, 11)),
        ([100.0, 50.0, 100.0, 50.0], (95, 45, 10, 10)),
    ];
    for (bbox, (left, top, width, height)) in cases {
        let cut = crop(&image, bbox).unwrap();
        assert_eq!(cut.dimensions(), (width, height), "{bbox:?}");
        assert_eq!(cut.get_pixel(0, 0).0, [left, top, 0], "{bbox:?}");
    }
    for outside in [[300.0, 10.0, 320.0, 20.0], [f32::NAN; 4], [-90.0, -90.0, -50.0, -50.0]] {
        assert!(matches!(crop(&image, outside), Err(Error::Argument { .. })));
    }
}

#[test]
fn files_are_written_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let image = picture(20, 10, 4);
    save_png(folder.path().join("a.png"), &image).unwrap();
    assert_eq!(open(folder.path().join("a.png")).unwrap(), image);
    save_jpeg(folder.path().join("a.jpg"), &image, 95).unwrap();
    assert_eq!(open(folder.path().join("a.jpg")).unwrap().dimensions(), (20, 10));

    let error = save_jpeg(folder.path().join("wide.jpg"), &RgbImage::new(70_000, 1), 95).unwrap_err();
    assert!(matches!(error, Error::Picture { .. }), "{error}");
    assert!(save_jpeg(folder.path().join("b.jpg"), &image, 0).is_err());
    assert!(matches!(save_png(folder.path().join("none/a.png"), &image), Err(Error::Io { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "something was left behind");
}

fn found(bbox: [f32; 4], class: usize, confidence: f32) -> Detection {
    Detection { bbox, class, confidence, mask: None, polygon: None }
}

#[test]
fn boxes_are_drawn_in_their_class_colour_and_labels_stay_inside() {
    let names = ["thing".to_owned(), "\u{732B}\u{1F600}\n".to_owned()];
    let detections = [found([40.0, 60.0, 160.0, 140.0], 0, 0.9), found([150.0, 0.0, 200.0, 200.0], 1, 0.5)];
    let mut image = RgbImage::from_pixel(200, 200, Rgb([128; 3]));
    annotate(&mut image, &detections, &names, &Style { hide_labels: true, ..Default::default() });
    for (x, y) in [(40, 100), (41, 100), (100, 60), (160, 100), (100, 140)] {
        assert_eq!(image.get_pixel(x, y).0, colour(0), "{x},{y}");
    }
    assert_eq!(image.get_pixel(199, 100).0, colour(1), "a line along the border");
    assert_eq!(image.get_pixel(100, 100).0, [128; 3]);

    let bare = image.clone();
    annotate(&mut image, &detections, &names, &Style::default());
    let changed: Vec<(u32, u32)> =
        image.enumerate_pixels().filter(|(x, y, p)| bare.get_pixel(*x, *y) != *p).map(|(x, y, _)| (x, y)).collect();
    let white = changed.iter().filter(|&&(x, y)| image.get_pixel(x, y).0.iter().all(|&c| c > 200)).count();
    assert!(white > 40, "the text of the blue label: {white} nearly white pixels");
    assert!(changed.iter().any(|&(x, y)| x > 150 && y < 20), "the label of the box at the top right is inside it");
}

#[test]
fn the_most_confident_is_on_top() {
    let bbox = [20.0, 20.0, 80.0, 80.0];
    for (first, second) in [(0.9, 0.3), (0.3, 0.9)] {
        let mut image = RgbImage::new(100, 100);
        annotate(&mut image, &[found(bbox, 5, first), found(bbox, 6, second)], &[], &Style::default());
        assert_eq!(image.get_pixel(50, 80).0, colour(if first > second { 5 } else { 6 }));
    }
}

#[test]
fn a_label_at_the_border_moves_inside() {
    let mut image = RgbImage::new(300, 300);
    annotate(&mut image, &[found([290.0, 100.0, 299.0, 150.0], 0, 0.9)], &["zebra".into()], &Style::default());
    let plate = image.enumerate_pixels().filter(|(_, y, p)| *y < 95 && p.0 == colour(0)).map(|(x, _, _)| x);
    let (left, right) = (plate.clone().min().unwrap(), plate.max().unwrap());
    assert!(left < 270 && right >= 298, "the plate spans {left} to {right}");
}

#[test]
fn masks_cover_half() {
    let mut image = RgbImage::from_pixel(4, 2, Rgb([100, 0, 201]));
    let mask = Mask { width: 4, height: 2, data: vec![1, 0, 0, 0, 0, 0, 0, 0] };
    let detection = Detection { mask: Some(mask), ..found([f32::NAN, 0.0, 1.0, 1.0], 0, 0.5) };
    annotate(&mut image, std::slice::from_ref(&detection), &[], &Style::default());
    assert_eq!(image.get_pixel(0, 0).0, [100, 0, 201], "a box that is not a number is left out with its mask");
    let detection = Detection { bbox: [3.0, 1.0, 3.0, 1.0], ..detection };
    let style = Style { line_thickness: Some(1), hide_labels: true, ..Default::default() };
    annotate(&mut image, &[detection], &[], &style);
    assert_eq!(image.get_pixel(0, 0).0, [52, 21, 228]);
    assert_eq!(image.get_pixel(1, 1).0, [100, 0, 201]);
}

#[test]
fn drawing_takes_any_box_and_picture() {
    let odd = [f32::MAX, f32::MIN, -5.0, 0.0, 1e9, f32::INFINITY, f32::NAN, 0.5];
    let long = ["a very long name ".repeat(30)];
    for (width, height) in [(0, 0), (1, 1), (2, 300), (300, 2), (64, 64)] {
        for thickness in [None, Some(0), Some(1), Some(7), Some(u32::MAX)] {
            let mut image = RgbImage::new(width, height);
            let style = Style { line_thickness: thickness, mask_alpha: f32::NAN, ..Default::default() };
            let boxes = (0..odd.len()).map(|i| std::array::from_fn(|side| odd[(i + side * 3) % odd.len()]));
            let mut detections: Vec<_> = boxes.map(|bbox| found(bbox, usize::MAX - 3, f32::NAN)).collect();
            detections.push(found([0.0, 0.0, 10.0, 10.0], 0, 0.3));
            detections[8].mask = Some(Mask { width: 500, height: 1, data: vec![1; 500] });
            annotate(&mut image, &detections, &long, &style);
            assert_eq!(image.dimensions(), (width, height));
        }
    }
}
