//! YOLOv5's loss on the raw maps of a network's head.
//!
//! Boxes ([`BoxLoss`]), objectness, classes and masks, with the gradients for the maps worked out by hand in one pass over the
//! numbers: only cells that predict an object are visited for more than their objectness. The sums are the same for any
//! number of threads.

mod assign;
mod attach;
mod binary;
mod boxes;
mod dual;
mod masks;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use self::assign::{LevelShape, Match, assign};
use self::binary::Binary;
pub use self::boxes::BoxLoss;
use self::dual::Dual;
use self::masks::{Labelled, Masked, Prototypes};
use crate::data::{Masks, Target};
use crate::{Error, Hyp, Result};

/// Weights of the levels' objectness, from the finest: three levels, and four or five.
const BALANCE_3: [f32; 3] = [4.0, 1.0, 0.4];
const BALANCE_5: [f32; 5] = [4.0, 1.0, 0.25, 0.06, 0.02];
/// Cells that one thread takes at a time.
const CHUNK: usize = 4096;

/// The loss of one network.
#[derive(Debug, Clone)]
pub struct Loss {
    classes: usize,
    masks: usize,
    /// Widths and heights by level, in cells.
    anchors: Vec<Vec<[f32; 2]>>,
    box_loss: BoxLoss,
    box_gain: f32,
    class_gain: f32,
    object_gain: f32,
    anchor_limit: f32,
    /// What a box's own class and the others learn.
    class_targets: (f32, f32),
    class_loss: Binary,
    object_loss: Binary,
}

/// The parts of a loss, each a mean over the batch and multiplied by its gain, as YOLOv5 logs them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossParts {
    /// Boxes.
    pub boxes: f32,
    /// Masks; 0 where the network does not segment.
    pub masks: f32,
    /// Objectness.
    pub objectness: f32,
    /// Classes.
    pub classes: f32,
}

/// What [`Loss::compute`] gives.
#[derive(Debug, Clone)]
pub struct LossOutput {
    /// The scalar that training lowers: the sum of the parts times the batch's size. Its gradient reaches the maps.
    pub total: Tensor,
    /// Its parts.
    pub parts: LossParts,
}

impl Loss {
    /// The loss of a network with `classes` classes and `masks` mask coefficients a box (0 where it does not segment), whose
    /// `anchors` are widths and heights by level in cells of that level.
    ///
    /// The gains of `hyp` are taken as they are; [`scaled_gains`] fits them to the network first.
    pub fn new(hyp: &Hyp, classes: usize, masks: usize, anchors: Vec<Vec<[f32; 2]>>, box_loss: BoxLoss) -> Self {
        let smoothing = hyp.label_smoothing as f32;
        let gamma = hyp.fl_gamma as f32;
        Self {
            classes,
            masks,
            anchors,
            box_loss,
            box_gain: hyp.box_gain as f32,
            class_gain: hyp.cls as f32,
            object_gain: hyp.obj as f32,
            anchor_limit: hyp.anchor_t as f32,
            class_targets: (1.0 - 0.5 * smoothing, 0.5 * smoothing),
            class_loss: Binary { positive_weight: hyp.cls_pw as f32, gamma },
            object_loss: Binary { positive_weight: hyp.obj_pw as f32, gamma },
        }
    }

    /// The loss of a batch and its gradients.
    ///
    /// # Shapes
    /// `levels` are `[B, anchors, ny, nx, 5 + classes (+ masks)]`, raw (before any sigmoid), on any device; `prototypes` are
    /// `[B, masks, H, W]`. `truth` must be there with them.
    ///
    /// # Errors
    /// Where a shape is another, or a target names a picture or class beyond the batch's or the network's.
    pub fn compute(
        &self,
        levels: &[Tensor],
        prototypes: Option<&Tensor>,
        targets: &[Target],
        truth: Option<&Masks>,
    ) -> Result<LossOutput> {
        let batch = self.check(levels, targets)?;
        let on_cpu = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous();
        let levels = levels.iter().map(on_cpu).collect::<candle_core::Result<Vec<_>>>()?;
        let prototypes = prototypes.filter(|_| self.masks > 0).map(on_cpu).transpose()?;

        let mut results = Vec::with_capacity(levels.len());
        for (index, level) in levels.iter().enumerate() {
            results.push(self.level(index, level, batch, targets)?);
        }
        let mut mask_sum = 0.0;
        let mut prototype_gradient = None;
        if let Some(tensor) = &prototypes {
            let truth = truth.ok_or_else(|| {
                Error::Training(
                    "the network segments, the batch has no masks: the data set's labels need polygons".into(),
                )
            })?;
            let gradient = self.masks(&mut results, tensor, targets, truth, batch, &mut mask_sum)?;
            prototype_gradient = Some(gradient);
        }

        let sum = |part: fn(&LevelResult) -> f64| results.iter().map(part).sum::<f64>();
        let parts = LossParts {
            boxes: (f64::from(self.box_gain) * sum(|r| r.boxes)) as f32,
            masks: (f64::from(self.box_gain) / batch as f64 * mask_sum) as f32,
            objectness: (f64::from(self.object_gain) * sum(|r| r.objectness)) as f32,
            classes: (f64::from(self.class_gain) * sum(|r| r.classes)) as f32,
        };
        let value = (parts.boxes + parts.masks + parts.objectness + parts.classes) * batch as f32;
        // The first map carries the value, each its own gradient.
        let mut total: Option<Tensor> = None;
        let gradients = results.into_iter().map(|result| result.gradient).chain(prototype_gradient);
        for (tensor, gradient) in levels.iter().chain(&prototypes).zip(gradients) {
            let value = if total.is_none() { value } else { 0.0 };
            let term = attach::attach(tensor, value, gradient)?;
            total = Some(match total {
                Some(total) => (total + term)?,
                None => term,
            });
        }
        let total = total.ok_or_else(|| Error::Training("the network's head has no level".into()))?;
        Ok(LossOutput { total, parts })
    }

