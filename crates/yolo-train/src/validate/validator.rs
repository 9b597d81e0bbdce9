//! From batches and what a network gave for them to a report.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use yolo_core::Mask;
use yolo_core::picture::Placement;
use yolo_core::post::{Candidate, NmsOptions, nms_batch, process_mask, process_mask_native, scale_boxes, unpad_mask};

use super::average_precision::Statistics;
use super::coco::{Annotation, CocoResults, ImageId, Record, Rle};
use super::confusion::ConfusionMatrix;
use super::masks::{BitMask, mask_iou, resize_mask};
use super::matching::{box_iou, match_detections};
use super::network::Network;
use super::report::{Report, Summary, Times};
use crate::data::batch::{Batch, Masks, Origin};
use crate::{Error, Result};

/// Columns of a row before the classes' scores.
const BOX_COLUMNS: usize = 5;

/// How detections are made and judged; the defaults are those of YOLOv5's `val.py`.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Confidence must be greater than this.
    pub conf_thres: f64,
    /// A box is dropped where its overlap with a better one of its class is greater than this.
    pub iou_thres: f64,
    /// At most this many detections a picture.
    pub max_det: usize,
    /// Take all classes for one: detections are of class 0, and suppress each other whatever their class was.
    pub single_cls: bool,
    /// Keep results in COCO's form, under these numbers of the classes. Masks are then made, and judged, at the size of the
    /// network's input instead of the prototypes', as YOLOv5 does.
    pub coco: Option<Vec<u64>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { conf_thres: 0.001, iou_thres: 0.6, max_det: 300, single_cls: false, coco: None }
    }
}

/// What was found in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Detections in the network's input, the most confident first.
    pub candidates: Vec<Candidate>,
    /// Their boxes `[x1, y1, x2, y2]` in pixels of the picture's file, not rounded.
    pub boxes: Vec<[f32; 4]>,
    /// Their masks, where the network segments: at the prototypes' size, or the input's where COCO's form is asked for.
    pub masks: Vec<Mask>,
}

/// Collects what is found and what is there, batch by batch. It is fed a network's outputs by [`Validator::add`], so that a
/// trainer can look at them, too; [`validate`] runs a network by itself.
#[derive(Debug, Clone)]
pub struct Validator {
    options: Options,
    classes: usize,
    boxes: Statistics,
    masks: Option<Statistics>,
    confusion: ConfusionMatrix,
    coco: CocoResults,
    instances: Vec<usize>,
    images: usize,
    nms: Duration,
}

impl Validator {
    /// One for a data set of so many classes.
    ///
    /// # Errors
    /// [`Error::Argument`] where an option is out of its range.
    pub fn new(classes: usize, options: Options) -> Result<Self> {
        let fail = |argument, problem| Err(Error::Argument { argument, problem });
        for (argument, value) in [("conf_thres", options.conf_thres), ("iou_thres", options.iou_thres)] {
            if !(0.0..=1.0).contains(&value) {
                return fail(argument, format!("must be from 0 to 1, it is {value}"));
            }
        }
        if options.max_det == 0 {
            return fail("max_det", "must be at least 1".into());
        }
        if classes == 0 || (options.single_cls && classes != 1) {
            return fail(
                "classes",
                format!("{classes} classes, where at least one (with single_cls: one) is expected"),
            );
        }
        if let Some(numbers) = options.coco.as_ref().filter(|numbers| numbers.len() < classes) {
            return fail("coco", format!("{} numbers for {classes} classes", numbers.len()));
        }
        Ok(Self {
            options,
            classes,
            boxes: Statistics::default(),
            masks: None,
            confusion: ConfusionMatrix::new(classes),
            coco: CocoResults::default(),
            instances: vec![0; classes],
            images: 0,
            nms: Duration::ZERO,
        })
    }

