//! A network compiled for this machine's CPU: folded, fused, packed, laid out in memory; nothing is allocated while it runs.
//!
//! [`Plan::compile`] takes the graph that [`Model`](crate::Model) runs through one pass after the other: `fuse` makes items
//! of operations, `join` makes one convolution of several, `choose` picks algorithms, `place` lays out memory, `pack`
//! folds, packs and adds the steps to a [`Program`]. The model is the twin that the plan is tested against.

mod choose;
mod costs;
mod fuse;
mod item;
mod join;
mod pack;
mod pieces;
mod place;
mod round;
mod tune;
mod twin;

use std::io::ErrorKind;
use std::path::PathBuf;

use candle_core::{DType, Device, Storage, Tensor};
use dyconv_kernels::cpu::channels_last::{
    Input, Program, RunOptions, Session as ProgramSession, Step, multiplies_bf16,
};
use dyconv_kernels::cpu::{IsaName, available};

use crate::graph::{Graph, NodeId, Output, Shape};
use crate::post::OBJECTNESS;
use crate::weights::{Expected, Weights};
use crate::{Error, Outputs, Result};

/// Operations a second that some threads of this machine reach at most, a multiplication with its addition counting two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// On vectors, in f32.
    pub vectors: f64,
    /// In bf16 on tiles (AMX), where the CPU has them.
    pub tiles: Option<f64>,
}

impl Peak {
    /// Measures it, on values in registers and in the level-1 cache.
    ///
    /// # Errors
    /// Where the system gives no threads.
    pub fn measure(threads: usize) -> Result<Self> {
        let vectors = dyconv_kernels::cpu::channels_last::peak_operations_per_second(threads);
        let tiles = dyconv_kernels::cpu::channels_last::peak_on_tiles(threads);
        let failed = |cause: std::io::Error| Error::Argument {
            argument: "threads",
            problem: format!("{threads} threads cannot be started: {cause}"),
        };
        Ok(Self { vectors: vectors.map_err(failed)?, tiles: tiles.map_err(failed)? })
    }

    /// That of a step.
    pub fn of(&self, step: &Step) -> f64 {
        self.tiles.filter(|_| step.on_tiles).unwrap_or(self.vectors)
    }
}

/// Checks that the environment variable `DYCONV_ISA`, where it is set, names an instruction set that this CPU has kernels for;
/// the kernels themselves take the widest one where it does not.
///
/// # Errors
/// A sentence that lists those it has.
pub fn check_instruction_set() -> Result<()> {
    let wanted = std::env::var_os("DYCONV_ISA").unwrap_or_default();
    let names: Vec<&str> = available().into_iter().map(IsaName::name).collect();
    if wanted.is_empty() || names.iter().any(|name| wanted == *name) {
        return Ok(());
    }
    let problem = format!(
        "{} is no instruction set of this CPU: unset it, or set it to one of {}",
        wanted.display(),
        names.join(", ")
    );
    Err(Error::Argument { argument: "DYCONV_ISA", problem })
}

/// What convolutions multiply; sums are in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bf16, on a CPU that multiplies it: values and kernels are rounded to it where a convolution is computed by its definition, and
    /// so are maps that only such convolutions read, add or average. In f32 stay Winograd's algorithm, which would lose too much, all
    /// that is no convolution, and the maps that such steps read.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl Precision {
    /// What a plan takes for a type of numbers; none for those that it has not.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Checks that this CPU has it.
    ///
    /// # Errors
    /// A sentence where it does not.
    pub fn check(self) -> Result<()> {
        if self == Self::F32 || multiplies_bf16() {
            return Ok(());
        }
        let problem =
            "bf16 takes a CPU with AVX512-BF16, and DYCONV_ISA not set to another instruction set; f32 runs everywhere";
        Err(Error::Argument { argument: "precision", problem: problem.into() })
    }
}

/// What a plan is compiled for.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// Samples of a run.
    pub batch: usize,
    /// Height and width of the input in pixels, multiples of the network's stride.
    pub size: (usize, usize),
    /// Threads of a session; none for as many as the machine has.
    pub threads: Option<usize>,
    /// What convolutions multiply.
    pub precision: Precision,
    /// Layers of the YAML whose results are wanted besides.
    pub features: Vec<usize>,
    /// A file of the fastest algorithms on this machine: where several can compute a convolution, what it says is chosen, and what
    /// it does not say is measured, a few hundredths of a second each, and added to it. Without, a table of costs chooses.
    pub tuning: Option<PathBuf>,
}

impl Default for PlanOptions {
    fn default() -> Self {
        Self {
            batch: 1,
            size: (640, 640),
            threads: None,
            precision: Precision::F32,
            features: Vec::new(),
            tuning: None,
        }
    }
}

