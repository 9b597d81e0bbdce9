//! How the kernels of a convolution are packed, for each algorithm.

use super::super::amx::Amx;
use super::super::isa::Isa;
use super::build::{Algorithm, Convolution};
use super::depthwise;
use super::direct::{Format, Packing, Runs, tap_of};
use super::memory::{LINE, Lines};
use super::program::Kernel;
use super::winograd::{self, POINTS};

/// How the kernels of a convolution are packed.
pub(super) struct Packer {
    pub(super) algorithm: Algorithm,
    pub(super) groups: usize,
    pub(super) window: usize,
    /// Of Winograd's algorithm.
    stride: usize,
    pub(super) packing: Packing,
    /// Of the direct algorithm.
    pub(super) format: Format,
    pub(super) channels: usize,
    /// Values of a tap's row of a depthwise convolution.
    pub(super) row: usize,
    /// Values of packed kernels and of padded biases.
    pub(super) len: usize,
    pub(super) bias: usize,
    /// Whether pairs are left in f32.
    unrounded: bool,
}

impl Packer {
    /// For tiles where there are any.
    pub(super) fn new<I: Isa>(conv: &Convolution<'_>, tiles: Option<Amx>) -> Self {
        let (window, groups, channels) = (conv.window.taps(), conv.groups, conv.output.channels);
        let inputs = conv.in_channels() / groups;
        let row = channels.next_multiple_of(I::LANES);
        let format = match (conv.algorithm, tiles) {
            (Algorithm::DirectBf16, Some(amx)) if groups == 1 => {
                Format::Tiles(Runs::new(amx, &conv.window, &conv.inputs))
            }
            (Algorithm::DirectBf16, _) => Format::Pairs,
            _ => Format::Values,
        };
        let (packing, len) = match conv.algorithm {
            Algorithm::Direct => {
                let packing = Packing::new::<I>(channels / groups, inputs * window);
                (packing, groups * packing.len())
            }
            Algorithm::DirectBf16 => {
                let pairs = if let Format::Tiles(runs) = format { runs.pairs() } else { (inputs * window).div_ceil(2) };
                let packing = Packing::new::<I>(channels / groups, pairs);
                (packing, groups * packing.len())
            }
            Algorithm::Winograd => {
                let packing = Packing::new::<I>(channels, inputs);
                (packing, POINTS * winograd::point_len(&packing))
            }
            Algorithm::Depthwise => (Packing::new::<I>(1, window), window * row),
        };
        // Vectors are read whole, from the last group's first channel on too.
        let bias = (channels + 2 * LINE).next_multiple_of(LINE);
        let stride = conv.window.stride.0;
        Self {
            algorithm: conv.algorithm,
            groups,
            window,
            stride,
            packing,
            format,
            channels,
            row,
            len,
            bias,
            unrounded: false,
        }
    }

    /// How experts are packed, so that their mixtures are what this packs, before Winograd's transform or the rounding to bf16.
    pub(super) fn of_experts(&self) -> Self {
        match self.algorithm {
            Algorithm::Winograd => {
                let packing = Packing { taps: 9 * self.packing.taps, ..self.packing };
                Self { algorithm: Algorithm::Direct, packing, len: packing.len(), ..*self }
            }
            Algorithm::DirectBf16 => Self { len: 2 * self.len, unrounded: true, ..*self },
            Algorithm::Direct | Algorithm::Depthwise => Self { ..*self },
        }
    }

    /// Kernels that are the same for all samples.
    pub(super) fn fixed(&self, kernels: &[f32], bias: &[f32]) -> Kernel {
        let mut packed = Lines::zeros(self.len + 2 * LINE);
        self.pack(kernels, packed.values_mut());
        let mut padded = Lines::zeros(self.bias);
        padded.values_mut()[..bias.len()].copy_from_slice(bias);
        Kernel::Shared { kernels: packed, bias: padded }
    }

    pub(super) fn pack(&self, kernels: &[f32], packed: &mut [f32]) {
        match self.algorithm {
            Algorithm::Direct => {
                let group = kernels.len() / self.groups;
                let packed = packed.chunks_exact_mut(self.packing.len());
                for (from, to) in kernels.chunks_exact(group).zip(packed) {
                    self.packing.pack(from, self.window, to);
                }
            }
            Algorithm::DirectBf16 => {
                let group = kernels.len() / self.groups;
                let taps = (kernels.len() / self.channels, self.window);
                for (from, to) in kernels.chunks_exact(group).zip(packed.chunks_exact_mut(self.len / self.groups)) {
                    let tap = |out: usize, place: usize| {
                        let tap = if let Format::Tiles(runs) = self.format { runs.tap(place) } else { Some(place) };
                        tap.filter(|tap| *tap < taps.0).map_or(0.0, |tap| tap_of(from, taps, out, tap))
                    };
                    if self.unrounded {
                        self.packing.pack_unrounded(tap, to);
                    } else {
                        self.packing.pack_pairs(tap, to);
                    }
                }
            }
            Algorithm::Winograd => winograd::transform_kernels(&self.packing, self.stride, kernels, packed),
            Algorithm::Depthwise => depthwise::pack(kernels, self.channels, self.row, packed),
        }
    }
}
