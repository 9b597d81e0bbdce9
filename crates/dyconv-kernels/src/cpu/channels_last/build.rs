//! From descriptions of steps to a program: kernels packed, scratch reserved, places checked.

mod checks;

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::amx::Amx;
use super::super::isa::Isa;
use super::super::{IsaName, Job, chosen, with};
use super::convert::{Decode, Import};
use super::depthwise::Depthwise;
use super::direct::{Direct, HeadConv, Window};
use super::finish::Act;
use super::memory::{LINE, Lines, Part, View};
use super::mixing::{Average, Mix, Router};
use super::packer::Packer;
use super::pointwise::Pointwise;
use super::pool::{Pool, Pools};
use super::program::{Action, Kernel, MAX_OUTPUTS, Program, Step};
use super::winograd::Winograd;
use checks::apart;

/// Something that is no kernel: maps `[batch, channels, height, width]` in, one out; on failure a sentence.
pub type Twin = Box<dyn Fn(&[&[f32]], &mut [f32]) -> Result<(), String> + Send + Sync>;

/// The most maps that a convolution reads as one.
const MAX_PARTS: usize = 8;

/// How a convolution is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// As its definition says.
    Direct,
    /// The same with values and kernels rounded to bf16, summed in f32.
    DirectBf16,
    /// F(4x4, 3x3); kernels of 3x3 and stride 1 in one group only, or stride 2 where they are fixed.
    Winograd,
    /// One kernel a channel.
    Depthwise,
}

impl Algorithm {
    /// What a profile calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectBf16 => "direct bf16",
            Self::Winograd => "winograd",
            Self::Depthwise => "depthwise",
        }
    }

    /// Whether it reads maps in parts, and enlarged ones.
    pub fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectBf16)
    }
}

/// What a profile calls the direct algorithm in bf16 on tiles.
const ON_TILES: &str = "tiles bf16";

/// Whether the CPU multiplies bf16 faster than f32: what else computes it does so only to compare.
pub fn multiplies_bf16() -> bool {
    with(chosen(), MultipliesBf16).unwrap_or(false)
}

/// Whether convolutions in bf16 go on tiles, many times as fast as vectors.
pub fn multiplies_on_tiles() -> bool {
    chosen() == IsaName::Avx512 && multiplies_bf16() && Amx::detect().is_some()
}

/// Whether a set of this CPU rounds to bf16: not AVX-512 of a CPU that lacks AVX512-BF16.
pub(super) fn has_bf16(isa: IsaName) -> bool {
    with(isa, HasBf16).unwrap_or(false)
}

struct HasBf16;

impl Job for HasBf16 {
    type Output = bool;
    fn run<I: Isa>(self, isa: I) -> bool {
        isa.bf16().is_some()
    }
}

struct MultipliesBf16;

impl Job for MultipliesBf16 {
    type Output = bool;
    fn run<I: Isa>(self, isa: I) -> bool {
        I::Bf16::MULTIPLIES_BF16 && isa.bf16().is_some()
    }
}

/// Kernels of a convolution, with batch normalisation folded into them.
#[derive(Debug, Clone)]
pub enum Kernels<'a> {
    /// The same for all samples.
    Fixed {
        /// `[out, in / groups, kh, kw]`
        kernels: &'a [f32],
        /// `[out]`, or empty for zeros.
        bias: &'a [f32],
    },
    /// Mixed for each sample from experts, by the average of the map that is read.
    Mixed {
        /// From averages to routing weights.
        router: Router,
        /// What is averaged.
        averaged: Vec<Part>,
        /// `[K, out * in / groups * kh * kw]`
        experts: &'a [f32],
        /// `[K, out]`, or empty for zeros.
        bias: &'a [f32],
        /// `[out]`, the same for all samples; or empty.
        shift: &'a [f32],
    },
}