    /// The batch's size, where all fits together.
    fn check(&self, levels: &[Tensor], targets: &[Target]) -> Result<usize> {
        let columns = 5 + self.classes + self.masks;
        let fail = |problem: String| Err(Error::Training(problem));
        if levels.len() != self.anchors.len() {
            return fail(format!(
                "the loss has anchors for {} levels, the network gives {}",
                self.anchors.len(),
                levels.len()
            ));
        }
        let batch = levels.first().map_or(0, |level| level.dims().first().copied().unwrap_or(0));
        for (level, anchors) in levels.iter().zip(&self.anchors) {
            match level.dims() {
                [b, a, ny, nx, c] if (*b, *a, *c) == (batch, anchors.len(), columns) && b * ny * nx > 0 => {}
                got => {
                    let expected = format!("[{batch}, {}, height, width, {columns}]", anchors.len());
                    return fail(format!("a map of the head is {got:?}, the loss expects {expected}"));
                }
            }
        }
        if let Some(target) = targets.iter().find(|t| t.image >= batch || t.class >= self.classes) {
            return fail(format!(
                "an object of class {} in picture {} does not fit {} classes and {batch} pictures",
                target.class, target.image, self.classes
            ));
        }
        Ok(batch)
    }

    fn level(&self, index: usize, level: &Tensor, batch: usize, targets: &[Target]) -> Result<LevelResult> {
        let (_, anchors, height, width, columns) = level.dims5()?;
        let shape = LevelShape { height, width, anchors: &self.anchors[index] };
        let matches = assign(targets, &shape, self.anchor_limit);
        let values: Vec<f32> = level.flatten_all()?.to_vec1()?;
        let mut gradient = vec![0.0f32; values.len()];
        let mut objects = vec![0.0f32; values.len() / columns];
        let scale = batch as f32;
        let (mut boxes, mut classes) = (0.0f64, 0.0f64);
        let box_factor = f64::from(self.box_gain * scale) / matches.len().max(1) as f64;
        let class_factor = self.class_gain * scale / (matches.len() * self.classes).max(1) as f32;
        let cell = |m: &Match| ((m.image * anchors + m.anchor) * height + m.y) * width + m.x;
        for found in &matches {
            let cell = cell(found);
            let row = &values[cell * columns..(cell + 1) * columns];
            let slopes = &mut gradient[cell * columns..(cell + 1) * columns];
            let (loss, overlap) = self.box_of(row, self.anchors[index][found.anchor], found.xywh);
            boxes += loss.value;
            slopes.iter_mut().zip(loss.slope).for_each(|(slope, part)| *slope += (part * box_factor) as f32);
            objects[cell] = overlap.max(0.0) as f32;
            if self.classes > 1 {
                let own = targets[found.target].class;
                for class in 0..self.classes {
                    let target = if class == own { self.class_targets.0 } else { self.class_targets.1 };
                    let (loss, slope) = self.class_loss.of(row[5 + class], target);
                    classes += f64::from(loss);
                    slopes[5 + class] += slope * class_factor;
                }
            }
        }

        let balance = balance(self.anchors.len(), index);
        let object_factor = self.object_gain * balance * scale / objects.len() as f32;
        let sums: Vec<f64> = gradient
            .par_chunks_mut(CHUNK * columns)
            .zip(values.par_chunks(CHUNK * columns))
            .zip(objects.par_chunks(CHUNK))
            .map(|((slopes, values), objects)| {
                let cells = slopes.chunks_exact_mut(columns).zip(values.chunks_exact(columns)).zip(objects);
                cells.fold(0.0, |sum, ((slopes, values), &target)| {
                    let (loss, slope) = self.object_loss.of(values[4], target);
                    slopes[4] = slope * object_factor;
                    sum + f64::from(loss)
                })
            })
            .collect();
        let coefficients = |m: &Match| {
            let start = cell(m) * columns + 5 + self.classes;
            values[start..start + self.masks].to_vec()
        };
        Ok(LevelResult {
            boxes: boxes / matches.len().max(1) as f64,
            classes: classes / (matches.len() * self.classes).max(1) as f64,
            objectness: f64::from(balance) * sums.iter().sum::<f64>() / objects.len() as f64,
            coefficients: if self.masks > 0 { matches.iter().map(coefficients).collect() } else { Vec::new() },
            cells: matches.iter().map(cell).collect(),
            matches,
            gradient,
        })
    }

