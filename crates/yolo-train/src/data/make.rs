//! One picture of a batch: read, changed by chance, fitted; and batches of such pictures.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use image::RgbImage;
use yolo_core::picture::{LetterboxOptions, letterbox, to_tensor};

use super::augment::copy_paste::copy_paste;
use super::augment::hsv::Jitter;
use super::augment::mixup::mixup;
use super::augment::mosaic::{Mosaic, random_centre};
use super::augment::perspective::Transform;
use super::augment::{Sample, flip};
use super::batch::{Batch, Masks, Origin, Target};
use super::fill::Bitmap;
use super::labels::Labels;
use super::loader::LoaderOptions;
use super::masks::{flip_plane, object_mask};
use super::order::Order;
use super::pictures::Pictures;
use super::rng::Rng;
use super::sample::{normalised, objects};
use super::set::Dataset;
use crate::Result;

/// All that is needed to make any batch of any epoch.
pub(super) struct Maker {
    pub(super) set: Dataset,
    pub(super) pictures: Pictures,
    pub(super) options: LoaderOptions,
}

/// A picture on its place in a batch.
struct Made {
    picture: RgbImage,
    targets: Vec<Target>,
    /// One plane, or one an object.
    masks: Vec<f32>,
    origin: Origin,
}

impl Maker {
    /// Batch number `index` of an epoch.
    pub(super) fn batch(&self, order: &Order, epoch: u64, index: usize) -> Result<Batch> {
        let begin = index * self.options.batch;
        let end = (begin + self.options.batch).min(order.pictures.len());
        let shape = order.shapes[index];
        let mut images = Vec::with_capacity(end - begin);
        let mut targets = Vec::new();
        let mut planes = Vec::new();
        let mut origins = Vec::with_capacity(end - begin);
        let mut bitmap = Bitmap::default();
        for place in begin..end {
            let made = self.picture(order, epoch, place, shape, &mut bitmap)?;
            targets.extend(made.targets.into_iter().map(|target| Target { image: place - begin, ..target }));
            planes.extend(made.masks);
            images.push(made.picture);
            origins.push(made.origin);
        }
        let masks = self
            .options
            .segments
            .map(|options| {
                let (height, width) = ((shape.0 / options.ratio) as usize, (shape.1 / options.ratio) as usize);
                let count = if options.overlap { images.len() } else { targets.len() };
                let planes = Tensor::from_vec(planes, (count, height, width), &Device::Cpu)?;
                Ok::<_, candle_core::Error>(if options.overlap {
                    Masks::Overlap(planes)
                } else {
                    Masks::Separate(planes)
                })
            })
            .transpose()?;
        Ok(Batch { images: to_tensor(&images, &Device::Cpu)?, targets, masks, origins })
    }

    fn picture(&self, order: &Order, epoch: u64, place: usize, shape: (u32, u32), bitmap: &mut Bitmap) -> Result<Made> {
        let LoaderOptions { hyp, augment, size, rect, .. } = &self.options;
        let index = order.pictures[place];
        let mut rng = Rng::keyed(self.options.seed, epoch, place as u64);
        let labels = &self.set.labels()[index];
        let mut origin =
            Origin { path: labels.picture.clone(), size: sizes(labels.size), ratio: (1.0, 1.0), pad: (0.0, 0.0) };
        let sample = if *augment && !rect && rng.chance(hyp.mosaic) {
            let mut sample = self.mosaic(order, index, &mut rng)?;
            if rng.chance(hyp.mixup) {
                let other = order.pictures[rng.below(order.pictures.len())];
                let other = self.mosaic(order, other, &mut rng)?;
                mixup(&mut sample, other, &mut rng);
            }
            origin.size = (*size as usize, *size as usize);
            sample
        } else {
            let sample = self.fitted(labels, &*self.pictures.get(index)?, shape, &mut origin)?;
            if *augment {
                let (height, width) = shape;
                Transform::random(hyp, &mut rng, (width, height), (width, height)).apply(sample)
            } else {
                sample
            }
        };
        self.finish(sample, &mut rng, origin, bitmap)
    }

