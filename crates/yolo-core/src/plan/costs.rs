//! What a convolution of 3x3 costs by each algorithm, from a table; [`super::tune`] measures instead.

use dyconv_kernels::cpu::channels_last::{Algorithm, multiplies_on_tiles};

use super::choose::Place;

/// Time by channels (the fewer of those read and written), relative to the direct algorithm in f32: in bf16, and by Winograd's
/// algorithm with stride 1 and with stride 2, where tiles fit the map and kernels are near. Measured on two cores with AVX-512
/// (Zen 4) on maps of 20 to 160 pixels; AVX2 there differs by a tenth.
const TABLE: [(usize, [f64; 3]); 7] = [
    (8, [1.40, 1.10, 1.60]),
    (12, [1.30, 0.90, 1.30]),
    (16, [1.00, 0.55, 1.02]),
    (32, [0.62, 0.45, 0.79]),
    (64, [0.55, 0.40, 0.73]),
    (128, [0.51, 0.38, 0.73]),
    (256, [0.50, 0.33, 0.71]),
];
/// The same in bf16 on tiles (AMX), at any number of channels.
const ON_TILES: f64 = 0.1;
/// Winograd's kernels are four times as many values, which few tiles share on a small map: pixels at which reading them takes as
/// long as the direct algorithm takes in all.
const READING: f64 = 20.0;

/// The cheapest of some algorithms.
pub(super) fn cheapest(place: &Place<'_>, candidates: &[Algorithm]) -> Algorithm {
    cheapest_on(multiplies_on_tiles(), place, candidates)
}

/// The same where convolutions in bf16 go on tiles, or do not.
fn cheapest_on(tiles: bool, place: &Place<'_>, candidates: &[Algorithm]) -> Algorithm {
    let cost = |algorithm: &Algorithm| match algorithm {
        Algorithm::DirectBf16 if tiles => ON_TILES,
        other => relative(place, *other),
    };
    let best = candidates.iter().min_by(|a, b| cost(a).total_cmp(&cost(b)));
    best.copied().unwrap_or(Algorithm::Direct)
}

/// Time relative to the direct algorithm in f32.
fn relative(place: &Place<'_>, algorithm: Algorithm) -> f64 {
    let channels = place.conv.geometry.in_channels.min(place.conv.geometry.out_channels);
    let [bf16, winograd, halving] = row(channels);
    match algorithm {
        Algorithm::Direct | Algorithm::Depthwise => 1.0,
        Algorithm::DirectBf16 => bf16,
        Algorithm::Winograd => {
            // Tiles that reach over the edge are computed whole.
            let (height, width) = place.output;
            let pixels = (height * width) as f64;
            let computed = (height.next_multiple_of(4) * width.next_multiple_of(4)) as f64;
            let tiles = if place.conv.geometry.stride == (1, 1) { winograd } else { halving };
            tiles * computed / pixels + READING / pixels
        }
    }
}

/// Between the rows of the table in proportion to the logarithm of the channels.
fn row(channels: usize) -> [f64; 3] {
    let (Some(first), Some(last)) = (TABLE.first(), TABLE.last()) else { return [1.0; 3] };
    let channels = channels.clamp(first.0, last.0);
    let pair = TABLE.windows(2).find(|pair| channels <= pair[1].0);
    let Some([low, high]) = pair else { return last.1 };
    let log = |channels: usize| (channels as f64).log2();
    let share = (log(channels) - log(low.0)) / (log(high.0) - log(low.0));
    std::array::from_fn(|i| low.1[i] + share * (high.1[i] - low.1[i]))
}

#[cfg(test)]
mod tests {
    use dyconv_kernels::cpu::channels_last::Act;

    use super::*;
    use crate::graph::ConvGeometry;
    use crate::plan::item::Conv;

    fn best(channels: (usize, usize), stride: usize, side: usize, candidates: &[Algorithm]) -> Algorithm {
        best_on(false, channels, stride, side, candidates)
    }

    fn best_on(
        tiles: bool,
        channels: (usize, usize),
        stride: usize,
        side: usize,
        candidates: &[Algorithm],
    ) -> Algorithm {
        let geometry = ConvGeometry {
            in_channels: channels.0,
            out_channels: channels.1,
            kernel: (3, 3),
            stride: (stride, stride),
            padding: (1, 1),
            dilation: (1, 1),
            groups: 1,
        };
        let conv = Conv { geometry, sources: Vec::new(), routing: None, act: Act::Silu, algorithm: Algorithm::Direct };
        cheapest_on(tiles, &Place { conv: &conv, input: (side, side), output: (side, side) }, candidates)
    }

    #[test]
    fn small_maps_and_few_channels_are_convolved_directly() {
        let f32 = [Algorithm::Direct, Algorithm::Winograd];
        assert_eq!(best((64, 64), 1, 80, &f32), Algorithm::Winograd);
        assert_eq!(best((64, 8), 1, 80, &f32), Algorithm::Direct);
        assert_eq!(best((64, 64), 1, 5, &f32), Algorithm::Direct);
        assert_eq!(best((64, 128), 2, 80, &f32), Algorithm::Winograd);
        assert_eq!(best((16, 32), 2, 160, &f32), Algorithm::Direct);
        let bf16 = [Algorithm::DirectBf16, Algorithm::Winograd];
        assert_eq!(best((128, 128), 1, 20, &bf16), Algorithm::Winograd);
        assert_eq!(best((128, 256), 2, 40, &bf16), Algorithm::DirectBf16);
        assert_eq!(best((128, 128), 1, 10, &bf16), Algorithm::DirectBf16);
        assert_eq!(best_on(true, (128, 128), 1, 20, &bf16), Algorithm::DirectBf16);
    }

    #[test]
    fn between_two_rows_costs_lie_between_theirs() {
        assert_eq!(row(4), TABLE[0].1);
        assert_eq!(row(1000), TABLE[6].1);
        assert_eq!(row(64), TABLE[4].1);
        let [bf16, winograd, _] = row(24);
        assert!(0.62 < bf16 && bf16 < 1.0 && 0.45 < winograd && winograd < 0.55);
    }
}