/// A compiled network; [`Plan::session`] gives what it takes to run it.
#[derive(Debug)]
pub struct Plan {
    /// For as many samples as go through at a time.
    program: Program,
    /// Samples of a run; a multiple of the program's.
    batch: usize,
    /// The program's, with the operations of all samples.
    steps: Vec<Step>,
    /// Channels, height and width of the input.
    input: (usize, usize, usize),
    /// Shapes of what comes out, in the program's order.
    outputs: Vec<Vec<usize>>,
    /// Which of those is the main one, the prototypes, each of the features.
    main: usize,
    prototypes: Option<usize>,
    features: Vec<usize>,
}

/// Memory and threads of one run of a plan at a time. A plan may have many.
#[derive(Debug)]
pub struct PlanSession {
    session: ProgramSession,
    outputs: Vec<Vec<f32>>,
    times: Vec<u64>,
}

impl Plan {
    /// Checks that a file holds exactly the network's weights.
    ///
    /// # Errors
    /// [`Error::Weights`] that names the keys which are missing, left over or of another shape.
    pub fn check(graph: &Graph, weights: &Weights) -> Result<()> {
        let expected: Vec<Expected> = graph
            .params()
            .iter()
            .map(|param| Expected { name: param.name.clone(), shape: param.shape.clone(), optional: false })
            .collect();
        weights.check(&expected, graph.config().stem())
    }

    /// Compiles a network with its weights.
    ///
    /// # Errors
    /// Where the weights do not fit the network, the network not the input's size, the CPU lacks the precision, or the file of the
    /// tuning cannot be read or written.
    pub fn compile(graph: &Graph, weights: &Weights, options: &PlanOptions) -> Result<Self> {
        options.precision.check()?;
        Self::check(graph, weights)?;
        let PlanOptions { batch, size: (height, width), .. } = *options;
        if batch == 0 || batch > MAX_BATCH {
            let problem = format!("must be from 1 to {MAX_BATCH}, it is {batch}");
            return Err(Error::Argument { argument: "batch", problem });
        }
        if height == 0 || width == 0 {
            return Err(Error::Argument { argument: "size", problem: format!("{height}x{width} has no pixel") });
        }
        let shapes = graph.shapes(height, width)?;
        let (main, prototypes) = match graph.output() {
            Output::Segment { rows, prototypes } => (rows, Some(prototypes)),
            other => (other.main(), None),
        };
        let features = feature_nodes(graph, &options.features)?;
        let rows = matches!(shapes[main], Shape::Rows(..)).then_some(main);
        // What leaves the program as a map, each once.
        let mut kept: Vec<NodeId> = Vec::new();
        for value in std::iter::once(main).chain(prototypes).chain(features.iter().copied()) {
            if Some(value) != rows && !kept.contains(&value) {
                kept.push(value);
            }
        }

        let items = fuse::fuse(graph, &kept);
        let mut items = join::join(items);
        let threads = options.threads.unwrap_or_else(rayon::current_num_threads).max(1);
        if let Some(file) = &options.tuning {
            let mut tuning = tune::Tuning::open(file, threads)?;
            choose::choose(&mut items, &shapes, options.precision, |place, all| tuning.fastest(graph, place, all))?;
            tuning.save()?;
        } else {
            choose::choose(&mut items, &shapes, options.precision, |place, all| Ok(costs::cheapest(place, all)))?;
        }
        let mut pieces = pieces::Pieces::new(graph, &shapes);
        let items = choose::settle(items, &mut pieces, &kept);
        let rounded = round::rounded(&items, &pieces, &kept, |value| place::extent(shapes[value]).2);
        let one = place::Places::new(&items, &pieces, &shapes, 1, (&kept, &rounded));
        let at_a_time = samples_at_a_time(batch, size_of::<f32>() * one.memory);
        let places = place::Places::new(&items, &pieces, &shapes, at_a_time, (&kept, &rounded));
        let packing = pack::Packing {
            graph,
            weights,
            items: &items,
            pieces: &pieces,
            places: &places,
            shapes: &shapes,
            batch: at_a_time,
            rows,
            kept: &kept,
        };
        let program = packing.program(threads)?;
        let index = |value: NodeId| {
            if Some(value) == rows {
                return 0;
            }
            usize::from(rows.is_some()) + kept.iter().position(|kept| *kept == value).unwrap_or_default()
        };
        let dims = |value: NodeId| match shapes[value] {
            Shape::Map(channels, height, width) => vec![batch, channels, height, width],
            Shape::Tokens(tokens, features) | Shape::Rows(tokens, features) => vec![batch, tokens, features],
            Shape::Vector(values) => vec![batch, values],
        };
        Ok(Self {
            input: (graph.config().channels, height, width),
            outputs: rows.into_iter().chain(kept.iter().copied()).map(dims).collect(),
            main: index(main),
            prototypes: prototypes.map(index),
            features: features.into_iter().map(index).collect(),
            batch,
            steps: steps_of(&program, batch / at_a_time),
            program,
        })
    }

