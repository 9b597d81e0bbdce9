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
        assert!(view.fits(self.batch, self.planned), "a map lies outside of the program's memory");
    }

    /// Checks a map in f32 that is read enlarged.
    pub(super) fn check_part(&self, part: &Part) {
        self.check(&part.view);
        assert!(
            part.view.height.max(part.view.width).leading_zeros() > part.shift,
            "a map is enlarged beyond all sizes"
        );
    }

    /// Checks that a step may write `output` while others of its tasks still read `inputs`.
    pub(super) fn check_apart(&self, inputs: &[Part], output: &View) {
        self.check(output);
        for part in inputs {
            self.check_part(part);
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

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::super::{Act, Builder, Part, Router, View};
    use crate::Routing;

    /// Whether a program of 4096 values refuses a step, which it would work through without looking again.
    fn refuses(add: impl FnOnce(&mut Builder)) -> bool {
        let mut builder = Builder::new(1, 1, 4096);
        catch_unwind(AssertUnwindSafe(|| add(&mut builder))).is_err()
    }

    #[test]
    fn maps_beyond_the_memory_are_refused() {
        let view = View::dense(16, 4, 4, 2);
        assert!(!refuses(|builder| builder.export("", view)));
        assert!(!refuses(|builder| builder.export("", View { offset: 4096 - 32, ..view })));
        let huge = 1 << (usize::BITS / 2);
        for view in [
            View { offset: 4096 - 31, ..view },
            View { offset: usize::MAX - 31, ..view },
            // Sizes whose product wraps round to something small.
            View { pixel: 1 << (usize::BITS - 4), ..view },
            View { height: huge, width: huge, ..view },
            View { channels: huge, pixel: huge, height: huge, ..view },
        ] {
            assert!(refuses(|builder| builder.export("", view)), "{view:?}");
        }
    }

    #[test]
    fn maps_of_other_sizes_are_refused() {
        let (from, to) = (View::dense(0, 4, 4, 8), View::dense(512, 4, 4, 8));
        let add = |parts: Vec<Part>, residual: View| {
            refuses(|builder| builder.pointwise("", parts, to, None, Act::Identity, Some(residual)))
        };
        let residual = View::dense(1024, 4, 4, 8);
        assert!(!add(vec![from.into()], residual));
        assert!(add(vec![from.into()], View { channels: 4, ..residual }));
        assert!(add(vec![from.into()], View { width: 3, ..residual }));
        assert!(add(vec![View { channels: 7, ..from }.into()], residual));
        assert!(add(vec![Part { view: from, shift: usize::BITS - 1 }], residual));

        let twin = |parts: Vec<Part>| refuses(|b| b.twin("", "", vec![parts], to, Box::new(|_, _| Ok(()))));
        let small = Part { view: View::dense(256, 2, 2, 8), shift: 1 };
        assert!(!twin(vec![from.into(), small]));
        assert!(twin(vec![from.into(), Part { shift: 0, ..small }]));
    }

    #[test]
    fn routers_of_other_sizes_are_refused() {
        let check = |squeeze: Option<usize>, weight: usize, channels: usize| {
            let squeeze = squeeze.map(|len| vec![0.0; len]);
            let router = Router { squeeze, weight: vec![0.0; weight], bias: vec![0.0; 3], routing: Routing::Sigmoid };
            catch_unwind(|| router.check(channels)).is_ok()
        };
        assert!(check(None, 24, 8) && check(Some(16), 6, 8));
        assert!(!check(None, 23, 8) && !check(None, 24, 7) && !check(None, 0, 0));
        assert!(!check(Some(16), 7, 8) && !check(Some(15), 6, 8) && !check(Some(0), 0, 8));
    }
}
