//! The batches of one epoch.

use candle_core::Tensor;

use super::events::{BatchReport, Event, Listener};
use super::{Stop, Trainer, multi_scale, pictures};
use crate::data::Batch;
use crate::loss::LossOutput;
use crate::{Error, Result};

/// Gradients are shortened to this norm.
const MAX_NORM: f64 = 10.0;

impl Trainer {
    /// Trains on the batches of an epoch that are not done yet; false where it was stopped before the last.
    pub(super) fn train_epoch(&mut self, epoch: usize, stop: &Stop, listener: &mut Listener<'_>) -> Result<bool> {
        let (done, batches) = (self.state.batch, self.state.batches);
        let masks = self.learner.graph().num_masks() > 0;
        listener(Event::Epoch { masks, done, batches });
        if done == 0 {
            // As in YOLOv5, gradients that the epoch before left without a step are lost.
            self.optimizer.forget();
        }
        let mut report = None;
        for (index, batch) in self.train.epoch(epoch).enumerate().skip(done) {
            let mut batch = batch?;
            if epoch == 0 {
                pictures::of_batch(&self.options, index, &batch, &self.names)?;
            }
            if self.options.multi_scale {
                let (imgsz, stride) = (self.options.imgsz, self.learner.graph().stride());
                let side = multi_scale::side(imgsz, stride, self.options.seed, epoch, index);
                batch.images = multi_scale::resize(&batch.images, side, stride)?;
            }
            self.train_batch(epoch, index, &batch)?;
            self.state.batch = index + 1;
            let (_, _, height, width) = batch.images.dims4()?;
            let state = BatchReport {
                epoch,
                epochs: self.options.epochs,
                losses: self.state.sums.means(),
                masks,
                instances: batch.targets.len(),
                size: height.max(width),
            };
            report = Some(state);
            listener(Event::Batch(state));
            if stop.asked() && index + 1 < batches {
                return Ok(false);
            }
        }
        if let Some(report) = report {
            listener(Event::Trained(report));
        }
        Ok(true)
    }

    /// One batch: forward, backward, and a step where enough gradients have come together.
    fn train_batch(&mut self, epoch: usize, index: usize, batch: &Batch) -> Result<()> {
        let step = epoch * self.state.batches + index;
        let rates = self.schedule.at(step, epoch);
        self.optimizer.set_learning_rates(rates.learning_rates);
        self.optimizer.set_momentum(rates.momentum);

        let images: Tensor = batch.images.to_device(&self.device)?;
        let outputs = self.learner.model().run_training(&images)?;
        let LossOutput { total, parts } =
            self.loss.compute(&outputs.levels, outputs.prototypes.as_ref(), &batch.targets, batch.masks.as_ref())?;
        let value = total.to_scalar::<f32>()?;
        let place = || format!("epoch {epoch}, batch {index}");
        if !value.is_finite() {
            return Err(Error::Diverged(format!("{}: the loss is {value}", place())));
        }
        self.optimizer.accumulate(&total.backward()?)?;
        self.learner.absorb(&outputs.statistics)?;
        self.state.sums.add(&parts, &outputs.routing)?;
        if step as i64 - self.state.last_step >= rates.accumulate as i64 {
            self.optimizer.step(MAX_NORM).map_err(|error| match error {
                Error::Diverged(problem) => Error::Diverged(format!("{}: {problem}", place())),
                error => error,
            })?;
            self.learner.update_average()?;
            self.state.last_step = step as i64;
        }
        Ok(())
    }
}
