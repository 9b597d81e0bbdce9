//! The primitive operations that every module of the zoo is made of: their parameters, shapes and cost.

use serde::Serialize;

use crate::config::Activation;

/// Index of a parameter in [`Graph::params`](super::Graph::params).
pub type ParamId = usize;

/// Geometry of a convolution; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ConvGeometry {
    /// Channels read.
    pub in_channels: usize,
    /// Channels written.
    pub out_channels: usize,
    /// Kernel size.
    pub kernel: (usize, usize),
    /// Step between outputs, in input pixels.
    pub stride: (usize, usize),
    /// Zeros added on each side.
    pub padding: (usize, usize),
    /// Step between taps, in input pixels.
    pub dilation: (usize, usize),
    /// Groups of channels that are convolved on their own.
    pub groups: usize,
}

/// How routing logits come about and are activated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum RouteOp {
    /// Pool, linear layer, activation (CondConv).
    Linear {
        /// `[K, C]`
        weight: ParamId,
        /// `[K]`
        bias: ParamId,
        /// What turns logits into weights.
        activation: RouteActivation,
    },
    /// Pool, linear layer, ReLU, linear layer, softmax at a temperature (DY-CNN).
    Attention {
        /// `[hidden, C, 1, 1]`
        squeeze: ParamId,
        /// `[K, hidden, 1, 1]`
        weight: ParamId,
        /// `[K]`
        bias: ParamId,
        /// Logits are divided by it.
        temperature: f64,
    },
}

/// Activation of routing logits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum RouteActivation {
    /// `1 / (1 + exp(-l))`
    Sigmoid,
    /// `softmax(l / temperature)`
    Softmax {
        /// Logits are divided by it.
        temperature: f64,
    },
}

/// One primitive operation. Maps are `[batch, channels, height, width]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Op {
    /// The network's input.
    Input,
    /// Static convolution.
    Conv2d {
        /// `[out, in / groups, kh, kw]`
        weight: ParamId,
        /// `[out]`
        bias: Option<ParamId>,
        /// Sizes.
        geometry: ConvGeometry,
    },
    /// Transposed convolution.
    ConvTranspose2d {
        /// `[in, out / groups, kh, kw]`
        weight: ParamId,
        /// `[out]`
        bias: Option<ParamId>,
        /// Sizes, as of the convolution that it transposes.
        geometry: ConvGeometry,
        /// Rows and columns added at the bottom right of the output.
        output_padding: usize,
    },
    /// Convolution of each sample with its own mixture of expert kernels: inputs are the map and the routing weights.
    DynamicConv2d {
        /// Experts, a flattened kernel each.
        experts: ParamId,
        /// `[K, out]`, mixed as the kernels are.
        bias: Option<ParamId>,
        /// Number of experts, K.
        num_experts: usize,
        /// Sizes.
        geometry: ConvGeometry,
    },
    /// Routing weights `[batch, K]` of a dynamic convolution.
    Route {
        /// Number of experts, K.
        num_experts: usize,
        /// Channels of the map.
        channels: usize,
        /// Width of the hidden layer (attention only).
        hidden: usize,
        /// Parameters and activation.
        route: RouteOp,
    },
    /// Batch normalisation with `eps` 1e-3.
    BatchNorm {
        /// Scale.
        weight: ParamId,
        /// Shift.
        bias: ParamId,
        /// Running mean.
        mean: ParamId,
        /// Running variance.
        var: ParamId,
    },
    /// Elementwise activation.
    Activation(Activation),
    /// Maximum over a window; padding counts as minus infinity.
    MaxPool2d {
        /// Window.
        kernel: usize,
        /// Step.
        stride: usize,
        /// Padding on each side.
        padding: usize,
    },
    /// Zeros around a map: left, right, top, bottom.
    ZeroPad2d([usize; 4]),
    /// Nearest-neighbour enlargement.
    Upsample {
        /// Whole factor.
        scale: usize,
    },
    /// Elementwise sum of two maps.
    Add,
    /// Channels of all inputs, one after the other.
    Concat,
    /// The first channels of a map.
    Narrow {
        /// How many.
        channels: usize,
    },
    /// Every second pixel at its four offsets, as four times the channels: (0,0), (1,0), (0,1), (1,1) in (row, column).
    Focus,
    /// Blocks of `gain * gain` pixels become channels.
    Contract {
        /// Side of a block.
        gain: usize,
    },
    /// Channels become blocks of `gain * gain` pixels.
    Expand {
        /// Side of a block.
        gain: usize,
    },
    /// Map to tokens `[batch, height * width, channels]`.
    ToTokens,
    /// Tokens to a map shaped as the second input.
    FromTokens,
    /// Linear layer on tokens.
    Linear {
        /// `[out, in]`
        weight: ParamId,
        /// `[out]`
        bias: Option<ParamId>,
        /// Features read.
        in_features: usize,
        /// Features written.
        out_features: usize,
    },
    /// Multi-head attention over tokens: inputs are queries, keys and values.
    Attention {
        /// Heads.
        heads: usize,
        /// Features.
        features: usize,
        /// `[3 * features, features]`
        in_weight: ParamId,
        /// `[3 * features]`
        in_bias: ParamId,
        /// `[features, features]`
        out_weight: ParamId,
        /// `[features]`
        out_bias: ParamId,
    },
    /// Boxes from the maps of all levels: rows `[batch, anchors, 5 + classes + masks]`.
    Detect {
        /// Anchors `[levels, anchors, 2]` in units of the level's stride.
        anchors: ParamId,
        /// Classes.
        classes: usize,
        /// Anchors a level.
        per_level: usize,
        /// Mask coefficients, left as they are.
        masks: usize,
    },
}