    /// How detections are made and judged.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Takes a batch and what a network gave for it, and says what was found, one a picture.
    ///
    /// # Shapes
    /// `rows` is `[B, N, 5 + classes (+ masks)]`, decoded, in pixels of the input; `prototypes` `[B, masks, h, w]` of a
    /// segmentation network. Both on any device, in any type of float. Rows with values that are not finite are left out.
    ///
    /// # Errors
    /// Where shapes do not fit each other or the classes, a label's class or picture is out of range, or masks are to be judged
    /// and the batch has none.
    pub fn add(&mut self, batch: &Batch, rows: &Tensor, prototypes: Option<&Tensor>) -> Result<Vec<Found>> {
        let (count, _, height, width) = batch.images.dims4()?;
        let masks = prototypes.map_or(Ok(0), |prototypes| prototypes.dims4().map(|dims| dims.1))?;
        self.check(batch, rows, prototypes, masks)?;
        let start = Instant::now();
        let options = NmsOptions {
            conf_thres: self.options.conf_thres,
            iou_thres: self.options.iou_thres,
            agnostic: self.options.single_cls,
            // One class has nothing to choose from: the best is the only one.
            multi_label: rows.dims().last().is_some_and(|&columns| columns > BOX_COLUMNS + 1 + masks),
            max_det: self.options.max_det,
            nm: masks,
            ..NmsOptions::default()
        };
        let candidates = nms_batch(rows, &options)?;
        self.nms += start.elapsed();
        let prototypes = prototypes.map(|prototypes| prototypes.to_dtype(DType::F32)).transpose()?;

        let labels = Labels::of(batch, (height, width), count, self.options.single_cls);
        let (coco, single_cls) = (self.options.coco.as_ref(), self.options.single_cls);
        let pictures: Vec<Result<(Found, Judged)>> = candidates
            .into_par_iter()
            .zip(&labels)
            .zip(&batch.origins)
            .enumerate()
            .map(|(index, ((mut candidates, labels), origin))| {
                if single_cls {
                    candidates.iter_mut().for_each(|candidate| candidate.class = 0);
                }
                let prototypes = prototypes.as_ref().map(|prototypes| prototypes.get(index)).transpose()?;
                let picture = Picture { index, size: (height, width), labels, origin, batch };
                picture.judge(candidates, prototypes.as_ref(), coco)
            })
            .collect();

        let mut all = Vec::with_capacity(count);
        for ((result, labels), origin) in pictures.into_iter().zip(&labels).zip(&batch.origins) {
            let (found, judged) = result?;
            self.count(&found, judged, (labels, &origin.path));
            all.push(found);
        }
        Ok(all)
    }

    fn check(&self, batch: &Batch, rows: &Tensor, prototypes: Option<&Tensor>, masks: usize) -> Result<()> {
        let images = batch.images.dim(0)?;
        let (rows_of, _, columns) = rows.dims3()?;
        let expected = BOX_COLUMNS + masks + if self.options.single_cls { 1 } else { self.classes };
        let fits = if self.options.single_cls { columns >= expected } else { columns == expected };
        if !fits {
            let found = columns.saturating_sub(BOX_COLUMNS + masks);
            let problem = format!("the network has {found} classes, the data set {}", self.classes);
            return Err(Error::Argument { argument: "classes", problem });
        }
        let counts = [rows_of, batch.origins.len(), prototypes.map_or(images, |prototypes| prototypes.dims()[0])];
        if counts.iter().any(|&count| count != images) {
            let problem = format!("{images} pictures with rows, origins and prototypes of {counts:?}");
            return Err(Error::Argument { argument: "batch", problem });
        }
        if prototypes.is_some() && batch.masks.is_none() && !batch.targets.is_empty() {
            let problem = "the labels have no outlines, which a segmentation network is judged by".to_string();
            return Err(Error::Argument { argument: "batch", problem });
        }
        for target in &batch.targets {
            if target.image >= images || (target.class >= self.classes && !self.options.single_cls) {
                let problem = format!(
                    "a label of class {} in picture {}, of {} classes and {images} pictures",
                    target.class, target.image, self.classes
                );
                return Err(Error::Argument { argument: "batch", problem });
            }
        }
        Ok(())
    }

