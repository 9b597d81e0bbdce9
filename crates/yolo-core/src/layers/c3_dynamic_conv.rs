//! `C3_DynamicConv`: a C3 whose bottlenecks end in a dynamic 3x3 convolution.

use super::bottleneck::Bottleneck;
use super::c3::{C3, C3Args, Middle};
use super::conv::Conv;
use super::dynamic_conv::{DynamicConv, Routing};
use super::{Args, Built};

/// `C3_DynamicConv(c1, c2, n=1, shortcut=False, g=1, e=0.5)`; `g` has no effect.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    let routing = Routing::of(args.context);
    C3::read_with(args, false, |C3Args { n, shortcut, channels, .. }| {
        Middle::chain(n, || {
            let second = DynamicConv::new(channels, channels, 3, 1, 1, routing);
            Bottleneck::of(Conv::new(channels, channels, 1, 1), second, shortcut)
        })
    })
}
