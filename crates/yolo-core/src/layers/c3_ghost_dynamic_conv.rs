//! `C3_GhostDynamicConv`: a C3 of dynamic ghost modules.

use super::c3::{C3, C3Args, Middle};
use super::dynamic_conv::Routing;
use super::ghost_module::GhostModule;
use super::{Args, Built};

/// `C3_GhostDynamicConv(c1, c2, n=1, shortcut=False, g=1, e=0.5)`; `shortcut` and `g` have no effect.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    let routing = Routing::of(args.context);
    C3::read_with(args, false, |C3Args { n, channels, .. }| {
        Middle::chain(n, || GhostModule::new(channels, channels, 1, 2, 3, 1, routing))
    })
}
