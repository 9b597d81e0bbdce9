//! Winograd's algorithm for maps of few tiles and many channels: a task is a panel of output channels, and takes it from experts
//! to the finished map of every sample of a group.
//!
//! Kernels are transformed a block of input channels at a time, so that they lie in a level-2 cache while they are used; experts of
//! a block lie there, too, while all samples of the group take their mixtures from them. Experts are read once a group.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::super::isa::Isa;
use super::super::{ConvShape, Epilogue, Kernels, route};
use super::direct::PANEL_VECTORS;
use super::finish::{load_part, store_part};
use super::memory::{Arena, LINE, Lines};
use super::planar::{From, To, turn_in};
use super::product::{ZEROS, product};
use super::transforms::OUT;
use super::turn::turn;
use super::winograd::{self, Layout, POINTS, Phase, SKEW, Winograd};

/// Input channels of a block: transformed kernels of a panel take about a seventh of a level-2 cache of 512 KiB.
const BLOCK: usize = 32;
/// Tiles of a group: products of a panel take about half of a level-2 cache. Fewer in tests, whose maps are small, so that they
/// take several groups.
const TILES: usize = if cfg!(test) { 40 } else { 128 };
/// Values of the transformed maps of a group, about: a share of a level-3 cache.
const MAP_VALUES: usize = 2 * 1024 * 1024;

thread_local! {
    /// Products, kernels, experts and finished rows of a task.
    static OWN: RefCell<Lines> = RefCell::default();
}

/// Where a task finds its kernels.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Transformed and packed.
    Packed(&'a [f32]),
    /// Mixed for each sample; with one weight, 1, that is the same for all, or experts that are a sample's own.
    Mixed { weights: &'a [f32], experts: &'a [f32], per_sample: bool },
}

/// Some rows of tiles of a sample.
#[derive(Clone, Copy)]
struct Unit {
    sample: usize,
    chunk: usize,
}

/// Units of a group, one after the other.
#[derive(Clone, Copy)]
struct Units {
    first: usize,
    count: usize,
    /// Chunks of a sample.
    chunks: usize,
}

impl Units {
    fn at(&self, index: usize) -> Unit {
        Unit { sample: (self.first + index) / self.chunks, chunk: (self.first + index) % self.chunks }
    }

    /// Samples, first and last.
    fn samples(&self) -> (usize, usize) {
        (self.at(0).sample, self.at(self.count - 1).sample)
    }
}

/// A convolution, and how it is divided.
#[derive(Clone)]
struct Panels<'a> {
    conv: Winograd,
    shape: &'a ConvShape,
    source: Source<'a>,
    epilogue: &'a Epilogue<'a>,
    /// How a unit's transformed maps lie: block by block of channels, in each point by point, so that a task reads them from
    /// the first to the last.
    layout: Layout,
    /// Values of a unit's transformed maps.
    inputs: usize,
    /// Values of a point's products of a unit.
    point: usize,
}

/// Places in a task's memory.
struct Places {
    kernels: *mut f32,
    experts: *mut f32,
    /// A panel's kernels in the experts' own order.
    lines: *mut f32,
    rows: *mut f32,
    products: *mut f32,
}

/// How many tiles make a unit, and units a group.
fn divide(conv: &mut Winograd, batch: usize) -> usize {
    let (rows, columns) = conv.tiles();
    let most = (MAP_VALUES / (POINTS * conv.packing.taps)).min(TILES);
    let unit = rows.div_ceil(rows.div_ceil((most / columns).max(1)));
    conv.chunk = unit * columns;
    let units = batch * rows.div_ceil(unit);
    let groups = units.div_ceil((most / conv.chunk).max(1));
    units.div_ceil(groups)
}

