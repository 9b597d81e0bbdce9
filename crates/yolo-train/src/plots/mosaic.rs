//! `train_batch0.jpg`, `val_batch0_labels.jpg`, `val_batch0_pred.jpg`: pictures of a batch side by side, with their objects.

use candle_core::{DType, IndexOp, Tensor};
use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use yolo_core::picture::{Style, annotate};
use yolo_core::{Detection, Mask};

use super::canvas::{Align, BLACK, Canvas, WHITE, shortened};
use crate::data::{Batch, Masks};
use crate::{Error, Result};

/// The most pictures of a mosaic, and its greatest side in pixels.
const MOST: usize = 16;
const SIDE: u32 = 1920;
/// Pictures smaller than this are enlarged: names would hide them.
const SMALLEST: u32 = 320;
/// Predictions below this confidence are left out.
const LEAST_CONFIDENCE: f32 = 0.25;

/// A picture of a mosaic.
#[derive(Debug, Clone)]
pub struct Tile {
    /// The picture.
    pub picture: RgbImage,
    /// Its name, written into its upper left corner.
    pub name: String,
    /// What is drawn on it, boxes in pixels of `picture`; masks may have any size and stand for the whole picture.
    pub objects: Vec<Detection>,
}

/// A batch as it was loaded: its pictures with the boxes, classes and masks of their labels.
///
/// # Errors
/// [`Error::Argument`] where the parts of the batch do not fit together, or an error of the tensor library.
pub fn label_mosaic(batch: &Batch, names: &[String]) -> Result<RgbImage> {
    let (count, _, height, width) = batch.images.dims4()?;
    let count = count.min(MOST);
    let mut objects = vec![Vec::new(); count];
    for (place, target) in batch.targets.iter().enumerate() {
        let Some(of_picture) = objects.get_mut(target.image) else { continue };
        let [x, y, w, h] = target.xywh;
        let (width, height) = (width as f32, height as f32);
        let bbox = [(x - w / 2.0) * width, (y - h / 2.0) * height, (x + w / 2.0) * width, (y + h / 2.0) * height];
        let mask = match &batch.masks {
            None => None,
            Some(Masks::Separate(masks)) => Some(mask(&masks.i(place)?, |value| value > 0.5)?),
            Some(Masks::Overlap(masks)) => {
                let number = of_picture.len() as f32 + 1.0;
                Some(mask(&masks.i(target.image)?, |value| value == number)?)
            }
        };
        of_picture.push(Detection { bbox, class: target.class, confidence: 1.0, mask, polygon: None });
    }
    Ok(mosaic(&tiles(batch, objects)?, names, true))
}

/// A batch with what a network found on it: for every picture its detections, boxes in pixels of the network's input.
/// Confidences below 0.25 are left out.
///
/// # Errors
/// As for [`label_mosaic`].
pub fn prediction_mosaic(batch: &Batch, detections: &[Vec<Detection>], names: &[String]) -> Result<RgbImage> {
    let sure = |found: &&Detection| found.confidence >= LEAST_CONFIDENCE;
    let objects = detections.iter().take(MOST).map(|found| found.iter().filter(sure).cloned().collect()).collect();
    Ok(mosaic(&tiles(batch, objects)?, names, false))
}

fn tiles(batch: &Batch, mut objects: Vec<Vec<Detection>>) -> Result<Vec<Tile>> {
    let count = batch.images.dim(0)?.min(MOST);
    objects.resize(count, Vec::new());
    let tile = |(index, objects): (usize, Vec<Detection>)| {
        let name = batch.origins.get(index).and_then(|origin| origin.path.file_name());
        let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Tile { picture: picture(&batch.images.i(index)?)?, name, objects })
    };
    objects.into_iter().enumerate().map(tile).collect()
}

/// A picture of a batch, `[3, H, W]` of 0 to 1.
fn picture(image: &Tensor) -> Result<RgbImage> {
    let (channels, height, width) = image.dims3()?;
    let samples = image.to_dtype(DType::F32)?.permute((1, 2, 0))?.flatten_all()?.to_vec1::<f32>()?;
    let samples = samples.into_iter().map(|sample| (sample * 255.0).round().clamp(0.0, 255.0) as u8).collect();
    RgbImage::from_raw(width as u32, height as u32, samples)
        .filter(|_| channels == 3)
        .ok_or_else(|| Error::Argument { argument: "images", problem: format!("expected 3 channels, got {channels}") })
}

