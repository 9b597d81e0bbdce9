//! What lies behind the shapes.

use super::canvas::{Canvas, Colour, any_colour, mix};
use super::outline::Point;
use super::random::Random;
use super::raster::cover;

/// A plain colour, gradients, stripes, checks, clouds or blots, and often some stray lines.
pub(super) fn paint(size: usize, random: &mut Random) -> Canvas {
    let side = size as f32;
    let first = any_colour(random);
    // The second colour stays near the first, so that a pattern does not hide every shape on it.
    let second = mix(first, any_colour(random), random.between(0.2, 0.7));
    let mut canvas = match random.below(8) {
        0 => Canvas::painted(size, |_| first),
        1 => {
            let direction = random.direction();
            Canvas::painted(size, |point| mix(first, second, along(point, direction) / side / 1.4 + 0.5))
        }
        2 => {
            let centre = [random.between(0.0, side), random.between(0.0, side)];
            let reach = random.between(0.5, 1.2) * side;
            Canvas::painted(size, |[x, y]| mix(first, second, ((x - centre[0]).hypot(y - centre[1]) / reach).min(1.0)))
        }
        3 => {
            let (direction, period) = (random.direction(), side * random.between_log(0.02, 0.2));
            Canvas::painted(size, |point| mix(first, second, wave(along(point, direction), period)))
        }
        4 => {
            let (direction, period) = (random.direction(), side * random.between_log(0.04, 0.3));
            Canvas::painted(size, |point| {
                let (a, b) = (wave(along(point, direction), period), wave(across(point, direction), period));
                mix(first, second, a + b - 2.0 * a * b)
            })
        }
        5 => blots(size, first, random),
        _ => clouds(size, first, second, random),
    };
    for _ in 0..random.below(9).saturating_sub(4) {
        stray_line(&mut canvas, random);
    }
    canvas
}

fn along(point: Point, direction: [f32; 2]) -> f32 {
    point[0] * direction[0] + point[1] * direction[1]
}

fn across(point: Point, direction: [f32; 2]) -> f32 {
    point[1] * direction[0] - point[0] * direction[1]
}

/// Stripes: 0 and 1 in turn, with edges a pixel wide.
fn wave(place: f32, period: f32) -> f32 {
    let phase = (place / period).rem_euclid(1.0);
    let distance = (0.25 - (phase - 0.5).abs()) * period;
    (distance + 0.5).clamp(0.0, 1.0)
}

/// Round blots with soft edges.
fn blots(size: usize, ground: Colour, random: &mut Random) -> Canvas {
    let side = size as f32;
    let blots: Vec<_> = (0..3 + random.below(6))
        .map(|_| {
            let centre = [random.between(0.0, side), random.between(0.0, side)];
            let colour = mix(ground, any_colour(random), random.between(0.2, 0.7));
            (centre, random.between(0.1, 0.35) * side, colour)
        })
        .collect();
    Canvas::painted(size, |[x, y]| {
        blots.iter().fold(ground, |below, &(centre, reach, colour)| {
            let distance = ((x - centre[0]).powi(2) + (y - centre[1]).powi(2)) / (reach * reach);
            if distance > 6.0 { below } else { mix(below, colour, (-distance).exp()) }
        })
    })
}

/// A texture of value noise: random values on grids, each twice as fine and half as strong as the one before.
fn clouds(size: usize, first: Colour, second: Colour, random: &mut Random) -> Canvas {
    let mut cells = random.between_log(2.0, 24.0);
    let mut weight = 1.0;
    let mut values = vec![0.0; size * size];
    let mut total = 0.0;
    for _ in 0..1 + random.below(4) {
        add_grid(&mut values, size, cells.min(size as f32), weight, random);
        total += weight;
        cells *= 2.0;
        weight *= 0.55;
    }
    let mut values = values.into_iter();
    // Averages crowd around the middle: spread them.
    Canvas::painted(size, |_| {
        let value = values.next().unwrap_or(0.0) / total;
        mix(first, second, ((value - 0.5) * 1.6 + 0.5).clamp(0.0, 1.0))
    })
}

/// Adds a grid of random values, smoothly between its points.
fn add_grid(values: &mut [f32], size: usize, cells: f32, weight: f32, random: &mut Random) {
    let points = cells.ceil() as usize + 2;
    let grid: Vec<f32> = (0..points * points).map(|_| random.unit() * weight).collect();
    let place = |index: usize| {
        let at = index as f32 / size as f32 * cells;
        let share = at.fract();
        (at as usize, share * share * (3.0 - 2.0 * share))
    };
    let columns: Vec<_> = (0..size).map(place).collect();
    for (y, line) in values.chunks_exact_mut(size).enumerate() {
        let (row, down) = place(y);
        let (upper, lower) = (&grid[row * points..][..points], &grid[(row + 1) * points..][..points]);
        for (value, &(column, right)) in line.iter_mut().zip(&columns) {
            let above = upper[column] + (upper[column + 1] - upper[column]) * right;
            let below = lower[column] + (lower[column + 1] - lower[column]) * right;
            *value += above + (below - above) * down;
        }
    }
}

/// A scratch through the picture, which is no shape of any class.
fn stray_line(canvas: &mut Canvas, random: &mut Random) {
    let size = canvas.size;
    let side = size as f32;
    let ends = [(); 2].map(|()| [random.between(-0.1, 1.1) * side, random.between(-0.1, 1.1) * side]);
    let width = side * random.between(0.002, 0.01);
    let direction = [ends[1][0] - ends[0][0], ends[1][1] - ends[0][1]];
    let length = direction[0].hypot(direction[1]).max(1.0);
    let aside = [-direction[1] / length * width, direction[0] / length * width];
    let corners = [
        [ends[0][0] + aside[0], ends[0][1] + aside[1]],
        [ends[1][0] + aside[0], ends[1][1] + aside[1]],
        [ends[1][0] - aside[0], ends[1][1] - aside[1]],
        [ends[0][0] - aside[0], ends[0][1] - aside[1]],
    ];
    let colour = any_colour(random);
    canvas.lay(&cover(&[&corners], size, size), random.between(0.4, 1.0), |_| colour);
}