/// Convolution; writes every value of `y`. `maps` and `packed` are kept from call to call.
pub(super) fn conv2d<I: Isa>(
    isa: I,
    mut conv: Winograd,
    (x, kernels, epilogue): (&[f32], &Kernels<'_>, &Epilogue<'_>),
    y: &mut [MaybeUninit<f32>],
    shape: &ConvShape,
    (maps, packed, routing): (&mut Lines, &mut Lines, &mut Vec<f32>),
) {
    let group = divide(&mut conv, shape.batch);
    let chunks = conv.tiles().0.div_ceil(conv.chunk / conv.tiles().1);
    let all = shape.batch * chunks;
    let source = match *kernels {
        Kernels::Packed(kernels) => Source::Packed(kernels.values()),
        // Transformed once for all groups.
        Kernels::Shared(kernels) if all > group => {
            packed.grow(POINTS * winograd::point_len(&conv.packing) + LINE);
            super::planar::mix(isa, shape, &[1.0], kernels, packed.as_mut_ptr());
            Source::Packed(packed.values())
        }
        Kernels::Shared(experts) => Source::Mixed { weights: &[1.0], experts, per_sample: false },
        Kernels::PerSample(experts) => Source::Mixed { weights: &[1.0], experts, per_sample: true },
        Kernels::Mixed { weights, experts } => Source::Mixed { weights, experts, per_sample: false },
        // Their weights are computed group by group.
        Kernels::Routed { experts, .. } => Source::Mixed { weights: &[], experts, per_sample: false },
    };
    let point_in = conv.chunk * BLOCK + SKEW;
    let layout = Layout { row_in: BLOCK, block_in: POINTS * point_in, point_in, ..conv.layout::<I>() };
    let point = (conv.chunk * PANEL_VECTORS * I::LANES + SKEW).next_multiple_of(LINE);
    let inputs = conv.packing.taps.div_ceil(BLOCK) * layout.block_in;
    let panels = Panels { conv, shape, source, epilogue, layout, inputs, point };
    let samples = group.div_ceil(chunks) + 1;
    let input = panels.conv.input;
    let common = input.end(samples).next_multiple_of(LINE);
    maps.grow(common + group * inputs);
    let out = To(y.as_mut_ptr().cast());
    for first in (0..all).step_by(group) {
        let units = Units { first, count: group.min(all - first), chunks };
        let mut panels = panels.clone();
        if let Kernels::Routed { ref router, experts } = *kernels {
            let (first, last) = units.samples();
            let (len, count) = (x.len() / shape.batch, router.bias.len());
            routing.resize(shape.batch * count, 0.0);
            let weights = &mut routing[first * count..(last + 1) * count];
            route::by_router(isa, &x[first * len..(last + 1) * len], router, weights);
            panels.source = Source::Mixed { weights: routing, experts, per_sample: false };
        }
        let panels = &panels;
        let arena = Arena::new(maps);
        panels.transform(isa, x, units, (&arena, common));
        let count = panels.conv.packing.panels();
        (0..count).into_par_iter().for_each(|panel| {
            let mut own = OWN.take();
            let places = panels.places::<I>(&mut own, group);
            isa.run(
                #[inline(always)]
                || panels.panel(isa, panel, units, From(arena.at(common)), &places, out),
            );
            OWN.set(own);
        });
    }
}

