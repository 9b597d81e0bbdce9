//! `C3Ghost`: a C3 of ghost bottlenecks.

use super::c3::{C3, C3Args, Middle};
use super::ghost_bottleneck::GhostBottleneck;
use super::{Args, Built};

/// `C3Ghost(c1, c2, n=1, shortcut=True, g=1, e=0.5)`; `shortcut` and `g` have no effect.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    C3::read_with(args, true, |C3Args { n, channels, .. }| {
        Middle::chain(n, || GhostBottleneck::new(channels, channels, 3, 1))
    })
}
