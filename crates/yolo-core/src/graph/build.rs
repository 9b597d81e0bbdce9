//! From a network's description to its graph: channels, repeats and `from` resolved as YOLOv5 resolves them.

use super::op::{Op, Shape};
use super::trace::Tracer;
use super::{Graph, Init, Layer, Node, NodeId, Output, ParamKind};
use crate::config::{Anchors, Arg, From, LayerConfig, MAX_CLASSES, NetworkConfig};
use crate::layers::registry::{self, Entry, Kind};
use crate::layers::{Args, Block, Context, level_anchors};
use crate::{Error, Result, text};

/// Strides are measured on a picture of this size.
const PROBE: usize = 256;
/// Some hundred times as many operations as the largest network of the zoo has; repeats of repeats would fill any memory.
const MAX_NODES: usize = 1 << 16;

pub(super) fn graph(config: &NetworkConfig) -> Result<Graph> {
    // A file's number is checked where it is read; this one may come from `NetworkConfig::with_classes`.
    if !(1..=MAX_CLASSES).contains(&config.nc) {
        let problem = format!("`nc` must be from 1 to {MAX_CLASSES}, it is {}", config.nc);
        return Err(Error::Config { file: config.name.clone(), problem });
    }
    let mut builder = Builder {
        config,
        context: Context { classes: config.nc, anchors: &config.anchors, dynamic: config.dynamic },
        tracer: Tracer::new(config.channels, config.activation),
        layers: Vec::new(),
    };
    // The network itself and the `Sequential` of its layers.
    builder.tracer.modules = 2;
    let count = config.backbone.len() + config.head.len();
    for (i, row) in config.layers().enumerate() {
        builder.layer(i, row, i + 1 == count).map_err(|problem| Error::Layer {
            file: config.name.clone(),
            layer: i,
            module: row.module.clone(),
            problem,
        })?;
    }
    builder.finish()
}

struct Builder<'a> {
    config: &'a NetworkConfig,
    context: Context<'a>,
    tracer: Tracer,
    layers: Vec<Layer>,
}

