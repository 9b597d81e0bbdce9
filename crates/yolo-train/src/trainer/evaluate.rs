//! A look at the validation set between two epochs.

use candle_core::{Device, Tensor};
use yolo_core::Model;

use super::Stop;
use super::events::{Event, Listener};
use crate::Result;
use crate::data::Loader;
use crate::loss::{Loss, LossParts};
use crate::validate::network::check_finite;
use crate::validate::{Options, Report, Validator};

/// What a validation gave.
pub(super) struct Evaluation {
    pub(super) report: Report,
    /// Mean losses over its batches.
    pub(super) losses: LossParts,
}

/// Runs `model` on all batches of `loader`; none where it was stopped. Boxes of the network and losses come from one pass.
pub(super) fn evaluate(
    model: &Model,
    loss: &Loss,
    loader: &Loader,
    options: &Options,
    device: &Device,
    stop: &Stop,
    listener: &mut Listener<'_>,
) -> Result<Option<Evaluation>> {
    let masks = model.graph().num_masks() > 0;
    listener(Event::Validation { batches: loader.len(), masks });
    let mut validator = Validator::new(loader.dataset().classes().len(), options.clone())?;
    let mut sums = [0.0f64; 4];
    let mut batches = 0;
    for batch in loader.epoch(0) {
        if stop.asked() {
            return Ok(None);
        }
        let batch = batch?;
        let images = batch.images.to_device(device)?;
        let (outputs, levels) = model.run_with_levels(&images)?;
        check_finite(&outputs.main)?;
        let levels: Vec<Tensor> = levels.iter().map(Tensor::detach).collect();
        let parts = loss.compute(&levels, outputs.prototypes.as_ref(), &batch.targets, batch.masks.as_ref())?.parts;
        for (sum, part) in sums.iter_mut().zip([parts.boxes, parts.masks, parts.objectness, parts.classes]) {
            *sum += f64::from(part);
        }
        batches += 1;
        validator.add(&batch, &outputs.main, outputs.prototypes.as_ref())?;
        listener(Event::ValidationBatch);
    }
    let [boxes, masks, objectness, classes] = sums.map(|sum| (sum / f64::from(batches.max(1))) as f32);
    let losses = LossParts { boxes, masks, objectness, classes };
    Ok(Some(Evaluation { report: validator.finish(), losses }))
}
