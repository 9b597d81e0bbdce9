//! What every kernel runs on: sizes just below, at and above the edges of tiles, vectors and warps, and every option.

use std::fmt;

use dyconv_kernels::cpu::ConvShape;
use dyconv_kernels::gpu::conv::{Bias, Tail};
use dyconv_kernels::{ConvConfig, Routing};

/// One shape to run the operations of a family on.
#[derive(Debug, Clone, Copy)]
pub enum Case {
    /// A convolution: forward, epilogue on its own, and gradients.
    Conv(ConvCase),
    /// A mixture `(batch, experts, values)` and its gradients.
    Mix(usize, usize, usize),
    /// A routing `(batch, channels, pixels, experts)` and its gradients.
    Route(usize, usize, usize, usize, Routing),
}

/// A convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvCase {
    /// Its sizes.
    pub shape: ConvShape,
    /// Whether each sample has kernels of its own.
    pub per_sample: bool,
    /// What follows it.
    pub tail: Tail,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conv(ConvCase { shape: s, per_sample, tail }) => {
                let (input, c) = (s.input, &s.config);
                write!(
                    f,
                    "{}x{}x{}x{} to {} channels, kernel {:?}",
                    s.batch, s.in_channels, input.0, input.1, s.out_channels, c.kernel
                )?;
                write!(
                    f,
                    " stride {:?} padding {:?} dilation {:?} groups {}",
                    c.stride, c.padding, c.dilation, c.groups
                )?;
                write!(f, "{}", if *per_sample { " per sample" } else { "" })?;
                write!(f, ", {tail:?}")
            }
            Self::Mix(batch, experts, length) => write!(f, "{batch} mixtures of {experts} experts of {length} values"),
            Self::Route(batch, channels, pixels, experts, routing) => {
                write!(f, "{experts} weights of {batch}x{channels}x{pixels}, {routing:?}")
            }
        }
    }
}

const PLAIN: ConvConfig = ConvConfig { kernel: (1, 1), stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1 };
const SAME: ConvConfig = ConvConfig { kernel: (3, 3), padding: (1, 1), ..PLAIN };
const NO_TAIL: Tail = Tail { bias: None, scale: false, shift: false, silu: false };
const FULL_TAIL: Tail = Tail { bias: Some(Bias::PerSample), scale: true, shift: true, silu: true };

/// A convolution of `(batch, in channels, out channels)` on maps of `input`.
pub fn conv(
    (batch, in_channels, out_channels): (usize, usize, usize),
    input: (usize, usize),
    config: ConvConfig,
    per_sample: bool,
    tail: Tail,
) -> Case {
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
    };
    let output = (
        axis(input.0, config.kernel.0, config.stride.0, config.padding.0, config.dilation.0),
        axis(input.1, config.kernel.1, config.stride.1, config.padding.1, config.dilation.1),
    );
    Case::Conv(ConvCase {
        shape: ConvShape { batch, in_channels, out_channels, input, output, config },
        per_sample,
        tail,
    })
}

