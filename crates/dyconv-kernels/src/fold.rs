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
        self.check(Operation("BatchNorm::scale_shift"))?;
        let scale = (self.weight / (self.var + self.eps)?.sqrt()?)?;
        let shift = (self.bias - (self.mean * &scale)?)?;
        Ok((scale, shift))
    }

    /// The number of channels, where the four tensors fit each other.
    fn check(&self, operation: Operation) -> Result<usize> {
        let [channels] = operation.dims("weight", self.weight, "[C]")?;
        let others = [("bias of the normalisation", self.bias), ("mean", self.mean), ("var", self.var)];
        for (name, tensor) in others {
            operation.shape(name, tensor, &[channels], "[C of `weight`]")?;
        }
        let [bias, mean, var] = others.map(|(name, tensor)| (name, Some(tensor)));
        operation.alike(&[("weight", Some(self.weight)), bias, mean, var])?;
        Ok(channels)
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
    let channels = norm.check(FOLD)?;
    let count = experts.dims().first().copied().unwrap_or(0);
    if experts.rank() < 2 || count == 0 || channels == 0 || !experts.elem_count().is_multiple_of(count * channels) {
        let expected = format!("[K, ...] with kernels of {channels} channels");
        return Err(FOLD.wrong("experts", expected, format!("{:?}", experts.dims())));
    }
    if let Some(bias) = bias {
        FOLD.shape("bias", bias, &[count, channels], "[K of `experts`, C of `weight`]")?;
    }
    FOLD.alike(&[("experts", Some(experts)), ("bias", bias), ("weight", Some(norm.weight))])?;
    let (scale, shift) = norm.scale_shift()?;
    let rows = experts.reshape((count, channels, ()))?;
    Ok(Folded {
        experts: rows.broadcast_mul(&scale.reshape((1, channels, 1))?)?.reshape(experts.dims())?,
        bias: bias.map(|bias| bias.broadcast_mul(&scale)).transpose()?,
        shift,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_by_its_name() {
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let (four, three) = (ones(&[4]), ones(&[3]));
        let double = four.to_dtype(DType::F64).unwrap();
        let norm = BatchNorm { weight: &four, bias: &four, mean: &four, var: &four, eps: 1e-3 };
        let text = BatchNorm { mean: &three, ..norm }.scale_shift().unwrap_err().to_string();
        assert_eq!(text, "BatchNorm::scale_shift: `mean` must be [C of `weight`] = [4], it is [3]");
        let text = BatchNorm { var: &double, ..norm }.scale_shift().unwrap_err().to_string();
        assert_eq!(text, "BatchNorm::scale_shift: `var` must be f32 as `weight`, it is f64");
        let told =
            |experts: &Tensor, norm: &BatchNorm<'_>| fold_batch_norm(experts, None, norm).unwrap_err().to_string();
        let expected = "fold_batch_norm: `experts` must be [K, ...] with kernels of 4 channels, it is [0, 8]";
        assert_eq!(told(&ones(&[0, 8]), &norm), expected);
        assert!(
            told(&ones(&[2, 8]), &BatchNorm { bias: &three, ..norm }).contains("`bias of the normalisation` must be")
        );
        assert!(told(&double.reshape((1, 4)).unwrap(), &norm).contains("`weight` must be f64 as `experts`, it is f32"));
    }
}
