//! Passes over whole tensors that change one of them in place.

use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor, bail};
use rayon::prelude::*;

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 15;

#[cfg(test)]
thread_local! {
    /// Makes the CPU take the way of other devices.
    pub(super) static PLAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether a tensor's values can be changed where they lie.
fn in_place(dst: &Tensor) -> bool {
    #[cfg(test)]
    if PLAIN.get() {
        return false;
    }
    dst.device().is_cpu()
}

/// Sets every value `d` of `dst` to `f(d, s)`, with `s` from `src`. On other devices than the CPU, `plain` says the same in
/// Candle's operations.
pub(crate) fn update2(
    dst: &Tensor,
    src: &Tensor,
    f: impl Fn(f32, f32) -> f32 + Sync,
    plain: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let src = src.contiguous()?;
    if in_place(dst) {
        return dst.inplace_op2(&src, &Elementwise(f));
    }
    replace(dst, &plain(&dst.detach(), &src.detach())?)
}

/// As [`update2`], with two sources.
pub(crate) fn update3(
    dst: &Tensor,
    a: &Tensor,
    b: &Tensor,
    f: impl Fn(f32, f32, f32) -> f32 + Sync,
    plain: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    if in_place(dst) {
        return dst.inplace_op3(&a, &b, &Elementwise(f));
    }
    replace(dst, &plain(&dst.detach(), &a.detach(), &b.detach())?)
}

/// `dst = keep * dst + (1 - keep) * src`.
pub(crate) fn blend(dst: &Tensor, src: &Tensor, keep: f64) -> Result<()> {
    let (k, r) = (keep as f32, (1.0 - keep) as f32);
    update2(dst, src, |d, s| k * d + r * s, |d, s| (d * keep)? + (s * (1.0 - keep))?)
}

/// The values of a tensor in a storage of their own.
pub(crate) fn same_device_copy(tensor: &Tensor) -> Result<Tensor> {
    tensor.detach().copy()
}

/// Copies `values` into the storage of `dst`.
fn replace(dst: &Tensor, values: &Tensor) -> Result<()> {
    // The reader's lock would hold off the writer's.
    let values = values.contiguous()?.copy()?;
    dst.slice_set(&values, 0, 0)
}

/// Squared norm of a tensor's values, summed in f64 in an order that does not depend on the number of threads.
pub(super) fn squared_norm(tensor: &Tensor) -> Result<f64> {
    if tensor.device().is_cpu() {
        let tensor = tensor.contiguous()?;
        let (storage, layout) = tensor.storage_and_layout();
        if let Storage::Cpu(storage) = &*storage {
            let values = slice(storage, layout)?;
            let square = |chunk: &[f32]| chunk.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            let sums: Vec<f64> = values.par_chunks(CHUNK).map(square).collect();
            return Ok(sums.iter().sum());
        }
    }
    Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?))
}

fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let values = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("a tensor that should be contiguous is not"),
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("weights are trained in f32") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut values[start..end]),
        None => bail!("a tensor that is changed in place must be contiguous"),
    }
}

struct Elementwise<F>(F);

impl<F: Fn(f32, f32) -> f32 + Sync> InplaceOp2 for Elementwise<F> {
    fn name(&self) -> &'static str {
        "update in place"
    }

    fn cpu_fwd(&self, dst: &mut CpuStorage, d: &Layout, src: &CpuStorage, s: &Layout) -> Result<()> {
        let (dst, src) = (slice_mut(dst, d)?, slice(src, s)?);
        if dst.len() != src.len() {
            bail!("{} values cannot be updated by {}", dst.len(), src.len());
        }
        dst.par_chunks_mut(CHUNK).zip(src.par_chunks(CHUNK)).for_each(|(dst, src)| {
            dst.iter_mut().zip(src).for_each(|(d, s)| *d = self.0(*d, *s));
        });
        Ok(())
    }
}

impl<F: Fn(f32, f32, f32) -> f32 + Sync> InplaceOp3 for Elementwise<F> {
    fn name(&self) -> &'static str {
        "update in place"
    }

    fn cpu_fwd(
        &self,
        dst: &mut CpuStorage,
        d: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<()> {
        let (dst, a, b) = (slice_mut(dst, d)?, slice(a, la)?, slice(b, lb)?);
        if dst.len() != a.len() || dst.len() != b.len() {
            bail!("{} values cannot be updated by {} and {}", dst.len(), a.len(), b.len());
        }
        dst.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((dst, a), b)| {
            dst.iter_mut().zip(a).zip(b).for_each(|((d, a), b)| *d = self.0(*d, *a, *b));
        });
        Ok(())
    }
}
