//! The operations as plain loops in f64: what every kernel is compared with.

use dyconv_kernels::Routing;
use dyconv_kernels::cpu::ConvShape;

/// Calls `term(x, kernel, y)` with the indices of every product that a convolution sums.
fn terms(s: &ConvShape, per_sample: bool, mut term: impl FnMut(usize, usize, usize)) {
    let (kh, kw) = s.config.kernel;
    let (group_in, group_out) = (s.in_channels / s.config.groups, s.out_channels / s.config.groups);
    let set = group_in * kh * kw * s.out_channels;
    for (b, o) in pairs(s.batch, s.out_channels) {
        for ((oy, ox), c) in pairs(s.output.0, s.output.1).flat_map(|p| (0..group_in).map(move |c| (p, c))) {
            for (ky, kx) in pairs(kh, kw) {
                let iy = (oy * s.config.stride.0 + ky * s.config.dilation.0).wrapping_sub(s.config.padding.0);
                let ix = (ox * s.config.stride.1 + kx * s.config.dilation.1).wrapping_sub(s.config.padding.1);
                if iy < s.input.0 && ix < s.input.1 {
                    let plane = b * s.in_channels + o / group_out * group_in + c;
                    let kernel = if per_sample { b * set } else { 0 } + ((o * group_in + c) * kh + ky) * kw + kx;
                    let pixel = ((b * s.out_channels + o) * s.output.0 + oy) * s.output.1 + ox;
                    term((plane * s.input.0 + iy) * s.input.1 + ix, kernel, pixel);
                }
            }
        }
    }
}

fn pairs(a: usize, b: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..a).flat_map(move |i| (0..b).map(move |j| (i, j)))
}

/// The convolution.
pub fn convolution(s: &ConvShape, per_sample: bool, x: &[f64], kernels: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; s.batch * s.out_channels * s.output.0 * s.output.1];
    terms(s, per_sample, |i, k, o| y[o] += x[i] * kernels[k]);
    y
}

/// Gradient of its input.
pub fn conv_grad_input(s: &ConvShape, per_sample: bool, dy: &[f64], kernels: &[f64]) -> Vec<f64> {
    let mut dx = vec![0.0; s.batch * s.in_channels * s.input.0 * s.input.1];
    terms(s, per_sample, |i, k, o| dx[i] += dy[o] * kernels[k]);
    dx
}

/// Gradient of its kernels.
pub fn conv_grad_kernels(s: &ConvShape, per_sample: bool, dy: &[f64], x: &[f64]) -> Vec<f64> {
    let mut dk = vec![0.0; s.kernel_len() * if per_sample { s.batch } else { 1 }];
    terms(s, per_sample, |i, k, o| dk[k] += dy[o] * x[i]);
    dk
}

/// What follows a convolution: `silu((y + bias) * scale + shift)`, each where it is there. A bias of more than `channels`
/// values has a row a sample.
pub fn tail(
    y: &[f64],
    channels: usize,
    pixels: usize,
    [bias, scale, shift]: [Option<&[f64]>; 3],
    silu: bool,
) -> Vec<f64> {
    let finish = |(at, v): (usize, &f64)| {
        let plane = at / pixels;
        let channel = plane % channels;
        let bias = bias.map_or(0.0, |bias| if bias.len() > channels { bias[plane] } else { bias[channel] });
        let v = (v + bias) * scale.map_or(1.0, |scale| scale[channel]) + shift.map_or(0.0, |shift| shift[channel]);
        if silu { v * sigmoid(v) } else { v }
    };
    y.iter().enumerate().map(finish).collect()
}

/// Gradient of a bias: sums of planes, and over the samples unless each has a bias of its own.
pub fn bias_grad(dy: &[f64], channels: usize, pixels: usize, per_sample: bool) -> Vec<f64> {
    let planes: Vec<f64> = dy.chunks(pixels).map(|plane| plane.iter().sum()).collect();
    if per_sample { planes } else { sum_rows(&planes, channels) }
}

fn sum_rows(rows: &[f64], length: usize) -> Vec<f64> {
    (0..length).map(|i| rows.iter().skip(i).step_by(length).sum()).collect()
}

/// `a [n, m] * b [m, length]`.
pub fn product(a: &[f64], b: &[f64], m: usize, length: usize) -> Vec<f64> {
    let n = a.len() / m;
    pairs(n, length).map(|(i, p)| (0..m).map(|j| a[i * m + j] * b[j * length + p]).sum()).collect()
}

/// `a [n, m]` by columns.
pub fn transposed(a: &[f64], m: usize) -> Vec<f64> {
    pairs(m, a.len() / m).map(|(j, i)| a[i * m + j]).collect()
}

fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

/// Means of planes.
pub fn pooled(x: &[f64], pixels: usize) -> Vec<f64> {
    x.chunks(pixels).map(|plane| plane.iter().sum::<f64>() / pixels as f64).collect()
}

/// Routing weights `[batch, experts]` of maps of `pixels`; `bias` has a value an expert.
pub fn route(x: &[f64], weight: &[f64], bias: &[f64], pixels: usize, routing: Routing) -> Vec<f64> {
    let experts = bias.len();
    let channels = weight.len() / experts;
    let logits = product(&pooled(x, pixels), &transposed(weight, channels), channels, experts);
    let mut r = Vec::with_capacity(logits.len());
    for row in logits.chunks(experts) {
        let row: Vec<f64> = row.iter().zip(bias).map(|(logit, bias)| logit + bias).collect();
        match routing {
            Routing::Sigmoid => r.extend(row.iter().map(|logit| sigmoid(*logit))),
            Routing::Softmax { temperature } => {
                let total: f64 = row.iter().map(|logit| (logit / temperature).exp()).sum();
                r.extend(row.iter().map(|logit| (logit / temperature).exp() / total));
            }
        }
    }
    r
}

/// Gradient of the logits from the weights and theirs.
pub fn route_grad_logits(r: &[f64], grad: &[f64], experts: usize, routing: Routing) -> Vec<f64> {
    let row = |at: usize| at / experts * experts..(at / experts + 1) * experts;
    let one = |at: usize| match routing {
        Routing::Sigmoid => grad[at] * r[at] * (1.0 - r[at]),
        Routing::Softmax { temperature } => {
            let mean: f64 = row(at).map(|i| r[i] * grad[i]).sum();
            r[at] * (grad[at] - mean) / temperature
        }
    };
    (0..r.len()).map(one).collect()
}

/// Gradient of the maps from that of the logits.
pub fn route_grad_input(logits: &[f64], weight: &[f64], experts: usize, pixels: usize) -> Vec<f64> {
    let channels = weight.len() / experts;
    let planes = product(logits, weight, experts, channels);
    planes.iter().flat_map(|plane| std::iter::repeat_n(plane / pixels as f64, pixels)).collect()
}

/// Gradients of the linear layer's weight and bias from that of the logits.
pub fn route_grad_linear(logits: &[f64], x: &[f64], experts: usize, pixels: usize) -> (Vec<f64>, Vec<f64>) {
    let pooled = pooled(x, pixels);
    let batch = logits.len() / experts;
    let weight = product(&transposed(logits, experts), &pooled, batch, pooled.len() / batch);
    (weight, sum_rows(logits, experts))
}
