//! `Focus`: four pixels become four times the channels, then a convolution.

use super::args::ActArg;
use super::conv::{Conv, ConvOptions};
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

/// `Focus(c1, c2, k=1, s=1, p=None, g=1, act=True)`
#[derive(Debug)]
struct Focus {
    conv: Conv,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.pair("k", 1)?);
    let options =
        ConvOptions { stride: args.pair("s", 1)?, padding: args.padding()?, groups: args.groups()?, dilation: 1 };
    let act: ActArg = args.activation()?;
    Ok(Box::new(Focus { conv: Conv::with(4 * c1, c2, kernel, options).act(act) }))
}

impl Block for Focus {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let channels = 4 * t.channels(x);
        let y = t.push(Op::Focus, vec![x], channels)?;
        t.child("conv", &self.conv, y)
    }
}