    /// Its steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Samples of a run.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Threads of a session.
    pub fn threads(&self) -> usize {
        self.program.threads()
    }

    /// Height and width of the input.
    pub fn size(&self) -> (usize, usize) {
        (self.input.1, self.input.2)
    }

    /// Bytes of memory that a session takes.
    pub fn memory(&self) -> usize {
        size_of::<f32>() * self.program.memory()
    }

    /// Memory and threads to run it.
    ///
    /// # Errors
    /// Where the system gives no threads, or not the memory.
    pub fn session(&self) -> Result<PlanSession> {
        let session = self.program.session().map_err(|cause| match cause.kind() {
            ErrorKind::OutOfMemory => self.too_large(),
            _ => Error::Argument {
                argument: "threads",
                problem: format!("{} threads cannot be started: {cause}", self.threads()),
            },
        })?;
        let zeros = |dims: &Vec<usize>| {
            let len = dims.iter().product();
            // Asked for first: where `vec!` is refused, the process ends. Its zeros cost nothing until they are touched.
            Vec::<f32>::new().try_reserve_exact(len).map_err(|_| self.too_large())?;
            Ok(vec![0.0; len])
        };
        let outputs = self.outputs.iter().map(zeros).collect::<Result<_>>()?;
        Ok(PlanSession { session, outputs, times: vec![0; self.steps.len()] })
    }

    fn too_large(&self) -> Error {
        let outputs: usize = self.outputs.iter().map(|dims| dims.iter().product::<usize>()).sum();
        let gigabytes = (self.memory() + size_of::<f32>() * outputs) as f64 / 1e9;
        let (batch, (_, height, width)) = (self.batch, self.input);
        let problem = format!(
            "a batch of {batch} at {height}x{width} takes {gigabytes:.1} GB of memory, which the system does not give: take a \
             smaller size or batch"
        );
        Error::Argument { argument: "size", problem }
    }

    /// Runs it on `input`, `[batch, channels, height, width]`; the results stay in the session. Of rows of boxes whose
    /// objectness is not above `threshold`, only that is written; the rest of them means nothing.
    ///
    /// # Errors
    /// Where the input has another size, the session is another plan's, or a step that runs outside of the kernels fails.
    pub fn run(&self, session: &mut PlanSession, input: &[f32], threshold: Option<f32>) -> Result<()> {
        self.run_with(session, Input::Maps(input), RunOptions { threshold, profile: false })
    }

