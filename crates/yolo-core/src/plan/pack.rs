//! Last pass: batch normalisation folded into kernels, and the program of all steps.

use candle_core::{DType, Device, Tensor};
use dyconv_kernels::Routing;
use dyconv_kernels::cpu::channels_last::{
    Act, Builder, Convolution, Head, Kernels, Part, Program, Router, View, Window,
};

use super::item::{Conv, Item, Kind};
use super::pieces::Pieces;
use super::place::{Places, extent};
use super::twin;
use crate::graph::{ConvGeometry, Graph, NodeId, Op, ParamId, RouteActivation, RouteOp, Shape};
use crate::model::BATCH_NORM_EPS;
use crate::weights::Weights;
use crate::{Error, Result};

/// All that the last pass reads.
pub(super) struct Packing<'a> {
    pub(super) graph: &'a Graph,
    pub(super) weights: &'a Weights,
    pub(super) items: &'a [Item],
    pub(super) pieces: &'a Pieces<'a>,
    pub(super) places: &'a Places,
    pub(super) shapes: &'a [Shape],
    pub(super) batch: usize,
    /// The node of the boxes, which leave the program first.
    pub(super) rows: Option<NodeId>,
    /// Values that leave the program after them.
    pub(super) kept: &'a [NodeId],
}

