//! What runs a detector's network: plans on the CPU, the model elsewhere.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Tensor};

use crate::weights::Weights;
use crate::{Error, Graph, Model, Plan, PlanOptions, PlanSession, Precision, Result};

/// Plans that are kept: pictures of other shapes make others.
const PLANS: usize = 8;

/// A network ready to run, at any size.
#[derive(Debug, Clone)]
pub(super) enum Engine {
    /// Compiled for each size that comes, the one used last at the end. Clones share them.
    Plans {
        weights: Weights,
        precision: Precision,
        /// As of [`PlanOptions`].
        tuning: Option<PathBuf>,
        /// Runs at a time, which share the machine's threads.
        lanes: usize,
        plans: Arc<Mutex<Vec<Compiled>>>,
    },
    Model(Box<Model>),
}

/// A plan, and sessions of it that nobody runs.
#[derive(Debug)]
pub(super) struct Compiled {
    plan: Arc<Plan>,
    idle: Vec<PlanSession>,
}

impl Engine {
    pub(super) fn new(graph: &Graph, weights: &Weights, device: &Device, dtype: DType) -> Result<Self> {
        if let Some(precision) = Precision::of(dtype).filter(|_| device.is_cpu()) {
            precision.check()?;
            Plan::check(graph, weights)?;
            let (weights, plans) = (weights.clone(), Arc::default());
            return Ok(Self::Plans { weights, precision, tuning: None, lanes: 1, plans });
        }
        Ok(Self::Model(Box::new(Model::from_weights(graph.clone(), weights, device, dtype)?)))
    }

    /// Compiles for so many runs at a time; a model has one.
    pub(super) fn set_lanes(&mut self, wanted: usize) {
        if let Self::Plans { lanes, plans, .. } = self {
            (*lanes, *plans) = (wanted.max(1), Arc::default());
        }
    }

    /// Runs at a time that share the machine's threads.
    pub(super) fn lanes(&self) -> usize {
        if let Self::Plans { lanes, .. } = self { *lanes } else { 1 }
    }

    /// Compiles with algorithms chosen by the file; a model has nothing to choose.
    pub(super) fn tune(&mut self, file: PathBuf) {
        if let Self::Plans { tuning, plans, .. } = self {
            (*tuning, *plans) = (Some(file), Arc::default());
        }
    }

    /// What a run at a size takes: the plan, compiled where there is none yet, and a session that nobody else has. A model takes
    /// nothing.
    pub(super) fn ready(&self, graph: &Graph, batch: usize, size: (usize, usize)) -> Result<Option<Ready>> {
        let Self::Plans { weights, precision, tuning, lanes, plans } = self else { return Ok(None) };
        let mut plans = lock(plans);
        let fits = |compiled: &Compiled| compiled.plan.batch() == batch && compiled.plan.size() == size;
        let mut compiled = if let Some(index) = plans.iter().position(fits) {
            plans.remove(index)
        } else {
            let threads = Some((rayon::current_num_threads() / lanes).max(1));
            let (precision, tuning) = (*precision, tuning.clone());
            let options = PlanOptions { batch, size, threads, precision, tuning, ..PlanOptions::default() };
            let plan = Arc::new(Plan::compile(graph, weights, &options)?);
            Compiled { plan, idle: Vec::new() }
        };
        let plan = Arc::clone(&compiled.plan);
        let session = compiled.idle.pop().map_or_else(|| plan.session(), Ok);
        if plans.len() >= PLANS {
            plans.remove(0);
        }
        plans.push(compiled);
        Ok(Some(Ready { plan, session: session? }))
    }

    /// Runs it: a plan on pictures as they are, `[batch, height, width, 3]`, a model on the tensor. Rows of boxes whose objectness is
    /// not above `threshold` may be missing.
    pub(super) fn run(
        &self,
        ready: Option<Ready>,
        (pixels, x): (&[u8], Option<&Tensor>),
        threshold: f32,
    ) -> Result<Found> {
        match (self, ready, x) {
            (Self::Model(model), _, Some(x)) => {
                let outputs = model.run(x)?;
                Found::new(&outputs.main, outputs.prototypes.as_ref())
            }
            (Self::Plans { plans, .. }, Some(mut ready), _) => {
                let found = ready.run(pixels, threshold);
                // A run that panics takes its session along.
                give_back(plans, ready);
                found
            }
            _ => Err(nothing_ready()),
        }
    }

    /// Runs it on a tensor as the engine takes it, and gives its rows of boxes, as [`Engine::run`] has them.
    pub(super) fn rows(&self, ready: Option<Ready>, x: &Tensor, threshold: f32) -> Result<Tensor> {
        match (self, ready) {
            (Self::Plans { plans, .. }, Some(mut ready)) => {
                let outputs = ready.plan.forward(&mut ready.session, x, Some(threshold));
                give_back(plans, ready);
                Ok(outputs?.main)
            }
            (Self::Model(model), _) => Ok(model.run(x)?.main),
            (Self::Plans { .. }, None) => Err(nothing_ready()),
        }
    }
}

fn nothing_ready() -> Error {
    Error::Device("nothing was made ready for the run".into())
}

/// A plan, and a session of it for one run.
pub(super) struct Ready {
    plan: Arc<Plan>,
    session: PlanSession,
}

impl Ready {
    fn run(&mut self, pixels: &[u8], threshold: f32) -> Result<Found> {
        self.plan.run_pixels(&mut self.session, pixels, Some(threshold))?;
        // What most rows hold is of no interest: only the others are copied.
        let (rows, columns) = self.plan.rows_above(&self.session, threshold)?;
        Ok(Found { rows, columns, prototypes: self.plan.prototypes(&self.session)? })
    }
}

/// What a network gave, in main memory.
pub(super) struct Found {
    /// Rows of boxes of each picture.
    pub(super) rows: Vec<Vec<f32>>,
    /// Values of a row.
    pub(super) columns: usize,
    /// The masks' prototypes of all pictures.
    pub(super) prototypes: Option<Tensor>,
}

impl Found {
    /// `rows` is `[batch, rows, columns]`.
    pub(super) fn new(rows: &Tensor, prototypes: Option<&Tensor>) -> Result<Self> {
        let (_, _, columns) = rows.dims3()?;
        // The copy waits for a GPU to finish.
        let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_from(1)?.to_vec2()?;
        let prototypes = prototypes.map(|prototypes| prototypes.to_device(&Device::Cpu)).transpose()?;
        Ok(Self { rows, columns, prototypes })
    }
}

/// Keeps a session for the next run, where its plan is kept.
fn give_back(plans: &Mutex<Vec<Compiled>>, Ready { plan, session }: Ready) {
    if let Some(compiled) = lock(plans).iter_mut().find(|compiled| Arc::ptr_eq(&compiled.plan, &plan)) {
        compiled.idle.push(session);
    }
}

fn lock(plans: &Mutex<Vec<Compiled>>) -> MutexGuard<'_, Vec<Compiled>> {
    // What is kept is whole at any time: a panic while it is locked leaves nothing half done.
    plans.lock().unwrap_or_else(PoisonError::into_inner)
}
