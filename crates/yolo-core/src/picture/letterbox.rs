//! Fitting pictures into a network's input.

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

use super::resize::{check_sides, resize_into};
use crate::{Error, Result};

/// The grey that pads a letterboxed picture.
const PADDING: Rgb<u8> = Rgb([114; 3]);

/// How [`letterbox`] fits a picture; the defaults are those of YOLOv5's `detect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LetterboxOptions {
    /// Pad only to the least multiple of `stride` ("rect") instead of the whole new shape.
    pub auto: bool,
    /// Stretch to the new shape instead of padding.
    pub scale_fill: bool,
    /// Enlarge pictures that are smaller than the new shape; otherwise they are only padded.
    pub scale_up: bool,
    /// The network's stride in pixels.
    pub stride: u32,
}

impl Default for LetterboxOptions {
    fn default() -> Self {
        Self { auto: true, scale_fill: false, scale_up: true, stride: 32 }
    }
}

/// Where a picture lies in a network's input: input = picture * gain + pad.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placement {
    /// The network's input as (height, width) in pixels.
    pub network: (u32, u32),
    /// The picture as (height, width) in pixels.
    pub picture: (u32, u32),
    /// Input pixels a picture pixel, as (x, y).
    pub gain: (f64, f64),
    /// Input pixels left of and above the picture, as (x, y).
    pub pad: (f64, f64),
}

impl Placement {
    /// YOLOv5's reckoning from the two shapes (height, width) alone: the picture fills the input one way and is centred the other.
    ///
    /// The padding is not rounded here, though the letterboxed picture's is: YOLOv5's boxes are scaled back by this.
    pub fn centred(network: (u32, u32), picture: (u32, u32)) -> Self {
        let (network_height, network_width) = (f64::from(network.0), f64::from(network.1));
        let (height, width) = (f64::from(picture.0), f64::from(picture.1));
        let gain = (network_height / height).min(network_width / width);
        let pad = ((network_width - width * gain) / 2.0, (network_height - height * gain) / 2.0);
        Self { network, picture, gain: (gain, gain), pad }
    }

    /// The picture stretched over the whole input; shapes as (height, width).
    pub fn stretched(network: (u32, u32), picture: (u32, u32)) -> Self {
        let gain = (f64::from(network.1) / f64::from(picture.1), f64::from(network.0) / f64::from(picture.0));
        Self { network, picture, gain, pad: (0.0, 0.0) }
    }
}

/// A picture fitted into a network's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Letterboxed {
    /// The padded picture.
    pub image: RgbImage,
    /// Where the picture lies in it, for scaling boxes back as YOLOv5's `detect` does.
    pub placement: Placement,
    /// The resized picture over the original one, as (x, y). With `pad`, what YOLOv5's `val` scales boxes back by.
    pub ratio: (f64, f64),
    /// Half the padding as (x, y), before its two sides are rounded to pixels.
    pub pad: (f64, f64),
}

/// Resizes a picture to fit `shape` = (height, width), keeping its proportions, and pads it with grey 114: YOLOv5's `letterbox`.
///
/// # Errors
/// [`Error::Argument`] where `shape` or the stride is 0, the picture is so long and thin that a side would have no pixel, or
/// the result would have more than [`MAX_PIXELS`](super::MAX_PIXELS) pixels.
pub fn letterbox(image: &RgbImage, shape: (u32, u32), options: &LetterboxOptions) -> Result<Letterboxed> {
    let picture = (image.height(), image.width());
    let Plan { inner, corner, outer, pad, ratio } = Plan::new(picture, shape, options)?;
    check_sides(image, outer.0, outer.1)?;
    let mut padded = RgbImage::from_pixel(outer.0, outer.1, PADDING);
    resize_into(image, &mut padded, corner, inner);

    let network = (outer.1, outer.0);
    let stretched = options.scale_fill && !options.auto;
    let placement =
        if stretched { Placement::stretched(network, picture) } else { Placement::centred(network, picture) };
    Ok(Letterboxed { image: padded, placement, ratio, pad })
}

