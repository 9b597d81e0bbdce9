//! `BottleneckCSP`: cross-stage partial bottlenecks, with plain convolutions before a joint normalisation.

use super::bottleneck::Bottleneck;
use super::conv::{Conv, ConvOptions, geometry};
use super::{Args, Block, Built, hidden, one};
use crate::config::Activation;
use crate::graph::{NodeId, Traced, Tracer};

/// `BottleneckCSP(c1, c2, n=1, shortcut=True, g=1, e=0.5)`
#[derive(Debug)]
struct BottleneckCsp {
    c1: usize,
    c2: usize,
    middle: usize,
    bottlenecks: Vec<Bottleneck>,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (c1, c2, n) = (args.channels("c1")?, args.channels("c2")?, args.count("n", 1)?);
    let (shortcut, groups, expansion) = (args.flag("shortcut", true)?, args.groups()?, args.factor("e", 0.5)?);
    let middle = hidden(c2, expansion);
    let bottlenecks = (0..n).map(|_| Bottleneck::new(middle, middle, shortcut, groups, 1.0)).collect();
    Ok(Box::new(BottleneckCsp { c1, c2, middle, bottlenecks }))
}

impl Block for BottleneckCsp {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let plain = |c1| geometry(c1, self.middle, (1, 1), ConvOptions::default());
        let y = t.child("cv1", &Conv::new(self.c1, self.middle, 1, 1), x)?;
        let y = t.sequential("m", self.bottlenecks.iter().map(|b| b as &dyn Block), y)?;
        let y = t.conv2d("cv3", y, plain(self.middle), false)?;
        let z = t.conv2d("cv2", x, plain(self.c1), false)?;
        let joined = t.concat(&[y, z])?;
        let joined = t.batch_norm("bn", joined)?;
        let joined = t.own_activation(Activation::SiLU, joined);
        t.child("cv4", &Conv::new(2 * self.middle, self.c2, 1, 1), joined)
    }
}
