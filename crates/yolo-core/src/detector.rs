//! From a picture to what is in it: letterbox, network, suppression, masks.

mod engine;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use image::RgbImage;

use engine::{Engine, Found};

use crate::picture::{LetterboxOptions, Placement, letterbox, letterbox_shape, to_tensor};
use crate::post::{
    Candidate, NmsOptions, OBJECTNESS, largest_contour, nms, process_mask, process_mask_native, round_boxes,
    scale_boxes, scale_mask, scale_segments,
};
use crate::weights::{Weights, checkpoint};
use crate::{Detection, Error, Graph, Mask, NetworkConfig, Result, augment};

/// What is looked for and kept; the defaults are those of YOLOv5's `detect`.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectOptions {
    /// Size that the network sees, as (height, width) in pixels; rounded up to the network's stride.
    pub imgsz: [usize; 2],
    /// Confidence must be greater than this.
    pub conf_thres: f64,
    /// A box is dropped where its overlap with a better one is greater than this.
    pub iou_thres: f64,
    /// At most this many objects a picture.
    pub max_det: usize,
    /// Only these classes.
    pub classes: Option<Vec<usize>>,
    /// Let objects of different classes suppress each other.
    pub agnostic_nms: bool,
    /// Pad pictures only to the least multiple of the stride, not to the whole of `imgsz`.
    pub rect: bool,
    /// Make masks at the picture's resolution instead of the network's.
    pub retina_masks: bool,
    /// See each picture in three sizes, in one of them mirrored ([`augment`]): more is found, in two to three times
    /// the time. Detection only.
    pub augment: bool,
}

impl Default for DetectOptions {
    fn default() -> Self {
        Self {
            imgsz: [640, 640],
            conf_thres: 0.25,
            iou_thres: 0.45,
            max_det: 1000,
            classes: None,
            agnostic_nms: false,
            rect: true,
            retina_masks: false,
            augment: false,
        }
    }
}

/// A network ready to find objects.
///
/// ```no_run
/// # fn main() -> yolo_core::Result<()> {
/// let detector = yolo_core::Detector::open("yolov5n.safetensors")?;
/// let picture = yolo_core::picture::open("bus.jpg")?;
/// for found in detector.detect(&picture)? {
///     println!("{} {:.2} {:?}", detector.names()[found.class], found.confidence, found.bbox);
/// }
/// # Ok(())
/// # }
/// ```
///
/// [`Detector::detect`] and [`Detector::detect_batch`] go through three stages, which can be had one by one where threads of
/// one's own are to do the first and the last while the network runs: [`Detector::prepare`], [`Detector::infer`] and
/// [`Detector::finish`].
#[derive(Debug, Clone)]
pub struct Detector {
    graph: Graph,
    engine: Engine,
    names: Vec<String>,
    options: DetectOptions,
    device: Device,
    dtype: DType,
}

/// Pictures as the network's input, in main memory: what [`Detector::prepare`] makes.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// `[batch, height, width, 3]`
    pixels: Vec<u8>,
    /// Height and width.
    shape: (u32, u32),
    placements: Vec<Placement>,
    pre_process: Duration,
}

impl Prepared {
    /// How many pictures it is.
    pub fn len(&self) -> usize {
        self.placements.len()
    }

    /// Whether there is none; [`Detector::prepare`] makes none such.
    pub fn is_empty(&self) -> bool {
        self.placements.is_empty()
    }

    /// As what a model takes, in main memory.
    fn tensor(&self) -> Result<Tensor> {
        let (height, width) = self.shape;
        let each = self.pixels.chunks_exact(height as usize * width as usize * 3);
        let images: Vec<_> = each.filter_map(|pixels| RgbImage::from_raw(width, height, pixels.to_vec())).collect();
        to_tensor(&images, &Device::Cpu)
    }
}

