//! `SPPF`: the pyramid of [`super::spp`] as one small max-pool applied three times.

use super::conv::Conv;
use super::spp::same_pool;
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Traced, Tracer};

/// `SPPF(c1, c2, k=5)`
#[derive(Debug)]
struct Sppf {
    c1: usize,
    c2: usize,
    kernel: usize,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    Ok(Box::new(Sppf { c1: args.channels("c1")?, c2: args.channels("c2")?, kernel: args.size("k", 5)? }))
}

impl Block for Sppf {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let middle = self.c1 / 2;
        let x = t.child("cv1", &Conv::new(self.c1, middle, 1, 1), one(inputs)?)?;
        let parts = t.module("m", |t| {
            let mut parts = vec![x];
            for _ in 0..3 {
                parts.push(t.unary(same_pool(self.kernel), parts[parts.len() - 1]));
            }
            parts
        });
        let joined = t.concat(&parts)?;
        t.child("cv2", &Conv::new(4 * middle, self.c2, 1, 1), joined)
    }
}
