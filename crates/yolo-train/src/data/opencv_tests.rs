//! What OpenCV 5.0 makes of pictures of noise: checksums that `tests/data/opencv.py` printed.

use image::RgbImage;

use super::augment::hsv::Jitter;
use super::fill::Bitmap;
use super::resize::resize_area;

/// The high bytes of a xorshift32 stream.
fn noise(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 24) as u8
        })
        .collect()
}

/// FNV-1a over bytes.
fn fnv(bytes: &[u8], state: u64) -> u64 {
    bytes.iter().fold(state, |state, &byte| (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

const FNV: u64 = 0xCBF2_9CE4_8422_2325;

#[test]
fn areas_are_averaged_as_opencv_does() {
    type Size = (u32, u32);
    let cases: [(Size, Size, u64); 12] = [
        ((8, 6), (4, 3), 0xfd35_64f5_35e4_79f2),
        ((9, 6), (3, 2), 0x7010_6904_f87c_a2fe),
        ((12, 20), (3, 4), 0x8654_3a5c_3e24_fc71),
        ((41, 31), (20, 15), 0xee3d_7516_bc2e_2ff9),
        ((100, 70), (99, 69), 0xa7e9_63b2_eba8_b914),
        ((64, 48), (33, 25), 0xa778_a901_d0d5_435c),
        ((120, 80), (7, 3), 0x2e02_dbcf_2f19_d475),
        ((50, 50), (49, 50), 0xa8a5_f136_e340_bbf8),
        ((640, 10), (320, 5), 0xdce6_bbfb_a98a_c837),
        ((81, 108), (32, 43), 0x0fed_ba29_c8ba_b578),
        ((1, 9), (1, 3), 0x63f6_6461_f146_2b67),
        ((33, 7), (1, 1), 0x3d99_861a_e85e_7774),
    ];
    let failed: Vec<_> = (1..)
        .zip(cases)
        .filter(|&(seed, ((width, height), to, expected))| {
            let picture = RgbImage::from_raw(width, height, noise((width * height * 3) as usize, seed)).unwrap();
            fnv(&resize_area(&picture, to.0, to.1).unwrap(), FNV) != expected
        })
        .map(|(_, (from, to, _))| (from, to))
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(resize_area(&RgbImage::new(4, 4), 5, 4).is_err());
    assert!(resize_area(&RgbImage::new(4, 4), 0, 4).is_err());
}

#[test]
fn polygons_are_filled_as_opencv_does() {
    // Seed, corners, the picture's side, the side of the square around it that the corners are drawn from.
    let cases: [(u32, usize, usize, i32, u64); 8] = [
        (1, 3, 20, 20, 0x7fbc_0364_faa2_f4e6),
        (2, 4, 30, 30, 0x9fdd_f1c9_b4c5_963d),
        (3, 5, 40, 40, 0xbd0d_5b97_5b9f_771a),
        (4, 8, 50, 50, 0xeb26_20e0_ae42_9f61),
        (7, 12, 64, 64, 0x7662_6b5e_2f44_91d2),
        (8, 30, 100, 100, 0x24ca_488d_ccac_6908),
        (9, 2, 20, 20, 0x571b_97e7_ba35_4d18),
        (10, 1, 20, 20, 0x2757_9c9a_94cc_9815),
    ];
    let failed: Vec<_> = cases
        .into_iter()
        .filter(|&(seed, corners, side, spread, expected)| {
            let mut bitmap = Bitmap::default();
            let sum = (0..40).fold(FNV, |sum, polygon| {
                let place =
                    |pair: &[u8]| (i32::from(pair[0]) * 256 + i32::from(pair[1])) % spread - (spread - side as i32) / 2;
                let points: Vec<[i32; 2]> = noise(corners * 4, seed * 1000 + polygon)
                    .chunks_exact(4)
                    .map(|bytes| [place(&bytes[..2]), place(&bytes[2..])])
                    .collect();
                bitmap.reset(side, side);
                bitmap.fill_polygon(&points);
                fnv(bitmap.data(), sum)
            });
            sum != expected
        })
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn polygons_beyond_the_border_are_cut_off() {
    // What a window shows of a polygon is what a larger picture has there, but for the outline, which is clipped first.
    for seed in 1..200 {
        let points: Vec<[i32; 2]> =
            noise(12, seed).chunks_exact(2).map(|pair| [i32::from(pair[0]) - 100, i32::from(pair[1]) - 100]).collect();
        let mut window = Bitmap::new(50, 40);
        window.fill_polygon(&points);
        let mut whole = Bitmap::new(256, 256);
        let moved: Vec<[i32; 2]> = points.iter().map(|point| point.map(|value| value + 100)).collect();
        whole.fill_polygon(&moved);
        let wrong = (0..40)
            .map(|y| window.row(y).iter().zip(&whole.row(y + 100)[100..]).filter(|(a, b)| a != b).count())
            .sum::<usize>();
        assert!(wrong <= 60, "seed {seed}: {wrong} of 2000 pixels");
    }
}

#[test]
fn colours_change_as_opencv_changes_them() {
    let cases = [
        (
            [1.0, 1.0, 1.0],
            "0014ced5484de77e1546adda7036625b54b66a54d80072165ec05e01138bdb08cc5f08e129e0fd81a01e46aa884f413d48e0cbc7c3957192af89dbdc90aa2b26e8c1dc437b14a8ce48d81c1b5a53a24a8a38df96c9b1eaa0f75e1bcc4a8228b7730290e21f01187add28388a8cd8af80f40c3486b6400b85778e926d7783e9fc4004b80a3fea1d1d61833081aaae716701ddb8791c5d124bad6fa2faf3ceb6a895dde7fdb65b558f846f412c8872ec055aa564760127a415e73f19f345b69807",
        ),
        (
            [1.015, 0.5, 1.3],
            "7f88ffffadabffc58ba9e2ff916b85b3adecc1b1ff4a9459baf9ba5b63b4ff84eeb984ff94edffbcd07b9cddc9665d5ba9fff6fffcdfbbcfe3cffdffccdd8b94ffedffa7c18be4ffaaff904c7572d29abf9fffd9eee0ffd2ffb190ffb2d190edae5fbbff91808dc2ff737cb3d3ffe9c2ff8597caec825dacabbabd9ca2aaf5ff9f7aef7ea2ff8f6892aa8ec0dde2bab480ffee9d61877c9de0b9d0ffffece0e2d6fff4ffdc9893b9ab9e8075b0a4ff82a8d6acb56b80d58bffa38cffa3ecd97b",
        ),
        (
            [0.985, 1.7, 0.6],
            "00147b7f00108a400000638243083b0a0a6d0c008100440b1373100010537e00832d0087008c974c600000663d2f211d00866b7771442a50692f847e556600008b6584003d006a7b22810000362d61085200854267528c459400007a183a006d3c0056870d00004a840013523481534d9200004c6d1c004f3c555738444e8c9700006e001b8c0000394e004a66682720008465480039002c67094696916a54493b8484974f1d1b554f380b0051388d0041632139001d62008a170091186d5700",
        ),
        (
            [0.5, 1.2, 1.0],
            "0dce002dd5cfe7350069da292a705441b6453ad844667200c0c04c098b0000db7400e12d6dfd00a0610482aa334f3c3a91e02ac7a78b79af66aadc78aa6d138be80025dcb752ce00d8bb00395a0e39a27ba9df17a6eab3f7cc40b0cc000cb73f009039e20f003add00208a14c3d87ef4b2004eb61a00851a7f92716f8369fc921ab8b800ead20032830949aa18ae5f5a84dd000a795022ad0075fa54f3b9ab87dd92fddea84a8f4c844e345f881a00ecbc58a59a15a400cfe700daf300b64800",
        ),
    ];
    for (gains, expected) in cases {
        let mut picture = RgbImage::from_raw(32, 2, noise(32 * 2 * 3, 5)).unwrap();
        Jitter::new(gains).apply(&mut picture);
        for (index, &value) in picture.iter().enumerate() {
            let expected = i32::from_str_radix(&expected[2 * index..][..2], 16).unwrap();
            // Another order of the same operations in f32, and a cut at the end.
            assert!((i32::from(value) - expected).abs() <= 1, "{gains:?} sample {index}: {value}, expected {expected}");
        }
    }
}
