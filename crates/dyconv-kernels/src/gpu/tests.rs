//! Launches cover their work, fit the devices, and agree with the sources.

use std::fs;
use std::path::PathBuf;

use super::conv::{Bias, Conv, Tail};
use super::mix::{Mix, sum_parts};
use super::route::Route;
use super::*;
use crate::cpu::ConvShape;
use crate::{ConvConfig, Routing};

fn source(path: &str) -> String {
    let full = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels").join(path);
    fs::read_to_string(&full).unwrap_or_else(|error| panic!("{}: {error}", full.display()))
}

/// The words of C++ text between `from` and `to`, without its comments.
fn words(text: &str, from: &str, to: &str) -> Vec<String> {
    let body = text.split(from).nth(1).unwrap_or_else(|| panic!("no `{from}`")).split(to).next().unwrap_or_default();
    let code: Vec<&str> = body.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    code.join(" ").split([' ', ',', ';', '{', '=']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn structs_are_those_of_the_source() {
    let text = source("params.h");
    for (name, fields) in params::STRUCTS {
        let mut kind = String::new();
        let mut found = Vec::new();
        for word in words(&text, &format!("struct {name} {{"), "}") {
            if word == "unsigned" || word == "float" {
                kind = word;
            } else {
                found.push((kind.clone(), word));
            }
        }
        let expected: Vec<_> = fields.iter().map(|(kind, field)| (kind.to_string(), field.to_string())).collect();
        assert_eq!(found, expected, "{name}");
    }
    let expected = [
        ("HAS_BIAS", flag::HAS_BIAS),
        ("BIAS_PER_SAMPLE", flag::BIAS_PER_SAMPLE),
        ("HAS_SCALE", flag::HAS_SCALE),
        ("HAS_SHIFT", flag::HAS_SHIFT),
        ("SILU", flag::SILU),
        ("VECTOR", flag::VECTOR),
        ("SOFTMAX", flag::SOFTMAX),
    ];
    let found = words(&text, "enum Flag : unsigned {", "}");
    let expected: Vec<String> = expected.iter().flat_map(|(name, bit)| [name.to_string(), format!("{bit}u")]).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_kernel_is_in_its_file() {
    for kernel in Kernel::ALL {
        let text = source(&format!("cuda/{}.cu", kernel.file()));
        assert!(text.contains(&format!(" {}_##NAME(", kernel.name())), "{} in {}.cu", kernel.name(), kernel.file());
        assert!(text.contains("FOR_EACH_TYPE("), "{}.cu", kernel.file());
    }
}

#[test]
fn division_by_multiplication_is_exact() {
    for d in [1u32, 2, 3, 5, 7, 9, 25, 49, 121, 255, 256, 961, 4095] {
        let most = u32::MAX / d;
        let near = (0..most / d).step_by((most / d / 5000).max(1) as usize).flat_map(|q| [q * d, q * d + d - 1]);
        for n in near.chain(most - 3..most) {
            let product = u64::from(n) * u64::from(multiplier(d));
            let quotient = if d == 1 { n } else { (product >> 32) as u32 };
            assert_eq!(quotient, n / d, "{n} / {d}");
        }
    }
}

fn shape(batch: usize, channels: (usize, usize), input: (usize, usize), config: ConvConfig) -> ConvShape {
    let axis = |size: usize, kernel: usize, stride: usize, padding: usize, dilation: usize| {
        (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1
    };
    let output = (
        axis(input.0, config.kernel.0, config.stride.0, config.padding.0, config.dilation.0),
        axis(input.1, config.kernel.1, config.stride.1, config.padding.1, config.dilation.1),
    );
    ConvShape { batch, in_channels: channels.0, out_channels: channels.1, input, output, config }
}

const SQUARE: ConvConfig = ConvConfig { kernel: (3, 3), stride: (1, 1), padding: (1, 1), dilation: (1, 1), groups: 1 };

/// Launches of all kernels at one size, small or large.
fn launches(scale: usize) -> Vec<Launch> {
    let tail = Tail { bias: Some(Bias::PerSample), scale: true, shift: true, silu: true };
    let mut all = Vec::new();
    for element in Element::ALL {
        for config in [
            SQUARE,
            ConvConfig { kernel: (1, 1), padding: (0, 0), ..SQUARE },
            ConvConfig { groups: 8 * scale, ..SQUARE },
            ConvConfig { kernel: (5, 3), stride: (2, 1), dilation: (1, 2), groups: 2, ..SQUARE },
        ] {
            for per_sample in [false, true] {
                let shape = shape(scale, (8 * scale, 16 * scale), (9 * scale, 7 * scale), config);
                let conv = Conv { shape: &shape, element, per_sample, aligned: true };
                all.extend([conv.forward(tail), conv.grad_input(), conv.grad_kernels(), conv.epilogue(tail)]);
            }
        }
        let mix = Mix { batch: scale, experts: 4 * scale, length: 1001 * scale, element, aligned: true };
        all.extend([mix.forward(), mix.grad_experts(), mix.grad_routing(), sum_parts(scale, 77 * scale, element)]);
        let routing = Routing::Softmax { temperature: 30.0 };
        let (channels, pixels) = (24 * scale, 49 * scale);
        let route = Route { batch: scale, channels, pixels, experts: 4, routing, element, aligned: true };
        all.extend([route.fused(), route.pooled(), route.pool(), route.grad_logits(), route.grad_input()]);
    }
    all.into_iter().map(|launch| launch.unwrap_or_else(|error| panic!("{error}"))).collect()
}

#[test]
fn launches_fit_every_device() {
    for launch in launches(1).into_iter().chain(launches(30)) {
        let name = launch.entry();
        assert!(launch.grid.iter().all(|n| *n > 0) && launch.grid[1] <= 65_535 && launch.grid[2] == 1, "{name}");
        assert!(launch.block[0] % 32 == 0 && launch.block[0] <= 1024 && launch.block[1..] == [1, 1], "{name}");
        assert!(launch.shared as usize <= MAX_SHARED, "{name}: {} bytes", launch.shared);
        let written: Vec<bool> = launch.buffers.iter().map(|buffer| buffer.access == Access::Write).collect();
        assert_eq!(
            written.iter().rposition(|written| !written),
            Some(written.len() - 2),
            "{name} writes its last buffer"
        );
    }
    let used: std::collections::HashSet<_> = launches(1).iter().map(|launch| launch.kernel).collect();
    assert_eq!(used.len(), Kernel::ALL.len(), "a kernel that nothing launches");
}

#[test]
fn grids_cover_the_results() {
    for launch in launches(1).into_iter().chain(launches(30)) {
        let out = launch.buffers[launch.buffers.len() - 1];
        let blocks = product(&[launch.grid[0] as usize, launch.grid[1] as usize]);
        let each = match launch.kernel {
            Kernel::ConvGemm | Kernel::ConvPointwise | Kernel::ConvGradInput | Kernel::ConvGradKernels => 64 * 64,
            Kernel::MixExperts => 8 * 4 * 256,
            Kernel::ConvDepthwise | Kernel::ConvDepthwiseGradInput | Kernel::Epilogue => 4 * 256,
            Kernel::SumParts | Kernel::RouteGradLogits => 256,
            _ => out.len.div_ceil(blocks),
        };
        assert!(blocks * each >= out.len, "{}: {blocks} blocks for {} values", launch.entry(), out.len);
    }
}

#[test]
fn the_kernel_follows_the_shape() {
    let kernel = |config: ConvConfig, channels| {
        Conv { shape: &shape(2, channels, (9, 9), config), element: Element::F32, per_sample: true, aligned: false }
            .kernel()
    };
    assert_eq!(kernel(SQUARE, (8, 8)), Kernel::ConvGemm);
    assert_eq!(kernel(ConvConfig { groups: 8, ..SQUARE }, (8, 16)), Kernel::ConvDepthwise);
    assert_eq!(kernel(ConvConfig { groups: 4, ..SQUARE }, (8, 16)), Kernel::ConvGemm);
    let one = ConvConfig { kernel: (1, 1), padding: (0, 0), ..SQUARE };
    assert_eq!(kernel(one, (8, 8)), Kernel::ConvPointwise);
    assert_eq!(kernel(ConvConfig { stride: (2, 2), ..one }, (8, 8)), Kernel::ConvGemm);
}

/// Of one channel a group, kernels lie in shared memory; more than fit there are matrix products.
#[test]
fn large_windows_are_matrix_products() {
    let config = ConvConfig { kernel: (91, 91), padding: (45, 45), groups: 8, ..SQUARE };
    let shape = shape(2, (8, 8), (9, 9), config);
    let conv = Conv { shape: &shape, element: Element::F32, per_sample: true, aligned: false };
    assert_eq!(conv.forward(Tail::default()).unwrap().kernel, Kernel::ConvGemm);
    assert_eq!(conv.grad_input().unwrap().kernel, Kernel::ConvGradInput);
    let small = ConvShape { config: ConvConfig { kernel: (90, 90), ..config }, ..shape };
    let conv = Conv { shape: &small, ..conv };
    assert_eq!(conv.forward(Tail::default()).unwrap().kernel, Kernel::ConvDepthwise);
    assert_eq!(conv.grad_input().unwrap().kernel, Kernel::ConvDepthwiseGradInput);
}

#[test]
fn what_does_not_fit_is_named() {
    let route = |channels| Route {
        batch: 1,
        channels,
        pixels: 4,
        experts: 4,
        routing: Routing::Sigmoid,
        element: Element::F16,
        aligned: false,
    };
    assert!(route(8188).fused().is_ok());
    let text = route(8189).fused().unwrap_err().to_string();
    assert_eq!(text, "the shared memory of a block is 32772; the GPU kernels take at most 32768");
    let mix = Mix { batch: 1, experts: 1, length: 1 << 31, element: Element::F32, aligned: true };
    assert!(mix.forward().unwrap_err().to_string().starts_with("the values of an expert is 2147483648"));
}