    fn count(&mut self, found: &Found, judged: Judged, (labels, path): (&Labels, &Path)) {
        self.images += 1;
        let confidence: Vec<f32> = found.candidates.iter().map(|candidate| candidate.confidence).collect();
        let classes: Vec<usize> = found.candidates.iter().map(|candidate| candidate.class).collect();
        labels.classes.iter().for_each(|&class| self.instances[class] += 1);
        self.boxes.add_detections(&judged.boxes, &confidence, &classes);
        self.boxes.labels.extend(&labels.classes);
        if let Some(correct) = &judged.masks {
            let masks = self.masks.get_or_insert_default();
            masks.add_detections(correct, &confidence, &classes);
            masks.labels.extend(&labels.classes);
        }
        // As in YOLOv5, a picture without labels has no part in the matrix.
        if !labels.classes.is_empty() {
            self.confusion.add((&judged.label_boxes, &labels.classes), (&found.boxes, &classes), &confidence);
        }
        if let Some((mut image, mut annotations, mut records)) = judged.coco {
            if self.coco.truth.images.contains(&image) {
                // Another picture is called the same, in another folder: both as one would be neither.
                image = ImageId::Name(path.to_string_lossy().into_owned());
                annotations.iter_mut().for_each(|annotation| annotation.image_id = image.clone());
                records.iter_mut().for_each(|record| record.image_id = image.clone());
            }
            self.coco.truth.images.insert(image);
            self.coco.truth.annotations.extend(annotations);
            self.coco.records.extend(records);
        }
    }

    /// The figures of all that was added.
    pub fn finish(self) -> Report {
        Report {
            images: self.images,
            instances: self.instances,
            boxes: Summary::new(&self.boxes),
            masks: self.masks.as_ref().map(Summary::new),
            confusion: self.confusion,
            times: Times { nms: self.nms, ..Times::default() },
            coco: self.options.coco.is_some().then_some(self.coco),
        }
    }
}

/// Runs a network on batches and judges what it gives. `each` sees every batch with what was found in it.
///
/// # Errors
/// Of a batch, the network, [`Validator::add`] or `each`: the first one ends the run.
pub fn validate(
    network: &mut Network,
    mut validator: Validator,
    batches: impl IntoIterator<Item = Result<Batch>>,
    mut each: impl FnMut(&Batch, &[Found]) -> Result<()>,
) -> Result<Report> {
    // Rows that suppression would drop need not be decoded: those of an objectness below the threshold, rounding aside.
    let threshold = (validator.options.conf_thres as f32).next_down();
    let mut times = Times::default();
    for batch in batches {
        let batch = batch?;
        let (count, _, height, width) = batch.images.dims4()?;
        network.ready(count, (height, width))?;
        let start = Instant::now();
        let input = network.input(&batch.images)?;
        times.pre_process += start.elapsed();
        let start = Instant::now();
        let outputs = network.run(&input, threshold)?;
        times.inference += start.elapsed();
        let found = validator.add(&batch, &outputs.main, outputs.prototypes.as_ref())?;
        each(&batch, &found)?;
    }
    let report = validator.finish();
    Ok(Report { times: Times { nms: report.times.nms, ..times }, ..report })
}

/// The labels of a picture in the network's input.
struct Labels {
    /// Places in the batch's list.
    targets: Vec<usize>,
    classes: Vec<usize>,
    boxes: Vec<[f32; 4]>,
}

