//! The training loop: from a data set to weights.
//!
//! A [`Trainer`] is made for a new run or for one that was cut ([`Trainer::resume`]), and [`Trainer::run`] goes through its
//! epochs. In the run's folder it keeps
//!
//! * `weights/last.safetensors` and `best.safetensors` (and `epochN.safetensors` where asked for): the running average of the
//!   weights in f16, with the network's YAML and class names, ready for use;
//! * `weights/resume.safetensors`: all that a cut run needs to go on bit for bit, removed at the end;
//! * `results.csv`, `opt.yaml`, `hyp.yaml` and the plots.
//!
//! Every file is written whole or not at all, the state last: whenever the run ends, what lies there fits together.

mod anchors;
mod checkpoint;
mod command;
mod epoch;
mod evaluate;
mod events;
mod learner;
mod multi_scale;
mod options;
mod pictures;
mod results;
mod setup;
#[cfg(test)]
mod tests;
mod weighting;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::{DType, Device};
use yolo_core::weights::{NetworkMetadata, Weights};

pub use self::command::resume_command;
pub use self::events::{BatchReport, Event, Listener};
pub use self::options::TrainOptions;

use self::checkpoint::{Exact, State, save_state, save_weights};
use self::evaluate::{Evaluation, evaluate};
use self::learner::Learner;
use self::results::{EpochSums, Results, Row};
use crate::data::Loader;
use crate::loss::Loss;
use crate::optim::{EarlyStopping, Optimizer, Schedule};
use crate::validate::{self, Network, Report, Validator};
use crate::{Error, Result};

/// A request to end after the batch at hand; can be made from another thread.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks the run to end.
    pub fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// The flag itself, for handlers of signals.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

/// How a run ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// All epochs are done, or no better one was to be expected.
    Finished(Box<Finished>),
    /// It was stopped, and can be resumed from here.
    Interrupted {
        /// The run's folder.
        folder: PathBuf,
        /// The epoch that was under way, from 0.
        epoch: usize,
        /// Batches of it that are done.
        batch: usize,
    },
}

/// What a finished run leaves.
#[derive(Debug)]
pub struct Finished {
    /// The run's folder.
    pub folder: PathBuf,
    /// Epochs that were trained, by this run and the ones that it resumed.
    pub epochs: usize,
    /// The best epoch, from 0.
    pub best_epoch: usize,
    /// What the best weights give on the validation set.
    pub report: Report,
}

/// A training run.
pub struct Trainer {
    options: TrainOptions,
    device: Device,
    names: Vec<String>,
    learner: Learner,
    optimizer: Optimizer,
    schedule: Schedule,
    loss: Loss,
    train: Loader,
    val: Loader,
    state: State,
    stopping: EarlyStopping,
    results: Results,
    /// Held while the run goes on, so that no other writes into its folder.
    _lock: File,
}

impl Trainer {
    /// The options of the run.
    #[must_use]
    pub fn options(&self) -> &TrainOptions {
        &self.options
    }

    /// Trains until the last epoch, until patience is out, or until `stop` is asked.
    ///
    /// # Errors
    /// Where the loss is no number, a file cannot be written (a full disk), or the device fails. What was saved before stays,
    /// and the message says where.
    pub fn run(&mut self, stop: &Stop, listener: &mut Listener<'_>) -> Result<Outcome> {
        self.epochs(stop, listener).map_err(|error| {
            let state = self.file("resume");
            let good = self.saved().into_iter().find(|file| file.is_file());
            let diverged = matches!(error, Error::Diverged(_));
            let rest = match good {
                // Its last weights were found out only when they were used.
                _ if diverged && self.state.epoch >= self.options.epochs => {
                    format!("the weights in {} are of no use: start again", self.options.save_dir.display())
                }
                _ if diverged && state.is_file() => format!(
                    "start again or, as the last save may still be good, lower `lr0` in {} and go on with {}",
                    self.options.save_dir.join("hyp.yaml").display(),
                    resume_command(&self.options.save_dir)
                ),
                _ if state.is_file() => {
                    format!("the run goes on from its last save with {}", resume_command(&self.options.save_dir))
                }
                Some(good) => format!("the last good weights are in {}", good.display()),
                None => "nothing was saved yet".to_owned(),
            };
            Error::Training(format!("{error}\n{rest}"))
        })
    }