/// What the network gave for a batch, in main memory: what [`Detector::infer`] makes.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Rows of boxes of each picture.
    rows: Vec<Vec<f32>>,
    /// Values of a row.
    columns: usize,
    prototypes: Option<Tensor>,
    placements: Vec<Placement>,
    network_shape: [usize; 2],
    speed: Speed,
}

impl Raw {
    fn new(prepared: &Prepared, found: Found, speed: Speed) -> Self {
        let Found { rows, columns, prototypes } = found;
        let network_shape = [prepared.shape.0 as usize, prepared.shape.1 as usize];
        Self { rows, columns, prototypes, placements: prepared.placements.clone(), network_shape, speed }
    }

    /// Each picture by itself, with its share of the time, so that they can be finished in several threads.
    ///
    /// # Errors
    /// [`Error::Candle`], if ever.
    pub fn split(self) -> Result<Vec<Self>> {
        let share = 1.0 / self.placements.len().max(1) as f64;
        let speed = Speed {
            pre_process: self.speed.pre_process.mul_f64(share),
            inference: self.speed.inference.mul_f64(share),
            nms: self.speed.nms.mul_f64(share),
        };
        let one = |(index, (rows, placement)): (usize, (Vec<f32>, &Placement))| {
            Ok(Self {
                rows: vec![rows],
                columns: self.columns,
                prototypes: self.prototypes.as_ref().map(|prototypes| prototypes.narrow(0, index, 1)).transpose()?,
                placements: vec![*placement],
                network_shape: self.network_shape,
                speed,
            })
        };
        self.rows.into_iter().zip(&self.placements).enumerate().map(one).collect()
    }
}

/// What was found in a batch of pictures.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The objects of each picture, the most confident first.
    pub pictures: Vec<Vec<Detection>>,
    /// Height and width that the network saw.
    pub network_shape: [usize; 2],
    /// Where the time went.
    pub speed: Speed,
}

/// Time that a batch took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Speed {
    /// Letterbox and conversion to numbers.
    pub pre_process: Duration,
    /// The network.
    pub inference: Duration,
    /// Suppression, scaling and masks.
    pub nms: Duration,
}

impl Detector {
    /// Opens weights that describe their own network (a `.safetensors` file of this project, or a YOLOv5 `.pt`), to run on
    /// the CPU with the default options.
    ///
    /// # Errors
    /// Where the file cannot be read, does not describe a detection network, or does not fit the one that it describes.
    pub fn open(weights: impl AsRef<Path>) -> Result<Self> {
        let path = weights.as_ref();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let weights = if extension == "pt" || extension == "pth" {
            checkpoint::read(path)?.to_weights()?
        } else {
            Weights::open(path)?
        };
        Self::load(&weights, None, &Device::Cpu, DType::F32)
    }

    /// Builds the network that `config` (or, without it, the weights' own metadata) describes and gives it `weights`.
    ///
    /// # Errors
    /// As [`Detector::open`].
    pub fn load(weights: &Weights, config: Option<&NetworkConfig>, device: &Device, dtype: DType) -> Result<Self> {
        let config = match config {
            Some(config) => config.clone(),
            None => NetworkConfig::of_weights(weights)?,
        };
        let graph = Graph::new(&config)?;
        if graph.strides().is_empty() {
            let problem = "the network ends without Detect or Segment: it finds nothing in a picture".into();
            return Err(Error::Config { file: config.name, problem });
        }
        if config.channels != 3 {
            let problem = format!("the network reads {} channels, a picture has 3", config.channels);
            return Err(Error::Config { file: config.name, problem });
        }
        let known = weights.metadata().names.as_deref().unwrap_or_default();
        let name = |class: usize| known.get(class).cloned().unwrap_or_else(|| format!("class{class}"));
        let names = (0..graph.num_classes()).map(name).collect();
        let engine = Engine::new(&graph, weights, device, dtype)?;
        Ok(Self { graph, engine, names, options: DetectOptions::default(), device: device.clone(), dtype })
    }

