//! The modules of `torch.nn` that a YAML may name, and `Concat`.

use super::{Args, Block, Built, one};
use crate::config::Arg;
use crate::graph::{ConvGeometry, NodeId, Op, Traced, Tracer};

/// `nn.Conv2d(in, out, k, s=1, p=0, d=1, g=1, bias=True)`, its channels as they stand.
struct Conv2d {
    geometry: ConvGeometry,
    bias: bool,
}

pub(super) fn read_conv2d(args: &mut Args<'_>) -> Built {
    let (in_channels, out_channels, kernel) =
        (args.channels("in_channels")?, args.channels("out_channels")?, args.pair("kernel_size", 1)?);
    let stride = args.pair("stride", 1)?;
    let padding = args.padding()?.unwrap_or((0, 0));
    let dilation = args.pair("dilation", 1)?;
    let geometry =
        ConvGeometry { in_channels, out_channels, kernel, stride, padding, dilation, groups: args.groups()? };
    Ok(Box::new(Conv2d { geometry, bias: args.flag("bias", true)? }))
}

impl Block for Conv2d {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        t.conv2d_here(one(inputs)?, self.geometry, self.bias)
    }
}

/// `nn.ConvTranspose2d(c1, c2, k, s=1, p=0, output_padding=0, g=1, bias=True, d=1)`
pub(super) struct ConvTranspose {
    pub(super) geometry: ConvGeometry,
    pub(super) output_padding: usize,
    pub(super) bias: bool,
}

pub(super) fn read_conv_transpose2d(args: &mut Args<'_>) -> Built {
    let (in_channels, out_channels) = (args.channels("c1")?, args.channels("c2")?);
    let kernel = args.required_size("kernel_size")?;
    let (stride, padding, output_padding) =
        (args.size("stride", 1)?, args.count("padding", 0)?, args.count("output_padding", 0)?);
    let (groups, bias, dilation) = (args.groups()?, args.flag("bias", true)?, args.size("dilation", 1)?);
    let geometry = ConvGeometry {
        in_channels,
        out_channels,
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (padding, padding),
        dilation: (dilation, dilation),
        groups,
    };
    Ok(Box::new(ConvTranspose { geometry, output_padding, bias }))
}

impl Block for ConvTranspose {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let (stride, dilation) = (self.geometry.stride.0, self.geometry.dilation.0);
        if self.output_padding > 0 && self.output_padding >= stride.max(dilation) {
            return Err(format!(
                "the output padding {} must be smaller than stride {stride} or dilation {dilation}",
                self.output_padding
            ));
        }
        t.conv_transpose2d(one(inputs)?, self.geometry, self.output_padding, self.bias)
    }
}

/// `nn.BatchNorm2d(channels)`
struct BatchNorm;

pub(super) fn read_batch_norm2d(args: &mut Args<'_>) -> Built {
    args.channels("num_features")?;
    Ok(Box::new(BatchNorm))
}

impl Block for BatchNorm {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        t.batch_norm_here(one(inputs)?)
    }
}

/// An operation without parameters that keeps its channels.
struct Plain(Op);

impl Block for Plain {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        Ok(t.unary(self.0.clone(), one(inputs)?))
    }
}

/// `nn.MaxPool2d(k, s=k, p=0)`
pub(super) fn read_max_pool2d(args: &mut Args<'_>) -> Built {
    let kernel = args.required_size("kernel_size")?;
    let (stride, padding) = (args.size("stride", kernel)?, args.count("padding", 0)?);
    if padding > kernel / 2 {
        return Err(format!("the padding {padding} must be at most half of the kernel size {kernel}"));
    }
    Ok(Box::new(Plain(Op::MaxPool2d { kernel, stride, padding })))
}

/// `nn.ZeroPad2d([left, right, top, bottom])`, or one number for all sides.
pub(super) fn read_zero_pad2d(args: &mut Args<'_>) -> Built {
    let expected = "`padding` must be a whole number from 0 to 1024, or four of them: left, right, top, bottom";
    let side = |value: &Arg| match value {
        Arg::Int(int @ 0..=1024) => Ok(*int as usize),
        _ => Err(format!("{expected}; it is {value}")),
    };
    let sides = match args.any() {
        Some(Arg::List(list)) => match list.as_slice() {
            [l, r, t, b] => [side(l)?, side(r)?, side(t)?, side(b)?],
            _ => return Err(expected.into()),
        },
        Some(value) => [side(value)?; 4],
        None => return Err("the argument `padding` is missing".into()),
    };
    Ok(Box::new(Plain(Op::ZeroPad2d(sides))))
}

/// `nn.Upsample(None, scale, "nearest")`
pub(super) fn read_upsample(args: &mut Args<'_>) -> Built {
    if !matches!(args.any(), Some(Arg::None)) {
        return Err("takes None, a whole scale factor and nearest: [None, 2, 'nearest']".into());
    }
    let scale = match args.any() {
        Some(Arg::Int(int @ 1..=64)) => *int as usize,
        Some(Arg::Float(float)) if float.fract() == 0.0 && (1.0..=64.0).contains(float) => *float as usize,
        other => {
            let got = other.map_or("missing".into(), Arg::to_string);
            return Err(format!("`scale_factor` must be a whole number from 1 to 64, it is {got}"));
        }
    };
    match args.any() {
        None => {}
        Some(Arg::Str(mode)) if mode == "nearest" => {}
        Some(other) => return Err(format!("`mode` must be nearest, it is {other}")),
    }
    Ok(Box::new(Plain(Op::Upsample { scale })))
}

/// `Concat(dimension=1)`
struct Concat;

pub(super) fn read_concat(args: &mut Args<'_>) -> Built {
    match args.any() {
        None | Some(Arg::Int(1)) => Ok(Box::new(Concat)),
        Some(other) => Err(format!("joins along dimension 1, the channels; got {other}")),
    }
}

impl Block for Concat {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        t.concat(inputs)
    }
}
