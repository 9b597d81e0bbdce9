//! `C3TR`: a C3 around a transformer without layer normalisation (after arXiv 2010.11929).

use super::c3::{C3, C3Args, Middle};
use super::{Args, Block, Built, one};
use crate::graph::{NodeId, Op, Traced, Tracer};

const HEADS: usize = 4;

/// `C3TR(c1, c2, n=1, shortcut=True, g=1, e=0.5)`: `n` is the number of transformer layers.
pub(super) fn read(args: &mut Args<'_>) -> Built {
    C3::read_with(args, true, |C3Args { n, .. }| Middle::Single(Box::new(TransformerBlock { layers: n })))
}

/// A learned position embedding and transformer layers over the pixels of a map.
#[derive(Debug)]
struct TransformerBlock {
    layers: usize,
}

/// Attention and two linear layers, each with a shortcut.
#[derive(Debug)]
struct TransformerLayer;

impl Block for TransformerBlock {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let map = one(inputs)?;
        let channels = t.channels(map);
        let tokens = t.unary(Op::ToTokens, map);
        let position = t.linear("linear", tokens, channels, true)?;
        let tokens = t.add(tokens, position)?;
        let layers = std::iter::repeat_n(&TransformerLayer as &dyn Block, self.layers);
        let tokens = t.sequential("tr", layers, tokens)?;
        t.push(Op::FromTokens, vec![tokens, map], channels)
    }
}

impl Block for TransformerLayer {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let channels = t.channels(x);
        let qkv = [
            t.linear("q", x, channels, false)?,
            t.linear("k", x, channels, false)?,
            t.linear("v", x, channels, false)?,
        ];
        let y = t.attention("ma", qkv, HEADS)?;
        let x = t.add(y, x)?;
        let y = t.linear("fc1", x, channels, false)?;
        let y = t.linear("fc2", y, channels, false)?;
        t.add(y, x)
    }
}