    fn epochs(&mut self, stop: &Stop, listener: &mut Listener<'_>) -> Result<Outcome> {
        let start = Instant::now();
        let epochs = self.options.epochs;
        let first = self.state.epoch;
        listener(Event::Notice(format!(
            "Image sizes {0} train, {0} val\nUsing {1} dataloader workers\nLogging results to {2}\n{3} for {4} epochs...",
            self.options.imgsz,
            self.options.workers,
            self.options.save_dir.display(),
            if first > 0 || self.state.batch > 0 { "Resuming training" } else { "Starting training" },
            epochs
        )));
        let mut done = first;
        // A run may be cut after it stopped early: then all that is left is the end.
        let left = if self.state.stopped { first..first } else { first..epochs };
        for epoch in left {
            self.learner.anneal(epoch)?;
            self.weigh_pictures()?;
            let complete = self.train_epoch(epoch, stop, listener)?;
            // Before anything is saved over what may still be good.
            if let Some(name) = self.learner.diverged()? {
                return Err(Error::Diverged(format!("epoch {epoch}: {name} holds values that are no finite numbers")));
            }
            if !complete {
                return self.interrupted(epoch);
            }
            let last = epoch + 1 == epochs;
            let evaluation = if !self.options.noval || last {
                let evaluation = self.look(stop, listener).map_err(|error| no_numbers(error, epoch))?;
                let Some(evaluation) = evaluation else { return self.interrupted(epoch) };
                Some(evaluation)
            } else {
                None
            };
            done = epoch + 1;
            if self.end_epoch(epoch, evaluation.as_ref(), last)? {
                listener(Event::Notice(format!(
                    "Stopping training early as no improvement observed in last {} epochs. Best results observed at epoch {}, \
                     best model saved as best.safetensors.\nTo update EarlyStopping(patience={0}) pass a new patience value, \
                     i.e. `yolo train --patience 300` or use `--patience 0` to disable EarlyStopping.",
                    self.options.patience,
                    self.stopping.best_epoch()
                )));
                break;
            }
            if stop.asked() && !last {
                return self.interrupted(epoch + 1);
            }
        }
        let hours = start.elapsed().as_secs_f64() / 3600.0;
        listener(Event::Notice(format!("\n{} epochs completed in {hours:.3} hours.", done - first)));
        self.finish(done, listener).map(|finished| Outcome::Finished(Box::new(finished)))
    }

    /// Pictures of classes that do badly come more often.
    fn weigh_pictures(&mut self) -> Result<()> {
        if self.options.image_weights {
            let weights = weighting::class_weights(&self.train.dataset().class_counts());
            let maps: Vec<f64> = self.state.maps.iter().map(|map| map.0).collect();
            let weights = weighting::image_weights(self.train.labels(), &weights, &maps);
            self.train.set_image_weights(Some(weights))?;
        }
        Ok(())
    }

    /// Validates the running average.
    fn look(&self, stop: &Stop, listener: &mut Listener<'_>) -> Result<Option<Evaluation>> {
        let options = validate::Options::default();
        let found = evaluate(self.learner.average(), &self.loss, &self.val, &options, &self.device, stop, listener)?;
        if let Some(Evaluation { report, .. }) = &found {
            listener(Event::Validated { report, names: &self.names, classes: false });
        }
        Ok(found)
    }

    /// Notes and saves an epoch; true where training should stop.
    fn end_epoch(&mut self, epoch: usize, evaluation: Option<&Evaluation>, last: bool) -> Result<bool> {
        let fitness = evaluation.map_or(0.0, |evaluation| evaluation.report.fitness());
        // An epoch that was not validated says nothing about getting better.
        let stop = evaluation.is_some() && self.stopping.update(epoch, fitness) && !last;
        // As YOLOv5: an epoch as good as the best one takes its place, and so does the first.
        let best = evaluation.is_some() && (fitness >= self.state.best_fitness.0 || !self.state.validated);
        let validation = evaluation.map(|evaluation| (&evaluation.report, evaluation.losses));
        let step = (epoch + 1) * self.state.batches - 1;
        self.results.add(&Row {
            epoch,
            sums: &self.state.sums,
            validation,
            learning_rates: self.schedule.at(step, epoch).learning_rates,
        })?;
        if let Some(evaluation) = evaluation {
            self.state.validated = true;
            self.state.best_fitness = Exact(fitness.max(self.state.best_fitness.0));
            self.state.maps = evaluation.report.maps().into_iter().map(Exact).collect();
        }
        self.state.best_epoch = self.stopping.best_epoch();
        self.state.stopped = stop;
        self.state.epoch = epoch + 1;
        self.state.batch = 0;
        self.state.sums = EpochSums::default();
        if !self.options.nosave || last || stop {
            let metadata = self.metadata(epoch, fitness)?;
            if best {
                self.save_average("best", &metadata)?;
                self.state.best_saved = true;
            }
            if self.options.save_period > 0 && epoch.is_multiple_of(self.options.save_period) {
                self.save_average(&format!("epoch{epoch}"), &metadata)?;
            }
            self.save(&metadata)?;
        }
        Ok(stop)
    }

