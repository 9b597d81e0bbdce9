//! Cutting pictures out and writing them to files.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ImageError, ImageResult, RgbImage, imageops};

use crate::files::write_whole;
use crate::post::clip_boxes;
use crate::{Error, Result};

/// A crop's sides are this many times its box's, ...
const CROP_GAIN: f32 = 1.02;
/// ... and this many pixels more.
const CROP_PADDING: f32 = 10.0;

/// Cuts a box `[x1, y1, x2, y2]` (pixels) out of a picture with a small margin, as YOLOv5's `save_one_box` does.
///
/// # Errors
/// [`Error::Argument`] where the box has no pixel in the picture.
pub fn crop(image: &RgbImage, bbox: [f32; 4]) -> Result<RgbImage> {
    let [x1, y1, x2, y2] = bbox;
    let grown = |low: f32, high: f32| {
        let (centre, half) = ((low + high) / 2.0, ((high - low) * CROP_GAIN + CROP_PADDING) / 2.0);
        [(centre - half).trunc(), (centre + half).trunc()]
    };
    let ([left, right], [top, bottom]) = (grown(x1, x2), grown(y1, y2));
    let mut corners = [[left, top, right, bottom]];
    clip_boxes(&mut corners, (image.height(), image.width()));
    let [left, top, right, bottom] = corners[0].map(|side| side as u32);
    if left >= right || top >= bottom {
        let problem = format!("{bbox:?} has no pixel in a picture of {}x{}", image.width(), image.height());
        return Err(Error::Argument { argument: "box", problem });
    }
    Ok(imageops::crop_imm(image, left, top, right - left, bottom - top).to_image())
}

/// Writes a JPEG file of `quality` 1 to 100 (YOLOv5 writes 95), with full colour resolution; the file appears whole or not at all.
///
/// # Errors
/// [`Error::Argument`] where the quality is out of its range, [`Error::Picture`] where JPEG cannot hold the picture,
/// [`Error::Io`] where the file cannot be written.
pub fn save_jpeg(path: impl AsRef<Path>, image: &RgbImage, quality: u8) -> Result<()> {
    if !(1..=100).contains(&quality) {
        let problem = format!("{quality} is not a JPEG quality from 1 to 100");
        return Err(Error::Argument { argument: "quality", problem });
    }
    save(path.as_ref(), |out| image.write_with_encoder(JpegEncoder::new_with_quality(out, quality)))
}

/// Writes a PNG file; it appears whole or not at all.
///
/// # Errors
/// [`Error::Picture`] where PNG cannot hold the picture, [`Error::Io`] where the file cannot be written.
pub fn save_png(path: impl AsRef<Path>, image: &RgbImage) -> Result<()> {
    save(path.as_ref(), |out| image.write_with_encoder(PngEncoder::new(out)))
}

fn save(path: &Path, encode: impl FnOnce(&mut BufWriter<File>) -> ImageResult<()>) -> Result<()> {
    write_whole(path, |out| {
        encode(out).map_err(|error| match error {
            ImageError::IoError(source) => Error::io(path, source),
            error => Error::picture(path, format!("cannot be written: {error}")),
        })
    })
}
