//! Recording a network: modules call these methods, and nodes, parameters and the module count come out.

use std::collections::HashSet;

use super::op::{ConvGeometry, Op, ParamId, RouteActivation, RouteOp};
use super::{Init, Node, NodeId, Param, ParamKind};
use crate::config::Activation;
use crate::layers::Block;

/// What a module's tracing gives: a node, or a sentence about what does not fit.
pub(crate) type Traced<T = NodeId> = Result<T, String>;

/// More parameters than any network has; guards against mistyped channel numbers.
const MAX_PARAMS: usize = 1 << 33;
/// As many channels keep arithmetic on a few of them from overflowing.
const MAX_CHANNELS: usize = 1 << 24;

/// Records the primitive operations of a network, the names of their parameters and the number of PyTorch modules.
pub(crate) struct Tracer {
    pub(super) nodes: Vec<Node>,
    pub(super) params: Vec<Param>,
    pub(super) modules: usize,
    pub(super) prototypes: Option<NodeId>,
    pub(super) layer: usize,
    scope: Vec<String>,
    shared: HashSet<&'static str>,
    activation: Activation,
    total_params: usize,
}

impl Tracer {
    pub(super) fn new(channels: usize, activation: Activation) -> Self {
        let input = Node { op: Op::Input, inputs: Vec::new(), channels, layer: None };
        Self {
            nodes: vec![input],
            params: Vec::new(),
            modules: 0,
            prototypes: None,
            layer: 0,
            scope: Vec::new(),
            shared: HashSet::new(),
            activation,
            total_params: 0,
        }
    }

    /// Names the node of a segmentation head's prototypes.
    pub(crate) fn set_prototypes(&mut self, node: NodeId) {
        self.prototypes = Some(node);
    }

    /// Channels (or features) of a node's result.
    pub(crate) fn channels(&self, node: NodeId) -> usize {
        self.nodes[node].channels
    }

    /// Traces `block` under `name` and counts it as a module.
    pub(crate) fn child(&mut self, name: impl Into<String>, block: &dyn Block, x: NodeId) -> Traced {
        self.module(name, |t| block.trace(t, &[x]))
    }

    /// Counts a module called `name` and runs `body` inside its scope.
    pub(crate) fn module<T>(&mut self, name: impl Into<String>, body: impl FnOnce(&mut Self) -> T) -> T {
        self.modules += 1;
        self.scoped(name, body)
    }

