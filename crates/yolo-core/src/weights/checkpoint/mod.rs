//! PyTorch checkpoints (`.pt`), read without PyTorch and without running anything that is in them.
//!
//! `torch.save` writes a zip archive: a pickle (`data.pkl`) that describes Python objects, and one record of raw numbers
//! a tensor storage. YOLOv5 saves whole modules, so the pickle names Python classes and says how to build them. The
//! reader here takes these as data: it looks up `_modules`, `_parameters` and `_buffers` and gives the tensors the names
//! that `state_dict()` would give them. Names of classes outside a fixed list stay names; a file that needs one of them
//! to be called for a tensor is refused.
//!
//! Every length, count and depth is bounded, and every record's checksum is compared, so a damaged file is an error.

mod archive;
mod classes;
mod module;
mod pickle;
mod view;
mod yaml;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use self::archive::Archive;
use self::pickle::{Fault, Storage};
use self::view::Window;
use super::file::Data;
use super::{NetworkMetadata, StoredType, TensorSource, Weights};
use crate::{Error, Result};
use candle_core::{DType, Device};

/// Beyond the file's own size, so many bytes the tensors may have together: views may share a storage.
const SHARED_BYTES: usize = 64 << 20;

/// A checkpoint, read: the network's tensors and what it says about itself.
pub struct Checkpoint {
    path: PathBuf,
    data: Data,
    tensors: Vec<Tensor>,
    metadata: NetworkMetadata,
    origin: Origin,
    notes: Vec<String>,
}

/// Where in the checkpoint the network was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The module under `ema`: the running average of the weights, which YOLOv5 prefers.
    Ema,
    /// The module under `model`.
    Model,
    /// The file is the module itself.
    Module,
    /// A state dict: the file itself, or its `model`, `ema` or `state_dict`.
    StateDict,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ema => "`ema`",
            Self::Model => "`model`",
            Self::Module => "a bare module",
            Self::StateDict => "a state dict",
        })
    }
}

/// A tensor whose storage was found in the file.
struct Tensor {
    name: String,
    window: Window,
    /// Byte range of the storage.
    storage: Range<usize>,
}

/// Reads a checkpoint: maps the file, reads its pickle, finds the network and checks every tensor's place. The numbers
/// themselves are copied when they are asked for.
///
/// # Errors
/// [`Error::Io`] where the file cannot be opened; [`Error::Checkpoint`] where it is damaged, of a form before PyTorch
/// 1.6, without a network, or needs something to be run.
pub fn read(path: impl AsRef<Path>) -> Result<Checkpoint> {
    let path = path.as_ref();
    let data = Data::open(path)?;
    let parts = parse(data.bytes()).map_err(|fault| Error::checkpoint(path, printable(&fault)))?;
    let (tensors, metadata, origin, notes) = parts;
    Ok(Checkpoint { path: path.to_path_buf(), data, tensors, metadata, origin, notes })
}

impl Checkpoint {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the checkpoint says about its network. YAML and names are `None` where it is a bare state dict.
    pub fn metadata(&self) -> &NetworkMetadata {
        &self.metadata
    }

    /// Where in the checkpoint the network was found.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// What could not be taken over, a sentence each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tensors in the state dict's order and as they are stored, but f64 narrowed to f32.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = TensorSource<'_>> {
        self.tensors.iter().map(|Tensor { name, window, storage }| {
            TensorSource::new(name, window.dtype(), window.shape.clone(), || {
                window.bytes(self.data.bytes().get(storage.clone()).unwrap_or_default())
            })
        })
    }

    /// The tensors copied into memory, for use without a file of their own.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] where a tensor is of a type that networks are not stored in.
    pub fn to_weights(&self) -> Result<Weights> {
        let tensor = |source: TensorSource<'_>| {
            let problem = || format!("`{}` is stored as {}, which is not read", source.name(), source.dtype());
            let dtype = DType::try_from(source.dtype()).map_err(|_| Error::checkpoint(&self.path, problem()))?;
            let tensor = candle_core::Tensor::from_raw_buffer(&source.bytes(), dtype, source.shape(), &Device::Cpu)?;
            Ok((source.name().to_owned(), tensor))
        };
        let tensors = self.sources().map(tensor).collect::<Result<_>>()?;
        Ok(Weights::from_tensors(tensors, self.metadata.clone()))
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Checkpoint({}, {} tensors from {})", self.path.display(), self.tensors.len(), self.origin)
    }
}

