//! Kernels in the order in which they are multiplied.

use rayon::prelude::*;

use super::super::super::isa::Isa;
use super::PANEL_VECTORS;

/// How kernels are packed: panels of output channels, for each panel all taps, for each tap a row of output channels.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Packing {
    /// Output channels of a group.
    pub(in super::super) out: usize,
    /// Taps of an output: window times input channels of a group.
    pub(in super::super) taps: usize,
    pub(in super::super) lanes: usize,
}

impl Packing {
    pub(in super::super) fn new<I: Isa>(out: usize, taps: usize) -> Self {
        Self { out, taps, lanes: I::LANES }
    }

    /// Panels of a group.
    pub(in super::super) fn panels(&self) -> usize {
        self.out.div_ceil(PANEL_VECTORS * self.lanes)
    }

    /// Vectors of a panel: the last one may have fewer.
    pub(in super::super) fn vectors(&self, panel: usize) -> usize {
        (self.out - panel * PANEL_VECTORS * self.lanes).div_ceil(self.lanes).min(PANEL_VECTORS)
    }

    /// Where a panel begins.
    pub(in super::super) fn panel(&self, panel: usize) -> usize {
        panel * PANEL_VECTORS * self.lanes * self.taps
    }

    /// Values of a group.
    pub(in super::super) fn len(&self) -> usize {
        self.out.div_ceil(self.lanes) * self.lanes * self.taps
    }

    /// Packs kernels `[out, in, kh, kw]` of a group, whose taps then come in the order `(ky, kx, in)`.
    pub(in super::super) fn pack(&self, kernels: &[f32], window: usize, packed: &mut [f32]) {
        self.fill(packed, |out, tap| tap_of(kernels, (self.taps, window), out, tap));
    }

    /// Fills packed kernels with the value of each output channel and tap, zeros where a vector has more lanes.
    pub(in super::super) fn fill<T: Copy + Default + Send>(
        &self,
        packed: &mut [T],
        value: impl Fn(usize, usize) -> T + Sync,
    ) {
        let panels = packed.par_chunks_mut(PANEL_VECTORS * self.lanes * self.taps).take(self.panels());
        panels.enumerate().for_each(|(panel, packed)| {
            let first = panel * PANEL_VECTORS * self.lanes;
            self.fill_panel(packed, panel, |out, tap| value(first + out, tap));
        });
    }

    /// Fills one panel, whose output channels count from its first.
    pub(in super::super) fn fill_panel<T: Copy + Default>(
        &self,
        packed: &mut [T],
        panel: usize,
        value: impl Fn(usize, usize) -> T,
    ) {
        let width = self.vectors(panel) * self.lanes;
        let channels = width.min(self.out - panel * PANEL_VECTORS * self.lanes);
        for (tap, row) in packed.chunks_exact_mut(width).take(self.taps).enumerate() {
            for (lane, place) in row[..channels].iter_mut().enumerate() {
                *place = value(lane, tap);
            }
            row[channels..].fill(T::default());
        }
    }
}

/// Of kernels `[out, in, kh, kw]` with `taps` a channel, the one which is number `tap` in the order `(ky, kx, in)`.
pub(in super::super) fn tap_of(kernels: &[f32], (taps, window): (usize, usize), out: usize, tap: usize) -> f32 {
    let inputs = taps / window;
    kernels[(out * inputs + tap % inputs) * window + tap / inputs]
}