/// Shape of a value, without its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Shape {
    /// Channels, height, width.
    Map(usize, usize, usize),
    /// Tokens, features.
    Tokens(usize, usize),
    /// One vector.
    Vector(usize),
    /// Rows and columns of decoded boxes.
    Rows(usize, usize),
}

/// No map of a network comes near this; it keeps sizes from overflowing.
const MAX_ELEMENTS: usize = 1 << 36;

impl Shape {
    /// Number of values.
    pub fn elements(self) -> usize {
        self.checked_elements().unwrap_or(usize::MAX)
    }

    fn checked_elements(self) -> Option<usize> {
        match self {
            Self::Map(c, h, w) => c.checked_mul(h)?.checked_mul(w),
            Self::Tokens(n, c) | Self::Rows(n, c) => n.checked_mul(c),
            Self::Vector(n) => Some(n),
        }
    }

    /// The shape itself, where a machine could hold such a value.
    pub(crate) fn bounded(self) -> Result<Self, String> {
        match self.checked_elements() {
            Some(elements) if elements <= MAX_ELEMENTS => Ok(self),
            _ => Err(format!("its result of {self} values is too large")),
        }
    }

    fn map(self) -> Result<(usize, usize, usize), String> {
        match self {
            Self::Map(c, h, w) => Ok((c, h, w)),
            other => Err(format!("expected a map, got {other:?}")),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Map(c, h, w) => write!(f, "{c}x{h}x{w}"),
            Self::Tokens(n, c) | Self::Rows(n, c) => write!(f, "{n}x{c}"),
            Self::Vector(n) => write!(f, "{n}"),
        }
    }
}

/// Floating-point operations of one sample, by kind; a multiply-add counts two.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Static convolutions.
    pub static_conv: f64,
    /// Dynamic convolutions.
    pub dynamic_conv: f64,
    /// Mixing of the experts' kernels.
    pub aggregation: f64,
    /// Linear layers and attention.
    pub linear: f64,
    /// What YOLOv5 counts: static convolutions, linear layers and attention, eight for each element out of a batch
    /// normalisation, nothing for a dynamic convolution.
    pub printed: f64,
}

impl Cost {
    /// All operations.
    pub fn total(&self) -> f64 {
        self.static_conv + self.dynamic_conv + self.aggregation + self.linear
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.static_conv += other.static_conv;
        self.dynamic_conv += other.dynamic_conv;
        self.aggregation += other.aggregation;
        self.linear += other.linear;
        self.printed += other.printed;
    }
}

impl ConvGeometry {
    /// Values of one kernel set: `out * in / groups * kh * kw`.
    pub fn weight_len(&self) -> usize {
        self.out_channels * (self.in_channels / self.groups) * self.kernel.0 * self.kernel.1
    }

