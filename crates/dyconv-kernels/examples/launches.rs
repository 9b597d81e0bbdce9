//! Prints every GPU launch at the shapes that YOLOv5's networks have: what `cargo xtask build-kernels` reads.
//!
//! A line a launch: shape, kernel, threads of a block, bytes of shared memory, blocks, bytes to move, floating-point operations.
#![allow(clippy::print_stdout, reason = "an example talks to the terminal")]

use dyconv_kernels::cpu::ConvShape;
use dyconv_kernels::gpu::conv::{Bias, Conv, Tail};
use dyconv_kernels::gpu::mix::{Mix, sum_parts};
use dyconv_kernels::gpu::route::Route;
use dyconv_kernels::gpu::{Access, Element, Launch, TooLarge};
use dyconv_kernels::{ConvConfig, Routing};

/// Channels in and out, window, groups, rows and columns of the map; stride 1, and the padding that keeps the map's size.
const CONVOLUTIONS: [(usize, usize, usize, usize, usize); 5] =
    [(256, 256, 3, 1, 20), (64, 64, 3, 1, 80), (512, 256, 1, 1, 20), (64, 64, 1, 1, 20), (256, 256, 3, 256, 20)];
const EXPERTS: usize = 4;

fn main() -> Result<(), TooLarge> {
    for element in Element::ALL {
        for batch in [1, 32] {
            for (inputs, outputs, window, groups, size) in CONVOLUTIONS {
                convolution(element, batch, (inputs, outputs), window, groups, size)?;
            }
        }
    }
    Ok(())
}

/// A dynamic convolution forward and backward, with its routing and mixing.
fn convolution(
    element: Element,
    batch: usize,
    (inputs, outputs): (usize, usize),
    window: usize,
    groups: usize,
    size: usize,
) -> Result<(), TooLarge> {
    let side = (window, window);
    let padding = (window / 2, window / 2);
    let config = ConvConfig { kernel: side, stride: (1, 1), padding, dilation: (1, 1), groups };
    let map = (size, size);
    let shape = ConvShape { batch, in_channels: inputs, out_channels: outputs, input: map, output: map, config };
    let conv = Conv { shape: &shape, element, per_sample: true, aligned: true };
    let taps = inputs / groups * window * window;
    let mix = Mix { batch, experts: EXPERTS, length: outputs * taps, element, aligned: true };
    let (channels, pixels) = (inputs, size * size);
    let routing = Routing::Softmax { temperature: 30.0 };
    let route = Route { batch, channels, pixels, experts: EXPERTS, routing, element, aligned: true };
    let tail = Tail { bias: Some(Bias::PerSample), scale: true, shift: true, silu: true };

    let kind = if groups > 1 { " depthwise" } else { "" };
    let print = |launch: Launch, operations: usize| {
        let blocks: u64 = launch.grid.iter().map(|n| u64::from(*n)).product();
        let threads: u32 = launch.block.iter().product();
        let present = launch.buffers.iter().filter(|buffer| buffer.access != Access::Absent);
        let bytes: usize = present.map(|buffer| buffer.len * buffer.element.size()).sum();
        println!(
            "{inputs}->{outputs} k{window}{kind} @{size} x{batch}\t{}\t{threads}\t{}\t{blocks}\t{bytes}\t{operations}",
            launch.entry(),
            launch.shared,
        );
    };

    let products = 2 * conv.y_len() * taps;
    let mixing = 2 * batch * EXPERTS * mix.length;
    let (pooling, weighing) = (batch * channels * pixels, 2 * batch * channels * EXPERTS);
    if route.is_small() {
        print(route.fused()?, pooling + weighing);
    } else {
        print(route.pool()?, pooling);
        print(route.pooled()?, weighing);
    }
    print(mix.forward()?, mixing);
    print(conv.forward(tail)?, products);
    // A multiply-add, and four for SiLU.
    print(conv.epilogue(tail)?, 6 * conv.y_len());
    if batch > 1 {
        print(conv.grad_input()?, products);
        print(conv.grad_kernels()?, products);
        // The gradient of a bias that the samples share.
        print(sum_parts(batch, outputs, element)?, batch * outputs);
        // That of the experts is another `mix_experts` of the same size.
        print(mix.grad_routing()?, mixing);
        print(route.grad_logits()?, 4 * batch * EXPERTS);
        print(route.grad_input()?, weighing);
    }
    Ok(())
}
