//! `MixConv2d` (arXiv 1907.09595): kernels of several sizes side by side.

use super::conv::{ConvOptions, geometry};
use super::{Args, Block, Built, gcd, one};
use crate::config::Activation;
use crate::graph::{NodeId, Traced, Tracer};

/// `MixConv2d(c1, c2, k=(1, 3), s=1, equal_ch=True)`
#[derive(Debug)]
struct MixConv2d {
    c1: usize,
    /// Kernel size and channels of each part.
    parts: Vec<(usize, usize)>,
    stride: usize,
}

pub(super) fn read(args: &mut Args<'_>) -> Built {
    let (c1, c2, kernels) = (args.channels("c1")?, args.channels("c2")?, args.sizes("k", &[1, 3])?);
    let stride = args.size("s", 1)?;
    let channels =
        if args.flag("equal_ch", true)? { equal_channels(c2, kernels.len()) } else { equal_weights(c2, &kernels) };
    Ok(Box::new(MixConv2d { c1, parts: kernels.into_iter().zip(channels).collect(), stride }))
}

/// Channels dealt evenly: as many as fall into each unit of `n` when `c2` points are spread over 0 to just below `n`,
/// in single precision as PyTorch's `linspace` does it.
fn equal_channels(c2: usize, n: usize) -> Vec<usize> {
    let end = (n as f64 - 1e-6) as f32;
    let step = if c2 > 1 { end / (c2 - 1) as f32 } else { 0.0 };
    let mut channels = vec![0; n];
    for i in 0..c2 {
        let value = if i < c2 / 2 || c2 == 1 { step * i as f32 } else { end - step * (c2 - 1 - i) as f32 };
        channels[(value.floor() as usize).min(n - 1)] += 1;
    }
    channels
}

/// Channels such that all parts have about the same number of weights.
fn equal_weights(c2: usize, kernels: &[usize]) -> Vec<usize> {
    let inverse = |kernel: usize| 1.0 / (kernel * kernel) as f64;
    let sum: f64 = kernels.iter().map(|&kernel| inverse(kernel)).sum();
    kernels.iter().map(|&kernel| (c2 as f64 * inverse(kernel) / sum).round_ties_even() as usize).collect()
}

impl Block for MixConv2d {
    fn trace(&self, t: &mut Tracer, inputs: &[NodeId]) -> Traced {
        let x = one(inputs)?;
        let parts = t.module("m", |t| {
            let convolve = |(i, &(kernel, channels)): (usize, &(usize, usize))| {
                let options = ConvOptions {
                    stride: (self.stride, self.stride),
                    padding: Some((kernel / 2, kernel / 2)),
                    groups: gcd(self.c1, channels),
                    dilation: 1,
                };
                t.conv2d(&i.to_string(), x, geometry(self.c1, channels, (kernel, kernel), options), false)
            };
            self.parts.iter().enumerate().map(convolve).collect::<Result<Vec<_>, _>>()
        })?;
        let joined = t.concat(&parts)?;
        let joined = t.batch_norm("bn", joined)?;
        Ok(t.own_activation(Activation::SiLU, joined))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `torch.linspace(0, n - 1e-6, c2).floor()`, counted; and numpy's least squares for equal weights.
    #[test]
    fn channels_are_dealt_as_the_original_deals_them() {
        assert_eq!(equal_channels(32, 2), [16, 16]);
        assert_eq!(equal_channels(64, 3), [22, 21, 21]);
        assert_eq!(equal_channels(7, 4), [2, 2, 1, 2]);
        assert_eq!(equal_channels(48, 5), [10, 9, 10, 9, 10]);
        assert_eq!(equal_channels(1000, 7), [143, 143, 143, 142, 143, 143, 143]);
        assert_eq!(equal_channels(1, 1), [1]);
        assert_eq!(equal_weights(32, &[1, 3]), [29, 3]);
        assert_eq!(equal_weights(256, &[3, 5, 7, 9]), [155, 56, 28, 17]);
        assert_eq!(equal_weights(128, &[1, 3, 5]), [111, 12, 4]);
    }
}
