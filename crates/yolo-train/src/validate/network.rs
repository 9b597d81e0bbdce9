//! The network that is validated: compiled plans on the CPU, layer by layer elsewhere.

use candle_core::{DType, Device, Tensor};
use yolo_core::augment::{augmented, check, sizes};
use yolo_core::weights::Weights;
use yolo_core::{Graph, Model, NetworkConfig, Outputs, Plan, PlanOptions, PlanSession, Precision};

use crate::{Error, Result};

/// Plans that are kept: batches of other shapes make others. Batches come sorted by shape, so that few are in use at a time.
const PLANS: usize = 4;

/// A network with its weights, ready to run on batches of any shape.
#[derive(Debug)]
pub struct Network {
    graph: Graph,
    engine: Engine,
    names: Vec<String>,
    device: Device,
    dtype: DType,
    augment: bool,
}

#[derive(Debug)]
enum Engine {
    /// Compiled for each shape that comes, the one used last at the end.
    Plans {
        weights: Weights,
        precision: Precision,
        plans: Vec<(Plan, PlanSession)>,
    },
    Model(Box<Model>),
}

impl Network {
    /// Builds the network that `config` (or, without it, the weights' own metadata) describes and gives it `weights`.
    ///
    /// # Errors
    /// Where the weights do not fit the network, or it finds nothing in a picture.
    pub fn load(weights: &Weights, config: Option<&NetworkConfig>, device: &Device, dtype: DType) -> Result<Self> {
        let config = match config {
            Some(config) => config.clone(),
            None => NetworkConfig::of_weights(weights)?,
        };
        let graph = Graph::new(&config)?;
        let problem = match (graph.strides().is_empty(), config.channels) {
            (true, _) => "the network ends without Detect or Segment: it finds nothing in a picture".to_string(),
            (false, 3) => String::new(),
            (false, channels) => format!("the network reads {channels} channels, a picture has 3"),
        };
        if !problem.is_empty() {
            return Err(yolo_core::Error::Config { file: config.name, problem }.into());
        }
        let known = weights.metadata().names.as_deref().unwrap_or_default();
        let name = |class: usize| known.get(class).cloned().unwrap_or_else(|| format!("class{class}"));
        let names = (0..graph.num_classes()).map(name).collect();
        let engine = match Precision::of(dtype).filter(|_| device.is_cpu()) {
            Some(precision) => {
                precision.check()?;
                Plan::check(&graph, weights)?;
                Engine::Plans { weights: weights.clone(), precision, plans: Vec::new() }
            }
            None => Engine::Model(Box::new(Model::from_weights(graph.clone(), weights, device, dtype)?)),
        };
        Ok(Self { graph, engine, names, device: device.clone(), dtype, augment: false })
    }

    /// The same network that sees each batch in three sizes, in one of them mirrored ([`yolo_core::augment`]).
    ///
    /// # Errors
    /// Of a network for segmentation.
    pub fn augmented(self) -> Result<Self> {
        check(&self.graph)?;
        Ok(Self { augment: true, ..self })
    }

    /// The network itself.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Class names; the index is the class.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether it gives masks.
    pub fn segments(&self) -> bool {
        self.graph.num_masks() > 0
    }

    /// Compiles what a batch of this shape needs, so that it is no part of the time that the batch takes.
    ///
    /// # Errors
    /// Where the network does not take such an input.
    pub fn ready(&mut self, batch: usize, size: (usize, usize)) -> Result<()> {
        if self.augment {
            return sizes(&self.graph, size).into_iter().try_for_each(|size| self.compiled(batch, size));
        }
        self.compiled(batch, size)
    }

    /// Puts the plan for this shape at the end of those that are kept.
    fn compiled(&mut self, batch: usize, size: (usize, usize)) -> Result<()> {
        let Engine::Plans { weights, precision, plans } = &mut self.engine else { return Ok(()) };
        let fits = |(plan, _): &(Plan, PlanSession)| plan.batch() == batch && plan.size() == size;
        let last = match plans.iter().position(fits) {
            Some(index) => plans.remove(index),
            None => {
                let options = PlanOptions { batch, size, precision: *precision, ..PlanOptions::default() };
                let plan = Plan::compile(&self.graph, weights, &options)?;
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

    /// A batch on the network's device, as it reads it.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn input(&self, images: &Tensor) -> Result<Tensor> {
        Ok(images.to_device(&self.device)?.to_dtype(self.dtype)?)
    }

    /// Runs it on `[B, 3, H, W]` and brings what it gave to main memory. Rows of boxes whose objectness is not above `threshold`
    /// may come as zeros but for that.
    ///
    /// # Errors
    /// Where the device fails, or the network gives values that are not numbers.
    pub fn run(&mut self, input: &Tensor, threshold: f32) -> Result<Outputs> {
        if !self.augment {
            return self.run_once(input, threshold);
        }
        let (graph, device, dtype) = (self.graph.clone(), self.device.clone(), self.dtype);
        let input = input.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let main = augmented(&graph, &input, |view| -> Result<Tensor> {
            Ok(self.run_once(&view.to_device(&device)?.to_dtype(dtype)?, threshold)?.main)
        })?;
        Ok(Outputs { main, prototypes: None, features: Vec::new() })
    }

    fn run_once(&mut self, input: &Tensor, threshold: f32) -> Result<Outputs> {
        let (batch, _, height, width) = input.dims4()?;
        self.compiled(batch, (height, width))?;
        let outputs = match &mut self.engine {
            Engine::Model(model) => model.run(input)?,
            Engine::Plans { plans, .. } => match plans.last_mut() {
                Some((plan, session)) => plan.forward(session, input, Some(threshold))?,
                None => return Err(Error::Training("the network could not be compiled".into())),
            },
        };
        // The copy waits for a GPU to finish.
        let to_memory =
            |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?) };
        let main = to_memory(&outputs.main)?;
        let prototypes = outputs.prototypes.as_ref().map(to_memory).transpose()?;
        check_finite(&main)?;
        Ok(Outputs { main, prototypes, features: Vec::new() })
    }
}

/// Refuses rows whose objectness is not a number: damaged weights would otherwise pass for a network that finds nothing.
pub(crate) fn check_finite(rows: &Tensor) -> Result<()> {
    let objectness = rows.narrow(2, 4, 1)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    if objectness.iter().any(|objectness| objectness.is_nan()) { Err(Error::NotNumbers) } else { Ok(()) }
}
