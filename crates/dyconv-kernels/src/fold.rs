//! Batch normalisation folded into the experts of a dynamic convolution.

use candle_core::Tensor;

use crate::error::{Operation, Result};

/// Batch normalisation of C channels by running statistics; each tensor is `[C]`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm<'a> {
    /// Scale, gamma.
    pub weight: &'a Tensor,
    /// Shift, beta.
    pub bias: &'a Tensor,
    /// Running mean.
    pub mean: &'a Tensor,
    /// Running variance.
    pub var: &'a Tensor,
    /// What is added to the variance.
    pub eps: f64,
}

/// A dynamic convolution that does the work of the batch normalisation behind it.
#[derive(Debug, Clone)]
pub struct Folded {
    /// Experts, of the shape that they had.
    pub experts: Tensor,
    /// Biases of the experts, `[K, C]`, where there were any.
    pub bias: Option<Tensor>,
    /// What is added to each output channel, `[C]`; not mixed, for the weights of sigmoid routing do not sum to one.
    pub shift: Tensor,
}

impl BatchNorm<'_> {
    /// `y = x * scale + shift`: the normalisation as one factor and one summand a channel, `[C]` each.
    ///
    /// # Errors
    /// Where the four tensors do not fit each other.
    pub fn scale_shift(&self) -> Result<(Tensor, Tensor)> {
        let scale = (self.weight / (self.var + self.eps)?.sqrt()?)?;
        let shift = (self.bias - (self.mean * &scale)?)?;
        Ok((scale, shift))
    }
}

/// Folds batch normalisation into the experts before it, exactly: a mixture of scaled kernels is the scaled mixture,
///
/// `gamma * (sum_k r_k (W_k * x + b_k) - mean) / sd + beta = sum_k r_k ((gamma / sd) W_k * x + (gamma / sd) b_k) + shift`,
///
/// with `sd = sqrt(var + eps)` and `shift = beta - mean * gamma / sd`.
///
/// # Shapes
/// `experts` is `[K, ...]`, each expert's values in the order `[C, (Cin / groups) * kh * kw]`; `bias` is `[K, C]`.
///
/// # Errors
/// Where types, devices or shapes do not fit.
pub fn fold_batch_norm(experts: &Tensor, bias: Option<&Tensor>, norm: &BatchNorm<'_>) -> Result<Folded> {
    const FOLD: Operation = Operation("fold_batch_norm");
    let [channels] = FOLD.dims("weight", norm.weight, "[C]")?;
    for (name, tensor) in [("bias of the normalisation", norm.bias), ("mean", norm.mean), ("var", norm.var)] {
        FOLD.shape(name, tensor, &[channels], "[C of `weight`]")?;
    }
    let count = experts.dims().first().copied().unwrap_or(0);
    if experts.rank() < 2 || channels == 0 || !experts.elem_count().is_multiple_of(count.max(1) * channels) {
        let expected = format!("[K, ...] with kernels of {channels} channels");
        return Err(FOLD.wrong("experts", expected, format!("{:?}", experts.dims())));
    }
    if let Some(bias) = bias {
        FOLD.shape("bias", bias, &[count, channels], "[K of `experts`, C of `weight`]")?;
    }
    FOLD.alike(&[
        ("experts", Some(experts)),
        ("bias", bias),
        ("weight", Some(norm.weight)),
        ("bias of the normalisation", Some(norm.bias)),
        ("mean", Some(norm.mean)),
        ("var", Some(norm.var)),
    ])?;
    let (scale, shift) = norm.scale_shift()?;
    let rows = experts.reshape((count, channels, ()))?;
    Ok(Folded {
        experts: rows.broadcast_mul(&scale.reshape((1, channels, 1))?)?.reshape(experts.dims())?,
        bias: bias.map(|bias| bias.broadcast_mul(&scale)).transpose()?,
        shift,
    })
}
