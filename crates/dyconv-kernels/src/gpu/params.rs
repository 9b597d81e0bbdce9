//! The structs of scalars, field for field as in `kernels/params.h`.

/// A field as words of 4 bytes.
trait Word {
    /// Its name in the source.
    #[cfg(test)]
    const TYPE: &'static str;
    fn word(self) -> u32;
}

impl Word for u32 {
    #[cfg(test)]
    const TYPE: &'static str = "unsigned";
    fn word(self) -> u32 {
        self
    }
}

impl Word for f32 {
    #[cfg(test)]
    const TYPE: &'static str = "float";
    fn word(self) -> u32 {
        self.to_bits()
    }
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty),+ $(,)? })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, Default, PartialEq)]
            pub struct $name { $($(#[$field_doc])* pub $field: $type),+ }

            impl $name {
                /// The fields by words of 4 bytes, in order.
                pub fn words(self) -> Vec<u32> {
                    vec![$(Word::word(self.$field)),+]
                }
            }
        )+

        /// Each struct's name with its fields' types and names, for the comparison with the source.
        #[cfg(test)]
        pub(super) const STRUCTS: &[(&str, &[(&str, &str)])] =
            &[$((stringify!($name), &[$((<$type as Word>::TYPE, stringify!($field))),+])),+];
    };
}

params! {
    /// Geometry of a convolution.
    ConvParams {
        /// Samples.
        batch: u32,
        /// Groups of channels.
        groups: u32,
        /// Channels that a group reads.
        in_per_group: u32,
        /// Channels that a group writes.
        out_per_group: u32,
        /// Rows of the input.
        height: u32,
        /// Columns of the input.
        width: u32,
        /// Rows of the output.
        out_height: u32,
        /// Columns of the output.
        out_width: u32,
        /// Rows of a window.
        kernel_h: u32,
        /// Columns of a window.
        kernel_w: u32,
        /// Rows between outputs.
        stride_h: u32,
        /// Columns between outputs.
        stride_w: u32,
        /// Zeros above and below.
        pad_h: u32,
        /// Zeros left and right.
        pad_w: u32,
        /// Rows between taps.
        dilation_h: u32,
        /// Columns between taps.
        dilation_w: u32,
        /// Values from one sample's kernels to the next; 0 where all samples share them.
        kernel_stride: u32,
        /// Bits of [`flag`].
        flags: u32,
        /// [`multiplier`] of `kernel_h * kernel_w`.
        by_window: u32,
        /// [`multiplier`] of `kernel_w`.
        by_kernel_w: u32,
        /// [`multiplier`] of `stride_h`.
        by_stride_h: u32,
        /// [`multiplier`] of `stride_w`.
        by_stride_w: u32,
        /// Chunks of pixels that a sample is cut into, for the gradient of kernels.
        sample_chunks: u32,
        /// Chunks in all that one set of kernels sums over.
        set_chunks: u32,
        /// Chunks of one partial sum.
        part_chunks: u32,
    }
    /// Weighted sums of rows.
    MixParams {
        /// Rows written.
        rows_out: u32,
        /// Rows read.
        rows_in: u32,
        /// Coefficients between those of neighbouring rows written.
        row_step: u32,
        /// Coefficients between those of neighbouring rows read.
        column_step: u32,
        /// Values of a row.
        length: u32,
        /// Bits of [`flag`].
        flags: u32,
    }
    /// Routing of maps.
    RouteParams {
        /// Samples.
        batch: u32,
        /// Channels.
        channels: u32,
        /// Pixels of a plane.
        pixels: u32,
        /// Weights of a sample.
        experts: u32,
        /// Bits of [`flag`].
        flags: u32,
        /// Factor of a plane's sum.
        pool_scale: f32,
        /// Factor of the logits.
        logit_scale: f32,
    }
    /// Sum of partial results.
    SumParams {
        /// Rows summed.
        parts: u32,
        /// Values of a row.
        length: u32,
    }
}

/// Bits of the `flags` fields.
pub mod flag {
    /// `bias` is there.
    pub const HAS_BIAS: u32 = 1;
    /// `bias` has a row a sample.
    pub const BIAS_PER_SAMPLE: u32 = 2;
    /// `scale` is there.
    pub const HAS_SCALE: u32 = 4;
    /// `shift` is there.
    pub const HAS_SHIFT: u32 = 8;
    /// SiLU comes last.
    pub const SILU: u32 = 16;
    /// Every buffer begins on a multiple of four values, so that vectors may be moved where rows allow it too.
    pub const VECTOR: u32 = 32;
    /// Routing by softmax instead of sigmoid.
    pub const SOFTMAX: u32 = 64;
}

/// What `divide` of the kernels multiplies by to divide by `d`: the quotient of `n` is exact while `n * d < 2^32`.
pub fn multiplier(d: u32) -> u32 {
    if d <= 1 { 0 } else { ((1u64 << 32) / u64::from(d) + 1) as u32 }
}
