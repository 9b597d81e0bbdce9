//! Runs the cases on a device and compares every result with the twin.

use std::collections::BTreeMap;
use std::fmt;

use dyconv_kernels::gpu::conv::{Bias, Conv, Tail};
use dyconv_kernels::gpu::mix::Mix;
use dyconv_kernels::gpu::ops::{self, Device, TailBuffers};
use dyconv_kernels::gpu::route::Route;
use dyconv_kernels::gpu::{Element, Kernel};
use half::{bf16, f16};

use crate::cases::{Case, ConvCase};
use crate::{Error, twin};

/// A device that tests can fill and look into.
pub trait TestDevice: Device {
    /// Copies values, as the bytes of their type, to memory that begins `offset` values after an aligned address.
    ///
    /// # Errors
    /// Where the device fails.
    fn upload(&self, bytes: &[u8], element: Element, offset: usize) -> Result<Self::Buffer, Self::Error>;

    /// The bytes of a buffer.
    ///
    /// # Errors
    /// Where the device fails.
    fn download(&self, buffer: &Self::Buffer) -> Result<Vec<u8>, Self::Error>;

    /// Asks for another order of blocks and threads, where there is a choice.
    fn reorder(&self, seed: u32);

    /// The kernels launched since the last call.
    fn take_launched(&self) -> Vec<(Kernel, Element)>;
}

/// What was run: for each kernel and type the number of comparisons and the worst error.
#[derive(Debug, Default)]
pub struct Table(BTreeMap<(usize, &'static str), (usize, f64)>);

impl Table {
    fn add(&mut self, launched: &[(Kernel, Element)], error: f64) {
        for (kernel, element) in launched {
            let at = Kernel::ALL.iter().position(|known| known == kernel).unwrap_or_default();
            let row = self.0.entry((at, element.suffix())).or_default();
            *row = (row.0 + 1, row.1.max(error));
        }
    }

    /// Kernels and types that nothing ran.
    pub fn missing(&self) -> Vec<String> {
        let all =
            Kernel::ALL.iter().enumerate().flat_map(|(at, kernel)| Element::ALL.map(|element| (at, kernel, element)));
        let never = all.filter(|(at, _, element)| !self.0.contains_key(&(*at, element.suffix())));
        never.map(|(_, kernel, element)| format!("{}_{}", kernel.name(), element.suffix())).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<30} {:>5} {:>6} {:>12}", "kernel", "type", "cases", "worst error")?;
        for ((at, element), (cases, error)) in &self.0 {
            writeln!(f, "{:<30} {element:>5} {cases:>6} {error:>12.1e}", Kernel::ALL[*at].name())?;
        }
        Ok(())
    }
}

/// Runs cases for one type, each under two orders of blocks and threads that must give the same bits.
///
/// # Errors
/// What the device finds, or the first result that is wrong.
pub fn run<D>(device: &D, cases: &[Case], element: Element, table: &mut Table) -> Result<(), Error>
where
    D: TestDevice<Error = Error>,
{
    for (index, case) in cases.iter().enumerate() {
        // Buffers at odd addresses forbid vectors: half of the cases.
        let bench = Bench { device, element, offset: index % 2, seed: index as u32, what: case.to_string() };
        match case {
            Case::Conv(case) => bench.conv(case, table)?,
            Case::Mix(batch, experts, length) => bench.mix(*batch, *experts, *length, table)?,
            Case::Route(batch, channels, pixels, experts, routing) => {
                let (element, aligned) = (element, bench.aligned());
                let (batch, channels, pixels, experts, routing) = (*batch, *channels, *pixels, *experts, *routing);
                bench.route(&Route { batch, channels, pixels, experts, routing, element, aligned }, table)?;
            }
        }
    }
    Ok(())
}

/// Error that rounding explains, relative to the largest value: of the sum in f32, and of the type stored.
fn tolerance(element: Element) -> f64 {
    match element {
        Element::F32 => 2e-6,
        Element::F16 => 6e-4,
        Element::BF16 => 5e-3,
    }
}

/// Values rounded to a type, as its bytes and as they are then.
fn rounded(values: &[f64], element: Element) -> (Vec<u8>, Vec<f64>) {
    let bytes: Vec<u8> = match element {
        Element::F32 => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
        Element::F16 => values.iter().flat_map(|v| f16::from_f64(*v).to_le_bytes()).collect(),
        Element::BF16 => values.iter().flat_map(|v| bf16::from_f64(*v).to_le_bytes()).collect(),
    };
    let values = widened(&bytes, element);
    (bytes, values)
}

fn widened(bytes: &[u8], element: Element) -> Vec<f64> {
    match element {
        Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect(),
        Element::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).into()).collect(),
        Element::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).into()).collect(),
    }
}

