//! What a run reports while it goes on.

use std::path::Path;

use crate::data::Split;
use crate::loss::LossParts;
use crate::validate::Report;

/// Something that the user may want to see. The library prints nothing.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A line about how the run is set up or ended.
    Notice(String),
    /// Something was done otherwise than asked for.
    Warning(String),
    /// Pictures and labels are looked at.
    Labels {
        /// Whose.
        split: Split,
        /// How many are done.
        done: usize,
        /// Of how many.
        all: usize,
    },
    /// An epoch begins or goes on.
    Epoch {
        /// Whether masks are trained.
        masks: bool,
        /// Batches that an earlier run has done.
        done: usize,
        /// Batches in all.
        batches: usize,
    },
    /// A batch was trained on.
    Batch(BatchReport),
    /// All batches of an epoch were trained on; the last one's report, with the means of the epoch.
    Trained(BatchReport),
    /// A validation begins.
    Validation {
        /// Its batches.
        batches: usize,
        /// Whether masks are judged.
        masks: bool,
    },
    /// A batch of it is done.
    ValidationBatch,
    /// It is over.
    Validated {
        /// What it found.
        report: &'a Report,
        /// Names of the classes.
        names: &'a [String],
        /// Whether the figures of each class should be shown.
        classes: bool,
    },
    /// A plot or a file of weights was written.
    Written(&'a Path),
}

/// The state of an epoch after a batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchReport {
    /// The epoch, from 0.
    pub epoch: usize,
    /// Epochs of the run.
    pub epochs: usize,
    /// Mean losses since the epoch's start.
    pub losses: LossParts,
    /// Whether masks are trained.
    pub masks: bool,
    /// Objects of the batch.
    pub instances: usize,
    /// Its longer side in pixels.
    pub size: usize,
}

/// Where events go.
pub type Listener<'a> = dyn FnMut(Event<'_>) + Send + 'a;
