//! `Conv`: convolution, batch normalisation, activation; and its depthwise form `DWConv`.

use super::args::ActArg;
use super::{Args, Block, Built, autopad, gcd, one};
use crate::graph::{ConvGeometry, NodeId, Traced, Tracer};

/// `Conv(c1, c2, k=1, s=1, p=None, g=1, d=1, act=True)`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conv {
    pub(crate) geometry: ConvGeometry,
    pub(crate) act: ActArg,
}

/// `s`, `p`, `g`, `d` of a convolution; padding `None` follows the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConvOptions {
    pub(crate) stride: (usize, usize),
    pub(crate) padding: Option<(usize, usize)>,
    pub(crate) groups: usize,
    pub(crate) dilation: usize,
}

impl ConvOptions {
    /// Reads `s=1, p=None, g=1, d=1`.
    pub(super) fn read(args: &mut Args<'_>) -> Result<Self, String> {
        let (stride, padding) = (args.pair("s", 1)?, args.padding()?);
        Ok(Self { stride, padding, groups: args.groups()?, dilation: args.size("d", 1)? })
    }
}

impl Default for ConvOptions {
    fn default() -> Self {
        Self { stride: (1, 1), padding: None, groups: 1, dilation: 1 }
    }
}

/// The geometry of a convolution as the originals pad it.
pub(crate) fn geometry(c1: usize, c2: usize, kernel: (usize, usize), options: ConvOptions) -> ConvGeometry {
    let ConvOptions { stride, padding, groups, dilation } = options;
    let auto = (autopad(kernel.0, dilation), autopad(kernel.1, dilation));
    ConvGeometry {
        in_channels: c1,
        out_channels: c2,
        kernel,
        stride,
        padding: padding.unwrap_or(auto),
        dilation: (dilation, dilation),
        groups,
    }
}

impl Conv {
    /// A square kernel with the default activation.
    pub(crate) fn new(c1: usize, c2: usize, kernel: usize, stride: usize) -> Self {
        Self::with(c1, c2, (kernel, kernel), ConvOptions { stride: (stride, stride), ..Default::default() })
    }

    pub(crate) fn with(c1: usize, c2: usize, kernel: (usize, usize), options: ConvOptions) -> Self {
        Self { geometry: geometry(c1, c2, kernel, options), act: ActArg::Default }
    }

    pub(crate) fn grouped(self, groups: usize) -> Self {
        Self { geometry: ConvGeometry { groups, ..self.geometry }, ..self }
    }

    pub(crate) fn act(self, act: ActArg) -> Self {
        Self { act, ..self }
    }

    /// One filter a channel where the channels agree, else as many groups as both divide by.
    pub(crate) fn depthwise(c1: usize, c2: usize, kernel: usize, stride: usize) -> Self {
        Self::new(c1, c2, kernel, stride).grouped(gcd(c1, c2))
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.pair("k", 1)?);
        let options = ConvOptions::read(args)?;
        Ok(Box::new(Self::with(c1, c2, kernel, options).act(args.activation()?)))
    }

    /// `DWConv(c1, c2, k=1, s=1, d=1, act=True)`
    pub(super) fn read_depthwise(args: &mut Args<'_>) -> Built {
        let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.pair("k", 1)?);
        let stride = args.pair("s", 1)?;
        let options = ConvOptions { stride, dilation: args.size("d", 1)?, groups: gcd(c1, c2), ..Default::default() };
        Ok(Box::new(Self::with(c1, c2, kernel, options).act(args.activation()?)))
    }
}

impl Block for Conv {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = t.conv2d("conv", one(inputs)?, self.geometry, false)?;
        let x = t.batch_norm("bn", x)?;
        Ok(activate(t, "Conv", None, self.act, x))
    }
}

/// The activation of `class`, whose default is `default` or else the network's.
pub(super) fn activate(
    t: &mut Tracer,
    class: &'static str,
    default: Option<crate::config::Activation>,
    act: ActArg,
    x: NodeId,
) -> NodeId {
    match act {
        ActArg::Default => t.shared_activation(class, default, x),
        ActArg::Identity => t.own_activation(crate::config::Activation::Identity, x),
        ActArg::Own(activation) => t.own_activation(activation, x),
    }
}