    /// The same network with algorithms chosen by measurement, as [`PlanOptions::tuning`](crate::PlanOptions) says.
    #[must_use]
    pub fn with_tuning(mut self, file: impl Into<PathBuf>) -> Self {
        self.engine.tune(file.into());
        self
    }

    /// The same network for `lanes` threads that call [`Detector::infer`] at a time: each run has its share of the machine's
    /// threads, and memory of its own. Many pictures are through sooner than one after the other on all threads, which wait for
    /// each other; a single one takes longer. It counts on the CPU only.
    #[must_use]
    pub fn with_lanes(mut self, lanes: usize) -> Self {
        self.engine.set_lanes(lanes);
        self
    }

    /// Runs at a time that share the machine's threads.
    pub fn lanes(&self) -> usize {
        self.engine.lanes()
    }

    /// The same network with other options; `imgsz` is rounded up to the stride.
    ///
    /// # Errors
    /// [`Error::Argument`] where an option is out of its range.
    pub fn with_options(mut self, mut options: DetectOptions) -> Result<Self> {
        let fail = |argument, problem| Err(Error::Argument { argument, problem });
        for (argument, value) in [("conf_thres", options.conf_thres), ("iou_thres", options.iou_thres)] {
            if !(0.0..=1.0).contains(&value) {
                return fail(argument, format!("must be from 0 to 1, it is {value}"));
            }
        }
        let stride = self.stride();
        for side in &mut options.imgsz {
            if !(1..=16384).contains(side) {
                return fail("imgsz", format!("must be from 1 to 16384 pixels, it is {side}"));
            }
            *side = side.next_multiple_of(stride);
        }
        if options.augment {
            augment::check(&self.graph)?;
        }
        if options.max_det == 0 {
            return fail("max_det", "must be at least 1".into());
        }
        if let Some(class) = options.classes.iter().flatten().find(|class| **class >= self.names.len()) {
            return fail("classes", format!("there is no class {class}, the last one is {}", self.names.len() - 1));
        }
        self.options = options;
        Ok(self)
    }

    /// The options in force.
    pub fn options(&self) -> &DetectOptions {
        &self.options
    }

    /// Class names; the index is the class.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The sides of the network's input are multiples of this.
    pub fn stride(&self) -> usize {
        self.graph.stride()
    }

    /// Whether it gives masks.
    pub fn segments(&self) -> bool {
        self.graph.num_masks() > 0
    }

    /// The network behind it.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// One line about the network: layers, parameters, operations.
    pub fn summary(&self) -> String {
        let size = self.options.imgsz[0].max(self.options.imgsz[1]);
        self.graph.summary(size).map(|summary| summary.line()).unwrap_or_default()
    }

    /// Finds the objects in a picture, the most confident first.
    ///
    /// # Errors
    /// Where the picture is too long and thin for the network's input, or the device fails.
    pub fn detect(&self, picture: &RgbImage) -> Result<Vec<Detection>> {
        let mut batch = self.detect_batch(std::slice::from_ref(picture))?;
        Ok(batch.pictures.pop().unwrap_or_default())
    }

    /// Finds the objects in several pictures at once. Pictures of different shapes are padded to a common one.
    ///
    /// # Errors
    /// As [`Detector::detect`]; and where there is no picture.
    pub fn detect_batch(&self, pictures: &[RgbImage]) -> Result<Batch> {
        self.finish(&self.infer(&self.prepare(pictures)?)?)
    }

