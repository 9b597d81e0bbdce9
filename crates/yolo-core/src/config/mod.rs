//! A network's description: YOLOv5's YAML, read and checked, without tensors or shapes.

mod arg;
mod parse;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::Path;

pub use arg::Arg;
use dyconv_kernels::TemperatureSchedule;
use serde::Serialize;

use crate::weights::Weights;
use crate::{Error, Result, files, zoo};

/// A network as YOLOv5's YAML describes it.
///
/// Read one with [`NetworkConfig::open`] (a file or a name of the zoo) or [`NetworkConfig::parse`] (text).
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Where it came from, for messages: the file, or the name of the built-in network.
    pub name: String,
    /// Number of classes.
    pub nc: usize,
    /// Factor on the number of repeats of a layer.
    pub depth_multiple: f64,
    /// Factor on the number of channels of a layer.
    pub width_multiple: f64,
    /// Anchors in pixels of the network's input.
    pub anchors: Anchors,
    /// Channels of the input (`ch`, 3 where absent).
    pub channels: usize,
    /// Activation of the static convolutions (SiLU where absent).
    pub activation: Activation,
    /// Channels are rounded up to a multiple of this (8 where absent).
    pub channel_multiple: usize,
    /// Routing of the dynamic convolutions.
    pub dynamic: DynamicConfig,
    /// Layers of the backbone.
    pub backbone: Vec<LayerConfig>,
    /// Layers of the head.
    pub head: Vec<LayerConfig>,
}

/// One row of the YAML: `[from, number, module, args]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerConfig {
    /// Layers it reads: -1 is the one before.
    pub from: From,
    /// Number of repeats before `depth_multiple`.
    pub number: usize,
    /// Module as the YAML names it, with its `nn.` prefix.
    pub module: String,
    /// Arguments as the YAML has them.
    pub args: Vec<Arg>,
}

/// The layers that a layer reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// One layer.
    One(i64),
    /// Several, in this order.
    Many(Vec<i64>),
}

/// Anchors of the detection head.
#[derive(Debug, Clone, PartialEq)]
pub enum Anchors {
    /// Only their number a level; their sizes come from training.
    Count(usize),
    /// A list a level: width, height, width, height, ... in pixels.
    Lists(Vec<Vec<f64>>),
}

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub enum Activation {
    /// `x`
    Identity,
    /// `x * sigmoid(x)`
    #[default]
    SiLU,
    /// `max(x, 0)`
    ReLU,
    /// `min(max(x, 0), 6)`
    ReLU6,
    /// `x` where positive, `slope * x` elsewhere
    LeakyReLU(f64),
    /// `x * min(max(x + 3, 0), 6) / 6`
    Hardswish,
    /// `x * tanh(ln(1 + exp(x)))`
    Mish,
    /// `x * Phi(x)`, with the error function
    GELU,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// hyperbolic tangent
    Tanh,
}

/// How dynamic convolutions weigh their experts: the YAML's top-level `dynamic:` map.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DynamicConfig {
    /// Activation of the routing's logits.
    pub routing: RoutingKind,
    /// Softmax temperature, where the YAML gives one.
    pub temperature: Option<Temperature>,
    /// Experts a convolution, where the YAML gives a number (4 where absent).
    pub num_experts: Option<usize>,
}

/// Activation that turns routing logits into weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RoutingKind {
    /// Each expert weighed on its own, as in CondConv (arXiv 1904.04971).
    #[default]
    Sigmoid,
    /// Weights that sum to one, as in DY-CNN (arXiv 1912.03458).
    Softmax,
}

/// Temperature of a softmax routing: logits are divided by it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Temperature {
    /// The same all the time.
    Constant(f64),
    /// Annealed linearly in training; a finished network runs at `end`.
    Annealed {
        /// Temperature of the first epoch.
        start: f64,
        /// Temperature from epoch `epochs` on.
        end: f64,
        /// Number of epochs of the descent.
        epochs: usize,
    },
}

impl Temperature {
    /// The temperature of a finished network.
    pub fn at_inference(self) -> f64 {
        match self {
            Self::Constant(value) => value,
            Self::Annealed { end, .. } => end,
        }
    }

    /// The temperature of an epoch of training, counted from 0.
    pub fn at(self, epoch: usize) -> f64 {
        match self {
            Self::Constant(value) => value,
            Self::Annealed { start, end, epochs } => {
                TemperatureSchedule::linear(start, end, epochs).map_or(end, |schedule| schedule.at(epoch))
            }
        }
    }
}

/// The most classes of a network: no data set has so many, and a mistyped number cannot eat the machine.
pub const MAX_CLASSES: usize = 1 << 16;

/// The file's name of a path as YOLOv5's documentation gives it, `models/hub/yolov5-p6.yaml`; another path as it is.
fn built_in_name(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((folders, name)) if folders.split('/').all(|part| [".", "models", "hub", "segment"].contains(&part)) => {
            name
        }
        _ => path,
    }
}