impl Builder<'_> {
    fn layer(&mut self, i: usize, row: &LayerConfig, last: bool) -> Result<(), String> {
        let entry = registry::find(&row.module).ok_or_else(|| {
            let near = text::nearest(&row.module, registry::names(), 3).join(", ");
            format!("there is no such module; the nearest names are {near}")
        })?;
        if matches!(entry.kind, Kind::Head | Kind::SegmentHead) && !last {
            return Err("a head must be the last layer".into());
        }
        let inputs = self.inputs(i, &row.from, entry)?;
        let repeats = self.repeats(row.number);
        let args = self.resolve(entry, row, &inputs, repeats)?;
        let mut reader = Args::new(&args, &self.context);
        let block = (entry.read)(&mut reader)?;
        reader.finish()?;
        let first_param = self.tracer.params.len();
        self.tracer.layer = i;
        let chained = if entry.kind == Kind::Repeats { 1 } else { repeats };
        let node = self.trace(i, &*block, &inputs, chained)?;
        let trained = self.tracer.params[first_param..].iter().filter(|param| param.kind != ParamKind::Buffer);
        self.layers.push(Layer {
            from: row.from.clone(),
            repeats,
            module: entry.bare_name(),
            class: entry.class,
            args: self.shown(entry, args),
            params: trained.map(|param| param.shape.iter().product::<usize>()).sum(),
            node,
        });
        Ok(())
    }

    /// `max(round(n * depth), 1)` where n is over 1, rounding half to even as Python does.
    fn repeats(&self, number: usize) -> usize {
        if number > 1 {
            ((number as f64 * self.config.depth_multiple).round_ties_even() as usize).max(1)
        } else {
            number
        }
    }

    /// The nodes that `from` names.
    fn inputs(&self, i: usize, from: &From, entry: &Entry) -> Result<Vec<NodeId>, String> {
        let node = |&index: &i64| {
            let absolute = if index < 0 { index.checked_add(i as i64) } else { Some(index) };
            match absolute {
                Some(-1) if i == 0 => Ok(0),
                Some(layer) if (0..i as i64).contains(&layer) => Ok(self.layers[layer as usize].node),
                _ if index >= 0 => {
                    Err(format!("`from` {index} is not a layer before it: a layer reads only layers before it"))
                }
                _ => Err(format!("`from` {index} reaches back beyond the first layer")),
            }
        };
        match (from, entry.kind) {
            (From::Many(list), Kind::Join | Kind::Head | Kind::SegmentHead) if list.is_empty() => {
                Err("`from` is an empty list".into())
            }
            (From::Many(list), Kind::Join | Kind::Head | Kind::SegmentHead) => list.iter().map(node).collect(),
            (From::One(_), Kind::Join | Kind::Head | Kind::SegmentHead) => {
                Err(format!("`from` must be a list of layers such as [-1, 6], it is {from}"))
            }
            (From::Many(list), _) => match list.as_slice() {
                [index] => Ok(vec![node(index)?]),
                _ => Err(format!("it reads one layer, `from` is {from}")),
            },
            (From::One(index), _) => Ok(vec![node(index)?]),
        }
    }

    /// The arguments as the Python class gets them.
    fn resolve(&self, entry: &Entry, row: &LayerConfig, inputs: &[NodeId], repeats: usize) -> Result<Vec<Arg>, String> {
        let classes_or_same = |arg: &Arg| match arg {
            Arg::Str(word) if word == "nc" && !matches!(entry.kind, Kind::Head | Kind::SegmentHead) => {
                Arg::Int(self.config.nc as i64)
            }
            other => other.clone(),
        };
        let mut args: Vec<Arg> = row.args.iter().map(classes_or_same).collect();
        let channels = |node: NodeId| self.tracer.channels(node);
        match entry.kind {
            Kind::Scaled | Kind::Repeats => {
                let Some(Arg::Int(c2)) = args.first() else {
                    return Err("the first argument must be the number of output channels".into());
                };
                let c2 = self.scale_width(*c2)?;
                args[0] = Arg::Int(c2 as i64);
                args.insert(0, Arg::Int(channels(inputs[0]) as i64));
                if entry.kind == Kind::Repeats {
                    args.insert(2, Arg::Int(repeats as i64));
                }
            }
            Kind::Norm => args = vec![Arg::Int(channels(inputs[0]) as i64)],
            Kind::Plain | Kind::Join => {}
            Kind::Head | Kind::SegmentHead => {
                if entry.kind == Kind::SegmentHead {
                    let [_, _, _, Arg::Int(prototypes)] = args.as_mut_slice() else {
                        return Err("takes nc, anchors, the number of masks and the number of prototypes".into());
                    };
                    *prototypes = self.divisible(*prototypes as f64 * self.config.width_multiple)? as i64;
                }
                args.push(Arg::ints(&inputs.iter().map(|&node| channels(node)).collect::<Vec<_>>()));
            }
        }
        Ok(args)
    }

    /// Output channels scaled by the width, except where they are the outputs of a head.
    fn scale_width(&self, c2: i64) -> Result<usize, String> {
        let anchors = match &self.config.anchors {
            Anchors::Count(count) => *count,
            Anchors::Lists(lists) => lists.first().map_or(0, |list| list.len() / 2),
        };
        match usize::try_from(c2) {
            Ok(c2) if c2 == anchors * (self.config.nc + 5) => Ok(c2),
            _ => self.divisible(c2 as f64 * self.config.width_multiple),
        }
    }

    /// The next multiple of `channel_multiple`.
    fn divisible(&self, channels: f64) -> Result<usize, String> {
        let multiple = self.config.channel_multiple;
        let rounded = (channels / multiple as f64).ceil() * multiple as f64;
        if rounded >= 1.0 && rounded <= f64::from(1 << 20) {
            Ok(rounded as usize)
        } else {
            Err(format!("{rounded} output channels; there must be from 1 to {}", 1 << 20))
        }
    }

    fn trace(&mut self, i: usize, block: &dyn Block, inputs: &[NodeId], repeats: usize) -> Result<NodeId, String> {
        let tracer = &mut self.tracer;
        let bounded = |t: &mut Tracer, inputs: &[NodeId]| {
            let node = block.trace(t, inputs)?;
            if t.nodes.len() > MAX_NODES {
                return Err(format!(
                    "the network has more than {MAX_NODES} operations: are the numbers of repeats and `depth_multiple` as they should be?"
                ));
            }
            Ok(node)
        };
        tracer.scoped("model", |t| {
            t.module(i.to_string(), |t| {
                if repeats <= 1 {
                    return bounded(t, inputs);
                }
                let mut x = inputs.to_vec();
                for k in 0..repeats {
                    x = vec![t.module(k.to_string(), |t| bounded(t, &x))?];
                }
                x.first().copied().ok_or_else(|| "no repeats".to_owned())
            })
        })
    }

    /// The arguments as YOLOv5 prints them: names of the network's own values replaced.
    fn shown(&self, entry: &Entry, mut args: Vec<Arg>) -> Vec<Arg> {
        if matches!(entry.kind, Kind::Head | Kind::SegmentHead) {
            let levels = if let Some(Arg::List(channels)) = args.last() { channels.len() } else { 0 };
            for arg in &mut args {
                match arg {
                    Arg::Str(word) if word == "nc" => *arg = Arg::Int(self.config.nc as i64),
                    Arg::Str(word) if word == "anchors" => {
                        let lists = level_anchors(&self.config.anchors, levels);
                        *arg = Arg::List(lists.iter().map(|list| Arg::numbers(list)).collect());
                    }
                    _ => {}
                }
            }
        }
        args
    }

    fn finish(self) -> Result<Graph> {
        let Builder { config, tracer, layers, .. } = self;
        let last = layers.last().map_or(0, |layer| layer.node);
        let output = match (&tracer.nodes[last].op, tracer.prototypes) {
            (Op::Detect { .. }, Some(prototypes)) => Output::Segment { rows: last, prototypes },
            (Op::Detect { .. }, None) => Output::Detect { rows: last },
            _ => Output::Features(last),
        };
        let mut graph = Graph {
            config: config.clone(),
            nodes: tracer.nodes,
            params: tracer.params,
            layers,
            output,
            strides: Vec::new(),
            modules: tracer.modules,
        };
        if !matches!(output, Output::Features(_)) {
            graph.set_strides(last)?;
        }
        Ok(graph)
    }
}