    /// The first stage: fits pictures into the network's input. Pictures of different shapes are padded to a common one.
    ///
    /// It runs in the calling thread alone, and leaves the network's device and threads in peace.
    ///
    /// # Errors
    /// Where there is no picture, or one is too long and thin for the network's input.
    pub fn prepare(&self, pictures: &[RgbImage]) -> Result<Prepared> {
        let start = Instant::now();
        if pictures.is_empty() {
            return Err(Error::Argument { argument: "pictures", problem: "at least one picture is needed".into() });
        }
        let [height, width] = self.options.imgsz.map(|side| side as u32);
        let mut shape = (height, width);
        let stride = self.stride() as u32;
        let mut options = LetterboxOptions { auto: self.options.rect, stride, ..LetterboxOptions::default() };
        let shapes = pictures
            .iter()
            .map(|picture| letterbox_shape((picture.height(), picture.width()), shape, &options))
            .collect::<Result<Vec<_>>>()?;
        let common = shapes.iter().fold((0, 0), |(h, w), (other_h, other_w)| (h.max(*other_h), w.max(*other_w)));
        if shapes.iter().any(|shape| *shape != common) {
            (shape, options.auto) = (common, false);
        }
        let mut placements = Vec::with_capacity(pictures.len());
        let mut pixels = Vec::new();
        for picture in pictures {
            let fitted = letterbox(picture, shape, &options)?;
            placements.push(fitted.placement);
            if pixels.is_empty() {
                pixels = fitted.image.into_raw();
            } else {
                pixels.extend_from_slice(&fitted.image);
            }
        }
        Ok(Prepared { pixels, shape: common, placements, pre_process: start.elapsed() })
    }

    /// The second stage: the network, and nothing else. Its work is spread over all cores, or a GPU, as it is: one thread should
    /// call it, or as many as [`Detector::with_lanes`] was told.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn infer(&self, prepared: &Prepared) -> Result<Raw> {
        // Rows that suppression would drop need not be decoded: those of an objectness below the threshold, rounding aside.
        let threshold = (self.options.conf_thres as f32).next_down();
        let (height, width) = (prepared.shape.0 as usize, prepared.shape.1 as usize);
        if self.options.augment {
            return self.infer_augmented(prepared, (height, width), threshold);
        }
        // Done once a size, and no part of what a picture takes.
        let ready = self.engine.ready(&self.graph, prepared.len(), (height, width))?;
        let start = Instant::now();
        let to_model = || -> Result<Tensor> { Ok(prepared.tensor()?.to_device(&self.device)?.to_dtype(self.dtype)?) };
        let input = if ready.is_none() { Some(to_model()?) } else { None };
        let pre_process = prepared.pre_process + start.elapsed();

        let start = Instant::now();
        let found = self.engine.run(ready, (&prepared.pixels, input.as_ref()), threshold)?;
        let speed = Speed { pre_process, inference: start.elapsed(), nms: Duration::ZERO };
        Ok(Raw::new(prepared, found, speed))
    }

    /// [`Detector::infer`] in the sizes of [`augment`].
    fn infer_augmented(&self, prepared: &Prepared, size: (usize, usize), threshold: f32) -> Result<Raw> {
        let sizes = augment::sizes(&self.graph, size).into_iter();
        let ready =
            sizes.map(|size| self.engine.ready(&self.graph, prepared.len(), size)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        let x = prepared.tensor()?;
        let pre_process = prepared.pre_process + start.elapsed();

        let start = Instant::now();
        let mut ready = ready.into_iter();
        let rows = augment::augmented(&self.graph, &x, |view| match ready.next().flatten() {
            Some(ready) => self.engine.rows(Some(ready), view, threshold),
            None => self.engine.rows(None, &view.to_device(&self.device)?.to_dtype(self.dtype)?, threshold),
        })?;
        let speed = Speed { pre_process, inference: start.elapsed(), nms: Duration::ZERO };
        Ok(Raw::new(prepared, Found::new(&rows, None)?, speed))
    }

    /// The third stage: suppression, boxes in the pictures' pixels, masks.
    ///
    /// # Errors
    /// Where the network gave values that are not numbers.
    pub fn finish(&self, raw: &Raw) -> Result<Batch> {
        let start = Instant::now();
        let options = self.nms_options();
        let finish = |(i, (rows, placement)): (usize, (&Vec<f32>, &Placement))| {
            check_finite(rows, raw.columns)?;
            let found = nms(rows, raw.columns, &options)?;
            match &raw.prototypes {
                Some(prototypes) => segmented(&found, &prototypes.get(i)?, placement, self.options.retina_masks),
                None => Ok(detections(&found, placement)),
            }
        };
        let pictures = raw.rows.iter().zip(&raw.placements).enumerate().map(finish).collect::<Result<_>>()?;
        let speed = Speed { nms: start.elapsed(), ..raw.speed };
        Ok(Batch { pictures, network_shape: raw.network_shape, speed })
    }

    fn nms_options(&self) -> NmsOptions {
        NmsOptions {
            conf_thres: self.options.conf_thres,
            iou_thres: self.options.iou_thres,
            classes: self.options.classes.clone(),
            agnostic: self.options.agnostic_nms,
            max_det: self.options.max_det,
            nm: self.graph.num_masks(),
            ..NmsOptions::default()
        }
    }
}

