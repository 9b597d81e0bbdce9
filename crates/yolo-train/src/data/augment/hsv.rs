//! Random hue, saturation and value, through tables, with OpenCV's 8-bit colour space: hues count 0 to 179, the others to 255.

use image::RgbImage;

use crate::Hyp;
use crate::data::rng::Rng;

/// New hue, saturation and value by the old ones.
pub struct Jitter {
    /// Hue's sixth of the circle, and the way through it.
    hue: [(u8, f32); 256],
    saturation: [f32; 256],
    value: [f32; 256],
}

impl Jitter {
    /// Draws gains of up to the hyper-parameters' either way of 1; none where all are 0.
    pub fn random(hyp: &Hyp, rng: &mut Rng) -> Option<Self> {
        let limits = [hyp.hsv_h, hyp.hsv_s, hyp.hsv_v];
        if limits == [0.0; 3] {
            return None;
        }
        Some(Self::new(limits.map(|limit| 1.0 + rng.uniform(-limit, limit))))
    }

    /// Gains of hue, saturation and value.
    #[must_use]
    pub fn new([hue, saturation, value]: [f64; 3]) -> Self {
        let clipped = |gain: f64| {
            std::array::from_fn(|old| f32::from((old as f64 * gain).clamp(0.0, 255.0) as u8) * (1.0 / 255.0))
        };
        Self {
            hue: std::array::from_fn(|old| {
                let sixths = f32::from((old as f64 * hue).rem_euclid(180.0) as u8) * (6.0 / 180.0);
                (sixths as u8 % 6, sixths.fract())
            }),
            saturation: clipped(saturation),
            value: clipped(value),
        }
    }

    /// Changes a picture.
    pub fn apply(&self, picture: &mut RgbImage) {
        for pixel in picture.as_chunks_mut::<3>().0 {
            *pixel = self.change(*pixel);
        }
    }

    #[inline]
    fn change(&self, rgb: [u8; 3]) -> [u8; 3] {
        let [hue, saturation, value] = to_hsv(rgb);
        let (sixth, way) = self.hue[usize::from(hue)];
        let (s, v) = (self.saturation[usize::from(saturation)], self.value[usize::from(value)]);
        let levels = [v, v * (1.0 - s), v * (1.0 - s * way), v * (1.0 - s * (1.0 - way))];
        // Which level each of red, green and blue has.
        const LEVELS: [[u8; 3]; 6] = [[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]];
        // Cut, not rounded: OpenCV's way back is.
        LEVELS[usize::from(sixth)].map(|level| (levels[usize::from(level)] * 255.0) as u8)
    }
}

/// Fractional bits of the tables of reciprocals.
const SHIFT: u32 = 12;

/// `scale / x` in fixed point for every sample.
const fn reciprocals(scale: u32) -> [i32; 256] {
    let mut table = [0; 256];
    let mut x = 1;
    while x < 256 {
        // Rounded; no quotient here lies half-way between two whole numbers but where both roundings agree.
        table[x] = ((2 * (scale << SHIFT) + x as u32) / (2 * x as u32)) as i32;
        x += 1;
    }
    table
}

static SATURATION: [i32; 256] = reciprocals(255);
static HUE: [i32; 256] = reciprocals(30);

#[inline]
fn to_hsv(rgb: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = rgb.map(i32::from);
    let value = r.max(g).max(b);
    let spread = value - r.min(g).min(b);
    let half = 1 << (SHIFT - 1);
    let saturation = (spread * SATURATION[value as usize] + half) >> SHIFT;
    let sector = if value == r {
        g - b
    } else if value == g {
        b - r + 2 * spread
    } else {
        r - g + 4 * spread
    };
    let hue = (sector * HUE[spread as usize] + half) >> SHIFT;
    [(if hue < 0 { hue + 180 } else { hue }) as u8, saturation as u8, value as u8]
}