impl Graph {
    /// Measures the levels' strides and writes what depends on them: anchors in stride units, biases of a new network.
    fn set_strides(&mut self, head: NodeId) -> Result<()> {
        let shapes = self.shapes(PROBE, PROBE)?;
        let Node { op: Op::Detect { anchors, classes, per_level, masks }, inputs, .. } = &self.nodes[head] else {
            return Ok(());
        };
        let heights = inputs.iter().map(|&map| if let Shape::Map(_, h, _) = shapes[map] { h } else { 1 });
        self.strides = heights.map(|height| PROBE as f64 / height as f64).collect();
        if let Init::Values(values) = &mut self.params[*anchors].init {
            let level = 2 * per_level;
            order_anchors(values, level, &self.strides);
            for (values, stride) in values.chunks_mut(level).zip(&self.strides) {
                values.iter_mut().for_each(|value| *value /= *stride as f32);
            }
        }
        for (map, &stride) in inputs.iter().zip(&self.strides) {
            if let Op::Conv2d { bias: Some(bias), geometry, .. } = &self.nodes[*map].op {
                let bound = 1.0 / (geometry.fan_in() as f64).sqrt();
                self.params[*bias].init =
                    Init::DetectBias { bound, stride, classes: *classes, outputs: 5 + classes + masks };
            }
        }
        Ok(())
    }
}

/// Reverses the levels where the anchors' areas fall while the strides rise, or the other way round; and, as YOLOv5 does, where the first
/// and the last level have one stride and areas differ.
fn order_anchors(values: &mut [f32], level: usize, strides: &[f64]) {
    let area = |list: &[f32]| list.chunks(2).map(|side| side.iter().product::<f32>()).sum::<f32>();
    let areas: Vec<f32> = values.chunks(level).map(area).collect();
    let ([first, .., last], [near, .., far]) = (areas.as_slice(), strides) else { return };
    if first != last && last.partial_cmp(first) != far.partial_cmp(near) {
        let reversed: Vec<f32> = values.chunks(level).rev().flatten().copied().collect();
        values.copy_from_slice(&reversed);
    }
}

/// Shapes of all nodes for a picture of `height` x `width`.
pub(super) fn infer(
    file: &str,
    nodes: &[Node],
    layers: &[&'static str],
    height: usize,
    width: usize,
) -> Result<Vec<Shape>> {
    let mut shapes: Vec<Shape> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let inputs: Vec<Shape> = match node.op {
            Op::Input => vec![Shape::Map(node.channels, height, width)],
            _ => node.inputs.iter().map(|&i| shapes[i]).collect(),
        };
        let shape = node.op.infer(&inputs).and_then(Shape::bounded).map_err(|problem| match node.layer {
            Some(layer) => Error::Layer {
                file: file.to_owned(),
                layer,
                module: layers.get(layer).copied().unwrap_or_default().to_owned(),
                problem: format!("for a picture of {height}x{width}: {problem}"),
            },
            None => Error::Config { file: file.to_owned(), problem },
        })?;
        shapes.push(shape);
    }
    Ok(shapes)
}
