//! What a convolution and its routing are, apart from their numbers.

/// Activation that turns routing logits into weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// Each expert weighed on its own (CondConv, arXiv 1904.04971).
    Sigmoid,
    /// Weights that sum to one (DY-CNN, arXiv 1912.03458).
    Softmax {
        /// Logits are divided by it.
        temperature: f64,
    },
}

/// Geometry of a convolution; pairs are (vertical, horizontal).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvConfig {
    /// Kernel size.
    pub kernel: (usize, usize),
    /// Step between outputs, in input pixels.
    pub stride: (usize, usize),
    /// Zeros added on each side.
    pub padding: (usize, usize),
    /// Step between taps, in input pixels.
    pub dilation: (usize, usize),
    /// Groups of channels that are convolved on their own.
    pub groups: usize,
}