    /// The loss of a predicted box, differentiated for the raw numbers, and its overlap.
    fn box_of(&self, row: &[f32], anchor: [f32; 2], target: [f32; 4]) -> (Dual, f64) {
        let sigmoid = |i: usize| 1.0 / (1.0 + (-f64::from(row[i])).exp());
        let mut derivatives = [0.0; 4];
        let decoded = std::array::from_fn(|i| {
            let s = sigmoid(i);
            let (value, derivative) = if i < 2 {
                (2.0 * s - 0.5, 2.0 * s * (1.0 - s))
            } else {
                let side = f64::from(anchor[i - 2]);
                (4.0 * s * s * side, 8.0 * s * s * (1.0 - s) * side)
            };
            derivatives[i] = derivative;
            Dual::variable(value, i)
        });
        let (mut loss, overlap) = self.box_loss.of(decoded, target.map(f64::from));
        loss.slope.iter_mut().zip(derivatives).for_each(|(slope, derivative)| *slope *= derivative);
        (loss, overlap)
    }

    /// Adds the masks' gradients to the levels'; gives the prototypes' gradient.
    fn masks(
        &self,
        results: &mut [LevelResult],
        tensor: &Tensor,
        targets: &[Target],
        truth: &Masks,
        batch: usize,
        sum: &mut f64,
    ) -> Result<Vec<f32>> {
        let prototypes = Prototypes::read(tensor)?;
        if prototypes.masks() != self.masks || tensor.dim(0)? != batch {
            let got = tensor.dims();
            return Err(Error::Training(format!(
                "the prototypes are {got:?}, the loss expects [{batch}, {}, height, width]",
                self.masks
            )));
        }
        let labelled = Labelled::read(truth, targets, batch)?;
        let mut gradient = vec![0.0f32; tensor.elem_count()];
        for result in results {
            let mut companions = vec![0; batch];
            result.matches.iter().for_each(|found| companions[found.image] += 1);
            let masked: Vec<Masked<'_>> = result
                .matches
                .iter()
                .zip(&result.coefficients)
                .map(|(found, coefficients)| Masked { found, coefficients, companions: companions[found.image] })
                .collect();
            // The part is divided by the batch's size, the total multiplied by it.
            let (loss, slopes) = masks::loss(&masked, &prototypes, &labelled, targets, self.box_gain, &mut gradient);
            *sum += loss;
            let columns = 5 + self.classes + self.masks;
            for (cell, slopes) in result.cells.iter().zip(slopes) {
                let start = cell * columns + 5 + self.classes;
                result.gradient[start..start + self.masks].iter_mut().zip(slopes).for_each(|(sum, s)| *sum += s);
            }
        }
        Ok(gradient)
    }
}

/// What one level adds; the parts are without their gains.
struct LevelResult {
    boxes: f64,
    classes: f64,
    objectness: f64,
    matches: Vec<Match>,
    /// The matches' cells, counted over pictures, anchors, rows and columns.
    cells: Vec<usize>,
    /// The matches' mask coefficients.
    coefficients: Vec<Vec<f32>>,
    /// Of the total, for the level's map.
    gradient: Vec<f32>,
}

fn balance(levels: usize, index: usize) -> f32 {
    let weights: &[f32] = if levels == 3 { &BALANCE_3 } else { &BALANCE_5 };
    weights.get(index).or(weights.last()).copied().unwrap_or(1.0)
}

/// The hyper-parameters with their gains fitted to the number of levels and classes and to the input's size, as YOLOv5 does.
#[must_use]
pub fn scaled_gains(hyp: &Hyp, levels: usize, classes: usize, imgsz: usize) -> Hyp {
    let by_level = 3.0 / levels.max(1) as f64;
    Hyp {
        box_gain: hyp.box_gain * by_level,
        cls: hyp.cls * classes as f64 / 80.0 * by_level,
        obj: hyp.obj * (imgsz as f64 / 640.0).powi(2) * by_level,
        ..hyp.clone()
    }
}