    /// Runs `body` with `name` put before its parameters' names.
    pub(super) fn scoped<T>(&mut self, name: impl Into<String>, body: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.into());
        let result = body(self);
        self.scope.pop();
        result
    }

    /// A chain of blocks as PyTorch's `Sequential`.
    pub(crate) fn sequential<'a>(
        &mut self,
        name: impl Into<String>,
        blocks: impl IntoIterator<Item = &'a dyn Block>,
        x: NodeId,
    ) -> Traced {
        self.module(name, |t| {
            let mut x = x;
            for (i, block) in blocks.into_iter().enumerate() {
                x = t.child(i.to_string(), block, x)?;
            }
            Ok(x)
        })
    }

    /// A convolution called `name`.
    pub(crate) fn conv2d(&mut self, name: &str, x: NodeId, geometry: ConvGeometry, bias: bool) -> Traced {
        self.module(name, |t| t.conv2d_here(x, geometry, bias))
    }

    /// A convolution whose parameters stand in the current scope.
    pub(crate) fn conv2d_here(&mut self, x: NodeId, geometry: ConvGeometry, bias: bool) -> Traced {
        self.check_conv(x, &geometry)?;
        let bound = bound(geometry.fan_in());
        let weight = self.param("weight", &geometry.weight_shape(), ParamKind::Weight, Init::Uniform(bound))?;
        let bias = self.optional_bias(bias, geometry.out_channels, Init::Uniform(bound))?;
        self.push(Op::Conv2d { weight, bias, geometry }, vec![x], geometry.out_channels)
    }

    /// A transposed convolution whose parameters stand in the current scope.
    pub(crate) fn conv_transpose2d(
        &mut self,
        x: NodeId,
        geometry: ConvGeometry,
        output_padding: usize,
        bias: bool,
    ) -> Traced {
        self.check_conv(x, &geometry)?;
        let ConvGeometry { in_channels, out_channels, kernel, groups, .. } = geometry;
        let bound = bound(out_channels / groups * kernel.0 * kernel.1);
        let shape = [in_channels, out_channels / groups, kernel.0, kernel.1];
        let weight = self.param("weight", &shape, ParamKind::Weight, Init::Uniform(bound))?;
        let bias = self.optional_bias(bias, out_channels, Init::Uniform(bound))?;
        self.push(Op::ConvTranspose2d { weight, bias, geometry, output_padding }, vec![x], out_channels)
    }

    /// A batch normalisation called `name`.
    pub(crate) fn batch_norm(&mut self, name: &str, x: NodeId) -> Traced {
        self.module(name, |t| t.batch_norm_here(x))
    }

    /// A batch normalisation whose parameters stand in the current scope.
    pub(crate) fn batch_norm_here(&mut self, x: NodeId) -> Traced {
        let channels = self.channels(x);
        let weight = self.param("weight", &[channels], ParamKind::NormWeight, Init::Ones)?;
        let bias = self.param("bias", &[channels], ParamKind::Bias, Init::Zeros)?;
        let mean = self.param("running_mean", &[channels], ParamKind::Buffer, Init::Zeros)?;
        let var = self.param("running_var", &[channels], ParamKind::Buffer, Init::Ones)?;
        self.push(Op::BatchNorm { weight, bias, mean, var }, vec![x], channels)
    }

    /// The activation that all modules of one Python class share; it is counted once a network.
    pub(crate) fn shared_activation(
        &mut self,
        class: &'static str,
        activation: Option<Activation>,
        x: NodeId,
    ) -> NodeId {
        if self.shared.insert(class) {
            self.modules += 1;
        }
        self.activate(activation.unwrap_or(self.activation), x)
    }

    /// An activation that a module owns.
    pub(crate) fn own_activation(&mut self, activation: Activation, x: NodeId) -> NodeId {
        self.modules += 1;
        self.activate(activation, x)
    }

    fn activate(&mut self, activation: Activation, x: NodeId) -> NodeId {
        match activation {
            Activation::Identity => x,
            activation => self.unary(Op::Activation(activation), x),
        }
    }

    /// A linear layer on tokens, called `name`.
    pub(crate) fn linear(&mut self, name: &str, x: NodeId, out_features: usize, bias: bool) -> Traced {
        self.module(name, |t| {
            let in_features = t.channels(x);
            let bound = bound(in_features);
            let weight = t.param("weight", &[out_features, in_features], ParamKind::Weight, Init::Uniform(bound))?;
            let bias = t.optional_bias(bias, out_features, Init::Uniform(bound))?;
            t.push(Op::Linear { weight, bias, in_features, out_features }, vec![x], out_features)
        })
    }

    /// PyTorch's `MultiheadAttention` called `name`.
    pub(crate) fn attention(&mut self, name: &str, qkv: [NodeId; 3], heads: usize) -> Traced {
        self.module(name, |t| {
            let features = t.channels(qkv[0]);
            if heads == 0 || features % heads != 0 {
                return Err(format!("{features} channels do not divide by {heads} attention heads"));
            }
            let xavier = (6.0 / (4 * features) as f64).sqrt();
            let in_weight =
                t.param("in_proj_weight", &[3 * features, features], ParamKind::Weight, Init::Uniform(xavier))?;
            // YOLOv5's optimisers know biases by the name `bias`: this one decays and warms up as a weight.
            let in_bias = t.param("in_proj_bias", &[3 * features], ParamKind::Weight, Init::Zeros)?;
            let (out_weight, out_bias) = t.module("out_proj", |t| {
                let weight =
                    t.param("weight", &[features, features], ParamKind::Weight, Init::Uniform(bound(features)))?;
                Ok::<_, String>((weight, t.param("bias", &[features], ParamKind::Bias, Init::Zeros)?))
            })?;
            let op = Op::Attention { heads, features, in_weight, in_bias, out_weight, out_bias };
            t.push(op, qkv.to_vec(), features)
        })
    }

    /// CondConv's routing, a linear layer called `name` on the pooled map.
    pub(crate) fn route_linear(
        &mut self,
        name: &str,
        x: NodeId,
        num_experts: usize,
        activation: RouteActivation,
    ) -> Traced {
        self.module(name, |t| {
            let channels = t.channels(x);
            let init = Init::Uniform(bound(channels));
            let weight = t.param("weight", &[num_experts, channels], ParamKind::Weight, init.clone())?;
            let bias = t.param("bias", &[num_experts], ParamKind::Bias, init)?;
            let route = RouteOp::Linear { weight, bias, activation };
            t.push(Op::Route { num_experts, channels, hidden: 0, route }, vec![x], num_experts)
        })
    }

    /// DY-CNN's attention called `name`: two 1x1 convolutions on the pooled map and a softmax.
    pub(crate) fn route_attention(
        &mut self,
        name: &str,
        x: NodeId,
        num_experts: usize,
        hidden: usize,
        temperature: f64,
    ) -> Traced {
        self.module(name, |t| {
            t.modules += 1; // the pooling
            let channels = t.channels(x);
            let normal = |out: usize| Init::Normal((2.0 / out as f64).sqrt());
            let squeeze =
                t.module("fc1", |t| t.param("weight", &[hidden, channels, 1, 1], ParamKind::Weight, normal(hidden)))?;
            let (weight, bias) = t.module("fc2", |t| {
                let weight = t.param("weight", &[num_experts, hidden, 1, 1], ParamKind::Weight, normal(num_experts))?;
                Ok::<_, String>((weight, t.param("bias", &[num_experts], ParamKind::Bias, Init::Zeros)?))
            })?;
            let route = RouteOp::Attention { squeeze, weight, bias, temperature };
            t.push(Op::Route { num_experts, channels, hidden, route }, vec![x], num_experts)
        })
    }

    /// A dynamic convolution with the experts' parameters given.
    pub(crate) fn dynamic_conv2d(
        &mut self,
        x: NodeId,
        routing: NodeId,
        geometry: ConvGeometry,
        experts: ParamId,
        bias: Option<ParamId>,
    ) -> Traced {
        self.check_conv(x, &geometry)?;
        let num_experts = self.channels(routing);
        let op = Op::DynamicConv2d { experts, bias, num_experts, geometry };
        self.push(op, vec![x, routing], geometry.out_channels)
    }

    /// An operation on one value that keeps its channels.
    pub(crate) fn unary(&mut self, op: Op, x: NodeId) -> NodeId {
        let channels = self.channels(x);
        self.node(op, vec![x], channels)
    }

    /// Sum of two maps.
    pub(crate) fn add(&mut self, a: NodeId, b: NodeId) -> Traced {
        let (left, right) = (self.channels(a), self.channels(b));
        if left != right {
            return Err(format!("adds maps of {left} and {right} channels"));
        }
        self.push(Op::Add, vec![a, b], left)
    }

    /// Maps joined along their channels.
    pub(crate) fn concat(&mut self, parts: &[NodeId]) -> Traced {
        let channels = parts.iter().map(|&part| self.channels(part)).sum();
        self.push(Op::Concat, parts.to_vec(), channels)
    }

    /// An operation with its number of output channels.
    pub(crate) fn push(&mut self, op: Op, inputs: Vec<NodeId>, channels: usize) -> Traced {
        if channels > MAX_CHANNELS {
            return Err(format!("its result of {channels} channels is too large"));
        }
        Ok(self.node(op, inputs, channels))
    }

    fn node(&mut self, op: Op, inputs: Vec<NodeId>, channels: usize) -> NodeId {
        self.nodes.push(Node { op, inputs, channels, layer: Some(self.layer) });
        self.nodes.len() - 1
    }

    /// A parameter called `name` in the current scope.
    pub(crate) fn param(&mut self, name: &str, shape: &[usize], kind: ParamKind, init: Init) -> Traced<ParamId> {
        let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
        let total =
            elements.and_then(|elements| self.total_params.checked_add(elements)).filter(|total| *total <= MAX_PARAMS);
        self.total_params =
            total.ok_or_else(|| format!("a parameter of shape {shape:?} makes the network too large"))?;
        if shape.contains(&0) {
            return Err(format!("its parameter `{name}` would have the shape {shape:?}"));
        }
        let mut full = self.scope.join(".");
        full.push('.');
        full.push_str(name);
        self.params.push(Param { name: full, shape: shape.to_vec(), kind, init, layer: self.layer });
        Ok(self.params.len() - 1)
    }

    fn optional_bias(&mut self, wanted: bool, channels: usize, init: Init) -> Traced<Option<ParamId>> {
        wanted.then(|| self.param("bias", &[channels], ParamKind::Bias, init)).transpose()
    }

    fn check_conv(&self, x: NodeId, geometry: &ConvGeometry) -> Traced<()> {
        let ConvGeometry { in_channels, out_channels, groups, .. } = *geometry;
        let channels = self.channels(x);
        if channels != in_channels {
            return Err(format!("a convolution of {in_channels} channels gets {channels}"));
        }
        if groups == 0 || in_channels % groups != 0 || out_channels % groups != 0 {
            return Err(format!("{in_channels} channels in and {out_channels} out do not divide by {groups} groups"));
        }
        Ok(())
    }
}

/// PyTorch's default bound for weights and biases: `1 / sqrt(fan_in)`.
fn bound(fan_in: usize) -> f64 {
    1.0 / (fan_in.max(1) as f64).sqrt()
}
