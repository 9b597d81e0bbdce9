//! Decoding picture files.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};
use memchr::memchr;

use crate::{Error, Result, files};

/// The largest picture that is decoded, in pixels.
pub const MAX_PIXELS: u64 = 1 << 28;

/// The largest file that is read: more than [`MAX_PIXELS`] of three bytes each take.
pub const MAX_BYTES: u64 = 1 << 30;

const FORMATS: &str = "JPEG, PNG, BMP, WebP or TIFF";

/// Reads a picture file: JPEG, PNG, BMP, WebP or TIFF, told by its content whatever its name is.
///
/// As OpenCV's `imread(file, IMREAD_COLOR)`: the EXIF orientation is applied, grey becomes three equal channels, an alpha
/// channel is dropped (not blended), and 16-bit samples keep their high byte (those of coloured TIFFs are rounded).
///
/// # Errors
/// [`Error::Io`] where the file cannot be read or has more than [`MAX_BYTES`]; [`Error::Picture`] where it is empty, damaged, cut off, of another kind,
/// or has more than [`MAX_PIXELS`] pixels.
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let bytes = files::read(path, MAX_BYTES)?;
    from_bytes(&bytes, path)
}

/// Decodes a picture held in memory, as [`open`] does; `name` stands for the file in error messages.
///
/// # Errors
/// [`Error::Picture`], as for [`open`].
pub fn from_bytes(bytes: &[u8], name: impl AsRef<Path>) -> Result<RgbImage> {
    let name = name.as_ref();
    decode(bytes).map_err(|problem| Error::picture(name, problem))
}

fn decode(bytes: &[u8]) -> Result<RgbImage, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let mut reader =
        ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| format!("cannot be read: {e}"))?;
    let format = reader.format().ok_or_else(|| format!("not a picture of a known kind (expected {FORMATS})"))?;
    let damaged = |error: ImageError| match error {
        ImageError::Unsupported(error) => format!("{error} (expected {FORMATS})"),
        error => format!("the {} data is damaged or cut off: {}", format_name(format), error.to_string().trim_end()),
    };

    // The pixel count below is the limit that matters; the decoders' own is only a net under it.
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 16);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(format!("{width}x{height} pixels is too large: at most {MAX_PIXELS} pixels are read"));
    }
    if width == 0 || height == 0 {
        return Err(format!("{width}x{height} pixels: there is nothing in it"));
    }
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err("the JPEG data is cut off: it has no end marker".into());
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture =
        DynamicImage::ImageRgb8(eight_bits(DynamicImage::from_decoder(decoder).map_err(damaged)?, format));
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

fn format_name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::Bmp => "BMP",
        ImageFormat::WebP => "WebP",
        ImageFormat::Tiff => "TIFF",
        _ => "picture",
    }
}

/// Three 8-bit channels, as OpenCV makes them: 16 bits are cut, where `image`'s own conversion rounds them. Coloured TIFFs
/// are rounded by OpenCV too (libtiff's doing).
fn eight_bits(picture: DynamicImage, format: ImageFormat) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let high = |sample: u16| (sample >> 8) as u8;
    let data: Option<Vec<u8>> = match &picture {
        DynamicImage::ImageLuma16(p) => Some(p.pixels().flat_map(|p| [high(p.0[0]); 3]).collect()),
        DynamicImage::ImageLumaA16(p) => Some(p.pixels().flat_map(|p| [high(p.0[0]); 3]).collect()),
        _ if format == ImageFormat::Tiff => None,
        DynamicImage::ImageRgb16(p) => Some(p.as_raw().iter().map(|&s| high(s)).collect()),
        DynamicImage::ImageRgba16(p) => {
            Some(p.pixels().flat_map(|p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]).collect())
        }
        _ => None,
    };
    data.and_then(|data| RgbImage::from_raw(width, height, data)).unwrap_or_else(|| picture.into_rgb8())
}

/// Whether a JPEG's markers run through to its end marker; the decoder fills what a cut-off file lacks with grey.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const START: u8 = 0xD8;
    const END: u8 = 0xD9;
    let mut at = 0;
    loop {
        let Some(found) = bytes.get(at..).and_then(|rest| memchr(0xFF, rest)) else { return false };
        at += found + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xFF) => {}
            Some(&END) => return true,
            // Markers without a body, and what stands for a plain 0xFF inside a scan.
            Some(0x00 | 0x01 | 0xD0..=START) => at += 1,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}
