//! `SPP`: spatial pyramid pooling (arXiv 1406.4729), several max-pools side by side.

use super::conv::Conv;
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

/// `SPP(c1, c2, k=(5, 9, 13))`
#[derive(Debug)]
pub(super) struct Spp {
    c1: usize,
    c2: usize,
    kernels: Vec<usize>,
}

impl Spp {
    pub(super) fn new(c1: usize, c2: usize, kernels: Vec<usize>) -> Self {
        Self { c1, c2, kernels }
    }

    pub(super) fn read(args: &mut Args<'_>) -> Built {
        Ok(Box::new(Self::new(args.channels("c1")?, args.channels("c2")?, args.sizes("k", &[5, 9, 13])?)))
    }
}

/// A pool that keeps the size of the map.
pub(super) fn same_pool(kernel: usize) -> Op {
    Op::MaxPool2d { kernel, stride: 1, padding: kernel / 2 }
}

impl Block for Spp {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let middle = self.c1 / 2;
        let x = t.child("cv1", &Conv::new(self.c1, middle, 1, 1), one(inputs)?)?;
        let parts = t.module("m", |t| {
            let pools = self.kernels.iter().enumerate();
            let pooled = pools.map(|(i, &kernel)| t.module(i.to_string(), |t| t.unary(same_pool(kernel), x)));
            std::iter::once(x).chain(pooled).collect::<Vec<_>>()
        });
        let joined = t.concat(&parts)?;
        t.child("cv2", &Conv::new(middle * parts.len(), self.c2, 1, 1), joined)
    }
}