    /// Saves a run that was stopped.
    fn interrupted(&mut self, epoch: usize) -> Result<Outcome> {
        let metadata = self.metadata(epoch, self.state.best_fitness.0)?;
        self.save(&metadata)?;
        Ok(Outcome::Interrupted { folder: self.options.save_dir.clone(), epoch, batch: self.state.batch })
    }

    /// What the weights say about themselves.
    fn metadata(&self, epoch: usize, fitness: f64) -> Result<NetworkMetadata> {
        let mut metadata = NetworkMetadata {
            yaml: Some(self.learner.config()?.to_yaml()),
            names: Some(self.names.clone()),
            imgsz: Some(self.options.imgsz),
            stride: Some(self.learner.graph().stride()),
            ..NetworkMetadata::default()
        };
        metadata.extra.insert("epoch".into(), epoch.to_string());
        metadata.extra.insert("fitness".into(), format!("{fitness:.5}"));
        Ok(metadata)
    }

    /// Writes the last weights, then the state that goes with them.
    fn save(&mut self, metadata: &NetworkMetadata) -> Result<()> {
        self.save_average("last", metadata)?;
        self.state.last_saved = true;
        self.state.steps = self.optimizer.steps();
        self.state.updates = self.learner.ema().updates();
        let network = self.learner.tensors().map(|(name, tensor)| (format!("network.{name}"), tensor.detach()));
        let average =
            self.learner.ema().tensors().map(|(name, var)| (format!("average.{name}"), var.as_detached_tensor()));
        let tensors = network.chain(average).chain(self.optimizer.state());
        save_state(&self.file("resume"), tensors, &self.state, metadata)
    }

    fn save_average(&self, name: &str, metadata: &NetworkMetadata) -> Result<()> {
        let tensors = self.learner.ema().tensors().map(|(name, var)| (name, var.as_tensor()));
        save_weights(&self.file(name), tensors, metadata)
    }

    /// The last and the best weights as far as this run wrote them. A folder that is used again holds those of an earlier run.
    fn saved(&self) -> Vec<PathBuf> {
        let names = [("last", self.state.last_saved), ("best", self.state.best_saved)];
        names.into_iter().filter(|(_, saved)| *saved).map(|(name, _)| self.file(name)).collect()
    }

    /// A file of weights.
    fn file(&self, name: &str) -> PathBuf {
        weights_file(&self.options.save_dir, name)
    }

    /// Validates the best weights as they lie on the disk, draws the plots, and removes the state.
    fn finish(&mut self, epochs: usize, listener: &mut Listener<'_>) -> Result<Finished> {
        let best = self.file("best");
        let earlier = !self.state.best_saved && best.is_file();
        let best = if self.state.best_saved && best.is_file() { best } else { self.file("last") };
        for file in self.saved() {
            if let Ok(metadata) = file.metadata() {
                let megabytes = metadata.len() as f64 / 1e6;
                listener(Event::Notice(format!("Weights saved as {}, {megabytes:.1}MB", file.display())));
            }
        }
        if earlier {
            listener(Event::Warning(format!(
                "{} is of an earlier run in this folder: the best epoch of this one was not saved",
                self.file("best").display()
            )));
        }
        listener(Event::Notice(format!("\nValidating {}...", best.display())));
        let mut network = Network::load(&Weights::open(&best)?, None, &self.device, DType::F32)?;
        let options = validate::Options::default();
        let masks = network.segments();
        listener(Event::Validation { batches: self.val.len(), masks });
        let validator = Validator::new(self.names.len(), options)?;
        let mut drawn = pictures::Predicted::new(&self.options, &self.names);
        let report = validate::validate(&mut network, validator, self.val.epoch(0), |batch, found| {
            listener(Event::ValidationBatch);
            drawn.take(batch, found)
        });
        let report = report.map_err(|error| no_numbers(error, epochs.saturating_sub(1)))?;
        listener(Event::Validated { report: &report, names: &self.names, classes: true });
        if !self.options.noplots {
            pictures::of_results(&self.options.save_dir, &report, &self.names)?;
        }
        let state = self.file("resume");
        if state.is_file() {
            std::fs::remove_file(&state).map_err(|cause| Error::io(&state, cause))?;
        }
        let folder = self.options.save_dir.clone();
        listener(Event::Notice(format!("Results saved to {}", folder.display())));
        Ok(Finished { folder, epochs, best_epoch: self.stopping.best_epoch(), report })
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer").field("save_dir", &self.options.save_dir).finish_non_exhaustive()
    }
}

/// Weights that were trained here can be neither converted nor downloaded again.
fn no_numbers(error: Error, epoch: usize) -> Error {
    match error {
        Error::NotNumbers => {
            Error::Diverged(format!("epoch {epoch}: the network gives values that are not numbers (NaN)"))
        }
        error => error,
    }
}

fn weights_file(folder: &Path, name: &str) -> PathBuf {
    folder.join("weights").join(name).with_extension("safetensors")
}
