// The scalars of every kernel, in the words that the host sends (crates/dyconv-kernels/src/gpu/params.rs holds the same
// fields in the same order; a test compares the two). Read by CUDA and by Metal: 4-byte fields only, so that no compiler
// adds padding.
#pragma once

// What follows a convolution's sum, bits of `flags`.
enum Flag : unsigned {
    HAS_BIAS = 1u,
    BIAS_PER_SAMPLE = 2u,
    HAS_SCALE = 4u,
    HAS_SHIFT = 8u,
    SILU = 16u,
    // Buffers and rows begin on a multiple of four values.
    VECTOR = 32u,
    // Routing by softmax; by sigmoid where it is not set.
    SOFTMAX = 64u,
};

// Maps [batch, groups * in_per_group, height, width] under windows of kernel_h x kernel_w.
struct ConvParams {
    unsigned batch, groups, in_per_group, out_per_group;
    unsigned height, width, out_height, out_width;
    unsigned kernel_h, kernel_w, stride_h, stride_w;
    unsigned pad_h, pad_w, dilation_h, dilation_w;
    // Values from one sample's kernels to the next; 0 where all samples share them.
    unsigned kernel_stride;
    unsigned flags;
    // Multipliers for `divide`: kernel_h * kernel_w, kernel_w, stride_h, stride_w.
    unsigned by_window, by_kernel_w, by_stride_h, by_stride_w;
    // Gradient of kernels: chunks of pixels that a sample is cut into, chunks in all for one set of kernels, chunks of one
    // partial sum.
    unsigned sample_chunks, set_chunks, part_chunks;
};

// out[i, :] = sum over j of coefficient[i * row_step + j * column_step] * in[j, :], rows of `length` values.
struct MixParams {
    unsigned rows_out, rows_in, row_step, column_step;
    unsigned length;
    unsigned flags;
};

// Maps [batch, channels, pixels], weighed by `experts` numbers a sample.
struct RouteParams {
    unsigned batch, channels, pixels, experts;
    unsigned flags;
    // Of the pooled sum (1 / pixels for a mean), and of the logits (1 / temperature).
    float pool_scale, logit_scale;
};

// `parts` rows of `length` values.
struct SumParams {
    unsigned parts, length;
};