struct Bench<'a, D> {
    device: &'a D,
    element: Element,
    offset: usize,
    seed: u32,
    what: String,
}

/// Values on the device and in f64, the same.
struct Input<B> {
    buffer: B,
    values: Vec<f64>,
}

impl<D: TestDevice<Error = Error>> Bench<'_, D> {
    fn aligned(&self) -> bool {
        self.offset == 0
    }

    /// `len` values between -1 and 1, different for each `salt`.
    fn input(&self, salt: u64, len: usize, element: Element) -> Result<Input<D::Buffer>, Error> {
        let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(self.seed) << 32);
        let values = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 23) - 1.0
        });
        let values: Vec<f64> = values.take(len).collect();
        let (bytes, values) = rounded(&values, element);
        Ok(Input { buffer: self.device.upload(&bytes, element, self.offset)?, values })
    }

    /// Runs an operation twice and compares it with the twin and with itself.
    fn check(
        &self,
        table: &mut Table,
        name: &str,
        element: Element,
        expected: &[f64],
        run: impl Fn() -> Result<D::Buffer, Error>,
    ) -> Result<(), Error> {
        let mut results = Vec::with_capacity(2);
        for order in 0..2 {
            self.device.reorder(self.seed * 2 + order);
            self.device.take_launched();
            let buffer = run().map_err(|error| match error {
                Error::Found(text) => Error::Found(format!("{name} of {}:\n{text}", self.what)),
                other => other,
            })?;
            results.push(self.device.download(&buffer)?);
        }
        if results[0] != results[1] {
            return Err(Error::Found(format!("{name} of {}: the result depends on the order of blocks", self.what)));
        }
        let got = widened(&results[0], element);
        let largest = expected.iter().fold(0.0f64, |most, v| most.max(v.abs())).max(1e-3);
        // Written so that NaN counts as the worst.
        let worst = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs() / largest);
        let error = worst.fold(0.0, |most, error| if error <= most { most } else { error });
        let tolerance = tolerance(element);
        let right = error <= tolerance && got.len() == expected.len();
        if !right {
            let what = format!("{name}_{} of {}", self.element.suffix(), self.what);
            return Err(Error::Wrong { what, error, tolerance });
        }
        // A result's rounding says nothing of kernels that worked on intermediate values in f32.
        let mut launched = self.device.take_launched();
        launched.retain(|(_, element)| *element == self.element);
        table.add(&launched, error);
        Ok(())
    }

    fn conv(&self, case: &ConvCase, table: &mut Table) -> Result<(), Error> {
        let (s, element, device) = (&case.shape, self.element, self.device);
        let conv = Conv { shape: s, element, per_sample: case.per_sample, aligned: self.aligned() };
        let x = self.input(1, conv.x_len(), element)?;
        let kernels = self.input(2, conv.kernels_len(), element)?;
        let dy = self.input(3, conv.y_len(), element)?;
        let Tail { bias, scale, shift, silu } = case.tail;
        let term = |salt, wanted: bool, len| wanted.then(|| self.input(salt, len, element)).transpose();
        let rows = if bias == Some(Bias::PerSample) { s.batch } else { 1 };
        let terms = [
            term(4, bias.is_some(), rows * s.out_channels)?,
            term(5, scale, s.out_channels)?,
            term(6, shift, s.out_channels)?,
        ];
        let [bias_buffer, scale_buffer, shift_buffer] = terms.each_ref().map(|term| term.as_ref().map(|t| &t.buffer));
        let buffers = TailBuffers { bias: bias_buffer, scale: scale_buffer, shift: shift_buffer };
        let values = terms.each_ref().map(|term| term.as_ref().map(|t| t.values.as_slice()));
        let pixels = s.output.0 * s.output.1;

        let y = twin::convolution(s, case.per_sample, &x.values, &kernels.values);
        let y = twin::tail(&y, s.out_channels, pixels, values, silu);
        self.check(table, "convolution", element, &y, || {
            ops::convolution(device, &conv, case.tail, &x.buffer, &kernels.buffer, &buffers)
        })?;
        let y = twin::tail(&dy.values, s.out_channels, pixels, values, silu);
        self.check(table, "epilogue", element, &y, || ops::epilogue(device, &conv, case.tail, &dy.buffer, &buffers))?;
        let dx = twin::conv_grad_input(s, case.per_sample, &dy.values, &kernels.values);
        self.check(table, "conv_grad_input", element, &dx, || {
            ops::conv_grad_input(device, &conv, &dy.buffer, &kernels.buffer)
        })?;
        let dk = twin::conv_grad_kernels(s, case.per_sample, &dy.values, &x.values);
        self.check(table, "conv_grad_kernels", element, &dk, || {
            ops::conv_grad_kernels(device, &conv, &dy.buffer, &x.buffer)
        })?;
        let per_sample = bias == Some(Bias::PerSample);
        let db = twin::bias_grad(&dy.values, s.out_channels, pixels, per_sample);
        self.check(table, "bias_grad", element, &db, || ops::bias_grad(device, &conv, per_sample, &dy.buffer))
    }

    fn mix(&self, batch: usize, experts: usize, length: usize, table: &mut Table) -> Result<(), Error> {
        let (element, device) = (self.element, self.device);
        let sizes = Mix { batch, experts, length, element, aligned: self.aligned() };
        let r = self.input(1, batch * experts, element)?;
        let weights = self.input(2, experts * length, element)?;
        let grad = self.input(3, batch * length, element)?;
        let mixed = twin::product(&r.values, &weights.values, experts, length);
        self.check(table, "mix_experts", element, &mixed, || {
            ops::mix_experts(device, &sizes, &r.buffer, &weights.buffer)
        })?;
        let dr = twin::product(&grad.values, &twin::transposed(&weights.values, length), length, experts);
        self.check(table, "mix_grad_routing", element, &dr, || {
            ops::mix_grad_routing(device, &sizes, &grad.buffer, &weights.buffer)
        })?;
        let de = twin::product(&twin::transposed(&r.values, experts), &grad.values, batch, length);
        self.check(table, "mix_grad_experts", element, &de, || {
            ops::mix_grad_experts(device, &sizes, &r.buffer, &grad.buffer)
        })
    }

    fn route(&self, sizes: &Route, table: &mut Table) -> Result<(), Error> {
        let (element, device) = (self.element, self.device);
        let &Route { batch, channels, pixels, experts, routing, .. } = sizes;
        let x = self.input(1, batch * channels * pixels, element)?;
        let weight = self.input(2, experts * channels, element)?;
        let bias = self.input(3, experts, element)?;
        let grad = self.input(4, batch * experts, element)?;
        let weights = twin::route(&x.values, &weight.values, &bias.values, pixels, routing);
        self.check(table, "route", element, &weights, || {
            ops::route(device, sizes, &x.buffer, &weight.buffer, &bias.buffer)
        })?;
        let (bytes, values) = rounded(&weights, element);
        let r = Input { buffer: device.upload(&bytes, element, self.offset)?, values };
        let expected = twin::route_grad_logits(&r.values, &grad.values, experts, routing);
        self.check(table, "route_grad_logits", Element::F32, &expected, || {
            ops::route_grad_logits(device, sizes, &r.buffer, &grad.buffer)
        })?;
        let logits = self.input(5, batch * experts, Element::F32)?;
        let dx = twin::route_grad_input(&logits.values, &weight.values, experts, pixels);
        self.check(table, "route_grad_input", element, &dx, || {
            ops::route_grad_input(device, sizes, &logits.buffer, &weight.buffer)
        })?;
        let (dw, db) = twin::route_grad_linear(&logits.values, &x.values, experts, pixels);
        self.check(table, "route_grad_weight", element, &dw, || {
            ops::route_grad_weight(device, sizes, &logits.buffer, &x.buffer)
        })?;
        self.check(table, "route_grad_bias", element, &db, || ops::route_grad_bias(device, sizes, &logits.buffer))
    }
}
