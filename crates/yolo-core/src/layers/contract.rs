//! `Contract` and `Expand`: pixels to channels and back.

use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

#[derive(Debug)]
enum Fold {
    /// `Contract(gain=2)`
    Contract(usize),
    /// `Expand(gain=2)`
    Expand(usize),
}

/// Larger blocks than this are mistakes.
const MAX_GAIN: usize = 64;

fn gain(args: &mut Args<'_>) -> Result<usize, String> {
    match args.size("gain", 2)? {
        gain if gain <= MAX_GAIN => Ok(gain),
        gain => Err(format!("`gain` must be at most {MAX_GAIN}, it is {gain}")),
    }
}

pub(super) fn read_contract(args: &mut Args<'_>) -> Built {
    Ok(Box::new(Fold::Contract(gain(args)?)))
}

pub(super) fn read_expand(args: &mut Args<'_>) -> Built {
    Ok(Box::new(Fold::Expand(gain(args)?)))
}

impl Block for Fold {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let channels = t.channels(x);
        match *self {
            Self::Contract(gain) => t.push(Op::Contract { gain }, vec![x], channels * gain * gain),
            Self::Expand(gain) if channels.is_multiple_of(gain * gain) => {
                t.push(Op::Expand { gain }, vec![x], channels / (gain * gain))
            }
            Self::Expand(gain) => Err(format!("{channels} channels do not divide by {gain} squared")),
        }
    }
}
