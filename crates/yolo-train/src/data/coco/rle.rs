//! Masks as lengths of runs, plain or in the packed form of COCO's own tools.

use yolo_core::Mask;
use yolo_core::picture::MAX_PIXELS;
use yolo_core::post::contours;

use super::json::Counts;

/// The outlines of a mask's parts, `[x, y]` in pixels; none where the mask is empty. `size` is height and width.
///
/// # Errors
/// What does not fit together, as the end of a sentence about the mask.
pub(super) fn outlines(size: [usize; 2], counts: &Counts) -> Result<Vec<Vec<[f64; 2]>>, String> {
    let [height, width] = size;
    let pixels = height.checked_mul(width).filter(|&pixels| pixels as u64 <= MAX_PIXELS);
    let pixels = pixels.ok_or_else(|| format!("its size, {height}x{width}, is too large"))?;
    let unpacked;
    let runs = match counts {
        Counts::Plain(runs) => runs,
        Counts::Packed(text) => {
            unpacked = unpack(text)?;
            &unpacked
        }
    };
    let total = runs.iter().try_fold(0_u64, |sum, &run| sum.checked_add(run));
    if total != Some(pixels as u64) {
        return Err(format!("its runs do not add up to its {height}x{width} pixels"));
    }
    // Runs go down the columns; masks lie row by row.
    let mut data = vec![0; pixels];
    let mut at = 0;
    for (index, &run) in runs.iter().enumerate() {
        let end = at + run as usize;
        if index % 2 == 1 {
            (at..end).for_each(|place| data[place % height * width + place / height] = 1);
        }
        at = end;
    }
    let mask = Mask { width: width as u32, height: height as u32, data };
    Ok(contours(&mask).iter().map(|part| part.iter().map(|point| point.map(f64::from)).collect()).collect())
}

/// Numbers in pieces of five bits, the low ones first, a character each; from the fourth on, differences to the last but one.
fn unpack(text: &str) -> Result<Vec<u64>, String> {
    const BASE: u8 = 48;
    const MORE: u8 = 0x20;
    const SIGN: u8 = 0x10;
    let damaged = || "its packed runs are damaged".to_string();
    let mut runs: Vec<i64> = Vec::new();
    let mut bytes = text.bytes();
    while let Some(mut byte) = bytes.next() {
        let mut value = 0_i64;
        let mut shift = 0;
        loop {
            let piece = byte.checked_sub(BASE).filter(|piece| *piece < 0x40).ok_or_else(damaged)?;
            // Seven pieces hold any run of a mask that is small enough.
            if shift > 30 {
                return Err(damaged());
            }
            value |= i64::from(piece & 0x1f) << shift;
            shift += 5;
            if piece & MORE == 0 {
                if piece & SIGN != 0 {
                    value |= -1 << shift;
                }
                break;
            }
            byte = bytes.next().ok_or_else(damaged)?;
        }
        if runs.len() > 2 {
            value += runs[runs.len() - 2];
        }
        runs.push(value);
    }
    runs.into_iter().map(|run| u64::try_from(run).map_err(|_| damaged())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_an_outline() {
        // Columns 2 and 3 of rows 1 to 3, in a picture 5 high and 6 wide.
        let plain = Counts::Plain(vec![11, 3, 2, 3, 11]);
        let expected = [[[2.0, 1.0], [2.0, 3.0], [3.0, 3.0], [3.0, 1.0]]];
        assert_eq!(outlines([5, 6], &plain).unwrap(), expected);
        // The same as COCO's tools pack it: 11, 3, 2, 3 - 3, 11 - 2.
        assert_eq!(outlines([5, 6], &Counts::Packed(";3209".into())).unwrap(), expected);
        assert!(outlines([2, 3], &Counts::Plain(vec![6])).unwrap().is_empty());
    }

    #[test]
    fn long_and_falling_runs_are_unpacked() {
        // 1000 = 0b11111_01000: low piece first with the mark for more, and a third for the sign.
        assert_eq!(unpack("Xo0").unwrap(), [1000]);
        // 40, 3, 7, then 20 - 3 and 2 - 7 (negative: sign bit set).
        assert_eq!(unpack("X137a0K").unwrap(), [40, 3, 7, 20, 2]);
    }

    #[test]
    fn damaged_runs_are_refused() {
        for (size, counts) in [
            ([5, 6], Counts::Plain(vec![11, 3])),
            ([5, 6], Counts::Plain(vec![u64::MAX, 31])),
            ([5, 6], Counts::Packed("\u{7f}".into())),
            ([5, 6], Counts::Packed("X".into())),
            ([5, 6], Counts::Packed("XXXXXXXXXXXXXXXXXX1".into())),
            ([5, 6], Counts::Packed("O".into())),
            ([usize::MAX, 6], Counts::Plain(vec![])),
        ] {
            assert!(outlines(size, &counts).is_err(), "{size:?} {counts:?}");
        }
    }
}