/// A mask `[H, W]` of the pixels whose value is inside.
fn mask(values: &Tensor, inside: impl Fn(f32) -> bool) -> Result<Mask> {
    let (height, width) = values.dims2()?;
    let values = values.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let data = values.into_iter().map(|value| u8::from(inside(value))).collect();
    Ok(Mask { width: width as u32, height: height as u32, data })
}

/// Pictures (of the first 16) row by row in a square, with the boxes, names and masks of their objects.
///
/// `labels` says that the objects are no predictions: their confidences are not written.
pub fn mosaic(tiles: &[Tile], names: &[String], labels: bool) -> RgbImage {
    let tiles = &tiles[..tiles.len().min(MOST)];
    let across = (1..).find(|n| n * n >= tiles.len()).unwrap_or(1).max(1) as u32;
    let rows = (tiles.len() as u32).div_ceil(across).max(1);
    let largest = |side: fn(&RgbImage) -> u32| tiles.iter().map(|tile| side(&tile.picture)).max().unwrap_or(1).max(1);
    let (width, height) = (largest(RgbImage::width), largest(RgbImage::height));
    let longest = width.max(height) as f32;
    let scale = (SMALLEST as f32 / longest).max(1.0).min(SIDE as f32 / across as f32 / longest);
    let scaled = |side: u32| ((side as f32 * scale).round() as u32).max(1);
    let (cell_width, cell_height) = (scaled(width), scaled(height));
    let mut sheet = RgbImage::from_pixel(cell_width * across, cell_height * rows, Rgb(WHITE));
    for (index, tile) in tiles.iter().enumerate() {
        let (left, top) = (index as u32 % across * cell_width, index as u32 / across * cell_height);
        let drawn = drawn(tile, scaled(tile.picture.width()), scaled(tile.picture.height()), scale, names, labels);
        imageops::replace(&mut sheet, &drawn, i64::from(left), i64::from(top));
    }
    let mut canvas = Canvas::from(sheet);
    for (index, tile) in tiles.iter().enumerate() {
        let left = (index as u32 % across * cell_width) as f32;
        let top = (index as u32 / across * cell_height) as f32;
        let (right, bottom) = (left + cell_width as f32, top + cell_height as f32);
        canvas.frame([left, top, right, bottom], 4.0, WHITE);
        let size = (cell_height as f32 / 30.0).clamp(11.0, 18.0);
        let name = shortened(&tile.name, size, cell_width as f32 - 24.0);
        let at = [left + 9.0, bottom - size - 2.0];
        for (dx, dy) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, 1.0)] {
            canvas.text(&name, [at[0] + dx, at[1] + dy], size, BLACK, Align::Start);
        }
        canvas.text(&name, at, size, WHITE, Align::Start);
    }
    canvas.finish()
}

/// A tile at its size in the mosaic, with its objects.
fn drawn(tile: &Tile, width: u32, height: u32, scale: f32, names: &[String], labels: bool) -> RgbImage {
    let mut picture = if tile.picture.dimensions() == (width, height) {
        tile.picture.clone()
    } else {
        imageops::resize(&tile.picture, width, height, FilterType::Triangle)
    };
    let objects: Vec<Detection> = tile
        .objects
        .iter()
        .map(|object| Detection {
            bbox: object.bbox.map(|side| side * scale),
            mask: object.mask.as_ref().and_then(|mask| resized(mask, width, height)),
            ..object.clone()
        })
        .collect();
    let style = Style { line_thickness: Some(2), hide_conf: labels, mask_alpha: 0.45, ..Style::default() };
    annotate(&mut picture, &objects, names, &style);
    picture
}

/// A mask at another size, its edge smooth.
fn resized(mask: &Mask, width: u32, height: u32) -> Option<Mask> {
    let grey: Vec<u8> = mask.data.iter().map(|&inside| if inside == 0 { 0 } else { 255 }).collect();
    let grey = image::GrayImage::from_raw(mask.width, mask.height, grey)?;
    let grey = imageops::resize(&grey, width, height, FilterType::Triangle);
    Some(Mask { width, height, data: grey.into_raw().into_iter().map(|level| u8::from(level > 127)).collect() })
}
