//! `C3SPP`: a C3 around spatial pyramid pooling.

use super::c3::{C3, Middle};
use super::spp::Spp;
use super::{Args, Built, hidden};

/// `C3SPP(c1, c2, k=(5, 9, 13), n=1, shortcut=True, g=1, e=0.5)`; only `k` and `e` have an effect.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (c1, c2, kernels) = (args.channels("c1")?, args.channels("c2")?, args.sizes("k", &[5, 9, 13])?);
    let (_, _, _) = (args.count("n", 1)?, args.flag("shortcut", true)?, args.groups()?);
    let channels = hidden(c2, args.factor("e", 0.5)?);
    let middle = Middle::Single(Box::new(Spp::new(channels, channels, kernels)));
    Ok(Box::new(C3::new(c1, c2, channels, middle)))
}