impl Labels {
    /// Of each picture of a batch.
    fn of(batch: &Batch, (height, width): (usize, usize), count: usize, single_cls: bool) -> Vec<Self> {
        let empty = || Self { targets: Vec::new(), classes: Vec::new(), boxes: Vec::new() };
        let mut pictures: Vec<Self> = std::iter::repeat_with(empty).take(count).collect();
        for (index, target) in batch.targets.iter().enumerate() {
            let [x, y, w, h] = target.xywh;
            let (x, y) = (x * width as f32, y * height as f32);
            let (half_width, half_height) = (w * width as f32 / 2.0, h * height as f32 / 2.0);
            let picture = &mut pictures[target.image];
            picture.targets.push(index);
            picture.classes.push(if single_cls { 0 } else { target.class });
            picture.boxes.push([x - half_width, y - half_height, x + half_width, y + half_height]);
        }
        pictures
    }
}

/// What is right of a picture's detections.
struct Judged {
    boxes: Vec<[bool; 10]>,
    masks: Option<Vec<[bool; 10]>>,
    /// The labels' boxes in pixels of the file's picture.
    label_boxes: Vec<[f32; 4]>,
    coco: Option<(ImageId, Vec<Annotation>, Vec<Record>)>,
}

/// A picture of a batch.
struct Picture<'a> {
    index: usize,
    /// Height and width of the network's input.
    size: (usize, usize),
    labels: &'a Labels,
    origin: &'a Origin,
    batch: &'a Batch,
}

