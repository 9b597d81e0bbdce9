//! Where maps may lie: in the program's memory, apart from each other, in the type that a step reads and writes.

use super::super::memory::{Part, View};
use super::{Algorithm, Builder, Convolution};

impl Builder {
    /// Checks a map in f32: what no convolution in bf16 reads or writes.
    pub(super) fn check(&self, view: &View) {
        assert!(!view.bf16, "a map in bf16 where there must be one in f32");
        self.check_any(view);
    }

    pub(super) fn check_any(&self, view: &View) {
        assert!(view.channels > 0 && view.height > 0 && view.width > 0 && view.pixel >= view.channels);
        assert!(view.end(self.batch) <= self.planned, "a map lies outside of the program's memory");
    }

    /// Checks that a step may write `output` while others of its tasks still read `inputs`.
    pub(super) fn check_apart(&self, inputs: &[Part], output: &View) {
        self.check(output);
        for part in inputs {
            self.check(&part.view);
            assert!(apart(&part.view, output, self.batch), "a step would write what it reads");
        }
    }

    /// Checks the maps of a convolution: in bf16 may be those of one in bf16, unless it has groups.
    pub(super) fn check_maps(&self, conv: &Convolution<'_>, output: Option<&View>) {
        let rounds = conv.algorithm == Algorithm::DirectBf16 && conv.groups == 1;
        let check = |view: &View, may: bool| if may { self.check_any(view) } else { self.check(view) };
        for part in &conv.inputs {
            check(&part.view, rounds);
            assert_eq!(part.size(), conv.inputs[0].size());
            assert!(
                output.is_none_or(|output| apart(&part.view, output, self.batch)),
                "a step would write what it reads"
            );
        }
        if let Some(residual) = &conv.residual {
            check(residual, rounds);
        }
        if let Some(output) = output {
            check(output, rounds);
        }
    }
}

/// Whether two maps have no value in common.
pub(super) fn apart(a: &View, b: &View, batch: usize) -> bool {
    if a.end(batch) <= b.offset || b.end(batch) <= a.offset {
        return true;
    }
    // Channels of the same pixels.
    let (a, b) = if a.offset <= b.offset { (a, b) } else { (b, a) };
    let between = b.offset - a.offset;
    !a.bf16
        && !b.bf16
        && (a.pixel, a.height, a.width) == (b.pixel, b.height, b.width)
        && between >= a.channels
        && between + b.channels <= a.pixel
}
