//! Weights in memory or memory-mapped from safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;
use memmap2::Mmap;
use safetensors::tensor::Metadata;

use super::{NetworkMetadata, StoredType, TensorSource};
use crate::{Error, Result};

/// Length of the header's size at the start of a safetensors file.
const SIZE_LEN: usize = 8;
/// The longest header that the safetensors format allows.
const MAX_HEADER: u64 = 100_000_000;

/// The named tensors of one network. Cheap to clone: clones share the file.
#[derive(Clone)]
pub struct Weights(Arc<Inner>);

struct Inner {
    path: PathBuf,
    metadata: NetworkMetadata,
    /// In the file's order.
    names: Vec<String>,
    tensors: HashMap<String, Entry>,
    data: Data,
}

struct Entry {
    dtype: StoredType,
    shape: Vec<usize>,
    held: Held,
}

enum Held {
    /// Byte range in [`Data`].
    Mapped(Range<usize>),
    Tensor(Tensor),
}

/// The bytes of a whole file.
pub(super) enum Data {
    Mapped(Mmap),
    Static(&'static [u8]),
    None,
}

impl Data {
    /// Maps a file; an empty file is no bytes.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        let metadata = file.metadata().map_err(|source| Error::io(path, source))?;
        if metadata.is_dir() {
            return Err(Error::weights(path, "is a folder, expected a weights file"));
        }
        if metadata.len() == 0 {
            return Ok(Self::None);
        }
        // SAFETY: the map is read only and lives as long as the bytes that are borrowed from it. Another process that
        // truncates or rewrites the file in place while it is mapped would break this; weights are written under a
        // temporary name and renamed (`files::write_whole`), which leaves a mapped file as it was.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        Ok(Self::Mapped(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Static(bytes) => bytes,
            Self::None => &[],
        }
    }
}

impl Weights {
    /// Opens a safetensors file: maps it, reads its header and checks every bound in it. No tensor is copied yet.
    ///
    /// # Errors
    /// [`Error::Io`] where the file cannot be opened; [`Error::Weights`] where it is empty, cut off, damaged, or
    /// something else than safetensors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let data = Data::open(path)?;
        let inner = parse(path, data).map_err(|problem| Error::weights(path, problem))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Weights of a safetensors file that is part of the program; messages call it `name`. No tensor is copied yet.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Result<Self> {
        let path = Path::new(name);
        let inner = parse(path, Data::Static(bytes)).map_err(|problem| Error::weights(path, problem))?;
        Ok(Self(Arc::new(inner)))
    }

    /// Weights that live in memory: a network that was just trained, or a test's.
    pub fn from_tensors(tensors: HashMap<String, Tensor>, metadata: NetworkMetadata) -> Self {
        let mut names: Vec<_> = tensors.keys().cloned().collect();
        names.sort_unstable();
        let tensors = tensors.into_iter().map(|(name, tensor)| {
            let (dtype, shape) = (tensor.dtype().into(), tensor.dims().to_vec());
            (name, Entry { dtype, shape, held: Held::Tensor(tensor) })
        });
        let path = PathBuf::from("weights in memory");
        Self(Arc::new(Inner { path, metadata, names, tensors: tensors.collect(), data: Data::None }))
    }

    /// The file; for weights in memory a phrase that can stand in its place in a message.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What the file says about its network.
    pub fn metadata(&self) -> &NetworkMetadata {
        &self.0.metadata
    }