    /// Shape of the weight of a convolution.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel.0, self.kernel.1]
    }

    /// Inputs that one output depends on.
    pub fn fan_in(&self) -> usize {
        self.in_channels / self.groups * self.kernel.0 * self.kernel.1
    }

    /// Height and width of the output, or `None` where the window does not fit.
    pub fn output_size(&self, height: usize, width: usize) -> Option<(usize, usize)> {
        let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
            let padded = size.checked_add(padding.checked_mul(2)?)?;
            let window = dilation.checked_mul(kernel.checked_sub(1)?)?.checked_add(1)?;
            Some(padded.checked_sub(window)? / stride + 1)
        };
        Some((
            axis(height, self.kernel.0, self.stride.0, self.padding.0, self.dilation.0)?,
            axis(width, self.kernel.1, self.stride.1, self.padding.1, self.dilation.1)?,
        ))
    }

    fn flops(&self, pixels: usize) -> f64 {
        2.0 * self.weight_len() as f64 * pixels as f64
    }
}

impl Op {
    /// Shape of the result.
    ///
    /// # Errors
    /// Where the inputs' shapes do not fit the operation; the text says what was expected and what came.
    pub(crate) fn infer(&self, inputs: &[Shape]) -> Result<Shape, String> {
        let first = *inputs.first().ok_or("an operation without input")?;
        let too_small = |h, w| format!("its window does not fit into a map of {h}x{w} pixels");
        Ok(match self {
            Self::Input | Self::BatchNorm { .. } | Self::Activation(_) | Self::Attention { .. } => first,
            Self::Conv2d { geometry, .. } | Self::DynamicConv2d { geometry, .. } => {
                let (_, h, w) = first.map()?;
                let (oh, ow) = geometry.output_size(h, w).ok_or_else(|| too_small(h, w))?;
                Shape::Map(geometry.out_channels, oh, ow)
            }
            Self::ConvTranspose2d { geometry: g, output_padding, .. } => {
                let (_, h, w) = first.map()?;
                let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
                    (size.checked_sub(1)? * stride + dilation * (kernel - 1) + 1 + output_padding)
                        .checked_sub(2 * padding)
                        .filter(|s| *s > 0)
                };
                let oh = axis(h, g.kernel.0, g.stride.0, g.padding.0, g.dilation.0).ok_or_else(|| too_small(h, w))?;
                let ow = axis(w, g.kernel.1, g.stride.1, g.padding.1, g.dilation.1).ok_or_else(|| too_small(h, w))?;
                Shape::Map(g.out_channels, oh, ow)
            }
            Self::Route { num_experts, .. } => Shape::Vector(*num_experts),
            Self::MaxPool2d { kernel, stride, padding } => {
                let (c, h, w) = first.map()?;
                let axis = |size: usize| Some((size + 2 * padding).checked_sub(*kernel)? / stride + 1);
                Shape::Map(c, axis(h).ok_or_else(|| too_small(h, w))?, axis(w).ok_or_else(|| too_small(h, w))?)
            }
            Self::ZeroPad2d([left, right, top, bottom]) => {
                let (c, h, w) = first.map()?;
                Shape::Map(c, h + top + bottom, w + left + right)
            }
            Self::Upsample { scale } => {
                let (c, h, w) = first.map()?;
                Shape::Map(c, h * scale, w * scale)
            }
            Self::Add => match inputs {
                [a, b] if a == b => *a,
                _ => return Err(format!("adds maps of one shape, got {}", list(inputs))),
            },
            Self::Concat => {
                let (mut channels, h, w) = first.map()?;
                for input in &inputs[1..] {
                    match input.map()? {
                        (c, ih, iw) if (ih, iw) == (h, w) => channels += c,
                        _ => {
                            return Err(format!(
                                "joins maps of one height and width, got {}; is the picture's size a multiple of the network's stride?",
                                list(inputs)
                            ));
                        }
                    }
                }
                Shape::Map(channels, h, w)
            }
            Self::Narrow { channels } => {
                let (_, h, w) = first.map()?;
                Shape::Map(*channels, h, w)
            }
            Self::Focus => {
                let (c, h, w) = first.map()?;
                if h % 2 != 0 || w % 2 != 0 {
                    return Err(format!("takes maps of even height and width, got {h}x{w}"));
                }
                Shape::Map(4 * c, h / 2, w / 2)
            }
            Self::Contract { gain } => {
                let (c, h, w) = first.map()?;
                if h % gain != 0 || w % gain != 0 {
                    return Err(format!("takes maps whose height and width are multiples of {gain}, got {h}x{w}"));
                }
                Shape::Map(c * gain * gain, h / gain, w / gain)
            }
            Self::Expand { gain } => {
                let (c, h, w) = first.map()?;
                Shape::Map(c / (gain * gain), h * gain, w * gain)
            }
            Self::ToTokens => {
                let (c, h, w) = first.map()?;
                Shape::Tokens(h * w, c)
            }
            Self::FromTokens => *inputs.get(1).ok_or("tokens without a map to shape them")?,
            Self::Linear { out_features, .. } => match first {
                Shape::Tokens(n, _) => Shape::Tokens(n, *out_features),
                other => return Err(format!("expected tokens, got {other:?}")),
            },
            Self::Detect { classes, per_level, masks, .. } => {
                let mut rows = 0;
                for input in inputs {
                    let (_, h, w) = input.map()?;
                    rows += per_level * h * w;
                }
                Shape::Rows(rows, 5 + classes + masks)
            }
        })
    }

    /// The parameters that it reads.
    pub(crate) fn params(&self) -> Vec<ParamId> {
        match *self {
            Self::Conv2d { weight, bias, .. }
            | Self::ConvTranspose2d { weight, bias, .. }
            | Self::Linear { weight, bias, .. } => std::iter::once(weight).chain(bias).collect(),
            Self::DynamicConv2d { experts, bias, .. } => std::iter::once(experts).chain(bias).collect(),
            Self::Route { route: RouteOp::Linear { weight, bias, .. }, .. } => vec![weight, bias],
            Self::Route { route: RouteOp::Attention { squeeze, weight, bias, .. }, .. } => vec![squeeze, weight, bias],
            Self::BatchNorm { weight, bias, mean, var } => vec![weight, bias, mean, var],
            Self::Attention { in_weight, in_bias, out_weight, out_bias, .. } => {
                vec![in_weight, in_bias, out_weight, out_bias]
            }
            Self::Detect { anchors, .. } => vec![anchors],
            _ => Vec::new(),
        }
    }

    /// Operations of one sample, from the shapes of its inputs and of its result.
    pub(crate) fn cost(&self, inputs: &[Shape], output: Shape) -> Cost {
        let pixels = |shape: Shape| match shape {
            Shape::Map(_, h, w) => h * w,
            Shape::Tokens(n, _) => n,
            _ => 1,
        };
        let mut cost = Cost::default();
        match self {
            Self::Conv2d { geometry, .. } => {
                cost.static_conv = geometry.flops(pixels(output));
                cost.printed = cost.static_conv;
            }
            Self::ConvTranspose2d { geometry, .. } => {
                cost.static_conv = inputs.first().map_or(0.0, |input| geometry.flops(pixels(*input)));
                cost.printed = cost.static_conv;
            }
            Self::DynamicConv2d { geometry, num_experts, bias, .. } => {
                cost.dynamic_conv = geometry.flops(pixels(output));
                let mixed = geometry.weight_len() + if bias.is_some() { geometry.out_channels } else { 0 };
                cost.aggregation = 2.0 * (mixed * num_experts) as f64;
            }
            Self::BatchNorm { .. } => cost.printed = 8.0 * output.elements() as f64,
            Self::Linear { in_features, out_features, .. } => {
                cost.linear = 2.0 * (in_features * out_features * pixels(output)) as f64;
                cost.printed = cost.linear;
            }
            Self::Attention { features, .. } => {
                let tokens = pixels(output) as f64;
                let features = *features as f64;
                cost.linear = 8.0 * features * features * tokens + 4.0 * tokens * tokens * features;
                cost.printed = cost.linear;
            }
            _ => {}
        }
        cost
    }
}

fn list(shapes: &[Shape]) -> String {
    shapes.iter().map(Shape::to_string).collect::<Vec<_>>().join(", ")
}