/// The (height, width) that [`letterbox`] gives a picture of `picture` = (height, width).
///
/// # Errors
/// As [`letterbox`], but for the number of pixels.
pub fn letterbox_shape(picture: (u32, u32), shape: (u32, u32), options: &LetterboxOptions) -> Result<(u32, u32)> {
    Plan::new(picture, shape, options).map(|plan| (plan.outer.1, plan.outer.0))
}

/// How a picture is fitted; sides and places as (x, y).
struct Plan {
    /// The resized picture, ...
    inner: (u32, u32),
    /// ... where it begins, ...
    corner: (u32, u32),
    /// ... and all with the padding.
    outer: (u32, u32),
    pad: (f64, f64),
    ratio: (f64, f64),
}

impl Plan {
    fn new(picture: (u32, u32), shape: (u32, u32), options: &LetterboxOptions) -> Result<Self> {
        let ((height, width), (new_height, new_width)) = (picture, shape);
        if [width, height, new_width, new_height, options.stride].contains(&0) {
            let problem = format!(
                "cannot fit {width}x{height} pixels into {new_width}x{new_height} (stride {}): none of them may be 0",
                options.stride
            );
            return Err(Error::Argument { argument: "letterbox", problem });
        }
        let (w, h) = (f64::from(width), f64::from(height));
        let mut scale = (f64::from(new_height) / h).min(f64::from(new_width) / w);
        if !options.scale_up {
            scale = scale.min(1.0);
        }
        let mut ratio = (scale, scale);
        let mut inner = ((w * scale).round_ties_even() as u32, (h * scale).round_ties_even() as u32);
        let mut padding = (new_width.saturating_sub(inner.0), new_height.saturating_sub(inner.1));
        if options.auto {
            padding = (padding.0 % options.stride, padding.1 % options.stride);
        } else if options.scale_fill {
            padding = (0, 0);
            inner = (new_width, new_height);
            ratio = (f64::from(new_width) / w, f64::from(new_height) / h);
        }
        if inner.0 == 0 || inner.1 == 0 {
            let problem = format!(
                "{width}x{height} pixels is too long and thin: fitted into {new_width}x{new_height}, its shorter side has no pixel"
            );
            return Err(Error::Argument { argument: "picture", problem });
        }

        let pad = (f64::from(padding.0) / 2.0, f64::from(padding.1) / 2.0);
        // The odd pixel goes right and below.
        let before = |half: f64| (half - 0.1).round_ties_even().max(0.0) as u32;
        let after = |half: f64| (half + 0.1).round_ties_even() as u32;
        let corner = (before(pad.0), before(pad.1));
        let outer = (
            inner.0.saturating_add(corner.0).saturating_add(after(pad.0)),
            inner.1.saturating_add(corner.1).saturating_add(after(pad.1)),
        );
        Ok(Self { inner, corner, outer, pad, ratio })
    }
}

/// Pictures of one size as a network's input: f32 `[B, 3, H, W]`, channels in RGB order, in 0..=1.
///
/// # Errors
/// [`Error::Argument`] where there is no picture, [`Error::Shape`] where their sizes differ, [`Error::Candle`] from the device.
pub fn to_tensor(images: &[RgbImage], device: &Device) -> Result<Tensor> {
    let Some(first) = images.first() else {
        return Err(Error::Argument { argument: "images", problem: "at least one picture is needed".into() });
    };
    let (width, height) = first.dimensions();
    if let Some((index, other)) = images.iter().enumerate().find(|(_, image)| image.dimensions() != (width, height)) {
        return Err(Error::Shape {
            what: format!("picture {index} of a batch"),
            expected: format!("{width}x{height} pixels, as the first"),
            got: format!("{}x{}", other.width(), other.height()),
        });
    }
    let unit: [f32; 256] = std::array::from_fn(|sample| sample as f32 / 255.0);
    // Plane by plane, so that the numbers are appended: memory that was cleared first would be written twice.
    let mut data = Vec::with_capacity(images.len() * 3 * width as usize * height as usize);
    for image in images {
        let (pixels, _) = image.as_raw().as_chunks::<3>();
        for channel in 0..3 {
            data.extend(pixels.iter().map(|pixel| unit[usize::from(pixel[channel])]));
        }
    }
    Ok(Tensor::from_vec(data, (images.len(), 3, height as usize, width as usize), device)?)
}
