//! `Segment`: the detection head with mask coefficients, and the prototypes that they weigh (after YOLACT, arXiv 1904.02689).

use super::conv::Conv;
use super::detect::Detect;
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

/// `Segment(nc, anchors, nm=32, npr=256, ch)`
#[derive(Debug)]
struct Segment {
    detect: Detect,
    prototypes: Proto,
}

/// `Proto(c1, c_, c2)`: masks at twice the resolution of the first level.
#[derive(Debug)]
struct Proto {
    hidden: usize,
    masks: usize,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (classes, anchors) = Detect::read_start(args)?;
    let (masks, hidden) = (args.channels("nm")?, args.channels("npr")?);
    let detect = Detect::read_end(args, classes, anchors, masks)?;
    Ok(Box::new(Segment { detect, prototypes: Proto { hidden, masks } }))
}

impl Block for Segment {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let rows = self.detect.trace(t, inputs)?;
        let first = *inputs.first().ok_or("it reads at least one level")?;
        let prototypes = t.child("proto", &self.prototypes, first)?;
        t.set_prototypes(prototypes);
        Ok(rows)
    }
}

impl Block for Proto {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let x = t.child("cv1", &Conv::new(t.channels(x), self.hidden, 3, 1), x)?;
        let x = t.module("upsample", |t| t.unary(Op::Upsample { scale: 2 }, x));
        let x = t.child("cv2", &Conv::new(self.hidden, self.hidden, 3, 1), x)?;
        t.child("cv3", &Conv::new(self.hidden, self.masks, 1, 1), x)
    }
}
