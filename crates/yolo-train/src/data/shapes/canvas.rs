//! A picture in floating point, and what happens to a whole picture: light, blur, noise.

use image::RgbImage;

use super::outline::Point;
use super::random::Random;
use super::raster::Coverage;

/// A colour, 0 to 255.
pub(super) type Colour = [f32; 3];

/// A square picture whose samples are not rounded yet.
pub(super) struct Canvas {
    pub(super) size: usize,
    pub(super) pixels: Vec<Colour>,
}

impl Canvas {
    /// A picture that gives every pixel's colour as a function of its centre.
    pub(super) fn painted(size: usize, mut colour: impl FnMut(Point) -> Colour) -> Self {
        let centre = |index: usize| [(index % size) as f32 + 0.5, (index / size) as f32 + 0.5];
        Self { size, pixels: (0..size * size).map(|index| colour(centre(index))).collect() }
    }

    /// The colour under a point, or at the nearest pixel of the picture.
    pub(super) fn at(&self, point: Point) -> Colour {
        let [x, y] = point.map(|v| (v.max(0.0) as usize).min(self.size - 1));
        self.pixels[y * self.size + x]
    }

    /// Lays a colour, which may differ from pixel to pixel, over what is covered.
    pub(super) fn lay(&mut self, coverage: &Coverage, opacity: f32, mut colour: impl FnMut(Point) -> Colour) {
        for (x, y, share) in coverage.pixels() {
            let pixel = &mut self.pixels[y * self.size + x];
            *pixel = mix(*pixel, colour([x as f32 + 0.5, y as f32 + 0.5]), share * opacity);
        }
    }

    /// Light that falls from one side, and corners that lie in the dark.
    pub(super) fn light(&mut self, slope: [f32; 2], vignette: f32) {
        let half = self.size as f32 / 2.0;
        for (index, pixel) in self.pixels.iter_mut().enumerate() {
            let x = (index % self.size) as f32 / half - 1.0;
            let y = (index / self.size) as f32 / half - 1.0;
            let gain = 1.0 + slope[0] * x + slope[1] * y - vignette * (x * x + y * y) / 2.0;
            *pixel = pixel.map(|sample| sample * gain.max(0.1));
        }
    }

    /// Changes contrast around the middle grey, and brightness.
    pub(super) fn expose(&mut self, contrast: f32, brightness: f32) {
        for pixel in &mut self.pixels {
            *pixel = pixel.map(|sample| (sample - 127.5) * contrast + 127.5 + brightness);
        }
    }

    /// Gaussian blur with this standard deviation in pixels.
    pub(super) fn blur(&mut self, deviation: f32) {
        let reach = (deviation * 2.5).ceil() as usize;
        let weights: Vec<f32> = (0..=reach).map(|i| (-0.5 * (i as f32 / deviation).powi(2)).exp()).collect();
        let total: f32 = weights[0] + 2.0 * weights[1..].iter().sum::<f32>();
        let weights: Vec<f32> = weights.iter().map(|weight| weight / total).collect();
        let mut line = vec![[0.0; 3]; self.size + 2 * reach];
        for (start, step) in (0..self.size).map(|y| (y * self.size, 1)).chain((0..self.size).map(|x| (x, self.size))) {
            for (index, sample) in line.iter_mut().enumerate() {
                *sample = self.pixels[start + index.saturating_sub(reach).min(self.size - 1) * step];
            }
            for index in 0..self.size {
                let mut sum = line[index + reach].map(|sample| sample * weights[0]);
                for (distance, weight) in weights.iter().enumerate().skip(1) {
                    let (before, after) = (line[index + reach - distance], line[index + reach + distance]);
                    for channel in 0..3 {
                        sum[channel] += (before[channel] + after[channel]) * weight;
                    }
                }
                self.pixels[start + index * step] = sum;
            }
        }
    }

    /// Noise of a camera: grey, or of a colour of its own in every pixel.
    pub(super) fn noise(&mut self, deviation: f32, coloured: bool, random: &mut Random) {
        for pixel in &mut self.pixels {
            let [a, b, c] = random.noise();
            let noise = if coloured { [a, b, c] } else { [a; 3] };
            *pixel = [0, 1, 2].map(|channel| pixel[channel] + noise[channel] * deviation);
        }
    }

    /// The picture, its samples rounded.
    pub(super) fn finish(&self) -> RgbImage {
        let samples = self.pixels.as_flattened().iter().map(|sample| sample.round().clamp(0.0, 255.0) as u8).collect();
        RgbImage::from_raw(self.size as u32, self.size as u32, samples).expect("three samples a pixel")
    }
}

/// Between two colours: `from` at 0, `to` at 1.
pub(super) fn mix(from: Colour, to: Colour, share: f32) -> Colour {
    [0, 1, 2].map(|channel| from[channel] + (to[channel] - from[channel]) * share)
}

/// Any colour; bright and dark, pale and strong ones.
pub(super) fn any_colour(random: &mut Random) -> Colour {
    let hue = random.between(0.0, 6.0);
    let strength = random.unit().sqrt();
    let value = random.between(40.0, 255.0);
    // The samples of a hue rise and fall along three lines around the circle of colours.
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let place = (offset + hue) % 6.0;
        value * (1.0 - strength * place.min(4.0 - place).clamp(0.0, 1.0))
    })
}

/// How different two colours look, roughly: 0 to 765.
pub(super) fn difference(a: Colour, b: Colour) -> f32 {
    (0..3).map(|channel| (a[channel] - b[channel]).abs()).sum()
}
