//! Winograd's algorithm for maps of few tiles and many channels: a task is a panel of output channels, and takes it from experts
//! to the finished map of every sample of a group.
//!
//! Kernels are transformed a block of input channels at a time, so that they lie in a level-2 cache while they are used; experts of
//! a block lie there, too, while all samples of the group take their mixtures from them. Experts are read once a group.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::super::isa::Isa;
use super::super::phases::share;
use super::super::{ConvShape, Epilogue, Kernels, route};
use super::ahead::Ahead;
use super::direct::PANEL_VECTORS;
use super::experts::{self, BLOCK, Block};
use super::finish::load_part;
use super::memory::{Arena, LINE, Lines};
use super::planar::{ReadPointer, WritePointer, turn_in};
use super::product::{ZEROS, product};
use super::transforms::OUT;
use super::turn::turn;
use super::winograd::{self, Layout, POINTS, Phase, SKEW, Winograd};

/// Tiles of a group: products of a panel take about half of a level-2 cache. Fewer in tests, whose maps are small, so that they
/// take several groups.
const TILES: usize = if cfg!(test) { 40 } else { 104 };
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
    /// `[K, out, in, 3, 3]`, to be mixed for each sample; or, with one weight, 1, one kernel for all or one for each sample.
    Experts { values: &'a [f32], per_sample: bool },
    /// Experts block by block of each panel, as [`experts::turn_all`] leaves them.
    Turned(&'a [f32]),
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
    /// `[K]`, or `[batch, K]`.
    weights: &'a [f32],
    /// Whether a group is of one sample.
    alone: bool,
    epilogue: &'a Epilogue<'a>,
    /// How a unit's transformed maps lie: block by block of channels, in each point by point, so that a task reads them from
    /// the first to the last.
    layout: Layout,
    /// Values of a unit's transformed maps.
    inputs: usize,
    /// Values of a point's products of a unit.
    point: usize,
}

/// Transformed kernels of a block.
struct Made {
    /// Of which samples they are.
    samples: Range<usize>,
    start: *const f32,
    /// Values from a sample's to the next one's, and from a point's.
    sample: usize,
    point: usize,
}

impl Made {
    const NOTHING: Self = Self { samples: 0..0, start: std::ptr::null(), sample: 0, point: 0 };
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
    // Of several samples a group.
    let several = all > group && group > chunks;
    let source = match *kernels {
        // Transformed once for all groups.
        Kernels::Shared(kernels) if all > group => {
            packed.grow(POINTS * winograd::point_len(&conv.packing) + LINE);
            super::planar::mix(isa, shape, &[1.0], kernels, packed.as_mut_ptr());
            Source::Packed(packed.values())
        }
        Kernels::Shared(values) => Source::Experts { values, per_sample: false },
        Kernels::PerSample(values) => Source::Experts { values, per_sample: true },
        // Turned once for all groups.
        Kernels::Mixed { experts, .. } | Kernels::Routed { experts, .. } if several => {
            experts::turn_all(isa, &conv.packing, experts, packed);
            let count = experts.len() / experts::kernel_len(&conv.packing);
            Source::Turned(&packed.values()[..experts::turned_len(&conv.packing, count)])
        }
        Kernels::Mixed { experts: values, .. } | Kernels::Routed { experts: values, .. } => {
            Source::Experts { values, per_sample: false }
        }
    };
    let weights: &[f32] = match *kernels {
        Kernels::Mixed { weights, .. } => weights,
        _ => &[1.0],
    };
    let point_in = conv.chunk * BLOCK + SKEW;
    let layout = Layout { row_in: BLOCK, block_in: POINTS * point_in, point_in, ..conv.layout::<I>() };
    let point = (conv.chunk * PANEL_VECTORS * I::LANES + SKEW).next_multiple_of(LINE);
    let inputs = conv.packing.taps.div_ceil(BLOCK) * layout.block_in;
    let panels = Panels { conv, shape, source, weights, alone: false, epilogue, layout, inputs, point };
    let samples = group.div_ceil(chunks) + 1;
    let input = panels.conv.input;
    let common = input.end(samples).next_multiple_of(LINE);
    maps.grow(common + group * inputs);
    let out = WritePointer(y.as_mut_ptr().cast());
    for first in (0..all).step_by(group) {
        let units = Units { first, count: group.min(all - first), chunks };
        let (first, last) = units.samples();
        if let Kernels::Routed { ref router, .. } = *kernels {
            let (len, count) = (x.len() / shape.batch, router.bias.len());
            routing.resize(shape.batch * count, 0.0);
            let weights = &mut routing[first * count..(last + 1) * count];
            route::by_router(isa, &x[first * len..(last + 1) * len], router, weights);
        }
        let mut panels = Panels { alone: first == last, ..panels.clone() };
        if let Kernels::Routed { .. } = kernels {
            panels.weights = routing;
        }
        let panels = &panels;
        let arena = Arena::new(maps);
        panels.transform(isa, x, units, (&arena, common));
        let count = panels.conv.packing.panels();
        share(count, |panel| {
            let mut own = OWN.take();
            let places = panels.places::<I>(&mut own, group);
            isa.run(
                #[inline(always)]
                || panels.panel(isa, panel, units, ReadPointer(arena.at(common)), &places, out),
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
        share(units.count * tasks, |index| {
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
        let kernels = 2 * POINTS * (BLOCK * width + SKEW);
        let rows = OUT * self.conv.tiles().1 * OUT * width;
        let experts = self.experts() * BLOCK * 9 * width;
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
    fn panel<I: Isa>(&self, isa: I, panel: usize, units: Units, maps: ReadPointer, places: &Places, out: WritePointer) {
        let packing = &self.conv.packing;
        let vectors = packing.vectors(panel);
        let width = vectors * I::LANES;
        let layout = self.layout;
        let (_, last_sample) = units.samples();
        for first in (0..packing.taps).step_by(BLOCK) {
            let block = Block::new(packing, panel, first);
            let mut made = Made::NOTHING;
            let mut ahead = self.ahead::<I>(&block);
            for index in 0..units.count {
                let unit = units.at(index);
                if !made.samples.contains(&unit.sample) {
                    made = self.make(isa, &block, unit.sample..last_sample + 1, &made, places);
                }
                let kernels = made.start.wrapping_add((unit.sample - made.samples.start) * made.sample);
                let tiles = self.tiles_of(unit);
                let height = tiles.div_ceil(tiles.div_ceil(I::TILE_ROWS));
                let inputs = maps.get().wrapping_add(index * self.inputs + first / BLOCK * layout.block_in);
                let products = places.products.wrapping_add(index * POINTS * self.point);
                for point in 0..POINTS {
                    for tile in (0..tiles).step_by(height) {
                        let size = (height.min(tiles - tile), vectors);
                        let rows = inputs.wrapping_add(point * layout.point_in + tile * layout.row_in);
                        let to = products.wrapping_add(point * self.point + tile * width);
                        let kernels = kernels.wrapping_add(point * made.point);
                        let start = if first == 0 { (ZEROS.as_ptr(), 0) } else { (to.cast_const(), width) };
                        // SAFETY: there are transformed maps and products for every tile of the unit, and kernels for the block.
                        unsafe {
                            // Of maps, what the next point reads.
                            let lines = [(rows.wrapping_add(layout.point_in), LINE), ahead.lines(rows)];
                            product::<I, true>(
                                isa,
                                (size, block.channels),
                                (rows, layout.row_in),
                                kernels,
                                start,
                                (to, width),
                                lines,
                            );
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

    /// Transformed kernels of a block for some of the samples, at least the first; `made` are those of samples before.
    #[inline(always)]
    fn make<I: Isa>(&self, isa: I, block: &Block, samples: Range<usize>, made: &Made, places: &Places) -> Made {
        let packing = &self.conv.packing;
        let (channels, vectors) = (block.channels, packing.vectors(block.panel));
        let width = vectors * I::LANES;
        let point = channels * width + SKEW;
        let sample = samples.start;
        let mut new = Made { samples, start: places.kernels, sample: 0, point };
        let (experts, own) = match self.source {
            Source::Packed(packed) => {
                let start = packed.as_ptr().wrapping_add(packing.panel(block.panel) + block.first * width);
                return Made { start, point: winograd::point_len(packing), ..new };
            }
            Source::Turned(values) => (values[block.turned::<I>(packing, self.experts()).0..].as_ptr(), false),
            Source::Experts { values, per_sample } => {
                let len = self.shape.kernel_len();
                let values = if per_sample { &values[sample * len..][..len] } else { values };
                if self.experts() > 1 && self.alone {
                    // Nobody else takes a mixture from them: fewer values are turned.
                    experts::mix_rows(isa, packing, block, (self.weights_of(sample), values), places.lines);
                    let lines = (places.lines.cast_const(), 9 * channels);
                    experts::turn_rows(isa, packing, block, lines, places.experts);
                    experts::mix_block(isa, (channels, vectors), [&[1.0]], places.experts, [places.kernels]);
                    return new;
                }
                if made.samples.is_empty() || per_sample {
                    experts::turn_block(isa, packing, block, values, places.experts);
                }
                (places.experts.cast_const(), per_sample)
            }
        };
        let (size, weights) = ((channels, vectors), self.weights_of(sample));
        // One mixture is that of all samples, or an expert that is read once makes kernels of two.
        let common = !own && self.weights.len() == weights.len();
        if common || own || new.samples.len() == 1 {
            experts::mix_block(isa, size, [weights], experts, [places.kernels]);
            if !common {
                new.samples.end = sample + 1;
            }
        } else {
            new.sample = POINTS * (BLOCK * PANEL_VECTORS * I::LANES + SKEW);
            new.samples.end = sample + 2;
            let kernels = [places.kernels, places.kernels.wrapping_add(new.sample)];
            experts::mix_block(isa, size, [weights, self.weights_of(sample + 1)], experts, kernels);
        }
        new
    }

    /// Experts of the block after this one, which the same thread will mostly want next.
    fn ahead<I: Isa>(&self, block: &Block) -> Ahead {
        let packing = &self.conv.packing;
        let Some(next) = block.next(packing) else { return Ahead::NOTHING };
        match self.source {
            Source::Experts { values, per_sample: false } => {
                Ahead::rows(values, self.shape.kernel_len(), next.rows::<I>(packing), 9 * next.channels)
            }
            Source::Turned(values) => {
                let (start, len) = next.turned::<I>(packing, self.experts());
                Ahead::values(&values[start..start + len], block.channels)
            }
            Source::Packed(values) => {
                let width = packing.vectors(next.panel) * I::LANES;
                let (start, point) = (packing.panel(next.panel) + next.first * width, winograd::point_len(packing));
                Ahead::parts(&values[start..], (POINTS, point), next.channels * width, block.channels)
            }
            Source::Experts { .. } => Ahead::NOTHING,
        }
    }

    /// Experts that are mixed.
    fn experts(&self) -> usize {
        match self.source {
            Source::Packed(_) => 0,
            Source::Experts { per_sample: true, .. } => 1,
            Source::Experts { values, .. } => values.len() / self.shape.kernel_len(),
            Source::Turned(values) => values.len() / (9 * self.conv.packing.len()),
        }
    }

    /// Weights of a sample's experts.
    fn weights_of(&self, sample: usize) -> &[f32] {
        let count = self.experts();
        let row = if self.weights.len() == count { 0 } else { sample * count };
        &self.weights[row..row + count]
    }

    fn tiles_of(&self, unit: Unit) -> usize {
        let (rows, columns) = self.conv.tiles();
        self.conv.chunk.min(rows * columns - unit.chunk * self.conv.chunk)
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
        out: WritePointer,
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