/// A convolution: `output = act(conv(inputs) + bias) + residual`.
#[derive(Debug, Clone)]
pub struct Convolution<'a> {
    /// What a profile calls it.
    pub name: &'a str,
    /// Kernel size, stride, padding, dilation.
    pub window: Window,
    /// Groups of channels.
    pub groups: usize,
    /// Maps whose channels are read one after the other.
    pub inputs: Vec<Part>,
    /// Where it writes.
    pub output: View,
    /// A map that is added at the end; it may be the output's own place.
    pub residual: Option<View>,
    /// Elementwise function.
    pub act: Act,
    /// Kernels.
    pub kernels: Kernels<'a>,
    /// How it is computed; must suit it, which [`Convolution::suits`] tells.
    pub algorithm: Algorithm,
}

/// A level of a detection head: how boxes are decoded from the map of its convolution, `[height, width, anchors * outputs]`.
#[derive(Debug, Clone)]
pub struct Head {
    /// Width and height of each anchor in pixels.
    pub anchors: Vec<[f32; 2]>,
    /// Pixels of the picture a pixel of the map.
    pub stride: f32,
    /// Values of a row: 4, objectness, classes, mask coefficients.
    pub outputs: usize,
    /// Mask coefficients, which stay as they are.
    pub masks: usize,
    /// Rows of all levels, and of those before this one.
    pub rows: (usize, usize),
}

impl Convolution<'_> {
    pub(super) fn in_channels(&self) -> usize {
        self.inputs.iter().map(|part| part.view.channels).sum()
    }

    /// Whether an algorithm can compute it.
    pub fn suits(&self, algorithm: Algorithm) -> bool {
        let Window { kernel, stride, dilation, .. } = self.window;
        let plain = self.inputs.len() == 1 && self.inputs[0].shift == 0;
        match algorithm {
            Algorithm::Direct | Algorithm::DirectBf16 => self.inputs.len() <= MAX_PARTS && (self.groups == 1 || plain),
            Algorithm::Winograd => {
                // Mixtures are transformed for stride 1 only.
                let fixed = matches!(self.kernels, Kernels::Fixed { .. });
                let stride = stride == (1, 1) || (stride == (2, 2) && fixed);
                plain && self.groups == 1 && kernel == (3, 3) && stride && dilation == (1, 1)
            }
            Algorithm::Depthwise => plain && self.groups == self.in_channels() && self.output.channels == self.groups,
        }
    }

    /// Operations for one sample by its definition, a multiplication with its addition counting two.
    pub fn operations(&self) -> f64 {
        let taps = self.in_channels() / self.groups * self.window.taps();
        2.0 * (taps * self.output.channels * self.output.height * self.output.width) as f64
    }
}

/// Collects the steps of a program.
pub struct Builder {
    isa: IsaName,
    /// Where convolutions in bf16 go on tiles.
    pub(super) tiles: Option<Amx>,
    batch: usize,
    threads: usize,
    /// Values that the caller laid out.
    planned: usize,
    /// Values of mixed kernels, biases and averages of a step, behind those.
    mixed: usize,
    /// Values of scratch of all threads together, behind those.
    common: usize,
    own: usize,
    zeros: usize,
    actions: Vec<Action>,
    steps: Vec<Step>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("steps", &self.steps).finish_non_exhaustive()
    }
}

/// Each program has a number of its own, by which its sessions are told from others'.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn whole_lines(values: usize) -> usize {
    values.next_multiple_of(LINE)
}

impl Builder {
    /// A program for `batch` samples on `threads` threads, whose maps lie in `memory` values.
    pub fn new(batch: usize, threads: usize, memory: usize) -> Self {
        Self::for_isa(chosen(), batch, threads, memory)
    }

