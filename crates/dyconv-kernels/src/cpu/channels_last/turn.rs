//! From channels beside each other to maps one after the other, and back.

use super::super::isa::Isa;

/// Side of a block that is turned in registers.
const SIDE: usize = 8;

/// Turns `rows` rows of `columns` values: value `j` of row `i` of `from` becomes value `i` of row `j` of `to`; rows begin so many
/// values apart as the pairs say.
///
/// # Safety
/// They must be readable and writable, and `to` must not overlap `from`.
#[inline(always)]
pub(super) unsafe fn turn<I: Isa>(
    isa: I,
    (rows, columns): (usize, usize),
    from: (*const f32, usize),
    to: (*mut f32, usize),
) {
    if rows < SIDE || columns < SIDE {
        for i in 0..rows {
            for j in 0..columns {
                // SAFETY: the caller proves the values and the room.
                unsafe { *to.0.add(j * to.1 + i) = *from.0.add(i * from.1 + j) };
            }
        }
        return;
    }
    // Last blocks overlap those before.
    for i in (0..rows).step_by(SIDE) {
        let i = i.min(rows - SIDE);
        for j in (0..columns).step_by(SIDE) {
            let j = j.min(columns - SIDE);
            // SAFETY: the block lies within the rows and columns.
            unsafe { isa.turn8((from.0.add(i * from.1 + j), from.1), (to.0.add(j * to.1 + i), to.1)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{IsaName, Job, available, with};
    use super::*;

    struct Turn<'a>((usize, usize), &'a [f32], &'a mut [f32]);

    impl Job for Turn<'_> {
        type Output = ();
        fn run<I: Isa>(self, isa: I) {
            let Self((rows, columns), from, to) = self;
            // SAFETY: both have rows of two values more than are turned.
            isa.run(|| unsafe {
                turn(isa, (rows, columns), (from.as_ptr(), columns + 2), (to.as_mut_ptr(), rows + 2))
            });
        }
    }

    #[test]
    fn rows_become_columns() {
        for name in available().into_iter().chain([IsaName::Scalar]) {
            for (rows, columns) in [(1, 1), (7, 9), (8, 8), (9, 8), (16, 20), (17, 31), (3, 40), (40, 3)] {
                let from: Vec<f32> = (0..rows * (columns + 2)).map(|i| i as f32).collect();
                let mut to = vec![-1.0; columns * (rows + 2)];
                with(name, Turn((rows, columns), &from, &mut to)).unwrap();
                for (place, value) in to.iter().enumerate() {
                    let (j, i) = (place / (rows + 2), place % (rows + 2));
                    let expected = if i < rows { from[i * (columns + 2) + j] } else { -1.0 };
                    assert_eq!(*value, expected, "{name:?} {rows}x{columns} at {j}, {i}");
                }
            }
        }
    }
}
