//! `DWConvTranspose2d`: transposed convolution with a filter a channel.

use super::primitive::ConvTranspose;
use super::{Args, Built, gcd};
use crate::graph::ConvGeometry;

/// `DWConvTranspose2d(c1, c2, k=1, s=1, p1=0, p2=0)`: padding and output padding.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (c1, c2, kernel) = (args.channels("c1")?, args.channels("c2")?, args.size("k", 1)?);
    let (stride, padding) = (args.size("s", 1)?, args.count("p1", 0)?);
    let geometry = ConvGeometry {
        in_channels: c1,
        out_channels: c2,
        kernel: (kernel, kernel),
        stride: (stride, stride),
        padding: (padding, padding),
        dilation: (1, 1),
        groups: gcd(c1, c2),
    };
    Ok(Box::new(ConvTranspose { geometry, output_padding: args.count("p2", 0)?, bias: true }))
}
