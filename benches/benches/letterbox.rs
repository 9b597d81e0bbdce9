//! A picture on its way into the network, in one thread: letterbox beside its plain twin, and the conversion to numbers.
//!
//! `cargo xtask bench letterbox` runs it.

#![allow(missing_docs, reason = "criterion's macros make functions")]

use std::hint::black_box;
use std::time::Duration;

use candle_core::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use image::{Rgb, RgbImage, imageops};
use yolo_core::picture::{LetterboxOptions, letterbox, reference, to_tensor};

/// (width, height): a whole ratio to 640, where pixels are only copied, one that is not, and a photograph on end.
const SIZES: [(u32, u32); 3] = [(1920, 1080), (1916, 1078), (810, 1080)];

fn plain(image: &RgbImage, like: &RgbImage, [left, top]: [i64; 2]) -> RgbImage {
    let mut padded = RgbImage::from_pixel(like.width(), like.height(), Rgb([114; 3]));
    let (width, height) = (like.width() - 2 * left as u32, like.height() - 2 * top as u32);
    imageops::replace(&mut padded, &reference::resize_bilinear(image, width, height).unwrap(), left, top);
    padded
}

fn benches(criterion: &mut Criterion) {
    for (width, height) in SIZES {
        let mut state = 1u32;
        let image = RgbImage::from_fn(width, height, |_, _| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [_, r, g, b] = state.to_le_bytes();
            Rgb([r, g, b])
        });
        let fitted = || letterbox(&image, (640, 640), &LetterboxOptions::default()).unwrap();
        let boxed = fitted();
        let corner = [boxed.pad.0, boxed.pad.1].map(|pad| pad as i64);
        assert!(plain(&image, &boxed.image, corner) == boxed.image, "{width}x{height}: the pixels differ");

        let mut group = criterion.benchmark_group(format!("{width}x{height} into 640x640"));
        group.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
        group.bench_function("letterbox", |b| b.iter(fitted));
        group.bench_function("plain twin", |b| b.iter(|| plain(black_box(&image), &boxed.image, corner)));
        let images = [boxed.image.clone()];
        group.bench_function("to tensor", |b| b.iter(|| to_tensor(black_box(&images), &Device::Cpu).unwrap()));
        group.finish();
    }
}

criterion_group!(pictures, benches);
criterion_main!(pictures);