    /// As [`Plan::run`], on pictures as they come: `pixels` is `[batch, height, width, channels]`, and 0 to 255 stands for 0 to 1.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn run_pixels(&self, session: &mut PlanSession, pixels: &[u8], threshold: Option<f32>) -> Result<()> {
        self.run_with(session, Input::Pixels(pixels), RunOptions { threshold, profile: false })
    }

    /// As [`Plan::run`]; [`PlanSession::times`] then tells how long each step took.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn profile(&self, session: &mut PlanSession, input: &[f32]) -> Result<()> {
        self.run_with(session, Input::Maps(input), RunOptions { threshold: None, profile: true })
    }

    fn run_with(&self, session: &mut PlanSession, input: Input<'_>, options: RunOptions) -> Result<()> {
        let (channels, height, width) = self.input;
        let (values, got) = (self.batch() * channels * height * width, input.count());
        if got != values {
            return Err(Error::Shape {
                what: "the plan's input".into(),
                expected: format!("[{}, {channels}, {height}, {width}]", self.batch()),
                got: format!("{got} values"),
            });
        }
        self.check_session(session)?;
        let passes = self.batch / self.program.batch();
        session.times.fill(0);
        for pass in 0..passes {
            let mut slices: [&mut [f32]; MAX_OUTPUTS] = std::array::from_fn(|_| &mut [][..]);
            let count = session.outputs.len();
            for (slice, output) in slices.iter_mut().zip(&mut session.outputs) {
                let len = output.len() / passes;
                *slice = &mut output[pass * len..][..len];
            }
            let input = input.part(pass * values / passes..(pass + 1) * values / passes);
            let run = self.program.run(&mut session.session, &[input], &mut slices[..count], options);
            run.map_err(|problem| Error::Candle(candle_core::Error::msg(problem)))?;
            for (sum, time) in session.times.iter_mut().zip(session.session.times()) {
                *sum += time;
            }
        }
        Ok(())
    }

    /// That a session is one of its own: those of other plans have other memory.
    fn check_session(&self, session: &PlanSession) -> Result<()> {
        if self.program.made(&session.session) {
            return Ok(());
        }
        let problem = "it was made by another plan: take one of this plan's `session()`";
        Err(Error::Argument { argument: "session", problem: problem.into() })
    }

    /// Runs it on a tensor and gives the results as tensors; `threshold` as of [`Plan::run`].
    ///
    /// `x` is `[batch, channels, height, width]` with values 0..=1, of any type and on any device: it is brought to the CPU as f32.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn forward(&self, session: &mut PlanSession, x: &Tensor, threshold: Option<f32>) -> Result<Outputs> {
        let (channels, height, width) = self.input;
        let expected = [self.batch(), channels, height, width];
        if x.dims() != expected {
            return Err(Error::Shape {
                what: "the plan's input".into(),
                expected: format!("{expected:?}"),
                got: format!("{:?}", x.dims()),
            });
        }
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else {
            return Err(Error::Device("the input could not be brought to main memory".into()));
        };
        // Borrowed, not copied, where it is in main memory already.
        let values = &storage.as_slice::<f32>()?[layout.start_offset()..][..layout.shape().elem_count()];
        self.run(session, values, threshold)?;
        self.outputs(session)
    }

    /// The results of the last run as tensors.
    ///
    /// # Errors
    /// Where the session is another plan's, or the tensor library fails.
    pub fn outputs(&self, session: &PlanSession) -> Result<Outputs> {
        self.check_session(session)?;
        let get = |index: usize| self.output(session, index);
        Ok(Outputs {
            main: get(self.main)?,
            prototypes: self.prototypes.map(get).transpose()?,
            features: self.features.iter().map(|&index| get(index)).collect::<Result<_>>()?,
        })
    }

    /// The masks' prototypes of the last run.
    pub(crate) fn prototypes(&self, session: &PlanSession) -> Result<Option<Tensor>> {
        self.prototypes.map(|index| self.output(session, index)).transpose()
    }

    fn output(&self, session: &PlanSession, index: usize) -> Result<Tensor> {
        Ok(Tensor::from_slice(&session.outputs[index], self.outputs[index].as_slice(), &Device::Cpu)?)
    }

    /// The rows of boxes of each picture of the last run whose objectness is above `threshold` or no number, mostly a few of many
    /// thousands, and the values of a row.
    pub(crate) fn rows_above(&self, session: &PlanSession, threshold: f32) -> Result<(Vec<Vec<f32>>, usize)> {
        let &[_, rows, columns] = self.outputs[self.main].as_slice() else {
            return Err(Error::Shape {
                what: "the network's output".into(),
                expected: "[batch, rows, columns]".into(),
                got: format!("{:?}", self.outputs[self.main]),
            });
        };
        let above = |row: &&[f32]| row[OBJECTNESS] > threshold || row[OBJECTNESS].is_nan();
        let picture = |all: &[f32]| all.chunks_exact(columns).filter(above).flatten().copied().collect();
        Ok((session.outputs[self.main].chunks_exact(rows * columns).map(picture).collect(), columns))
    }
}

impl PlanSession {
    /// Nanoseconds of each step of the last profiled run.
    pub fn times(&self) -> &[u64] {
        &self.times
    }
}

/// Bytes of maps that may live at a time: what the last level of cache holds of its own for one or two cores.
const CACHED: usize = 16 << 20;

/// How many samples go through the network at a time, of which one takes `bytes`: a divisor of the batch. Maps that a later layer
/// finds in a cache are worth more than having all samples beside each other.
fn samples_at_a_time(batch: usize, bytes: usize) -> usize {
    let most = (CACHED / bytes.max(1)).clamp(1, batch);
    (1..=most).rev().find(|count| batch.is_multiple_of(*count)).unwrap_or(1)
}

/// The program's steps, with the operations of all passes.
fn steps_of(program: &Program, passes: usize) -> Vec<Step> {
    let all = |step: &Step| Step { operations: step.operations * passes as f64, ..step.clone() };
    program.steps().iter().map(all).collect()
}

/// More samples are more memory than use.
const MAX_BATCH: usize = 1024;
/// The most outputs of a plan.
const MAX_OUTPUTS: usize = dyconv_kernels::cpu::channels_last::MAX_OUTPUTS;

fn feature_nodes(graph: &Graph, layers: &[usize]) -> Result<Vec<NodeId>> {
    if layers.len() > MAX_OUTPUTS - 2 {
        let problem = format!("at most {} layers at a time", MAX_OUTPUTS - 2);
        return Err(Error::Argument { argument: "features", problem });
    }
    let node = |&layer: &usize| {
        graph.layers().get(layer).map(|layer| layer.node).ok_or_else(|| Error::Argument {
            argument: "features",
            problem: format!("there is no layer {layer}, the last one is {}", graph.layers().len().saturating_sub(1)),
        })
    };
    layers.iter().map(node).collect()
}