/// Refuses rows whose objectness is not a number: damaged weights would otherwise pass for a picture with nothing in it.
fn check_finite(rows: &[f32], columns: usize) -> Result<()> {
    if rows.chunks_exact(columns).any(|row| row[OBJECTNESS].is_nan()) {
        let problem = "the network gives values that are not numbers (NaN): convert or download the weights again";
        return Err(Error::Argument { argument: "weights", problem: problem.into() });
    }
    Ok(())
}

/// Boxes in the picture, rounded to whole pixels.
fn picture_boxes(found: &[Candidate], placement: &Placement) -> Vec<[f32; 4]> {
    let mut boxes: Vec<_> = found.iter().map(|candidate| candidate.bbox).collect();
    scale_boxes(&mut boxes, placement);
    round_boxes(&mut boxes);
    boxes
}

fn detections(found: &[Candidate], placement: &Placement) -> Vec<Detection> {
    let boxes = picture_boxes(found, placement);
    let detection = |(candidate, bbox): (&Candidate, [f32; 4])| Detection {
        bbox,
        class: candidate.class,
        confidence: candidate.confidence,
        mask: None,
        polygon: None,
    };
    found.iter().zip(boxes).map(detection).collect()
}

/// Detections with masks at the picture's size. The outline is taken where YOLOv5 takes it: from the mask in the network's
/// input, scaled afterwards, or from the picture's own where masks are made at its resolution.
fn segmented(found: &[Candidate], prototypes: &Tensor, placement: &Placement, retina: bool) -> Result<Vec<Detection>> {
    let mut detections = detections(found, placement);
    if found.is_empty() {
        return Ok(detections);
    }
    let coefficients: Vec<&[f32]> = found.iter().map(|candidate| candidate.coefficients.as_slice()).collect();
    let picture = placement.picture;
    let outlined: Vec<(Mask, Vec<[f32; 2]>)> = if retina {
        let boxes: Vec<_> = detections.iter().map(|detection| detection.bbox).collect();
        let masks = process_mask_native(prototypes, &coefficients, &boxes, picture)?;
        let outlines: Vec<_> = masks.iter().map(largest_contour).collect();
        masks.into_iter().zip(outlines).collect()
    } else {
        let boxes: Vec<_> = found.iter().map(|candidate| candidate.bbox).collect();
        let masks = process_mask(prototypes, &coefficients, &boxes, placement.network, true)?;
        let scale = |mask: &Mask| {
            let outline = scale_segments(&largest_contour(mask), placement, false);
            Ok((scale_mask(mask, picture)?, outline))
        };
        masks.iter().map(scale).collect::<Result<_>>()?
    };
    for (detection, (mask, outline)) in detections.iter_mut().zip(outlined) {
        detection.mask = Some(mask);
        detection.polygon = Some(outline);
    }
    Ok(detections)
}

#[cfg(test)]
mod tests;
