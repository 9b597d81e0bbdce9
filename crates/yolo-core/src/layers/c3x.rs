//! `C3x`: a C3 of cross convolutions.

use super::c3::{C3, C3Args, Middle};
use super::cross_conv::CrossConv;
use super::{Args, Built};

/// `C3x(c1, c2, n=1, shortcut=True, g=1, e=0.5)`
pub(super) fn read(args: &mut Args<'_>) -> Built {
    C3::read_with(args, true, |C3Args { n, shortcut, groups, channels }| {
        Middle::chain(n, || CrossConv::new(channels, channels, 3, 1, groups, 1.0, shortcut))
    })
}
