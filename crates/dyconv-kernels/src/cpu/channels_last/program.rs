//! A program and what it takes to run it.

use std::time::Instant;

use super::super::isa::{Isa, IsaName};
use super::super::shared::Shared;
use super::super::{Job, with};
use super::build::Twin;
use super::convert::{Import, Input, export};
use super::depthwise::Depthwise;
use super::direct::{Direct, HeadConv, Table, Weights};
use super::memory::{Arena, Lines, Part, View};
use super::mixing::{Average, Mix};
use super::pointwise::Pointwise;
use super::pool::Pools;
use super::team::{Member, Team};
use super::winograd::Winograd;

/// Kernels and biases of a convolution, packed.
#[derive(Debug)]
pub(super) enum Kernel {
    Shared {
        kernels: Lines,
        bias: Lines,
    },
    /// Mixed by an earlier step: offset and values of a sample's.
    Mixed {
        kernels: (usize, usize),
        biases: (usize, usize),
    },
}

impl Kernel {
    fn weights(&self) -> (Weights<'_>, Weights<'_>) {
        match self {
            Self::Shared { kernels, bias } => (Weights::Shared(kernels), Weights::Shared(bias)),
            Self::Mixed { kernels, biases } => {
                (Weights::PerSample(kernels.0, kernels.1), Weights::PerSample(biases.0, biases.1))
            }
        }
    }
}

/// What a step does.
pub(super) enum Action {
    Import { input: usize, import: Import },
    Direct(Direct, Kernel),
    Winograd(Winograd, Kernel),
    Depthwise(Depthwise, Kernel),
    Average(Average),
    Mix(Mix),
    Pointwise(Pointwise),
    Pools(Pools),
    Head { output: usize, head: HeadConv, kernel: Kernel },
    Export { output: usize, view: View },
    Twin { inputs: Vec<Vec<Part>>, output: View, run: Twin },
}

/// A step of a program, as a profile shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What the caller called it.
    pub name: String,
    /// The kernel that does it.
    pub kernel: String,
    /// Operations for the whole batch, a multiplication with its addition counting two; of a direct convolution where another
    /// algorithm takes fewer.
    pub operations: f64,
    /// Whether it multiplies bf16 on tiles.
    pub on_tiles: bool,
    /// Where it reads.
    pub inputs: Vec<Part>,
    /// Where it writes; nothing where that is outside of the program's memory.
    pub output: Option<View>,
}

/// A list of steps, checked and packed for an instruction set.
pub struct Program {
    /// No other program has it.
    pub(super) number: u64,
    pub(super) isa: IsaName,
    pub(super) actions: Vec<Action>,
    pub(super) steps: Vec<Step>,
    pub(super) batch: usize,
    pub(super) threads: usize,
    /// Values of memory, and where the scratch of all threads together begins in it.
    pub(super) memory: usize,
    pub(super) common: usize,
    /// Values of a thread's own scratch.
    pub(super) own: usize,
    /// As many zeros as a run of taps has values at most.
    pub(super) zeros: Lines,
    /// Values of each input and output.
    pub(super) inputs: Vec<usize>,
    pub(super) outputs: Vec<usize>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("isa", &self.isa).field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// What one thread has for itself.
#[derive(Debug, Default)]
struct Own {
    table: Table,
    scratch: Lines,
}

/// Memory and threads of one run of a program at a time.
pub struct Session {
    /// Of the program that it was made for.
    program: u64,
    memory: Lines,
    own: Vec<Own>,
    team: Team,
    /// Nanoseconds of each step of the last run that asked for them.
    times: Vec<u64>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("values", &self.memory.len()).finish_non_exhaustive()
    }
}

/// How a program is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct RunOptions {
    /// Of a head's rows whose objectness is not above this, only that is written; the rest stays as it was.
    pub threshold: Option<f32>,
    /// Take the time of each step.
    pub profile: bool,
}

impl Session {
    /// Nanoseconds of each step of the last run that asked for them.
    pub fn times(&self) -> &[u64] {
        &self.times
    }
}

/// Pointer to things of which each thread uses its own.
struct PerThread<T>(*mut T);

// SAFETY: each thread uses the one of its own index.
unsafe impl<T> Sync for PerThread<T> {}