/// All of them.
pub fn all() -> Vec<Case> {
    let shared_bias = Tail { bias: Some(Bias::Shared), ..NO_TAIL };
    let folded = Tail { shift: true, silu: true, ..NO_TAIL };
    let mut cases = vec![
        // Matrix products of any window: one value; edges of the tiles of 64 x 64 x 16; two tiles each way.
        conv((1, 2, 1), (1, 1), SAME, true, FULL_TAIL),
        conv((2, 3, 7), (8, 8), SAME, true, FULL_TAIL),
        conv((2, 4, 65), (9, 8), SAME, false, folded),
        conv((3, 2, 5), (1, 66), ConvConfig { kernel: (1, 8), padding: (0, 4), ..PLAIN }, true, shared_bias),
        conv((1, 17, 63), (5, 13), ConvConfig { kernel: (2, 1), ..PLAIN }, true, NO_TAIL),
        // Strides, dilations, padding and windows that differ by axis; groups; few of the map's pixels met.
        conv(
            (2, 6, 9),
            (11, 9),
            ConvConfig { kernel: (5, 3), stride: (3, 2), padding: (4, 0), dilation: (2, 2), groups: 3 },
            true,
            FULL_TAIL,
        ),
        conv(
            (2, 8, 4),
            (7, 1),
            ConvConfig { kernel: (3, 1), stride: (2, 1), padding: (1, 0), groups: 2, ..PLAIN },
            false,
            FULL_TAIL,
        ),
        conv((2, 4, 6), (6, 7), ConvConfig { stride: (2, 3), ..PLAIN }, true, shared_bias),
        conv(
            (1, 3, 8),
            (12, 12),
            ConvConfig { kernel: (6, 6), stride: (2, 2), padding: (2, 2), ..PLAIN },
            false,
            folded,
        ),
        // One channel whose kernels are more than shared memory holds at once, which its gradient would like to.
        conv((1, 1, 230), (6, 7), ConvConfig { kernel: (6, 6), ..PLAIN }, true, NO_TAIL),
        // More than one chunk of pixels for the gradient of kernels, shared and per sample; parts that are not alike.
        conv((2, 2, 3), (33, 32), SAME, false, NO_TAIL),
        conv((65, 2, 3), (2, 2), ConvConfig { kernel: (2, 2), ..PLAIN }, false, folded),
        conv((2, 2, 2), (33, 35), ConvConfig { kernel: (2, 2), ..PLAIN }, true, NO_TAIL),
        // Pointwise: rows that vectors fit and that they do not; tiles; groups.
        conv((2, 16, 8), (4, 4), PLAIN, true, FULL_TAIL),
        conv((2, 15, 65), (5, 13), PLAIN, true, folded),
        conv((1, 33, 66), (8, 9), PLAIN, false, FULL_TAIL),
        conv((3, 12, 6), (1, 3), ConvConfig { groups: 3, ..PLAIN }, true, shared_bias),
        // Depthwise: the usual window, others, channels that make several, more pixels than a block's.
        conv((2, 3, 3), (9, 7), ConvConfig { groups: 3, ..SAME }, true, FULL_TAIL),
        conv((2, 4, 4), (8, 8), ConvConfig { groups: 4, stride: (2, 2), ..SAME }, false, folded),
        conv(
            (2, 2, 6),
            (7, 9),
            ConvConfig { kernel: (5, 3), stride: (1, 2), padding: (2, 3), dilation: (2, 1), groups: 2 },
            true,
            NO_TAIL,
        ),
        conv((1, 2, 2), (33, 33), ConvConfig { groups: 2, ..SAME }, true, shared_bias),
        conv((2, 3, 3), (5, 1), ConvConfig { groups: 3, ..PLAIN }, false, FULL_TAIL),
    ];
    // Mixtures: one expert; rows around the tile of 8 and the chunk of 32; values around vectors and blocks.
    cases.extend(
        [(1, 1, 1), (2, 4, 9), (8, 3, 1024), (9, 4, 1027), (3, 33, 40), (5, 2, 2051)]
            .map(|(b, k, p)| Case::Mix(b, k, p)),
    );
    let softmax = |temperature| Routing::Softmax { temperature };
    cases.extend([
        Case::Route(1, 1, 1, 1, Routing::Sigmoid),
        Case::Route(3, 9, 49, 4, softmax(30.0)),
        Case::Route(2, 33, 64, 5, Routing::Sigmoid),
        Case::Route(2, 40, 3, 33, softmax(1.0)),
        // Beyond what one block pools.
        Case::Route(2, 33, 1000, 4, softmax(2.0)),
    ]);
    cases
}

/// The cases that reach the kernels of one family, for trials with few of them.
pub fn of_file(file: &str) -> Vec<Case> {
    let conv_file = |case: &ConvCase| {
        let s = &case.shape;
        if s.in_channels == s.config.groups {
            "conv_depthwise"
        } else if (s.config.kernel, s.config.stride, s.config.padding) == ((1, 1), (1, 1), (0, 0)) {
            "conv_pointwise"
        } else {
            "conv_gemm"
        }
    };
    let reaches = |case: &Case| match case {
        Case::Conv(case) => match file {
            "conv_grad" => conv_file(case) != "conv_depthwise",
            "epilogue" => true,
            file => conv_file(case) == file,
        },
        Case::Mix(..) => file == "mix",
        Case::Route(..) => file == "route",
    };
    all().into_iter().filter(reaches).collect()
}
