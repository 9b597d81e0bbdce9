//! `Detect`: YOLOv5's anchor-based head, a 1x1 convolution a level and the decoding of its boxes.

use super::conv::{ConvOptions, geometry};
use super::{Args, Block, Built};
use crate::config::{Anchors, Arg};
use crate::graph::{Init, NodeId, Op, ParamKind, Traced, Tracer};

/// `Detect(nc, anchors, ch)`
#[derive(Debug)]
pub(super) struct Detect {
    classes: usize,
    /// Widths and heights of the anchors of each level, in pixels.
    anchors: Vec<Vec<f64>>,
    channels: Vec<usize>,
    /// Mask coefficients of a box.
    pub(super) masks: usize,
}

impl Detect {
    /// Reads `nc` and `anchors`, which stand before a module's own arguments.
    pub(super) fn read_start(args: &mut Args<'_>) -> Result<(usize, Anchors), String> {
        let classes = match args.any() {
            Some(Arg::Str(word)) if word == "nc" => args.context.classes,
            Some(Arg::Int(int @ 1..=65536)) => *int as usize,
            other => return Err(format!("`nc` must be a number of classes, it is {}", show(other))),
        };
        let anchors = match args.any() {
            Some(Arg::Str(word)) if word == "anchors" => args.context.anchors.clone(),
            Some(Arg::Int(int @ 1..=64)) => Anchors::Count(*int as usize),
            Some(Arg::List(lists)) => Anchors::Lists(lists.iter().map(numbers).collect::<Result<_, _>>()?),
            other => return Err(format!("`anchors` must be lists of sizes or their number, it is {}", show(other))),
        };
        Ok((classes, anchors))
    }

    /// Reads the channels of the levels, which stand last, and checks that there is a list of anchors for each.
    pub(super) fn read_end(
        args: &mut Args<'_>,
        classes: usize,
        anchors: Anchors,
        masks: usize,
    ) -> Result<Self, String> {
        let Some(Arg::List(list)) = args.any() else {
            return Err("`from` must be a list of layers, one a level".into());
        };
        let channels: Vec<usize> = list
            .iter()
            .filter_map(|arg| if let Arg::Int(int) = arg { usize::try_from(*int).ok() } else { None })
            .collect();
        let anchors = level_anchors(&anchors, channels.len());
        let pairs = anchors.first().map_or(0, Vec::len);
        if anchors.len() != channels.len()
            || pairs == 0
            || !pairs.is_multiple_of(2)
            || anchors.iter().any(|a| a.len() != pairs)
        {
            return Err(format!(
                "it reads {} levels and has {} lists of anchors; there must be one list a level, all of one even length",
                channels.len(),
                anchors.len()
            ));
        }
        Ok(Self { classes, anchors, channels, masks })
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (classes, anchors) = Self::read_start(args)?;
        Ok(Box::new(Self::read_end(args, classes, anchors, 0)?))
    }
}

/// One list a level; a mere number of anchors becomes the placeholder sizes 0, 1, 2, ... of the original.
pub(crate) fn level_anchors(anchors: &Anchors, levels: usize) -> Vec<Vec<f64>> {
    match anchors {
        Anchors::Count(count) => vec![(0..2 * count).map(|i| i as f64).collect(); levels],
        Anchors::Lists(lists) => lists.clone(),
    }
}

fn show(arg: Option<&Arg>) -> String {
    arg.map_or_else(|| "missing".into(), Arg::to_string)
}

fn numbers(arg: &Arg) -> Result<Vec<f64>, String> {
    let number = |arg: &Arg| match arg {
        Arg::Int(int) => Some(*int as f64),
        Arg::Float(float) => Some(*float),
        _ => None,
    };
    let list = if let Arg::List(list) = arg { list.iter().map(number).collect() } else { None };
    list.ok_or_else(|| format!("`anchors` must be lists of sizes, one is {arg}"))
}

impl Block for Detect {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let per_level = self.anchors[0].len() / 2;
        let outputs = 5 + self.classes + self.masks;
        let maps = t.module("m", |t| {
            let levels = inputs.iter().zip(&self.channels).enumerate();
            let convolve = |(i, (&x, &channels)): (usize, (&NodeId, &usize))| {
                let geometry = geometry(channels, outputs * per_level, (1, 1), ConvOptions::default());
                t.conv2d(&i.to_string(), x, geometry, true)
            };
            levels.map(convolve).collect::<Result<Vec<_>, _>>()
        })?;
        // In pixels here; the builder divides by the strides once it knows them.
        let values = self.anchors.iter().flatten().map(|&size| size as f32).collect();
        let shape = [self.anchors.len(), per_level, 2];
        let anchors = t.param("anchors", &shape, ParamKind::Buffer, Init::Values(values))?;
        t.push(Op::Detect { anchors, classes: self.classes, per_level, masks: self.masks }, maps, outputs)
    }
}