impl<T> PerThread<T> {
    fn at(&self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }
}

impl Program {
    /// Its steps, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Samples of a run.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The instruction set that it was packed for.
    pub fn isa(&self) -> IsaName {
        self.isa
    }

    /// Threads of a session.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Values of memory that a session takes.
    pub fn memory(&self) -> usize {
        self.memory + self.threads * self.own
    }

    /// Memory and threads to run it.
    ///
    /// # Errors
    /// Where the system gives no threads, or, of kind [`OutOfMemory`](std::io::ErrorKind::OutOfMemory), not the memory.
    pub fn session(&self) -> std::io::Result<Session> {
        let memory = Lines::granted(self.memory)?;
        let mut own = Vec::new();
        for _ in 0..self.threads {
            let mut one = Own { table: Table::default(), scratch: Lines::granted(self.own)? };
            let reserve = Reserve { program: self, table: &mut one.table };
            with(self.isa, reserve);
            own.push(one);
        }
        Ok(Session {
            program: self.number,
            memory,
            own,
            team: Team::new(self.threads)?,
            times: vec![0; self.actions.len()],
        })
    }

    /// Whether a session is one of its own.
    pub fn made(&self, session: &Session) -> bool {
        session.program == self.number
    }

    /// Runs it: `inputs`, as they were declared, and `outputs`, maps `[batch, channels, height, width]` and rows of boxes.
    ///
    /// # Errors
    /// A sentence where a slice is not as long as declared, or a step that runs outside of the kernels fails.
    pub fn run(
        &self,
        session: &mut Session,
        inputs: &[Input<'_>],
        outputs: &mut [&mut [f32]],
        options: RunOptions,
    ) -> Result<(), String> {
        if !inputs.iter().map(Input::count).eq(self.inputs.iter().copied()) {
            return Err(format!("inputs: expected slices of {:?} values", self.inputs));
        }
        if !outputs.iter().map(|output| output.len()).eq(self.outputs.iter().copied()) {
            return Err(format!("outputs: expected slices of {:?} values", self.outputs));
        }
        // Its memory, tables and scratch are as large as that program needs, and no larger.
        if !self.made(session) {
            return Err("the session was made for another program".into());
        }
        let Session { memory, own, team, times, .. } = session;
        let mut outputs = outputs.iter_mut();
        let outside: [Shared<'_>; MAX_OUTPUTS] =
            std::array::from_fn(|_| Shared::filled(outputs.next().map_or(&mut [], |output| &mut **output)));
        let mut failure = None;
        let run = Run {
            program: self,
            arena: Arena::new(memory),
            inputs,
            outputs: &outside,
            options,
            own: PerThread(own.as_mut_ptr()),
            times: PerThread(times.as_mut_ptr()),
            failure: PerThread(&raw mut failure),
        };
        with(self.isa, OnTeam { run: &run, team });
        failure.map_or(Ok(()), Err)
    }
}

/// The most outputs of a program.
pub const MAX_OUTPUTS: usize = 64;

/// One run, as all threads see it.
struct Run<'a> {
    program: &'a Program,
    arena: Arena,
    inputs: &'a [Input<'a>],
    outputs: &'a [Shared<'a>; MAX_OUTPUTS],
    options: RunOptions,
    own: PerThread<Own>,
    /// Written by the first thread only.
    times: PerThread<u64>,
    failure: PerThread<Option<String>>,
}

struct OnTeam<'a> {
    run: &'a Run<'a>,
    team: &'a mut Team,
}

impl Job for OnTeam<'_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let run = self.run;
        self.team.run(&|member| run.walk(isa, member));
    }
}

struct Reserve<'a> {
    program: &'a Program,
    table: &'a mut Table,
}

impl Job for Reserve<'_> {
    type Output = ();
    fn run<I: Isa>(self, _: I) {
        for action in &self.program.actions {
            if let Action::Direct(conv, _) | Action::Head { head: HeadConv { conv, .. }, .. } = action {
                conv.reserve::<I>(self.table);
            }
        }
    }
}