impl Picture<'_> {
    fn judge(
        &self,
        candidates: Vec<Candidate>,
        prototypes: Option<&Tensor>,
        coco: Option<&Vec<u64>>,
    ) -> Result<(Found, Judged)> {
        let placement = self.placement();
        let mut boxes: Vec<[f32; 4]> = candidates.iter().map(|candidate| candidate.bbox).collect();
        scale_boxes(&mut boxes, &placement);
        let mut label_boxes = self.labels.boxes.clone();
        scale_boxes(&mut label_boxes, &placement);
        let classes: Vec<usize> = candidates.iter().map(|candidate| candidate.class).collect();
        let iou = box_iou(&label_boxes, &boxes);
        let right = match_detections(&iou, &self.labels.classes, &classes);

        let mut found = Found { candidates, boxes, masks: Vec::new() };
        let mut right_masks = None;
        let mut label_masks = Vec::new();
        if let Some(prototypes) = prototypes {
            found.masks = self.masks(&found.candidates, prototypes, coco.is_some())?;
            let (_, low_height, low_width) = prototypes.dims3()?;
            let side = if coco.is_some() { self.size } else { (low_height, low_width) };
            label_masks = self.label_masks(side)?;
            let of_labels: Vec<BitMask> = label_masks.iter().map(|mask| BitMask::new(mask.iter().copied())).collect();
            let of_found: Vec<BitMask> = found.masks.iter().map(BitMask::from).collect();
            right_masks = Some(match_detections(&mask_iou(&of_labels, &of_found), &self.labels.classes, &classes));
        }
        let coco = coco.map(|categories| self.coco(&found, &label_boxes, &label_masks, categories)).transpose()?;
        Ok((found, Judged { boxes: right, masks: right_masks, label_boxes, coco }))
    }

    /// Where the file's picture lies in the input. YOLOv5 scales both ways by the vertical gain.
    fn placement(&self) -> Placement {
        let gain = f64::from(self.origin.ratio.0);
        Placement {
            network: (self.size.0 as u32, self.size.1 as u32),
            picture: (self.origin.size.0 as u32, self.origin.size.1 as u32),
            gain: (gain, gain),
            pad: (f64::from(self.origin.pad.0), f64::from(self.origin.pad.1)),
        }
    }

    /// The detections' masks, at the prototypes' size or, upsampled before they are cut out, at the input's.
    fn masks(&self, candidates: &[Candidate], prototypes: &Tensor, full: bool) -> Result<Vec<Mask>> {
        let coefficients: Vec<&[f32]> = candidates.iter().map(|candidate| candidate.coefficients.as_slice()).collect();
        let boxes: Vec<[f32; 4]> = candidates.iter().map(|candidate| candidate.bbox).collect();
        let shape = (self.size.0 as u32, self.size.1 as u32);
        Ok(if full {
            process_mask_native(prototypes, &coefficients, &boxes, shape)?
        } else {
            process_mask(prototypes, &coefficients, &boxes, shape, false)?
        })
    }

    /// The labels' masks at another size.
    fn label_masks(&self, to: (usize, usize)) -> Result<Vec<Vec<bool>>> {
        let Some(masks) = self.batch.masks.as_ref().filter(|_| !self.labels.targets.is_empty()) else {
            return Ok(Vec::new());
        };
        let values = |tensor: &Tensor, index: usize| -> Result<(Vec<f32>, (usize, usize))> {
            let (_, height, width) = tensor.dims3()?;
            let plane = tensor.narrow(0, index, 1)?.to_dtype(DType::F32)?.flatten_all()?;
            Ok((plane.to_vec1()?, (height, width)))
        };
        match masks {
            Masks::Overlap(tensor) => {
                let (plane, from) = values(tensor, self.index)?;
                let one = |place: usize| {
                    let own: Vec<f32> = plane.iter().map(|&value| f32::from(value == (place + 1) as f32)).collect();
                    resized(own, from, to)
                };
                Ok((0..self.labels.targets.len()).map(one).collect())
            }
            Masks::Separate(tensor) => {
                let one = |&target: &usize| values(tensor, target).map(|(plane, from)| resized(plane, from, to));
                self.labels.targets.iter().map(one).collect()
            }
        }
    }

    /// Detections and labels in COCO's form, masks at the size of the file's picture.
    fn coco(
        &self,
        found: &Found,
        label_boxes: &[[f32; 4]],
        label_masks: &[Vec<bool>],
        categories: &[u64],
    ) -> Result<(ImageId, Vec<Annotation>, Vec<Record>)> {
        let image = ImageId::of_file(&self.origin.path);
        let category = |class: usize| categories.get(class).copied().unwrap_or(class as u64);
        let records = found.candidates.iter().zip(&found.boxes).enumerate().map(|(index, (candidate, bbox))| {
            let mask = found.masks.get(index).map(|mask| self.at_picture(mask)).transpose()?;
            Ok(Record::new(image.clone(), category(candidate.class), *bbox, candidate.confidence, mask))
        });
        let records = records.collect::<Result<_>>()?;
        let annotations = label_boxes.iter().zip(&self.labels.classes).enumerate().map(|(index, (bbox, &class))| {
            let of_pixels = |pixels: &Vec<bool>| {
                let data = pixels.iter().copied().map(u8::from).collect();
                self.at_picture(&Mask { width: self.size.1 as u32, height: self.size.0 as u32, data })
            };
            let mask = label_masks.get(index).map(of_pixels).transpose()?;
            Ok(Annotation::new(image.clone(), category(class), *bbox, mask))
        });
        let annotations = annotations.collect::<Result<_>>()?;
        Ok((image, annotations, records))
    }

    /// A mask of the input's size brought to the picture's: the border is cut off, the rest resized.
    fn at_picture(&self, mask: &Mask) -> Result<Rle> {
        let pad = (f64::from(self.origin.pad.0), f64::from(self.origin.pad.1));
        let size = (self.origin.size.0 as u32, self.origin.size.1 as u32);
        Ok(Rle::of_mask(&unpad_mask(mask, pad, size)?))
    }
}

/// The same plane where it has the wanted size already, else resized.
fn resized(plane: Vec<f32>, from: (usize, usize), to: (usize, usize)) -> Vec<bool> {
    if from == to { plane.into_iter().map(|value| value > 0.5).collect() } else { resize_mask(&plane, from, to) }
}

#[cfg(test)]
mod tests;