impl Panels<'_> {
    /// Turns and transforms the maps of some units.
    fn transform<I: Isa>(&self, isa: I, x: &[f32], units: Units, (arena, common): (&Arena, usize)) {
        let len = self.shape.in_channels * self.shape.input.0 * self.shape.input.1;
        let (first, last) = units.samples();
        for sample in first..=last {
            let view = super::memory::View {
                offset: self.conv.input.offset + (sample - first) * self.conv.input.sample(),
                ..self.conv.input
            };
            turn_in(isa, arena, &view, &x[sample * len..][..len], self.rows_of(units, sample));
        }
        let jobs = self.conv.jobs::<I>();
        let tasks = jobs.tasks(Phase::Inputs, 0);
        (0..units.count * tasks).into_par_iter().for_each(|index| {
            let (unit, task) = (index / tasks, index % tasks);
            let Unit { sample, chunk } = units.at(unit);
            if task >= jobs.tasks(Phase::Inputs, chunk) {
                return;
            }
            let none = std::ptr::null();
            let scratch = arena.at(common + unit * self.inputs);
            let chunk = jobs.chunk(arena, chunk, none, none, scratch).of(sample - first);
            let chunk = chunk.laid_out(self.layout);
            isa.run(
                #[inline(always)]
                || chunk.task(isa, Phase::Inputs, task),
            );
        });
    }

    /// Rows of a sample's map that the units of a group read.
    fn rows_of(&self, units: Units, sample: usize) -> Range<usize> {
        let (rows, columns) = self.conv.tiles();
        let unit = self.conv.chunk / columns;
        let (from, to) = (units.at(0), units.at(units.count - 1));
        let first = if from.sample == sample { from.chunk * unit } else { 0 };
        let last = if to.sample == sample { ((to.chunk + 1) * unit).min(rows) } else { rows };
        let (height, padding) = (self.conv.input.height, self.conv.padding.0);
        let top = (first * OUT).saturating_sub(padding).min(height);
        top..(last * OUT + 2).saturating_sub(padding).clamp(top, height)
    }

    /// The parts of a task's memory.
    fn places<I: Isa>(&self, own: &mut Lines, group: usize) -> Places {
        let width = PANEL_VECTORS * I::LANES;
        let experts = match self.source {
            Source::Packed(_) => 0,
            Source::Mixed { per_sample: true, .. } => 1,
            Source::Mixed { experts, .. } => experts.len() / self.shape.kernel_len(),
        };
        let kernels = (POINTS * (BLOCK * width + SKEW)).next_multiple_of(LINE);
        let rows = OUT * self.conv.tiles().1 * OUT * width;
        let experts = experts * BLOCK * 9 * width;
        let products = group * POINTS * self.point;
        let lines = width * 9 * BLOCK;
        own.grow(kernels + rows + experts + lines + products);
        let start = own.as_mut_ptr();
        Places {
            kernels: start,
            rows: start.wrapping_add(kernels),
            experts: start.wrapping_add(kernels + rows),
            lines: start.wrapping_add(kernels + rows + experts),
            products: start.wrapping_add(kernels + rows + experts + lines),
        }
    }

    /// One panel of output channels for all units of a group; `maps` are their transformed maps, one after the other.
    #[inline(always)]
    fn panel<I: Isa>(&self, isa: I, panel: usize, units: Units, maps: From, places: &Places, out: To) {
        let packing = &self.conv.packing;
        let vectors = packing.vectors(panel);
        let width = vectors * I::LANES;
        let layout = self.layout;
        let (first_sample, last_sample) = units.samples();
        let alone = first_sample == last_sample;
        for first in (0..packing.taps).step_by(BLOCK) {
            let channels = BLOCK.min(packing.taps - first);
            let mut ready = None;
            for index in 0..units.count {
                let unit = units.at(index);
                let (kernels, step) = match self.source {
                    Source::Packed(packed) => {
                        let start = packed.as_ptr().wrapping_add(packing.panel(panel) + first * width);
                        (start, winograd::point_len(packing))
                    }
                    Source::Mixed { weights, experts, per_sample } => {
                        if ready != Some(unit.sample) && (ready.is_none() || per_sample || weights.len() > 1) {
                            let len = self.shape.kernel_len();
                            let experts = if per_sample { &experts[unit.sample * len..][..len] } else { experts };
                            let count = experts.len() / len;
                            let row = if weights.len() == count { 0 } else { unit.sample * count };
                            let weights = &weights[row..row + count];
                            let block = (first, channels);
                            if alone {
                                // Nobody else takes a mixture from them: fewer values are turned.
                                self.mix_rows(isa, panel, block, (weights, experts), places.lines);
                                let lines = (places.lines.cast_const(), 9 * channels);
                                self.turn_rows(isa, panel, channels, lines, places.experts);
                                self.mix_block(isa, (channels, vectors), &[1.0], places);
                            } else {
                                if ready.is_none() || per_sample {
                                    self.turn_experts(isa, panel, block, experts, places.experts);
                                }
                                self.mix_block(isa, (channels, vectors), weights, places);
                            }
                            ready = Some(unit.sample);
                        }
                        (places.kernels.cast_const(), channels * width + SKEW)
                    }
                };
                let tiles = self.tiles_of(unit);
                let height = tiles.div_ceil(tiles.div_ceil(I::TILE_ROWS));
                let inputs = maps.get().wrapping_add(index * self.inputs + first / BLOCK * layout.block_in);
                let products = places.products.wrapping_add(index * POINTS * self.point);
                for point in 0..POINTS {
                    for tile in (0..tiles).step_by(height) {
                        let size = (height.min(tiles - tile), vectors);
                        let rows = inputs.wrapping_add(point * layout.point_in + tile * layout.row_in);
                        let to = products.wrapping_add(point * self.point + tile * width);
                        let kernels = kernels.wrapping_add(point * step);
                        let start = if first == 0 { (ZEROS.as_ptr(), 0) } else { (to.cast_const(), width) };
                        // SAFETY: there are transformed maps and products for every tile of the unit, and kernels for the block.
                        unsafe {
                            product(isa, size, (rows, layout.row_in), channels, kernels, start, (to, width));
                        }
                    }
                }
            }
        }
        for index in 0..units.count {
            let unit = units.at(index);
            let products = places.products.wrapping_add(index * POINTS * self.point);
            self.finish(isa, (panel, vectors), unit, products, places.rows, out);
        }
    }

    fn tiles_of(&self, unit: Unit) -> usize {
        let (rows, columns) = self.conv.tiles();
        self.conv.chunk.min(rows * columns - unit.chunk * self.conv.chunk)
    }

    /// Mixes experts `[K, out, in, 3, 3]` of a panel and a block of channels in their own order, `[width, in, 9]`.
    #[inline(always)]
    fn mix_rows<I: Isa>(
        &self,
        isa: I,
        panel: usize,
        (first, channels): (usize, usize),
        (weights, experts): (&[f32], &[f32]),
        to: *mut f32,
    ) {
        let packing = &self.conv.packing;
        let row = panel * PANEL_VECTORS * I::LANES;
        let rows = (packing.vectors(panel) * I::LANES).min(packing.out - row);
        let len = 9 * channels;
        for lane in 0..rows {
            let start = ((row + lane) * packing.taps + first) * 9;
            let to = to.wrapping_add(lane * len);
            let mut at = 0;
            while at < len {
                // Channels of a block are whole vectors of taps but for a last one.
                let count = len - at;
                let mut sum = isa.splat(0.0);
                for (expert, weight) in weights.iter().enumerate() {
                    let from = experts[expert * self.shape.kernel_len() + start + at..].as_ptr();
                    // SAFETY: the expert has `count` more values of this row and block.
                    sum = isa.fma(isa.splat(*weight), unsafe { load_part(isa, from, count) }, sum);
                }
                // SAFETY: there is room for the rows of a panel.
                unsafe { store_part(isa, to.wrapping_add(at), sum, count) };
                at += I::LANES;
            }
        }
    }

    /// Experts `[K, out, in, 3, 3]` of a panel and a block of channels, turned to `[K, in, 9, width]`.
    #[inline(always)]
    fn turn_experts<I: Isa>(
        &self,
        isa: I,
        panel: usize,
        (first, channels): (usize, usize),
        experts: &[f32],
        to: *mut f32,
    ) {
        let row = panel * PANEL_VECTORS * I::LANES;
        let taps = self.conv.packing.taps;
        let width = self.conv.packing.vectors(panel) * I::LANES;
        for (index, expert) in experts.chunks_exact(self.shape.kernel_len()).enumerate() {
            let to = to.wrapping_add(index * channels * 9 * width);
            let from = expert[(row * taps + first) * 9..].as_ptr();
            self.turn_rows(isa, panel, channels, (from, 9 * taps), to);
        }
    }

    /// Turns a panel's rows of the taps of a block, which begin so many values apart; zeros where there are no more channels.
    #[inline(always)]
    fn turn_rows<I: Isa>(&self, isa: I, panel: usize, channels: usize, from: (*const f32, usize), to: *mut f32) {
        let packing = &self.conv.packing;
        let width = packing.vectors(panel) * I::LANES;
        let rows = width.min(packing.out - panel * PANEL_VECTORS * I::LANES);
        // SAFETY: there are `rows` more rows of all taps; the memory has a row for each tap of the block.
        unsafe { turn(isa, (rows, 9 * channels), from, (to, width)) };
        for tap in 0..9 * channels {
            for lane in rows..width {
                // SAFETY: as above.
                unsafe { *to.add(tap * width + lane) = 0.0 };
            }
        }
    }

    /// Mixes and transforms the kernels of a block.
    #[inline(always)]
    fn mix_block<I: Isa>(&self, isa: I, (channels, vectors): (usize, usize), weights: &[f32], places: &Places) {
        let width = vectors * I::LANES;
        for channel in 0..channels {
            for vector in 0..vectors {
                let place = channel * width + vector * I::LANES;
                let mut nine = [isa.splat(0.0); 9];
                for (expert, weight) in weights.iter().enumerate() {
                    let weight = isa.splat(*weight);
                    let from =
                        places.experts.wrapping_add((expert * channels + channel) * 9 * width + vector * I::LANES);
                    for tap in 0..9 {
                        // SAFETY: the turned experts have a row for each tap of the block.
                        nine[tap] = isa.fma(weight, unsafe { isa.load_at(from.add(tap * width)) }, nine[tap]);
                    }
                }
                // SAFETY: the kernels of each point have a row for each channel of the block.
                unsafe {
                    winograd::transform_packed(isa, &nine, places.kernels.wrapping_add(place), channels * width + SKEW)
                };
            }
        }
    }

    /// Turns the products of a unit into its part of the sample's maps.
    #[inline(always)]
    fn finish<I: Isa>(
        &self,
        isa: I,
        (panel, vectors): (usize, usize),
        unit: Unit,
        products: *const f32,
        rows: *mut f32,
        out: To,
    ) {
        let (height, width) = self.shape.output;
        let channels = self.shape.out_channels;
        let (_, columns) = self.conv.tiles();
        let panel_width = vectors * I::LANES;
        let first = panel * PANEL_VECTORS * I::LANES;
        let here = panel_width.min(channels - first);
        let mut bias = [isa.splat(0.0); PANEL_VECTORS];
        let mut scale = [isa.splat(1.0); PANEL_VECTORS];
        for vector in 0..vectors {
            let channel = first + vector * I::LANES;
            let epilogue = self.epilogue;
            if !epilogue.shift.is_empty() {
                let start = if epilogue.shift.len() == channels { channel } else { unit.sample * channels + channel };
                // SAFETY: there are as many values as channels that remain.
                bias[vector] = unsafe { load_part(isa, epilogue.shift[start..].as_ptr(), channels - channel) };
            }
            if !epilogue.scale.is_empty() {
                // SAFETY: as above.
                scale[vector] = unsafe { load_part(isa, epilogue.scale[channel..].as_ptr(), channels - channel) };
            }
        }
        let line = columns * OUT * panel_width;
        let tiles = self.tiles_of(unit);
        for start in (0..tiles).step_by(columns) {
            for column in 0..columns {
                for vector in 0..vectors {
                    let from = products.wrapping_add((start + column) * panel_width + vector * I::LANES);
                    // SAFETY: there is a product for each tile, point and vector.
                    let mut values =
                        unsafe { winograd::outputs::<I, 6>(isa, from, self.point, scale[vector], bias[vector]) };
                    self.conv.act.apply_all(isa, &mut values);
                    let to = rows.wrapping_add(column * OUT * panel_width + vector * I::LANES);
                    for y in 0..OUT {
                        for x in 0..OUT {
                            // SAFETY: the rows have a place for each pixel of a row of tiles.
                            unsafe { isa.store_at(to.add(y * line + x * panel_width), values[y][x]) };
                        }
                    }
                }
            }
            let row = (unit.chunk * self.conv.chunk + start) / columns * OUT;
            for y in 0..OUT.min(height - row) {
                let to = out.at(((unit.sample * channels + first) * height + row + y) * width);
                let from = rows.wrapping_add(y * line).cast_const();
                // SAFETY: the result has a map for each of the channels; each task has its own.
                unsafe { turn(isa, (width, here), (from, panel_width), (to, height * width)) };
            }
        }
    }
}
