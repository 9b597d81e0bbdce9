//! What a convolution is, apart from its numbers.

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
