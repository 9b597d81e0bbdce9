//! Writing safetensors.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::path::Path;

use half::f16;
use safetensors::tensor::TensorInfo;

use super::{NetworkMetadata, StoredType};
use crate::files::write_whole;
use crate::{Error, Result};

/// A tensor on its way into a file: name, type and shape at once, bytes when they are needed.
pub struct TensorSource<'a> {
    name: String,
    dtype: StoredType,
    shape: Vec<usize>,
    bytes: Box<dyn Fn() -> Cow<'a, [u8]> + 'a>,
}

impl<'a> TensorSource<'a> {
    /// A tensor whose bytes (little-endian, row-major) are made by `bytes` when they are written, and dropped after.
    pub fn new(
        name: impl Into<String>,
        dtype: StoredType,
        shape: impl Into<Vec<usize>>,
        bytes: impl Fn() -> Cow<'a, [u8]> + 'a,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), bytes: Box::new(bytes) }
    }

    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn dtype(&self) -> StoredType {
        self.dtype
    }

    /// Its shape; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its bytes, little-endian and row-major.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        (self.bytes)()
    }

    /// Number of its elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().copied().fold(1, usize::saturating_mul)
    }

    /// The same tensor with floating-point elements narrowed to f16 (to nearest, ties to even); others stay.
    pub fn into_half(self) -> Self {
        let narrow: fn([u8; 4]) -> f16 = match self.dtype {
            StoredType::F32 => |bytes| f16::from_f32(f32::from_le_bytes(bytes)),
            // A bf16 is the upper half of an f32.
            StoredType::BF16 => |bytes| f16::from_f32(f32::from_le_bytes([0, 0, bytes[0], bytes[1]])),
            _ => return self,
        };
        let width = self.dtype.bitsize() / 8;
        let wide = self.bytes;
        let bytes = move || {
            let wide = wide();
            let halves = wide.chunks_exact(width).flat_map(|chunk| {
                let mut element = [0; 4];
                element.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
                narrow(element).to_le_bytes()
            });
            Cow::Owned(halves.collect())
        };
        Self { name: self.name, dtype: StoredType::F16, shape: self.shape, bytes: Box::new(bytes) }
    }
}

impl fmt::Debug for TensorSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{:?}", self.name, self.dtype, self.shape)
    }
}

/// Writes tensors and what they belong to as safetensors, whole or not at all.
///
/// Wide elements come first, as the format's own writer has them, so that every tensor is aligned in a memory map;
/// otherwise the order is kept. The same tensors give the same bytes.
///
/// # Errors
/// [`Error::Io`] that names the file; [`Error::Weights`] where two tensors share a name, or the bytes of one are not as
/// many as its shape says.
pub fn save<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = TensorSource<'a>>,
    metadata: &NetworkMetadata,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
    let (header, ends) = header(&tensors, metadata).map_err(|problem| Error::weights(path, problem))?;

    write_whole(path, |out| {
        let io = |source| Error::io(path, source);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&header).map_err(io)?;
        let mut start = 0;
        for (tensor, end) in tensors.iter().zip(ends) {
            let bytes = tensor.bytes();
            if bytes.len() != end - start {
                let problem = format!("`{}` has {} bytes, its shape needs {}", tensor.name, bytes.len(), end - start);
                return Err(Error::weights(path, problem));
            }
            out.write_all(&bytes).map_err(io)?;
            start = end;
        }
        Ok(())
    })
}

/// The JSON header, padded with spaces to a multiple of 8 bytes, and where each tensor ends in the data.
fn header(tensors: &[TensorSource<'_>], metadata: &NetworkMetadata) -> Result<(Vec<u8>, Vec<usize>), String> {
    let mut header = serde_json::Map::new();
    let map: serde_json::Map<_, _> = metadata.to_map().into_iter().map(|(key, value)| (key, value.into())).collect();
    header.insert("__metadata__".into(), map.into());
    let mut ends = Vec::with_capacity(tensors.len());
    let mut start = 0;
    for tensor in tensors {
        let too_large = || format!("`{}` is too large: {:?} elements of {}", tensor.name, tensor.shape, tensor.dtype);
        let bits = tensor.shape.iter().try_fold(tensor.dtype.bitsize(), |bits, &side| bits.checked_mul(side));
        let end = bits.and_then(|bits| (bits / 8).checked_add(start)).ok_or_else(too_large)?;
        let info = TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
        let info = serde_json::to_value(info).map_err(|error| error.to_string())?;
        if header.insert(tensor.name.clone(), info).is_some() {
            return Err(format!("two tensors are named `{}`", tensor.name));
        }
        ends.push(end);
        start = end;
    }
    let mut text = serde_json::to_vec(&header).map_err(|error| error.to_string())?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok((text, ends))
}