    /// Names of all tensors, in the file's order (sorted for weights in memory).
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.names.iter().map(String::as_str)
    }

    /// Shape of a tensor; `None` where there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.0.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Type that a tensor is stored as; `None` where there is no such tensor.
    pub fn dtype(&self, name: &str) -> Option<StoredType> {
        self.0.tensors.get(name).map(|entry| entry.dtype)
    }

    /// A tensor, copied to `device` as `dtype`. Any of f16, bf16 and f32 converts to any; other types only to themselves.
    ///
    /// # Errors
    /// [`Error::Weights`] where there is no such tensor or it is stored as another type.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let fail = |problem| Error::weights(self.path(), problem);
        let entry = self.0.tensors.get(name).ok_or_else(|| fail(format!("has no tensor `{name}`")))?;
        let stored = DType::try_from(entry.dtype)
            .ok()
            .filter(|&stored| stored == dtype || is_weight(stored) && is_weight(dtype));
        let stored = stored.ok_or_else(|| {
            let asked = dtype.as_str();
            fail(format!(
                "`{name}` is stored as {}, which cannot be read as {asked}: expected F16, BF16 or F32",
                entry.dtype
            ))
        })?;
        let tensor = match &entry.held {
            Held::Tensor(tensor) => tensor.to_device(device)?,
            Held::Mapped(range) => Tensor::from_raw_buffer(self.mapped(range), stored, &entry.shape, device)?,
        };
        Ok(tensor.to_dtype(dtype)?)
    }

    /// The weights as Candle's layers take them: `f32`, `f16` or `bf16` on `device`, tensors copied as they are asked for.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, device.clone())
    }

    /// All tensors as they are stored, ready for [`save`](super::save).
    ///
    /// # Errors
    /// [`Error::Candle`] where a tensor in memory cannot be brought to the CPU.
    pub fn sources(&self) -> Result<Vec<TensorSource<'_>>> {
        let mut sources = Vec::with_capacity(self.0.names.len());
        for name in &self.0.names {
            let Some(entry) = self.0.tensors.get(name) else { continue };
            let (dtype, shape) = (entry.dtype, entry.shape.clone());
            sources.push(match &entry.held {
                Held::Mapped(range) => TensorSource::new(name, dtype, shape, move || Cow::Borrowed(self.mapped(range))),
                Held::Tensor(tensor) => {
                    // Copied here, because copying can fail.
                    let bytes = safetensors::View::data(&tensor.to_device(&Device::Cpu)?).into_owned();
                    TensorSource::new(name, dtype, shape, move || Cow::Owned(bytes.clone()))
                }
            });
        }
        Ok(sources)
    }

    fn mapped(&self, range: &Range<usize>) -> &[u8] {
        // `parse` checked the range.
        self.0.data.bytes().get(range.clone()).unwrap_or_default()
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weights({}, {} tensors)", self.path().display(), self.0.names.len())
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            let file = self.path().display();
            candle_core::bail!(
                "{file}: `{name}` has shape {:?}, the network expects {:?}",
                tensor.dims(),
                shape.dims()
            );
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(name, dtype, device).map_err(candle_core::Error::wrap)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }
}

/// The types that weights come in.
fn is_weight(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16 | DType::F32)
}

/// Reads the header; the error is a sentence about the file.
fn parse(path: &Path, data: Data) -> Result<Inner, String> {
    let bytes = data.bytes();
    let Some((size, rest)) = bytes.split_first_chunk::<SIZE_LEN>() else {
        let what = if bytes.is_empty() { "the file is empty" } else { "the file is cut off" };
        return Err(format!("{what}, expected a safetensors file"));
    };
    let header_len = u64::from_le_bytes(*size);
    if header_len > MAX_HEADER || rest.first() != Some(&b'{') {
        return Err(not_safetensors(bytes));
    }
    let header = usize::try_from(header_len).ok().and_then(|len| rest.get(..len));
    let header = header.ok_or("the file is cut off within its header: download or convert it again")?;
    // The format's crate checks here that offsets, shapes and types agree and that the tensors follow one another.
    let header: Metadata = serde_json::from_slice(header)
        .map_err(|error| format!("the header is damaged ({error}): download or convert the file again"))?;
    let start = SIZE_LEN + header_len as usize;
    let held = bytes.len() - start;
    if header.data_len() != held {
        let what =
            if header.data_len() > held { "the file is cut off" } else { "the file goes on after its last tensor" };
        return Err(format!(
            "{what}: its header announces {} bytes of tensors, it has {held}: download or convert it again",
            header.data_len()
        ));
    }

    let names = header.offset_keys();
    let tensors = header.tensors().into_iter().map(|(name, info)| {
        let range = start + info.data_offsets.0..start + info.data_offsets.1;
        (name, Entry { dtype: info.dtype, shape: info.shape.clone(), held: Held::Mapped(range) })
    });
    let tensors = tensors.collect();
    let metadata = NetworkMetadata::from_map(header.metadata().clone().unwrap_or_default())?;
    Ok(Inner { path: path.to_path_buf(), metadata, names, tensors, data })
}

/// What a file that is not safetensors seems to be.
fn not_safetensors(bytes: &[u8]) -> String {
    let numpy = |bytes: &[u8]| bytes.windows(4).take(1 << 10).any(|part| part == b".npy");
    let what = if bytes.starts_with(b"PK") && numpy(bytes) {
        "these are NumPy's arrays (.npz), which are written but not read: take the file that they were made of"
    } else if bytes.starts_with(b"PK") || bytes.starts_with(&[0x80, 2]) {
        return "this is a PyTorch checkpoint or another zip archive, not safetensors: `yolo convert FILE OUT.safetensors` reads it".into();
    } else if bytes.starts_with(b"version https://git-lfs") {
        "this is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
    } else if bytes.iter().take(512).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        "this is a text file, expected safetensors"
    } else {
        "this is no safetensors file, or its header is damaged"
    };
    what.into()
}
