//! Colours of curves and maps.

use super::canvas::{Colour, blend};

/// For curves: well apart on white, also for most of those who do not tell red from green.
const CURVES: [Colour; 20] = [
    [31, 119, 180],
    [255, 127, 14],
    [44, 160, 44],
    [214, 39, 40],
    [148, 103, 189],
    [140, 86, 75],
    [227, 119, 194],
    [110, 110, 110],
    [188, 189, 34],
    [23, 190, 207],
    [120, 170, 220],
    [200, 160, 60],
    [110, 200, 130],
    [240, 130, 130],
    [90, 60, 150],
    [190, 140, 120],
    [150, 40, 110],
    [60, 90, 60],
    [100, 110, 20],
    [0, 110, 130],
];

/// The colour of the mean of all classes.
pub(super) const STRONG: Colour = [0, 40, 200];

/// The colour of a curve by its place.
pub(super) fn curve(place: usize) -> Colour {
    CURVES[place % CURVES.len()]
}

/// From near white over blue to near black, 0 to 1.
pub(super) fn blues(value: f64) -> Colour {
    const STOPS: [Colour; 5] = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
    let place = value.clamp(0.0, 1.0) * (STOPS.len() - 1) as f64;
    let stop = (place as usize).min(STOPS.len() - 2);
    blend(STOPS[stop], STOPS[stop + 1], (place - stop as f64) as f32)
}