impl Run<'_> {
    /// All steps, one after the other.
    fn walk<I: Isa>(&self, isa: I, member: &Member<'_>) {
        // SAFETY: each thread of the team has an index of its own.
        let own = unsafe { &mut *self.own.at(member.index) };
        let first = member.index == 0;
        let mut start = self.options.profile.then(Instant::now);
        for (index, action) in self.program.actions.iter().enumerate() {
            self.step(isa, action, own, member);
            if let (Some(since), true) = (start, first) {
                let now = Instant::now();
                // SAFETY: there is a place for each step, and only the first thread writes there.
                unsafe { *self.times.at(index) = (now - since).as_nanos() as u64 };
                start = Some(now);
            }
        }
    }

    fn step<I: Isa>(&self, isa: I, action: &Action, own: &mut Own, member: &Member<'_>) {
        let Program { batch, common, .. } = *self.program;
        let arena = &self.arena;
        match action {
            Action::Import { input, import } => import.run(isa, arena, batch, &self.inputs[*input], member),
            Action::Direct(conv, kernel) => {
                let zeros = self.program.zeros.as_ptr();
                conv.run(isa, arena, batch, kernel.weights(), zeros, (member, &mut own.table));
            }
            Action::Winograd(conv, kernel) => {
                let scratch = if conv.together { arena.at(common) } else { own.scratch.as_mut_ptr() };
                conv.run(isa, arena, batch, kernel.weights(), scratch, member);
            }
            Action::Depthwise(conv, kernel) => conv.run(isa, arena, batch, kernel.weights(), member),
            Action::Average(average) => average.run(isa, arena, batch, member),
            Action::Mix(mix) => mix.run(isa, arena, batch, own.scratch.values_mut(), member),
            Action::Pointwise(pointwise) => pointwise.run(isa, arena, batch, member),
            Action::Pools(pools) => pools.run(isa, arena, batch, member),
            Action::Head { output, head, kernel } => {
                let boxes = (self.options.threshold, &self.outputs[*output]);
                let Own { table, scratch } = own;
                let zeros = self.program.zeros.as_ptr();
                let own = (member, table, scratch.as_mut_ptr());
                head.run(isa, (arena, batch), kernel.weights(), zeros, boxes, own);
            }
            Action::Export { output, view } => export(view, arena, batch, &self.outputs[*output], member),
            Action::Twin { inputs, output, run } => {
                if member.index == 0
                    && let Err(problem) = run_twin(arena, batch, inputs, output, run)
                {
                    // SAFETY: only the first thread comes here.
                    unsafe { *self.failure.at(0) = Some(problem) };
                }
                member.meet();
            }
        }
    }
}

/// Runs something that is no kernel: on the first thread, with maps copied out and in.
fn run_twin(arena: &Arena, batch: usize, inputs: &[Vec<Part>], output: &View, run: &Twin) -> Result<(), String> {
    let gather = |parts: &Vec<Part>| {
        let channels: usize = parts.iter().map(|part| part.view.channels).sum();
        let (height, width) = parts.first().map_or((0, 0), Part::size);
        let mut map = vec![0.0; batch * channels * height * width];
        let mut first = 0;
        for Part { view, shift } in parts {
            for sample in 0..batch {
                for channel in 0..view.channels {
                    let plane = &mut map[(sample * channels + first + channel) * height * width..][..height * width];
                    for (index, value) in plane.iter_mut().enumerate() {
                        let (y, x) = ((index / width) >> shift, (index % width) >> shift);
                        let place = sample * view.sample() + (y * view.width + x) * view.pixel + channel;
                        // SAFETY: the view lies in the program's memory.
                        *value = unsafe { *arena.at(view.offset + place) };
                    }
                }
            }
            first += view.channels;
        }
        map
    };
    let maps: Vec<Vec<f32>> = inputs.iter().map(gather).collect();
    let slices: Vec<&[f32]> = maps.iter().map(Vec::as_slice).collect();
    let pixels = output.height * output.width;
    let mut result = vec![0.0; batch * output.channels * pixels];
    run(&slices, &mut result)?;
    for (index, value) in result.iter().enumerate() {
        let (pixel, channel, sample) =
            (index % pixels, index / pixels % output.channels, index / (pixels * output.channels));
        // SAFETY: as above.
        unsafe { *arena.at(output.offset + sample * output.sample() + pixel * output.pixel + channel) = *value };
    }
    Ok(())
}
