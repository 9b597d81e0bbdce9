//! The network that is trained, and its running average.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::VarBuilder;
use yolo_core::config::Anchors;
use yolo_core::graph::{Graph, Op, ParamKind};
use yolo_core::model::BatchStatistics;
use yolo_core::weights::Weights;
use yolo_core::{Model, NetworkConfig};

use crate::optim::{Ema, Group, Parameter, blend};
use crate::{Error, Result};

/// What running statistics keep of their past: YOLOv5's momentum of 0.03.
const KEEP: f64 = 0.97;

/// A network whose parameters are variables.
pub(super) struct Learner {
    graph: Graph,
    /// In the graph's order: name, values, whether they are trained.
    tensors: Vec<(String, Var, bool)>,
    places: HashMap<String, usize>,
    model: Model,
    ema: Ema,
    /// The network with the running averages.
    average: Model,
    /// Index of the head's anchors among the parameters.
    anchors: usize,
}

/// How many of a network's tensors came from a file, counted as PyTorch does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) taken: usize,
    pub(super) all: usize,
}

impl Learner {
    /// A new network with starting values of `seed`; what fits of `weights` is taken over, but for its anchors where
    /// `own_anchors` says so. Layers of `freeze` are not trained.
    pub(super) fn new(
        config: &NetworkConfig,
        seed: u64,
        weights: Option<&Weights>,
        own_anchors: bool,
        freeze: &[usize],
        device: &Device,
    ) -> Result<(Self, Transfer)> {
        let graph = Graph::new(config)?;
        let anchors = match graph.nodes().get(graph.output().main()).map(|node| &node.op) {
            Some(Op::Detect { anchors, .. }) => *anchors,
            _ => {
                let problem =
                    format!("{} has no detection head: its last layer must be Detect or Segment", config.name);
                return Err(Error::Argument { argument: "cfg", problem });
            }
        };
        if config.channels != 3 {
            let problem = format!("{} reads {} channels, a picture has 3", config.name, config.channels);
            return Err(Error::Argument { argument: "cfg", problem });
        }
        if graph.num_classes() != config.nc {
            let problem = format!(
                "the head of {} has {} classes of its own, the data set {}: write `nc` for their number in the last row",
                config.name,
                graph.num_classes(),
                config.nc
            );
            return Err(Error::Argument { argument: "cfg", problem });
        }
        let mut values = graph.init(seed, device)?;
        let transfer = transfer(&graph, &mut values, weights, own_anchors.then_some(anchors), device)?;
        let frozen = |name: &str| freeze.iter().any(|layer| name.starts_with(&format!("model.{layer}.")));
        let mut tensors = Vec::with_capacity(graph.params().len());
        for param in graph.params() {
            let value = values
                .remove(&param.name)
                .ok_or_else(|| Error::Training(format!("the network has no starting value for {}", param.name)))?;
            let trained = param.kind != ParamKind::Buffer && !frozen(&param.name);
            tensors.push((param.name.clone(), Var::from_tensor(&value)?, trained));
        }
        let places = tensors.iter().enumerate().map(|(place, (name, ..))| (name.clone(), place)).collect();
        // A tensor that is not trained goes in without its variable: no gradient is computed for it.
        let of_training = tensors.iter().map(|(name, var, trained)| {
            (name.clone(), if *trained { var.as_tensor().clone() } else { var.as_detached_tensor() })
        });
        let model = load(&graph, of_training.collect(), device)?;
        let ema = Ema::new(tensors.iter().map(|(name, var, _)| (name.as_str(), var.as_tensor())))?;
        let averages = ema.tensors().map(|(name, var)| (name.to_owned(), var.as_detached_tensor()));
        let average = load(&graph, averages.collect(), device)?;
        Ok((Self { graph, tensors, places, model, ema, average, anchors }, transfer))
    }

    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The network in training.
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// The network with the running averages.
    pub(super) fn average(&self) -> &Model {
        &self.average
    }

    pub(super) fn ema(&self) -> &Ema {
        &self.ema
    }

