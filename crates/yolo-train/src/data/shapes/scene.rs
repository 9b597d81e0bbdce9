//! One picture: a background, shapes over each other, light and a camera's faults.

use image::RgbImage;

use super::background;
use super::canvas::{Canvas, Colour, any_colour, difference, mix};
use super::outline::{NAMES, Outline, Point, clip};
use super::random::Random;
use super::raster::{Coverage, cover};

/// What is labelled shows at least this share of its area.
pub(super) const LEAST_VISIBLE: f32 = 0.35;
/// Diameters of shapes, shares of the picture's side.
const DIAMETERS: (f32, f32) = (0.07, 0.55);
/// How often a place is looked for where a shape hides no other, and the chance of staying where it does: networks are to see
/// some shapes that cannot be told, but few.
const TRIES: usize = 3;
const STAYS: f32 = 0.35;
/// A colour stands out where it differs by this much, and fits where it stands out around this share of the edge.
const STANDS_OUT: f32 = 110.0;
const STANDS_OUT_SHARE: f32 = 0.75;

/// A labelled shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Index into [`NAMES`].
    pub class: usize,
    /// The whole shape's outer edge, also where other shapes lie over it, cut at the picture's sides: `[x, y]` in pixels.
    pub polygon: Vec<[f32; 2]>,
    /// The share of its area that is to be seen: neither under other shapes nor outside of the picture.
    pub visible: f32,
}

/// A picture and its shapes.
#[derive(Debug, Clone)]
pub struct Scene {
    /// The picture.
    pub image: RgbImage,
    /// What is labelled, the lowest first.
    pub shapes: Vec<Shape>,
    /// How many shapes are in the picture without a label, as too little of them is to be seen.
    pub hidden: usize,
    /// JPEG quality to keep it with.
    pub(super) quality: u8,
}

/// Who covers which pixel: 0 nobody, else the shape's place + 1.
struct Owners {
    pixels: Vec<u16>,
    /// Pixels that each shape would cover were there no others and no sides of the picture.
    areas: Vec<f32>,
}

impl Owners {
    /// Pixels that every shape owns.
    fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.areas.len()];
        for &owner in self.pixels.iter().filter(|&&owner| owner > 0) {
            counts[usize::from(owner) - 1] += 1;
        }
        counts
    }

    /// The share of every shape that is to be seen.
    fn visible(&self) -> Vec<f32> {
        self.counts().iter().zip(&self.areas).map(|(&count, area)| (count as f32 / area).min(1.0)).collect()
    }

    /// Whether a shape over the others would hide too much of one that is to be seen now.
    fn would_hide(&self, coverage: &Coverage, size: usize) -> bool {
        let mut lost = vec![0; self.areas.len()];
        for (x, y, _) in solid(coverage) {
            if let Some(place) = usize::from(self.pixels[y * size + x]).checked_sub(1) {
                lost[place] += 1;
            }
        }
        let counts = self.counts();
        (0..lost.len()).any(|i| {
            let least = LEAST_VISIBLE * self.areas[i];
            counts[i] as f32 >= least && ((counts[i] - lost[i]) as f32) < least
        })
    }

    fn add(&mut self, coverage: &Coverage, area: f32, size: usize) {
        self.areas.push(area);
        for (x, y, _) in solid(coverage) {
            self.pixels[y * size + x] = self.areas.len() as u16;
        }
    }
}

fn solid(coverage: &Coverage) -> impl Iterator<Item = (usize, usize, f32)> {
    coverage.pixels().filter(|&(_, _, share)| share >= 0.5)
}

impl Scene {
    /// The picture of this number of this seed, `size` pixels wide and high: the same on every call, whatever the thread.
    #[must_use]
    pub fn new(seed: u64, number: u64, size: u32) -> Self {
        let mut random = Random::new(seed, number);
        let size = size as usize;
        let mut canvas = background::paint(size, &mut random);
        let mut owners = Owners { pixels: vec![0; size * size], areas: Vec::new() };
        let mut placed = Vec::new();
        // A few pictures are empty, and most have more than one shape: networks must learn both.
        let count = if random.chance(0.03) { 0 } else { 1 + random.below(5) + random.below(5) };
        for _ in 0..count {
            let class = random.below(NAMES.len());
            let shape = Outline::random(class, &mut random);
            let (outline, radius, centre, coverage) = place(&shape, &owners, size, &mut random);
            owners.add(&coverage, outline.area(), size);
            paint(&mut canvas, &shape, radius, centre, &coverage, &mut random);
            placed.push((class, outline));
        }
        let quality = photograph(&mut canvas, &mut random);

        let side = size as f32;
        let shapes: Vec<_> = placed
            .into_iter()
            .zip(owners.visible())
            .filter(|(_, visible)| *visible >= LEAST_VISIBLE)
            .map(|((class, outline), visible)| Shape { class, polygon: clip(&outline.outer, side, side), visible })
            .collect();
        Self { image: canvas.finish(), hidden: count - shapes.len(), shapes, quality }
    }
}