impl NetworkConfig {
    /// Reads a network from a YAML file or, where there is no such file, from the zoo by name (`yolov5s`).
    ///
    /// # Errors
    /// Where neither exists, or the text is not a network.
    pub fn open(name: impl AsRef<Path>) -> Result<Self> {
        let path = name.as_ref();
        // A pipe can be read as well (`--cfg <(...)`); a folder may have a built-in network's name.
        if path.exists() && !path.is_dir() {
            let length = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len();
            if length > parse::MAX_YAML_BYTES {
                return Err(Error::Config {
                    file: path.display().to_string(),
                    problem: format!(
                        "{length} bytes are too many for a network's YAML (at most {})",
                        parse::MAX_YAML_BYTES
                    ),
                });
            }
            let bytes = files::read(path, parse::MAX_YAML_BYTES)?;
            let text = String::from_utf8(bytes).map_err(|_| Error::Config {
                file: path.display().to_string(),
                problem: "not a text file; a network is described by a YAML file in UTF-8".into(),
            })?;
            return Self::parse(&path.display().to_string(), &text);
        }
        let text = path.to_string_lossy();
        let stem = built_in_name(&text);
        let stem = stem.strip_suffix(".yaml").or(stem.strip_suffix(".yml")).unwrap_or(stem);
        zoo::find(stem).unwrap_or_else(|| {
            Err(Error::Config {
                file: text.clone().into_owned(),
                problem: format!(
                    "{}, and no built-in network of that name; the nearest built-in ones are {}",
                    if path.is_dir() { "a folder, not a network's YAML" } else { "no such file" },
                    zoo::nearest(stem).join(", ")
                ),
            })
        })
    }

    /// The network that a weights file says it belongs to.
    ///
    /// # Errors
    /// [`Error::Weights`] where it says nothing; otherwise as [`NetworkConfig::parse`].
    pub fn of_weights(weights: &Weights) -> Result<Self> {
        let yaml = weights.metadata().yaml.as_deref().ok_or_else(|| {
            Error::weights(
                weights.path(),
                "does not say which network it belongs to: name one with --cfg (in code: pass a NetworkConfig)",
            )
        })?;
        Self::parse(&weights.path().display().to_string(), yaml)
    }

    /// Reads a network from the text of a YAML file; `name` is used in messages.
    ///
    /// # Errors
    /// Where the text is not a network; the message names the layer.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        parse::network(name, text)
    }

    /// The layers of backbone and head, counted as YOLOv5 counts them.
    pub fn layers(&self) -> impl Iterator<Item = &LayerConfig> {
        self.backbone.iter().chain(&self.head)
    }

    /// The same network for another number of classes.
    pub fn with_classes(mut self, nc: usize) -> Self {
        self.nc = nc;
        self
    }

    /// Name without folders and extension, for messages and summaries.
    pub fn stem(&self) -> &str {
        let base = self.name.rsplit(['/', '\\']).next().unwrap_or(&self.name);
        [".yaml", ".yml", ".safetensors", ".pt"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base)
    }

    /// The network as YAML text, complete: [`NetworkConfig::parse`] gives an equal network back.
    pub fn to_yaml(&self) -> String {
        let mut yaml = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(yaml, "nc: {}", self.nc);
        let _ = writeln!(yaml, "depth_multiple: {:?}", self.depth_multiple);
        let _ = writeln!(yaml, "width_multiple: {:?}", self.width_multiple);
        if self.channels != 3 {
            let _ = writeln!(yaml, "ch: {}", self.channels);
        }
        if self.activation != Activation::default() {
            let _ = writeln!(yaml, "activation: {}", self.activation);
        }
        if self.channel_multiple != 8 {
            let _ = writeln!(yaml, "channel_multiple: {}", self.channel_multiple);
        }
        if self.dynamic != DynamicConfig::default() {
            yaml.push_str("dynamic:\n");
            let routing = match self.dynamic.routing {
                RoutingKind::Sigmoid => "sigmoid",
                RoutingKind::Softmax => "softmax",
            };
            let _ = writeln!(yaml, "  routing: {routing}");
            match self.dynamic.temperature {
                Some(Temperature::Constant(value)) => {
                    let _ = writeln!(yaml, "  temperature: {value:?}");
                }
                Some(Temperature::Annealed { start, end, epochs }) => {
                    let _ = writeln!(yaml, "  temperature: {{start: {start:?}, end: {end:?}, epochs: {epochs}}}");
                }
                None => {}
            }
            if let Some(experts) = self.dynamic.num_experts {
                let _ = writeln!(yaml, "  num_experts: {experts}");
            }
        }
        match &self.anchors {
            Anchors::Count(count) => {
                let _ = writeln!(yaml, "anchors: {count}");
            }
            Anchors::Lists(lists) => {
                yaml.push_str("anchors:\n");
                for list in lists {
                    let _ = writeln!(yaml, "  - {}", Arg::numbers(list).to_yaml());
                }
            }
        }
        for (key, layers) in [("backbone", &self.backbone), ("head", &self.head)] {
            if layers.is_empty() {
                let _ = writeln!(yaml, "{key}: []");
                continue;
            }
            let _ = writeln!(yaml, "{key}:");
            for layer in layers {
                let args = Arg::List(layer.args.clone()).to_yaml();
                let _ = writeln!(yaml, "  - [{}, {}, {}, {args}]", layer.from, layer.number, layer.module);
            }
        }
        yaml
    }
}

impl std::fmt::Display for From {
    /// As Python prints it: `-1`, or `[-1, 6]`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(index) => write!(f, "{index}"),
            Self::Many(indices) => write!(f, "{indices:?}"),
        }
    }
}

impl Activation {
    /// Reads YOLOv5's spelling: `nn.SiLU()`, `nn.LeakyReLU(0.1)`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        parse::activation(text)
    }
}

impl std::fmt::Display for Activation {
    /// As YOLOv5's YAML writes it: `nn.LeakyReLU(0.1)`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeakyReLU(slope) => write!(f, "nn.LeakyReLU({slope:?})"),
            other => write!(f, "nn.{other:?}()"),
        }
    }
}