    /// All tensors of the network in training.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, var, _)| (name.as_str(), var.as_tensor()))
    }

    /// What an optimiser changes.
    pub(super) fn parameters(&self) -> Vec<Parameter> {
        let parameters = self.graph.params().iter().zip(&self.tensors);
        let parameter = |(param, (name, var, trained)): (&yolo_core::graph::Param, &(String, Var, bool))| {
            let group = Group::of(param.kind).filter(|_| *trained)?;
            Some(Parameter { name: name.clone(), var: var.clone(), group })
        };
        parameters.filter_map(parameter).collect()
    }

    /// Names of the trained tensors that `freeze` holds.
    pub(super) fn frozen(&self) -> Vec<&str> {
        let parameters = self.graph.params().iter().zip(&self.tensors);
        parameters
            .filter(|(param, (_, _, trained))| param.kind != ParamKind::Buffer && !trained)
            .map(|(param, _)| param.name.as_str())
            .collect()
    }

    /// Blends a batch's statistics into the running ones.
    pub(super) fn absorb(&self, statistics: &[BatchStatistics]) -> Result<()> {
        for statistics in statistics {
            let pairs = [(&statistics.mean, &statistics.batch_mean), (&statistics.var, &statistics.batch_var_unbiased)];
            for (name, batch) in pairs {
                let place = self.places.get(name.as_str()).copied();
                let (_, running, _) = place
                    .and_then(|place| self.tensors.get(place))
                    .ok_or_else(|| Error::Training(format!("the network has no running statistics {name}")))?;
                blend(running, &batch.detach(), KEEP)?;
            }
        }
        Ok(())
    }

    /// Takes the network's tensors into the running average.
    pub(super) fn update_average(&mut self) -> Result<()> {
        self.ema.update(self.tensors.iter().map(|(_, var, _)| var.as_tensor()))
    }

    /// A tensor of the network or its average that holds anything but finite numbers.
    pub(super) fn diverged(&self) -> Result<Option<&str>> {
        let averages = self.ema.tensors().map(|(name, var)| (name, var.as_tensor()));
        for (name, tensor) in self.tensors().chain(averages) {
            // 0 times infinity is no number either: one value tells of the whole tensor, wherever it lies.
            let sum = tensor.detach().affine(0.0, 0.0)?.sum_all()?.to_scalar::<f32>()?;
            if sum.is_nan() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Anchors by level: widths and heights in cells.
    pub(super) fn anchors(&self) -> Result<Vec<Vec<[f32; 2]>>> {
        let values: Vec<Vec<Vec<f32>>> = self.tensors[self.anchors].1.to_device(&Device::Cpu)?.to_vec3()?;
        Ok(values.iter().map(|level| level.iter().map(|pair| [pair[0], pair[1]]).collect()).collect())
    }

    /// Anchors by level: widths and heights in pixels.
    pub(super) fn anchors_in_pixels(&self) -> Result<Vec<Vec<[f64; 2]>>> {
        let scale = |(level, stride): (Vec<[f32; 2]>, &f64)| {
            level.into_iter().map(|pair| pair.map(|side| f64::from(side) * stride)).collect()
        };
        Ok(self.anchors()?.into_iter().zip(self.graph.strides()).map(scale).collect())
    }

    /// Replaces the anchors, in the network and its average.
    pub(super) fn set_anchors(&mut self, pixels: &[Vec<[f64; 2]>]) -> Result<()> {
        let var = &self.tensors[self.anchors].1;
        let in_cells = pixels
            .iter()
            .zip(self.graph.strides())
            .flat_map(|(level, stride)| level.iter().flatten().map(move |side| (side / stride) as f32));
        let values = Tensor::from_vec(in_cells.collect::<Vec<f32>>(), var.shape(), var.device())?;
        var.set(&values)?;
        if let Some((_, average)) = self.ema.tensors().nth(self.anchors) {
            average.set(&values)?;
        }
        Ok(())
    }

    /// The network's description with the anchors that it has now.
    pub(super) fn config(&self) -> Result<NetworkConfig> {
        let mut config = self.graph.config().clone();
        // To a millionth of a pixel: digits beyond are the rounding of f32.
        let rounded = |side: f64| (side * 1e6).round() / 1e6;
        let levels = self.anchors_in_pixels()?;
        let list = |level: Vec<[f64; 2]>| level.into_iter().flatten().map(rounded).collect();
        let lists: Vec<Vec<f64>> = levels.into_iter().map(list).collect();
        // A mere number of anchors stands for placeholders, the first of which is 0: no size that a YAML may hold. The number
        // stays then, and means the same shape; the values lie in the tensor.
        if lists.iter().flatten().all(|side| *side > 0.0 && side.is_finite()) {
            config.anchors = Anchors::Lists(lists);
        }
        Ok(config)
    }

    /// Sets the temperature of softmax routing to that of an epoch, in the network in training. The average keeps the one that
    /// it runs at once it is saved: epochs are ranked by what is left of them.
    pub(super) fn anneal(&mut self, epoch: usize) -> Result<()> {
        if let Some(temperature) = self.graph.config().dynamic.temperature {
            self.model.set_temperature(temperature.at(epoch))?;
        }
        Ok(())
    }

    /// Takes up the tensors of a file, whose names start with `prefix` for the network in training and with `average` for the
    /// average.
    pub(super) fn restore(&mut self, weights: &Weights, prefix: &str, average: &str, updates: u64) -> Result<()> {
        for (name, var, _) in &self.tensors {
            let key = format!("{prefix}{name}");
            if weights.shape(&key) != Some(var.dims()) {
                let problem = format!("has no tensor `{key}` of shape {:?}: it belongs to another network", var.dims());
                return Err(Error::data(weights.path(), problem));
            }
            var.set(&weights.tensor(&key, DType::F32, var.device())?)?;
        }
        self.ema.restore(weights, average, updates)
    }
}

fn load(graph: &Graph, tensors: HashMap<String, Tensor>, device: &Device) -> Result<Model> {
    Ok(Model::load(graph.clone(), VarBuilder::from_tensors(tensors, DType::F32, device))?)
}

/// Replaces starting values by those of `weights` that have the same name and shape. PyTorch counts a counter of batches with
/// each batch normalisation; it is counted here where the running mean is taken.
fn transfer(
    graph: &Graph,
    values: &mut HashMap<String, Tensor>,
    weights: Option<&Weights>,
    but: Option<usize>,
    device: &Device,
) -> Result<Transfer> {
    let mut found = Transfer { taken: 0, all: 0 };
    for (place, param) in graph.params().iter().enumerate() {
        let count = if param.name.ends_with(".running_mean") { 2 } else { 1 };
        found.all += count;
        let Some(weights) = weights.filter(|weights| weights.shape(&param.name) == Some(&param.shape)) else {
            continue;
        };
        if Some(place) != but {
            found.taken += count;
            let tensor = weights.tensor(&param.name, DType::F32, device)?;
            values.insert(param.name.clone(), tensor);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use yolo_core::weights::NetworkMetadata;

    const YAML: &str = "{nc: 2, depth_multiple: 1, width_multiple: 1, anchors: [[10, 13, 16, 30]],\n\
        dynamic: {routing: softmax, temperature: {start: 30, end: 1, epochs: 10}},\n\
        backbone: [[-1, 1, Conv, [8, 3, 8]], [-1, 1, C3_GhostDynamicConv, [8]]], head: [[[1], 1, Detect, [nc, anchors]]]}";

    fn learner(freeze: &[usize]) -> Learner {
        let config = NetworkConfig::parse("tiny", YAML).unwrap();
        Learner::new(&config, 1, None, true, freeze, &Device::Cpu).unwrap().0
    }

    #[test]
    fn parameters_are_grouped_as_yolov5_does() {
        let learner = learner(&[]);
        let parameters = learner.parameters();
        let group = |end: &str| {
            let named: Vec<_> = parameters.iter().filter(|p| p.name.ends_with(end)).map(|p| p.group).collect();
            assert!(!named.is_empty(), "{end}");
            assert!(named.windows(2).all(|pair| pair[0] == pair[1]), "{end}: {named:?}");
            named[0]
        };
        assert_eq!(group("routing.weight"), Group::Weight);
        assert_eq!(group("cond_conv.weight"), Group::Weight);
        assert_eq!(group("routing.bias"), Group::Bias);
        assert_eq!(group("bn.weight"), Group::Norm);
        assert_eq!(group("bn.bias"), Group::Bias);
        assert_eq!(group("conv.weight"), Group::Weight);
        assert!(parameters.iter().all(|p| !p.name.ends_with("anchors") && !p.name.contains("running")));
    }

    /// `smart_optimizer` takes what is called `bias` for a bias, and nothing else: not attention's `in_proj_bias`.
    #[test]
    fn biases_are_known_by_their_whole_name() {
        let yaml = YAML.replace("C3_GhostDynamicConv, [8]", "C3TR, [16]");
        let config = NetworkConfig::parse("attention", &yaml).unwrap();
        let (learner, _) = Learner::new(&config, 1, None, true, &[], &Device::Cpu).unwrap();
        let parameters = learner.parameters();
        let group = |end: &str| parameters.iter().find(|p| p.name.ends_with(end)).map(|p| p.group);
        assert_eq!(group("ma.in_proj_bias"), Some(Group::Weight));
        assert_eq!(group("ma.in_proj_weight"), Some(Group::Weight));
        assert_eq!(group("ma.out_proj.bias"), Some(Group::Bias));
        for parameter in parameters {
            let named = parameter.name.rsplit('.').next() == Some("bias");
            assert_eq!(parameter.group == Group::Bias, named, "{}", parameter.name);
        }
    }

    #[test]
    fn frozen_layers_are_left_out() {
        let learner = learner(&[1]);
        assert!(learner.parameters().iter().all(|p| !p.name.starts_with("model.1.")));
        assert!(learner.frozen().iter().all(|name| name.starts_with("model.1.")) && !learner.frozen().is_empty());
        let x = Tensor::ones((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        let outputs = learner.model().run_training(&x).unwrap();
        let gradients = outputs.levels[0].sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let gradient = |end: &str| {
            let (_, var, _) = learner.tensors.iter().find(|(name, ..)| name == end).unwrap();
            gradients.get(var).is_some()
        };
        assert!(
            gradient("model.0.conv.weight") && gradient("model.2.m.0.bias") && !gradient("model.1.cv1.conv.weight")
        );
    }

    #[test]
    fn what_fits_of_other_weights_is_taken_and_counted() {
        let first = learner(&[]);
        let tensors = first.tensors().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect();
        let weights = Weights::from_tensors(tensors, NetworkMetadata::default());
        let config = NetworkConfig::parse("tiny", YAML).unwrap().with_classes(3);
        let (second, transfer) = Learner::new(&config, 2, Some(&weights), false, &[], &Device::Cpu).unwrap();
        // The head's convolution has other shapes: its weight and its bias.
        assert_eq!(transfer.all - transfer.taken, 2);
        let value = |learner: &Learner| {
            let (_, tensor) = learner.tensors().find(|(name, _)| *name == "model.0.conv.weight").unwrap();
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(value(&first), value(&second));
        let (_, without) = Learner::new(&config, 2, Some(&weights), true, &[], &Device::Cpu).unwrap();
        assert_eq!(without.all - without.taken, 3);
    }

    #[test]
    fn anchors_are_set_everywhere() {
        let mut learner = learner(&[]);
        assert_eq!(learner.anchors_in_pixels().unwrap(), [[[10.0, 13.0], [16.0, 30.0]]]);
        learner.set_anchors(&[vec![[8.0, 9.5], [40.0, 50.0]]]).unwrap();
        assert_eq!(learner.anchors_in_pixels().unwrap(), [[[8.0, 9.5], [40.0, 50.0]]]);
        let yaml = learner.config().unwrap().to_yaml();
        assert!(yaml.contains("[8, 9.5, 40, 50]"), "{yaml}");
        let average = learner.average().param("model.2.anchors").unwrap().flatten_all().unwrap();
        assert_eq!(average.to_vec1::<f32>().unwrap(), [1.0, 1.1875, 5.0, 6.25]);
    }

    #[test]
    fn a_mere_number_of_anchors_can_be_read_again() {
        let config = NetworkConfig::parse("tiny", &YAML.replace("[[10, 13, 16, 30]]", "2")).unwrap();
        let (mut learner, _) = Learner::new(&config, 1, None, true, &[], &Device::Cpu).unwrap();
        assert_eq!(learner.anchors_in_pixels().unwrap(), [[[0.0, 1.0], [2.0, 3.0]]]);
        let written = |learner: &Learner| learner.config().unwrap().to_yaml();
        let read = NetworkConfig::parse("read", &written(&learner)).unwrap();
        assert!(matches!(read.anchors, Anchors::Count(2)), "{:?}", read.anchors);
        assert_eq!(Graph::new(&read).unwrap().params().len(), learner.graph().params().len());
        // Once there are sizes, they are what is written.
        learner.set_anchors(&[vec![[8.0, 9.5], [40.0, 50.0]]]).unwrap();
        let read = NetworkConfig::parse("read", &written(&learner)).unwrap();
        assert!(matches!(&read.anchors, Anchors::Lists(lists) if lists[0] == [8.0, 9.5, 40.0, 50.0]));
    }

    #[test]
    fn a_tensor_that_is_not_finite_is_named() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let learner = learner(&[]);
            assert_eq!(learner.diverged().unwrap(), None);
            let (name, var, _) = learner.tensors.iter().find(|(name, ..)| name.ends_with("bn.running_mean")).unwrap();
            let values = (0..var.elem_count()).map(|place| if place == 1 { value } else { f32::MAX });
            var.set(&Tensor::from_iter(values, &Device::Cpu).unwrap()).unwrap();
            assert_eq!(learner.diverged().unwrap(), Some(name.as_str()), "{value}");
        }
    }

    #[test]
    fn running_statistics_follow_the_batches() {
        let learner = learner(&[]);
        let x = Tensor::arange(0f32, 2.0 * 3.0 * 32.0 * 32.0, &Device::Cpu).unwrap();
        let x = (x.reshape((2, 3, 32, 32)).unwrap() / 6144.0).unwrap();
        let outputs = learner.model().run_training(&x).unwrap();
        learner.absorb(&outputs.statistics).unwrap();
        let first = &outputs.statistics[0];
        let (_, running) = learner.tensors().find(|(name, _)| *name == first.var).unwrap();
        let batch: Vec<f32> = first.batch_var_unbiased.to_vec1().unwrap();
        for (running, batch) in running.to_vec1::<f32>().unwrap().iter().zip(batch) {
            assert!((running - (0.97 + 0.03 * batch)).abs() < 1e-6);
        }
    }

    #[test]
    fn the_average_runs_as_the_saved_weights_do() {
        let mut learner = learner(&[]);
        learner.anneal(0).unwrap();
        let x = Tensor::arange(0f32, 3.0 * 32.0 * 32.0, &Device::Cpu).unwrap();
        let x = (x.reshape((1, 3, 32, 32)).unwrap() / 3072.0).unwrap();
        let run = |model: &Model| model.run(&x).unwrap().main.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let tensors = learner.ema().tensors().map(|(name, var)| (name.to_owned(), var.as_detached_tensor())).collect();
        let config = NetworkConfig::parse("saved", &learner.config().unwrap().to_yaml()).unwrap();
        let saved = load(&Graph::new(&config).unwrap(), tensors, &Device::Cpu).unwrap();
        assert_eq!(run(learner.average()), run(&saved));
        // The same values at the temperature of the first epoch are another network.
        assert_ne!(run(learner.model()), run(&saved));
    }

    #[test]
    fn a_network_without_a_head_is_refused() {
        let yaml =
            "{nc: 2, depth_multiple: 1, width_multiple: 1, anchors: 3, backbone: [[-1, 1, Conv, [8, 3, 2]]], head: []}";
        let config = NetworkConfig::parse("tiny", yaml).unwrap();
        let error = Learner::new(&config, 1, None, true, &[], &Device::Cpu).err().unwrap().to_string();
        assert!(error.contains("no detection head"), "{error}");
    }
}