impl Packing<'_> {
    /// The program.
    pub(super) fn program(&self, threads: usize) -> Result<Program> {
        let mut builder = Builder::new(self.batch, threads, self.places.memory);
        if let Some(Shape::Rows(rows, outputs)) = self.rows.map(|node| self.shapes[node]) {
            builder.output(self.batch * rows * outputs);
        }
        for item in self.items {
            self.add(&mut builder, item)?;
        }
        for &value in self.kept {
            builder.export(&self.name(value), self.places.view(value));
        }
        Ok(builder.finish())
    }

    fn parts(&self, value: NodeId) -> Vec<Part> {
        self.places.parts(&self.pieces.of(value))
    }

    /// The one view of a value that lies in one piece.
    fn view(&self, value: NodeId) -> Result<View> {
        match self.parts(value).as_slice() {
            [Part { view, shift: 0 }] => Ok(*view),
            _ => Err(self.failure(value, "its input lies in several pieces")),
        }
    }

    fn failure(&self, value: NodeId, problem: &str) -> Error {
        self.graph.layer_error(self.graph.nodes()[value].layer, format!("cannot be planned: {problem}"))
    }

    fn name(&self, value: NodeId) -> String {
        let node = &self.graph.nodes()[value];
        let param = match &node.op {
            Op::Conv2d { weight, .. } | Op::ConvTranspose2d { weight, .. } | Op::Linear { weight, .. } => Some(*weight),
            Op::DynamicConv2d { experts, .. } => Some(*experts),
            Op::BatchNorm { weight, .. } => Some(*weight),
            _ => None,
        };
        match (param.map(|id| self.graph.params()[id].name.as_str()), node.layer) {
            (Some(name), _) => name.trim_start_matches("model.").trim_end_matches(".weight").to_owned(),
            (None, Some(layer)) => format!("{layer} {}", self.graph.layers()[layer].module),
            (None, None) => "input".into(),
        }
    }

    fn add(&self, builder: &mut Builder, item: &Item) -> Result<()> {
        let input = item.inputs.first().copied();
        let output = |index: usize| self.places.view(item.outputs[index]);
        let residual = item.residual.map(|value| self.view(value)).transpose()?;
        match (&item.kind, input) {
            (Kind::Input, _) => builder.import(output(0), self.places.border),
            (Kind::Conv(conv), Some(input)) => self.convolution(builder, item, conv, input, residual)?,
            (Kind::Pointwise { norm, act }, Some(input)) => {
                let affine = norm.map(|norm| self.scale_shift(norm)).transpose()?;
                let affine = affine.as_ref().map(|(scale, shift)| (scale.as_slice(), shift.as_slice()));
                builder.pointwise(&self.name(item.outputs[0]), self.parts(input), output(0), affine, *act, residual);
            }
            (Kind::Copy, Some(input)) => {
                let parts = self.places.parts(&self.pieces.through(input));
                builder.pointwise(&self.name(input), parts, output(0), None, Act::Identity, None);
            }
            (Kind::Pools(pools), Some(input)) => {
                let pools = pools.iter().enumerate().map(|(index, pool)| (*pool, output(index))).collect();
                builder.pools(&self.name(item.outputs[0]), self.view(input)?, pools);
            }
            (Kind::Head { conv, level }, Some(input)) => self.head(builder, item.outputs[0], (conv, *level), input)?,
            (Kind::Twin, Some(_)) => {
                let inputs = item.inputs.iter().map(|&input| self.parts(input)).collect();
                let id = item.outputs[0];
                let (name, kernel) = (self.name(id), twin::name(&self.graph.nodes()[id].op));
                let run = twin::new(self.graph, self.weights, self.shapes, self.batch, id)?;
                builder.twin(&name, &kernel, inputs, output(0), run);
            }
            (_, None) => return Err(self.failure(item.outputs[0], "an operation without input")),
        }
        Ok(())
    }

    fn values(&self, id: ParamId) -> Result<Vec<f32>> {
        let tensor = self.weights.tensor(&self.graph.params()[id].name, DType::F32, &Device::Cpu)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Batch normalisation as one factor and one summand a channel.
    fn scale_shift(&self, node: NodeId) -> Result<(Vec<f32>, Vec<f32>)> {
        let Op::BatchNorm { weight, bias, mean, var } = self.graph.nodes()[node].op else {
            return Err(self.failure(node, "expected a batch normalisation"));
        };
        let (weight, bias, mean, var) =
            (self.values(weight)?, self.values(bias)?, self.values(mean)?, self.values(var)?);
        let scale: Vec<f32> =
            weight.iter().zip(&var).map(|(weight, var)| weight / (var + BATCH_NORM_EPS as f32).sqrt()).collect();
        let shift = bias.iter().zip(&mean).zip(&scale).map(|((bias, mean), scale)| bias - mean * scale).collect();
        Ok((scale, shift))
    }

    fn convolution(
        &self,
        builder: &mut Builder,
        item: &Item,
        conv: &Conv,
        input: NodeId,
        residual: Option<View>,
    ) -> Result<()> {
        let geometry = &conv.geometry;
        let first = self.places.view(item.outputs[0]);
        let output = View { channels: geometry.out_channels, ..first };
        let mut inputs = self.parts(input);
        let mut padding = geometry.padding;
        let (height, width, _) = extent(self.shapes[input]);
        if let [Part { view, shift: 0 }] = inputs.as_mut_slice()
            && (view.height, view.width) != (height, width)
        {
            // The input, which has its border with it.
            padding = (0, 0);
        }
        let names: Vec<String> = conv.sources.iter().map(|source| self.name(source.node)).collect();
        let window = Window { kernel: geometry.kernel, stride: geometry.stride, padding, dilation: geometry.dilation };
        let (mut kernels, mut biases) = (Vec::new(), Vec::new());
        let mut shift = Vec::new();
        let mut router = None;
        for source in &conv.sources {
            let node = &self.graph.nodes()[source.node];
            let (weight, bias, experts, out) = match node.op {
                Op::Conv2d { weight, bias, geometry } => (weight, bias, 1, geometry.out_channels),
                Op::DynamicConv2d { experts, bias, num_experts, geometry } => {
                    router = Some(self.router(node.inputs[1])?);
                    (experts, bias, num_experts, geometry.out_channels)
                }
                _ => return Err(self.failure(source.node, "expected a convolution")),
            };
            let mut weight = self.values(weight)?;
            let mut bias = bias.map(|bias| self.values(bias)).transpose()?.unwrap_or(vec![0.0; experts * out]);
            let norm = source.norm.map(|norm| self.scale_shift(norm)).transpose()?;
            if let Some((scale, add)) = norm {
                let row = weight.len() / (experts * out);
                for (index, row) in weight.chunks_exact_mut(row).enumerate() {
                    row.iter_mut().for_each(|value| *value *= scale[index % out]);
                }
                bias.iter_mut().enumerate().for_each(|(index, bias)| *bias *= scale[index % out]);
                if router.is_some() {
                    shift = add;
                } else {
                    bias.iter_mut().zip(&add).for_each(|(bias, add)| *bias += add);
                }
            }
            kernels.append(&mut weight);
            biases.append(&mut bias);
        }
        let averaged = item.inputs.get(1).map(|&value| self.parts(value)).unwrap_or_default();
        let kernels = match router {
            Some(router) => Kernels::Mixed { router, averaged, experts: &kernels, bias: &biases, shift: &shift },
            None => Kernels::Fixed { kernels: &kernels, bias: &biases },
        };
        builder.convolution(&Convolution {
            name: &names.join(" + "),
            window,
            groups: geometry.groups,
            inputs,
            output,
            residual,
            act: conv.act,
            kernels,
            algorithm: conv.algorithm,
        });
        Ok(())
    }

    fn router(&self, node: NodeId) -> Result<Router> {
        let Op::Route { route, .. } = self.graph.nodes()[node].op else {
            return Err(self.failure(node, "expected routing weights"));
        };
        Ok(match route {
            RouteOp::Linear { weight, bias, activation } => Router {
                squeeze: None,
                weight: self.values(weight)?,
                bias: self.values(bias)?,
                routing: match activation {
                    RouteActivation::Sigmoid => Routing::Sigmoid,
                    RouteActivation::Softmax { temperature } => Routing::Softmax { temperature },
                },
            },
            RouteOp::Attention { squeeze, weight, bias, temperature } => Router {
                squeeze: Some(self.values(squeeze)?),
                weight: self.values(weight)?,
                bias: self.values(bias)?,
                routing: Routing::Softmax { temperature },
            },
        })
    }

    /// A level of the head whose node is `detect`.
    fn head(&self, builder: &mut Builder, detect: NodeId, (conv, level): (&Conv, usize), input: NodeId) -> Result<()> {
        let (Op::Detect { anchors, classes, per_level, masks }, Shape::Rows(rows, outputs)) =
            (&self.graph.nodes()[detect].op, self.shapes[detect])
        else {
            return Err(self.failure(detect, "expected a detection head"));
        };
        let source = conv.sources[0].node;
        let Op::Conv2d { weight, bias, geometry } = self.graph.nodes()[source].op else {
            return Err(self.failure(source, "expected a convolution"));
        };
        debug_assert_eq!(outputs, 5 + classes + masks);
        let anchors = self.values(*anchors)?;
        let Some(anchors) = anchors.chunks_exact(2 * per_level).nth(level) else {
            return Err(self.failure(detect, "a level lacks its anchors"));
        };
        let Some(stride) = self.graph.strides().get(level).map(|stride| *stride as f32) else {
            return Err(self.failure(detect, "a level lacks its stride"));
        };
        let levels = &self.graph.nodes()[detect].inputs[..level];
        let before = levels.iter().map(|&map| extent(self.shapes[map])).map(|(height, width, _)| height * width);
        let head = Head {
            anchors: anchors.chunks_exact(2).map(|pair| [pair[0] * stride, pair[1] * stride]).collect(),
            stride,
            outputs,
            masks: *masks,
            rows: (rows, per_level * before.sum::<usize>()),
        };
        let (height, width, channels) = extent(self.shapes[source]);
        let kernels = self.values(weight)?;
        let bias = bias.map(|bias| self.values(bias)).transpose()?.unwrap_or_default();
        let ConvGeometry { kernel, stride, padding, dilation, .. } = geometry;
        let conv = Convolution {
            name: &self.name(source),
            window: Window { kernel, stride, padding, dilation },
            groups: geometry.groups,
            inputs: self.parts(input),
            output: View::dense(0, height, width, channels),
            residual: None,
            act: Act::Identity,
            kernels: Kernels::Fixed { kernels: &kernels, bias: &bias },
            algorithm: conv.algorithm,
        };
        builder.head(&conv, 0, head);
        Ok(())
    }
}

/// A tensor's values.
pub(super) fn values(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}