/// A sentence that may quote the file, fit for a terminal: a damaged name may be long or hold control characters.
fn printable(sentence: &str) -> String {
    const LONGEST: usize = 500;
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut printable: String = sentence.chars().take(LONGEST).map(clean).collect();
    if sentence.chars().nth(LONGEST).is_some() {
        printable.push_str("...");
    }
    printable
}

type Parts = (Vec<Tensor>, NetworkMetadata, Origin, Vec<String>);

fn parse(bytes: &[u8]) -> Result<Parts, Fault> {
    let mut archive = Archive::open(bytes)?;
    let (arena, root) = pickle::read(archive.pickle()?)?;
    let (network, origin) = module::locate(&arena, root)?;
    let found = module::tensors(&arena, network, origin)?;
    if found.is_empty() {
        return Err("the checkpoint's network has no tensors".into());
    }

    let mut storages = Storages { archive, found: HashMap::new() };
    let mut tensors = Vec::with_capacity(found.len());
    let mut total = 0usize;
    for (name, pickle::Tensor { storage, window }) in found {
        let storage = storages.find(&name, storage, &window)?;
        total = total.saturating_add(window.elements().unwrap_or(usize::MAX).saturating_mul(window.width()));
        if total > bytes.len().saturating_add(SHARED_BYTES) {
            return Err(format!("the tensors up to `{name}` would take {total} bytes, the file has {}", bytes.len()));
        }
        tensors.push(Tensor { name, window, storage });
    }
    let mut notes = vec![];
    let small = |tensor: &pickle::Tensor<'_>| {
        let range = storages.find("stride", tensor.storage, &tensor.window).ok()?;
        floats(&tensor.window, bytes.get(range)?)
    };
    let metadata = module::metadata(&arena, root, network, origin, small, &mut notes);
    let notes = notes.iter().map(|note| printable(note)).collect();
    Ok((tensors, metadata, origin, notes))
}

/// The storages that were found so far.
struct Storages<'a> {
    archive: Archive<'a>,
    found: HashMap<String, Range<usize>>,
}

impl Storages<'_> {
    /// Where a storage lies in the file; it holds what it should, and the whole of the window onto it.
    fn find(&mut self, name: &str, storage: Storage<'_>, window: &Window) -> Result<Range<usize>, Fault> {
        let Storage { dtype, key, elements } = storage;
        let bytes = match self.found.get(key) {
            Some(range) => range.clone(),
            None => {
                let range = self.archive.storage(key)?;
                self.found.insert(key.to_string(), range.clone());
                range
            }
        };
        if elements.checked_mul(window.width() as u64) != Some(bytes.len() as u64) {
            let held = bytes.len();
            return Err(format!("record `data/{key}` has {held} bytes, `{name}` needs {elements} elements of {dtype}"));
        }
        if window.elements().is_none() || !window.fits(bytes.len()) {
            return Err(format!("`{name}` with shape {:?} reaches beyond its record `data/{key}`", window.shape));
        }
        Ok(bytes)
    }
}

/// The numbers of a small floating-point tensor.
fn floats(window: &Window, storage: &[u8]) -> Option<Vec<f64>> {
    if window.elements()? > 64 {
        return None;
    }
    let bytes = window.bytes(storage);
    let (halves, _) = bytes.as_chunks::<2>();
    let (singles, _) = bytes.as_chunks::<4>();
    match window.dtype() {
        StoredType::F16 => Some(halves.iter().map(|&half| half::f16::from_le_bytes(half).to_f64()).collect()),
        StoredType::F32 => Some(singles.iter().map(|&single| f32::from_le_bytes(single).into()).collect()),
        _ => None,
    }
}