/// Looks for a place, where it can be had one at which no other shape disappears.
fn place(shape: &Outline, owners: &Owners, size: usize, random: &mut Random) -> (Outline, f32, Point, Coverage) {
    let side = size as f32;
    let mut tries = 0;
    loop {
        let radius = side / 2.0 * random.between_log(DIAMETERS.0, DIAMETERS.1);
        // Up to a quarter of the diameter may stick out at a side.
        let margin = radius / 2.0;
        let centre = [(); 2].map(|()| random.between(margin, side - margin));
        let outline = shape.placed(radius, centre);
        let coverage = cover(&outline.edges(), size, size);
        tries += 1;
        if tries == TRIES || random.chance(STAYS) || !owners.would_hide(&coverage, size) {
            return (outline, radius, centre, coverage);
        }
    }
}

/// Paints a shape in a colour that stands out from what lies around it.
fn paint(canvas: &mut Canvas, shape: &Outline, radius: f32, centre: Point, coverage: &Coverage, random: &mut Random) {
    let size = canvas.size;
    if random.chance(0.25) {
        let away = random.direction().map(|v| v * radius * 0.12);
        for (grown, opacity) in [(0.94, 0.2), (1.0, 0.15), (1.06, 0.1)] {
            let shadow = shape.placed(radius * grown, [centre[0] + away[0], centre[1] + away[1]]);
            canvas.lay(&cover(&shadow.edges(), size, size), opacity, |_| [0.0; 3]);
        }
    }
    let colour = standing_out(canvas, shape, radius, centre, random);
    let second = mix(colour, any_colour(random), random.between(0.15, 0.4));
    let direction = random.direction();
    // Place along the direction, -1 to 1 over the shape.
    let along = |[x, y]: Point| ((x - centre[0]) * direction[0] + (y - centre[1]) * direction[1]) / radius;
    match random.below(5) {
        0 | 1 => canvas.lay(coverage, 1.0, |_| colour),
        2 => canvas.lay(coverage, 1.0, |point| mix(colour, second, along(point) * 0.5 + 0.5)),
        3 => {
            let waves = random.between(4.0, 12.0);
            canvas.lay(coverage, 1.0, |point| {
                mix(colour, second, ((along(point) * waves).sin() * 2.0 + 0.5).clamp(0.0, 1.0))
            });
        }
        _ => {
            // A rim of another colour.
            let rim = mix(colour, if random.chance(0.5) { [0.0; 3] } else { [255.0; 3] }, 0.6);
            canvas.lay(coverage, 1.0, |_| rim);
            let inside = shape.shrunk(random.between(0.08, 0.16)).placed(radius, centre);
            canvas.lay(&cover(&inside.edges(), size, size), 1.0, |_| colour);
        }
    }
}

/// A colour that differs from the picture around the shape's edge; the best of a dozen.
fn standing_out(canvas: &Canvas, shape: &Outline, radius: f32, centre: Point, random: &mut Random) -> Colour {
    let around = shape.placed(radius * 1.05, centre);
    let seen: Vec<_> = around.outer.iter().map(|&point| canvas.at(point)).collect();
    let mut best = ([0.0; 3], -1.0);
    for _ in 0..12 {
        let colour = any_colour(random);
        let fits = seen.iter().filter(|&&other| difference(colour, other) > STANDS_OUT).count();
        let share = fits as f32 / seen.len() as f32;
        if share >= STANDS_OUT_SHARE {
            return colour;
        }
        if share > best.1 {
            best = (colour, share);
        }
    }
    best.0
}

/// Light, blur and noise over the whole picture; gives the JPEG quality.
fn photograph(canvas: &mut Canvas, random: &mut Random) -> u8 {
    if random.chance(0.6) {
        let strength = random.between(0.0, 0.45);
        let slope = random.direction().map(|v| v * strength);
        let vignette = if random.chance(0.3) { random.between(0.0, 0.5) } else { 0.0 };
        canvas.light(slope, vignette);
    }
    if random.chance(0.5) {
        canvas.expose(random.between(0.75, 1.15), random.between(-20.0, 20.0));
    }
    if random.chance(0.35) {
        canvas.blur(canvas.size as f32 / 320.0 * random.between(0.5, 1.6));
    }
    if random.chance(0.75) {
        let deviation = random.between(1.0, 14.0);
        canvas.noise(deviation, random.chance(0.6), random);
    }
    80 + random.below(16) as u8
}