    pub(super) fn for_isa(isa: IsaName, batch: usize, threads: usize, memory: usize) -> Self {
        Self {
            isa,
            tiles: if isa == IsaName::Avx512 { Amx::detect() } else { None },
            batch,
            threads: threads.max(1),
            planned: whole_lines(memory),
            mixed: 0,
            common: 0,
            own: 0,
            zeros: 0,
            actions: Vec::new(),
            steps: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    fn push(
        &mut self,
        name: &str,
        kernel: String,
        operations: f64,
        inputs: Vec<Part>,
        output: Option<View>,
        action: Action,
    ) {
        let on_tiles = match &action {
            Action::Direct(conv, _) | Action::Head { head: HeadConv { conv, .. }, .. } => conv.on_tiles(),
            _ => false,
        };
        self.actions.push(action);
        self.steps.push(Step { name: name.into(), kernel, operations, on_tiles, inputs, output });
    }

    /// Copies a map from outside into the middle of `view`, with `border` rows above and below and columns left and right.
    pub fn import(&mut self, view: View, border: (usize, usize)) {
        self.check_any(&view);
        assert!(!view.bf16 || has_bf16(self.isa), "this CPU has no bf16");
        assert!(view.height > 2 * border.0 && view.width > 2 * border.1);
        let import = Import { view, border };
        let (height, width) = import.size();
        self.inputs.push(self.batch * view.channels * height * width);
        let input = self.inputs.len() - 1;
        self.push("input", "import".into(), 0.0, Vec::new(), Some(view), Action::Import { input, import });
    }

    /// Adds a convolution.
    ///
    /// # Panics
    /// Where sizes do not fit, or its places overlap.
    pub fn convolution(&mut self, conv: &Convolution<'_>) {
        assert!(conv.suits(conv.algorithm), "{:?} does not suit {conv:?}", conv.algorithm);
        self.check_maps(conv, Some(&conv.output));
        if let Some(residual) = &conv.residual {
            assert_eq!((residual.height, residual.width), (conv.output.height, conv.output.width));
            assert_eq!(residual.channels, conv.output.channels);
            assert!(residual == &conv.output || apart(residual, &conv.output, self.batch));
        }
        assert!(conv.in_channels().is_multiple_of(conv.groups) && conv.output.channels.is_multiple_of(conv.groups));
        let values = conv.in_channels() / conv.groups * conv.window.taps() * conv.output.channels;
        match &conv.kernels {
            Kernels::Fixed { kernels, bias } => {
                assert_eq!(kernels.len(), values);
                assert!(bias.is_empty() || bias.len() == conv.output.channels);
            }
            Kernels::Mixed { router, experts, bias, shift, averaged } => {
                let count = router.bias.len();
                assert_eq!(experts.len(), count * values);
                assert!(bias.is_empty() || bias.len() == count * conv.output.channels);
                assert!(shift.is_empty() || shift.len() == conv.output.channels);
                averaged.iter().for_each(|part| self.check_any(&part.view));
                router.check(averaged.iter().map(|part| part.view.channels).sum());
            }
        }
        with(self.isa, AddConvolution { builder: self, conv });
    }

    /// Adds `y = act(scale * x + shift) + residual` over all channels of `inputs`, or a mere copy.
    ///
    /// # Panics
    /// Where sizes do not fit, or its places overlap.
    pub fn pointwise(
        &mut self,
        name: &str,
        inputs: Vec<Part>,
        output: View,
        affine: Option<(&[f32], &[f32])>,
        act: Act,
        residual: Option<View>,
    ) {
        self.check(&output);
        let mut first = 0;
        for part in &inputs {
            self.check_part(part);
            assert_eq!(part.size(), (output.height, output.width));
            let own = output.channels(first, part.view.channels);
            assert!(*part == own.into() || apart(&part.view, &output, self.batch), "a step would write what it reads");
            first += part.view.channels;
        }
        assert_eq!(first, output.channels);
        if let Some(residual) = &residual {
            self.check(residual);
            let size = |view: &View| (view.height, view.width, view.channels);
            assert_eq!(size(residual), size(&output));
            assert!(residual == &output || apart(residual, &output, self.batch));
        }
        let padded = |values: &[f32]| {
            assert_eq!(values.len(), output.channels);
            let mut lines = Lines::zeros(values.len() + 2 * LINE);
            lines.values_mut()[..values.len()].copy_from_slice(values);
            lines
        };
        let affine = affine.map(|(scale, shift)| (padded(scale), padded(shift)));
        let kind = if affine.is_none() && act == Act::Identity && residual.is_none() { "copy" } else { "pointwise" };
        let kernel = format!("{kind} {}", act.name()).trim_end().to_owned();
        let pointwise = Pointwise { inputs: inputs.clone(), output, affine, act, residual };
        self.push(name, kernel, 0.0, inputs, Some(output), Action::Pointwise(pointwise));
    }

    /// Adds max-pools in a row, each with the place of its result.
    ///
    /// # Panics
    /// Where sizes do not fit, or places overlap.
    pub fn pools(&mut self, name: &str, input: View, pools: Vec<(Pool, View)>) {
        let mut from = input;
        // Tasks run through all pools without waiting for each other, so no place may serve twice.
        let mut read: Vec<Part> = vec![input.into()];
        for (pool, output) in &pools {
            self.check_apart(&read, output);
            read.push((*output).into());
            assert_eq!(from.channels, output.channels);
            let size = |size: usize| (size + 2 * pool.padding - pool.kernel) / pool.stride + 1;
            assert_eq!((size(from.height), size(from.width)), (output.height, output.width));
            from = *output;
        }
        let last = pools.last().map(|(_, view)| *view);
        let kernel = format!("max-pool x{}", pools.len());
        self.push(name, kernel, 0.0, vec![input.into()], last, Action::Pools(Pools { input, pools }));
    }

    /// Declares an output of so many values; its number.
    ///
    /// # Panics
    /// Where there are too many.
    pub fn output(&mut self, values: usize) -> usize {
        assert!(self.outputs.len() < MAX_OUTPUTS);
        self.outputs.push(values);
        self.outputs.len() - 1
    }

    /// Adds a level of a head: a convolution with fixed kernels, computed directly, and the decoding of its map into rows of an
    /// output. Only the size and the channels of the convolution's output count: it has no place in memory.
    ///
    /// # Panics
    /// Where sizes do not fit.
    pub fn head(&mut self, conv: &Convolution<'_>, output: usize, head: Head) {
        let Head { anchors, stride, outputs, masks, rows: (rows, first) } = head;
        let view = View::dense(0, conv.output.height, conv.output.width, conv.output.channels);
        assert!(conv.algorithm.is_direct() && conv.suits(conv.algorithm) && conv.groups == 1);
        assert!(conv.residual.is_none() && conv.act == Act::Identity);
        self.check_maps(conv, None);
        let Kernels::Fixed { kernels, bias } = &conv.kernels else {
            unreachable!("a head's kernels are the same for all samples")
        };
        assert_eq!(kernels.len(), conv.in_channels() * conv.window.taps() * view.channels);
        assert!(bias.is_empty() || bias.len() == view.channels);
        assert_eq!(view.channels, anchors.len() * outputs);
        assert!(outputs >= 5 + masks && first + anchors.len() * view.height * view.width <= rows);
        assert_eq!(self.outputs[output], self.batch * rows * outputs);
        let decode = Decode { size: (view.height, view.width), anchors, stride, outputs, masks, rows, first };
        with(self.isa, AddHead { builder: self, conv, view, output, decode });
    }

    /// Copies a map to an output.
    pub fn export(&mut self, name: &str, view: View) {
        self.check(&view);
        let output = self.output(self.batch * view.channels * view.height * view.width);
        self.push(name, "export".into(), 0.0, vec![view.into()], None, Action::Export { output, view });
    }

    /// Adds something that is no kernel.
    ///
    /// # Panics
    /// Where a map lies outside of the program's memory, or the parts of one input differ in size.
    pub fn twin(&mut self, name: &str, kernel: &str, inputs: Vec<Vec<Part>>, output: View, run: Twin) {
        self.check(&output);
        for parts in &inputs {
            parts.iter().for_each(|part| self.check_part(part));
            assert!(parts.iter().all(|part| part.size() == parts[0].size()));
        }
        let all = inputs.iter().flatten().copied().collect();
        self.push(name, kernel.into(), 0.0, all, Some(output), Action::Twin { inputs, output, run });
    }

    /// The program.
    pub fn finish(mut self) -> Program {
        let start = self.planned;
        let common = start + self.mixed;
        // Steps of dynamic convolutions reckoned from zero.
        for action in &mut self.actions {
            match action {
                Action::Average(average) => average.output += start,
                Action::Mix(mix) => {
                    mix.averages.0 += start;
                    mix.kernels.0 += start;
                    mix.biases.0 += start;
                }
                Action::Direct(_, kernel) | Action::Winograd(_, kernel) | Action::Depthwise(_, kernel) => {
                    if let Kernel::Mixed { kernels, biases } = kernel {
                        kernels.0 += start;
                        biases.0 += start;
                    }
                }
                _ => {}
            }
        }
        Program {
            isa: self.isa,
            number: next_number(),
            actions: self.actions,
            steps: self.steps,
            batch: self.batch,
            threads: self.threads,
            memory: common + self.common,
            common,
            own: whole_lines(self.own),
            zeros: Lines::zeros(self.zeros),
            inputs: self.inputs,
            outputs: self.outputs,
        }
    }
}

struct AddConvolution<'a, 'b> {
    builder: &'a mut Builder,
    conv: &'a Convolution<'b>,
}

impl Job for AddConvolution<'_, '_> {
    type Output = ();
    fn run<I: Isa>(self, isa: I) {
        let Self { builder, conv } = self;
        assert!(conv.algorithm != Algorithm::DirectBf16 || isa.bf16().is_some(), "this CPU has no bf16");
        let packer = Packer::new::<I>(conv, builder.tiles);
        let kernel = match &conv.kernels {
            Kernels::Fixed { kernels, bias } => packer.fixed(kernels, bias),
            Kernels::Mixed { router, averaged, experts, bias, shift } => {
                builder.mix::<I>(conv, &packer, (router, averaged), (experts, bias, shift))
            }
        };
        let window = conv.window;
        let (output, residual, act) = (conv.output, conv.residual, conv.act);
        let (action, kind) = match conv.algorithm {
            Algorithm::Direct | Algorithm::DirectBf16 => {
                // Beside the map a whole row of the window may be missing.
                builder.zeros = builder.zeros.max(conv.in_channels() * window.kernel.1);
                let direct = direct::<I>(conv, (output, residual), &packer);
                let tiles = direct.on_tiles();
                (Action::Direct(direct, kernel), if tiles { ON_TILES } else { conv.algorithm.name() })
            }
            Algorithm::Winograd => {
                let mut winograd = Winograd {
                    input: conv.inputs[0].view,
                    output,
                    padding: window.padding,
                    stride: window.stride.0,
                    residual,
                    act,
                    packing: packer.packing,
                    chunk: 0,
                    together: false,
                };
                winograd.choose_chunk::<I>(builder.threads);
                let scratch = whole_lines(winograd.scratch::<I>());
                let place = if winograd.together { &mut builder.common } else { &mut builder.own };
                *place = (*place).max(scratch);
                (Action::Winograd(winograd, kernel), "winograd 4x4")
            }
            Algorithm::Depthwise => {
                let depthwise = Depthwise { window, input: conv.inputs[0].view, output, residual, act };
                (Action::Depthwise(depthwise, kernel), "depthwise")
            }
        };
        let plus = if residual.is_some() { " + residual" } else { "" };
        let kernel = format!("{kind} {}{plus}", act.name()).trim_end().to_owned();
        let operations = conv.operations() * builder.batch as f64;
        builder.push(conv.name, kernel, operations, conv.inputs.clone(), Some(output), action);
    }
}

fn direct<I: Isa>(conv: &Convolution<'_>, places: (View, Option<View>), packer: &Packer) -> Direct {
    Direct::new::<I>((conv.window, conv.groups), conv.inputs.clone(), places, conv.act, (packer.packing, packer.format))
}

struct AddHead<'a, 'b> {
    builder: &'a mut Builder,
    conv: &'a Convolution<'b>,
    view: View,
    output: usize,
    decode: Decode,
}

impl Job for AddHead<'_, '_> {
    type Output = ();
    fn run<I: Isa>(self, _: I) {
        let Self { builder, conv, view, output, decode } = self;
        let Kernels::Fixed { kernels, bias } = &conv.kernels else { return };
        let packer = Packer::new::<I>(conv, builder.tiles);
        let kernel = packer.fixed(kernels, bias);
        builder.zeros = builder.zeros.max(conv.in_channels() * conv.window.kernel.1);
        let head = HeadConv { conv: direct::<I>(conv, (view, None), &packer), decode };
        builder.own = builder.own.max(whole_lines(head.scratch::<I>()) + 2 * LINE);
        let operations = conv.operations() * builder.batch as f64;
        let kind = if head.conv.on_tiles() { ON_TILES } else { conv.algorithm.name() };
        let action = Action::Head { output, head, kernel };
        builder.push(conv.name, format!("{kind} + decode"), operations, conv.inputs.clone(), None, action);
    }
}

impl Builder {
    /// Adds the averages and the mixing of a dynamic convolution.
    fn mix<I: Isa>(
        &mut self,
        conv: &Convolution<'_>,
        packer: &Packer,
        (router, averaged): (&Router, &[Part]),
        (experts, bias, shift): (&[f32], &[f32], &[f32]),
    ) -> Kernel {
        let count = router.bias.len();
        let plain = packer.of_experts();
        let mut packed = Lines::zeros(count * plain.len);
        for (from, to) in
            experts.chunks_exact(experts.len() / count).zip(packed.values_mut().chunks_exact_mut(plain.len))
        {
            plain.pack(from, to);
        }
        let channels = averaged.iter().map(|part| part.view.channels).sum();
        let average = Average { inputs: averaged.to_vec(), output: 0, channels };
        // The shift, which is not mixed, is an expert of weight one.
        let mut biases = Lines::zeros((count + 1) * packer.bias);
        let out = conv.output.channels;
        for (row, own) in biases.values_mut().chunks_exact_mut(packer.bias).zip(0..=count) {
            let from = if own < count { bias.get(own * out..(own + 1) * out) } else { Some(shift) };
            let from = from.unwrap_or_default();
            row[..from.len()].copy_from_slice(from);
        }
        let kernels_at = whole_lines(self.batch * average.row());
        let mix = Mix {
            router: router.clone(),
            averages: (0, average.row()),
            channels,
            experts: packed,
            len: plain.len,
            bias: biases,
            bias_len: packer.bias,
            kernels: (kernels_at, whole_lines(packer.len)),
            biases: (kernels_at + self.batch * whole_lines(packer.len), packer.bias),
            transform: (conv.algorithm == Algorithm::Winograd).then_some(packer.packing),
            bf16: conv.algorithm == Algorithm::DirectBf16,
        };
        let kernel = Kernel::Mixed { kernels: mix.kernels, biases: mix.biases };
        // Room for a vector behind.
        self.mixed = self.mixed.max(whole_lines(mix.biases.0 + self.batch * packer.bias + 2 * LINE));
        self.own = self.own.max(mix.scratch(self.batch));
        let operations = 2.0 * (experts.len() * self.batch) as f64;
        self.push(conv.name, "average".into(), 0.0, averaged.to_vec(), None, Action::Average(average));
        self.push(conv.name, format!("mix {count} experts"), operations, Vec::new(), None, Action::Mix(mix));
        kernel
    }
}
