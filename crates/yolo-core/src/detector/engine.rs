//! What runs a detector's network: plans on the CPU, the model elsewhere.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use candle_core::{DType, Device, Tensor};

use crate::weights::Weights;
use crate::{Graph, Model, Outputs, Plan, PlanOptions, PlanSession, Precision, Result};

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
        plans: Arc<Mutex<Vec<(Plan, PlanSession)>>>,
    },
    Model(Box<Model>),
}

impl Engine {
    pub(super) fn new(graph: &Graph, weights: &Weights, device: &Device, dtype: DType) -> Result<Self> {
        if let Some(precision) = Precision::of(dtype).filter(|_| device.is_cpu()) {
            precision.check()?;
            Plan::check(graph, weights)?;
            return Ok(Self::Plans { weights: weights.clone(), precision, tuning: None, plans: Arc::default() });
        }
        Ok(Self::Model(Box::new(Model::from_weights(graph.clone(), weights, device, dtype)?)))
    }

    /// Plans that are compiled from now on choose algorithms by the file; a model has nothing to choose.
    pub(super) fn tune(&mut self, file: PathBuf) {
        if let Self::Plans { tuning, .. } = self {
            *tuning = Some(file);
        }
    }

    /// Compiles the plan for a size, where there is none yet.
    pub(super) fn ready(&self, graph: &Graph, batch: usize, size: (usize, usize)) -> Result<()> {
        let Self::Plans { weights, precision, tuning, plans } = self else { return Ok(()) };
        let mut plans = lock(plans);
        let fits = |(plan, _): &(Plan, PlanSession)| plan.batch() == batch && plan.size() == size;
        let last = match plans.iter().position(fits) {
            Some(index) => plans.remove(index),
            None => {
                let (precision, tuning) = (*precision, tuning.clone());
                let options = PlanOptions { batch, size, precision, tuning, ..PlanOptions::default() };
                let plan = Plan::compile(graph, weights, &options)?;
                let session = plan.session()?;
                (plan, session)
            }
        };
        if plans.len() >= PLANS {
            plans.remove(0);
        }
        plans.push(last);
        Ok(())
    }

    /// Rows of boxes whose objectness is not above `threshold` may come as zeros but for that.
    pub(super) fn run(&self, graph: &Graph, x: &Tensor, threshold: Option<f32>) -> Result<Outputs> {
        let plans = match self {
            Self::Model(model) => return model.run(x),
            Self::Plans { plans, .. } => plans,
        };
        let (batch, _, height, width) = x.dims4()?;
        let mut plans = lock(plans);
        let fits = |(plan, _): &&mut (Plan, PlanSession)| plan.batch() == batch && plan.size() == (height, width);
        if let Some((plan, session)) = plans.iter_mut().find(fits) {
            return plan.forward(session, x, threshold);
        }
        // Another thread's sizes may have come between.
        drop(plans);
        self.ready(graph, batch, (height, width))?;
        self.run(graph, x, threshold)
    }
}

/// A plan that has panicked is not used again.
fn lock(plans: &Mutex<Vec<(Plan, PlanSession)>>) -> MutexGuard<'_, Vec<(Plan, PlanSession)>> {
    plans.lock().unwrap_or_else(|poisoned| {
        let mut plans = poisoned.into_inner();
        plans.clear();
        plans
    })
}
