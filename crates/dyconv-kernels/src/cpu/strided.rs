//! Copies from and to every second value, and every so many.

use super::isa::Isa;

/// `to[i] = from[i * step]`
#[inline(always)]
pub(super) fn gather<I: Isa>(isa: I, from: &[f32], to: &mut [f32], step: usize) {
    let mut done = 0;
    if step == 2 {
        // The last of the values that a vector needs may be one that is not there.
        while done + I::LANES <= to.len() && 2 * (done + I::LANES) <= from.len() {
            let pair = &from[2 * done..][..2 * I::LANES];
            let evens = isa.evens(isa.load(pair), isa.load(&pair[I::LANES..]));
            isa.store(&mut to[done..][..I::LANES], evens);
            done += I::LANES;
        }
    }
    for i in done..to.len() {
        to[i] = from[i * step];
    }
}

/// `to[2 * i] = even[i]` and `to[2 * i + 1] = odd[i]`, of as many as `to` has room for.
#[inline(always)]
pub(super) fn weave<I: Isa>(isa: I, even: &[f32], odd: &[f32], to: &mut [f32]) {
    let pairs = to.len() / 2;
    let (even, odd) = (&even[..to.len() - pairs], &odd[..pairs]);
    let mut done = 0;
    while done + I::LANES <= pairs {
        let (low, high) = isa.weave(isa.load(&even[done..][..I::LANES]), isa.load(&odd[done..][..I::LANES]));
        let to = &mut to[2 * done..][..2 * I::LANES];
        isa.store(to, low);
        isa.store(&mut to[I::LANES..], high);
        done += I::LANES;
    }
    for i in done..even.len() {
        to[2 * i] = even[i];
    }
    for i in done..pairs {
        to[2 * i + 1] = odd[i];
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Job, available, with};
    use super::*;

    struct Check;

    impl Job for Check {
        type Output = ();
        fn run<I: Isa>(self, isa: I) {
            let values: Vec<f32> = (0..200).map(|i| i as f32).collect();
            for count in 0..60 {
                for step in 1..4 {
                    // As many values as are needed, and more.
                    for spare in 0..3 {
                        let mut to = vec![-1.0; count];
                        let from = &values[..(count.max(1) - 1) * step + 1 + spare];
                        isa.run(
                            #[inline(always)]
                            || gather(isa, from, &mut to, step),
                        );
                        assert!(to.iter().enumerate().all(|(i, value)| *value == (i * step) as f32));
                    }
                }
                let mut to = vec![-1.0; count];
                isa.run(
                    #[inline(always)]
                    || weave(isa, &values[..100], &values[100..], &mut to),
                );
                assert!(to.iter().enumerate().all(|(i, value)| *value == (i / 2 + i % 2 * 100) as f32));
            }
        }
    }

    #[test]
    fn every_value_comes_to_its_place() {
        for isa in available() {
            assert!(with(isa, Check).is_some());
        }
    }
}
