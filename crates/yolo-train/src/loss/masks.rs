//! The loss of masks: what coefficients and prototypes say inside each object's box, against its mask (after YOLACT, arXiv
//! 1904.02689).

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::assign::Match;
use super::binary::Binary;
use crate::data::{Masks, Target};
use crate::{Error, Result};

/// Prototypes of a batch, in memory.
pub(super) struct Prototypes {
    values: Vec<f32>,
    batch: usize,
    masks: usize,
    height: usize,
    width: usize,
}

impl Prototypes {
    /// `tensor` is `[B, masks, H, W]`.
    pub(super) fn read(tensor: &Tensor) -> Result<Self> {
        let (batch, masks, height, width) = tensor.dims4()?;
        let values = tensor.flatten_all()?.to_vec1()?;
        Ok(Self { values, batch, masks, height, width })
    }

    /// Number of prototypes.
    pub(super) fn masks(&self) -> usize {
        self.masks
    }

    /// Values of one picture.
    fn stride(&self) -> usize {
        self.masks * self.height * self.width
    }
}

/// The labelled masks in memory, and which value stands for which object.
pub(super) struct Labelled {
    values: Vec<f32>,
    height: usize,
    width: usize,
    /// For each target: the map it is on, and its value there.
    places: Vec<(usize, f32)>,
}

impl Labelled {
    pub(super) fn read(masks: &Masks, targets: &[Target], batch: usize) -> Result<Self> {
        let (tensor, overlap) = match masks {
            Masks::Overlap(tensor) => (tensor, true),
            Masks::Separate(tensor) => (tensor, false),
        };
        let (maps, height, width) = tensor.dims3()?;
        let expected = if overlap { batch } else { targets.len() };
        if maps != expected {
            let what = if overlap { "pictures" } else { "objects" };
            return Err(Error::Training(format!("the batch has {expected} {what} and {maps} maps of masks")));
        }
        let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut seen = vec![0.0f32; batch];
        let place = |(index, target): (usize, &Target)| {
            if !overlap {
                return (index, 1.0);
            }
            let count = &mut seen[target.image];
            *count += 1.0;
            (target.image, *count)
        };
        let places = targets.iter().enumerate().map(place).collect();
        Ok(Self { values, height, width, places })
    }

    /// The row of a target's map that stands for row `y` of `rows`, and the value that marks the target.
    fn row(&self, target: usize, y: usize, rows: usize) -> (&[f32], f32) {
        let (map, mark) = self.places[target];
        let start = (map * self.height + y * self.height / rows) * self.width;
        (&self.values[start..start + self.width], mark)
    }
}

/// An object that a level's cell predicts, with its mask's coefficients.
pub(super) struct Masked<'a> {
    pub(super) found: &'a Match,
    pub(super) coefficients: &'a [f32],
    /// Matches of the same picture and level: the loss is their mean.
    pub(super) companions: usize,
}

/// The loss of one picture's masks.
struct Picture {
    loss: f64,
    /// For each masked object of the picture: its place in the list, and the gradient for its coefficients.
    coefficients: Vec<(usize, Vec<f32>)>,
}

/// Sums the masks' losses (a mean over the objects of a picture and level, summed over those) and writes `factor` times its
/// gradients into `prototype_gradient` and, in the order of `masked`, into the result.
pub(super) fn loss(
    masked: &[Masked<'_>],
    prototypes: &Prototypes,
    labelled: &Labelled,
    targets: &[Target],
    factor: f32,
    prototype_gradient: &mut [f32],
) -> (f64, Vec<Vec<f32>>) {
    let mut of_picture: Vec<Vec<usize>> = vec![Vec::new(); prototypes.batch];
    for (index, object) in masked.iter().enumerate() {
        of_picture[object.found.image].push(index);
    }
    let stride = prototypes.stride().max(1);
    let pictures: Vec<Picture> = prototype_gradient
        .par_chunks_mut(stride)
        .zip(prototypes.values.par_chunks(stride))
        .zip(of_picture)
        .map(|((gradient, values), objects)| {
            let mut picture = Picture { loss: 0.0, coefficients: Vec::with_capacity(objects.len()) };
            for index in objects {
                let object = &masked[index];
                let map = Map { values, height: prototypes.height, width: prototypes.width };
                let (loss, slopes) = map.object(object, labelled, &targets[object.found.target], factor, gradient);
                picture.loss += loss;
                picture.coefficients.push((index, slopes));
            }
            picture
        })
        .collect();
    let mut slopes = vec![Vec::new(); masked.len()];
    let mut total = 0.0;
    for picture in pictures {
        total += picture.loss;
        for (index, slope) in picture.coefficients {
            slopes[index] = slope;
        }
    }
    (total, slopes)
}

/// One picture's prototypes.
struct Map<'a> {
    values: &'a [f32],
    height: usize,
    width: usize,
}

impl Map<'_> {
    /// Loss of one object's mask and gradient for its coefficients; adds to the prototypes' gradient.
    fn object(
        &self,
        object: &Masked<'_>,
        labelled: &Labelled,
        target: &Target,
        factor: f32,
        gradient: &mut [f32],
    ) -> (f64, Vec<f32>) {
        let (height, width) = (self.height, self.width);
        let [cx, cy, w, h] = target.xywh;
        // Pixels whose index lies in the box.
        let range = |centre: f32, side: f32, pixels: usize| {
            let (centre, side) = (centre * pixels as f32, side * pixels as f32);
            let end = |value: f32| value.ceil().clamp(0.0, pixels as f32) as usize;
            (end(centre - side / 2.0), end(centre + side / 2.0))
        };
        let ((x0, x1), (y0, y1)) = (range(cx, w, width), range(cy, h, height));
        let mut slopes = vec![0.0f32; object.coefficients.len()];
        if x0 >= x1 || y0 >= y1 {
            return (0.0, slopes);
        }
        let share = 1.0 / ((height * width) as f32 * (w * h) * object.companions as f32);
        let binary = Binary { positive_weight: 1.0, gamma: 0.0 };
        let mut loss = 0.0f64;
        let mut row = vec![0.0f32; x1 - x0];
        for y in y0..y1 {
            row.fill(0.0);
            let place = |mask: usize| (mask * height + y) * width;
            for (mask, &coefficient) in object.coefficients.iter().enumerate() {
                let from = &self.values[place(mask) + x0..place(mask) + x1];
                row.iter_mut().zip(from).for_each(|(sum, value)| *sum += coefficient * value);
            }
            let (truth, mark) = labelled.row(object.found.target, y, height);
            for (x, value) in (x0..x1).zip(&mut row) {
                let inside = truth[x * labelled.width / width] == mark;
                let (part, slope) = binary.of(*value, if inside { 1.0 } else { 0.0 });
                loss += f64::from(part);
                *value = slope * share * factor;
            }
            for (mask, &coefficient) in object.coefficients.iter().enumerate() {
                let range = place(mask) + x0..place(mask) + x1;
                let dot: f32 = self.values[range.clone()].iter().zip(&row).map(|(value, slope)| value * slope).sum();
                slopes[mask] += dot;
                gradient[range].iter_mut().zip(&row).for_each(|(sum, slope)| *sum += coefficient * slope);
            }
        }
        (loss * f64::from(share), slopes)
    }
}
