//! Writing NumPy's `.npz`: a zip archive of one `.npy` a tensor.

use std::borrow::Cow;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{StoredType, TensorSource};
use crate::files::write_whole;
use crate::{Error, Result};

/// Writes tensors as `.npz`, whole or not at all: `numpy.load(path)[name]` gives them back.
///
/// NumPy has no bf16; such tensors are widened to f32.
///
/// # Errors
/// [`Error::Io`] that names the file; [`Error::Weights`] where a tensor's type has no counterpart in NumPy, or two
/// tensors share a name.
pub fn save_npz<'a>(path: impl AsRef<Path>, tensors: impl IntoIterator<Item = TensorSource<'a>>) -> Result<()> {
    let path = path.as_ref();
    write_whole(path, |out| {
        // In memory first: where the disk is full, the archive's writer would print a line of its own as it is dropped.
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for tensor in tensors {
            let Some(descr) = descr(tensor.dtype()) else {
                let problem = format!("`{}` is stored as {}, a type that NumPy lacks", tensor.name(), tensor.dtype());
                return Err(Error::weights(path, problem));
            };
            let bytes = tensor.bytes();
            let bytes = if tensor.dtype() == StoredType::BF16 { widen(&bytes) } else { bytes };
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(bytes.len() as u64 >= u64::from(u32::MAX));
            zip.start_file(format!("{}.npy", tensor.name()), options)
                .map_err(|error| Error::weights(path, format!("`{}` cannot be written ({error})", tensor.name())))?;
            let written = zip.write_all(&header(descr, tensor.shape())).and_then(|()| zip.write_all(&bytes));
            written.map_err(|source| Error::io(path, source))?;
        }
        let archive = zip.finish().map_err(|error| Error::io(path, error.into()))?.into_inner();
        out.write_all(&archive).map_err(|cause| Error::io(path, cause))
    })
}

/// NumPy's name of a type.
fn descr(dtype: StoredType) -> Option<&'static str> {
    Some(match dtype {
        StoredType::F16 => "<f2",
        StoredType::F32 | StoredType::BF16 => "<f4",
        StoredType::F64 => "<f8",
        StoredType::I8 => "|i1",
        StoredType::I16 => "<i2",
        StoredType::I32 => "<i4",
        StoredType::I64 => "<i8",
        StoredType::U8 => "|u1",
        StoredType::U16 => "<u2",
        StoredType::U32 => "<u4",
        StoredType::U64 => "<u8",
        StoredType::BOOL => "|b1",
        _ => return None,
    })
}

/// The head of an `.npy` file, version 1.0: magic, version, and a Python dict padded so that the data is aligned to 64.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let sides: String = shape.iter().map(|side| format!("{side},")).collect();
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sides}), }}");
    const BEFORE: usize = 10;
    let len = (BEFORE + dict.len() + 1).next_multiple_of(64) - BEFORE;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // A shape that needs more than 65535 bytes does not exist: each side takes at most 20.
    header.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes());
    header.extend_from_slice(dict.as_bytes());
    header.resize(BEFORE + len - 1, b' ');
    header.push(b'\n');
    header
}

/// bf16 to f32, exactly: a bf16 is the upper half of an f32.
fn widen(bytes: &[u8]) -> Cow<'static, [u8]> {
    let (halves, _) = bytes.as_chunks::<2>();
    Cow::Owned(halves.iter().flat_map(|&[low, high]| [0, 0, low, high]).collect())
}