    /// The picture in the middle of the batch's shape.
    fn fitted(&self, labels: &Labels, picture: &RgbImage, shape: (u32, u32), origin: &mut Origin) -> Result<Sample> {
        let options = LetterboxOptions {
            auto: false,
            scale_fill: false,
            scale_up: self.options.augment,
            stride: self.options.stride,
        };
        let (width, height) = picture.dimensions();
        let fitted = letterbox(picture, shape, &options)?;
        let scale = (fitted.ratio.0 as f32 * width as f32, fitted.ratio.1 as f32 * height as f32);
        let pad = (fitted.pad.0 as f32, fitted.pad.1 as f32);
        origin.ratio = (scale.1 / labels.size.0 as f32, scale.0 / labels.size.1 as f32);
        origin.pad = pad;
        Ok(Sample { picture: fitted.image, objects: objects(labels, scale, pad).collect() })
    }

    /// The picture and three others, in a canvas of twice the size, warped to the size.
    fn mosaic(&self, order: &Order, index: usize, rng: &mut Rng) -> Result<Sample> {
        let LoaderOptions { hyp, size, .. } = &self.options;
        let mut mosaic = Mosaic::new(*size, random_centre(*size, rng));
        let mut quarters = [index; 4];
        for other in &mut quarters[1..] {
            *other = order.pictures[rng.below(order.pictures.len())];
        }
        rng.shuffle(&mut quarters);
        for (quarter, index) in quarters.into_iter().enumerate() {
            let picture: Arc<RgbImage> = self.pictures.get(index)?;
            let (dx, dy) = mosaic.place(quarter, &picture);
            let (width, height) = picture.dimensions();
            let labels = &self.set.labels()[index];
            objects(labels, (width as f32, height as f32), (dx as f32, dy as f32))
                .for_each(|object| mosaic.add(object));
        }
        let mut sample = mosaic.finish();
        copy_paste(&mut sample, hyp.copy_paste, rng);
        let side = 2 * size;
        Ok(Transform::random(hyp, rng, (side, side), (*size, *size)).apply(sample))
    }

    fn finish(&self, sample: Sample, rng: &mut Rng, origin: Origin, bitmap: &mut Bitmap) -> Result<Made> {
        let Sample { mut picture, mut objects } = sample;
        let (width, height) = picture.dimensions();
        let mut planes = Vec::new();
        let columns = self.options.segments.map_or(1, |options| (width / options.ratio) as usize);
        if let Some(options) = self.options.segments {
            let plane = columns * (height / options.ratio) as usize;
            let mut masks: Vec<_> = objects
                .into_iter()
                .map(|object| (object_mask(&object, width, height, options.ratio, bitmap), object))
                .collect();
            if options.overlap {
                masks.sort_by_key(|(mask, _)| std::cmp::Reverse(mask.area));
                planes.resize(plane, 0.0);
                for (index, (mask, _)) in masks.iter().enumerate() {
                    mask.paint(&mut planes, columns, (index + 1) as f32);
                }
            } else {
                planes.resize(plane * masks.len(), 0.0);
                for ((mask, _), plane) in masks.iter().zip(planes.chunks_exact_mut(plane)) {
                    mask.paint(plane, columns, 1.0);
                }
            }
            objects = masks.into_iter().map(|(_, object)| object).collect();
        }
        let mut targets: Vec<Target> = objects
            .iter()
            .map(|object| Target { image: 0, class: object.class, xywh: normalised(object.bbox, width, height) })
            .collect();
        if self.options.augment {
            let hyp = &self.options.hyp;
            if let Some(jitter) = Jitter::random(hyp, rng) {
                jitter.apply(&mut picture);
            }
            let up_down = rng.chance(hyp.flipud);
            let left_right = rng.chance(hyp.fliplr);
            if up_down {
                flip::up_down(&mut picture, &mut targets);
            }
            if left_right {
                flip::left_right(&mut picture, &mut targets);
            }
            // Rows of all planes reversed, or planes one by one upside down.
            if let Some(options) = self.options.segments.filter(|_| up_down || left_right) {
                let plane = columns * (height / options.ratio) as usize;
                planes.chunks_exact_mut(plane).for_each(|plane| flip_plane(plane, columns, left_right, up_down));
            }
        }
        Ok(Made { picture, targets, masks: planes, origin })
    }
}

fn sizes((height, width): (u32, u32)) -> (usize, usize) {
    (height as usize, width as usize)
}
