//! From one weights file to another.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use half::f16;

use super::checkpoint::{self, Origin};
use super::{NetworkMetadata, StoredType, TensorSource, Weights, save, save_npz};
use crate::{Error, Result};

/// What [`convert`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters as PyTorch counts them: floating-point elements, BatchNorm's statistics and the anchors left out.
    pub parameters: usize,
    /// Size of the written file in bytes.
    pub bytes: u64,
    /// Where in a checkpoint the network was found; `None` for safetensors.
    pub origin: Option<Origin>,
    /// What the file says about its network; `.npz` does not hold it.
    pub metadata: NetworkMetadata,
    /// What could not be taken over, a sentence each.
    pub notes: Vec<String>,
}

/// Form of the written file.
enum Form {
    Safetensors,
    Npz,
}

/// Converts `.pt` or `.safetensors` to `.safetensors` or `.npz`: the input's form is known by its content, the output's
/// by its extension. Names are PyTorch's state-dict names. Tensors keep the type that they are stored as (YOLOv5's
/// checkpoints hold f16), f64 becomes f32; with `half`, floats become f16.
///
/// # Errors
/// Those of [`Weights::open`], [`checkpoint::read`], [`save`] and [`save_npz`]; [`Error::Argument`] where the output's
/// extension is another or the output is the input; [`Error::Weights`] where `half` meets a number beyond f16's range.
/// Nothing is written then.
pub fn convert(input: impl AsRef<Path>, output: impl AsRef<Path>, half: bool) -> Result<Report> {
    let (input, output) = (input.as_ref(), output.as_ref());
    let form = match output.extension().and_then(|extension| extension.to_str()) {
        Some("safetensors") => Form::Safetensors,
        Some("npz") => Form::Npz,
        _ => {
            let problem = format!("{} ends in neither .safetensors nor .npz", output.display());
            return Err(Error::Argument { argument: "output", problem });
        }
    };
    let real = |path: &Path| -> Option<PathBuf> { path.canonicalize().ok() };
    if real(input).is_some_and(|input| real(output) == Some(input)) {
        let problem = format!("{} is the input itself, name another file", output.display());
        return Err(Error::Argument { argument: "output", problem });
    }

    if is_checkpoint(input)? {
        let checkpoint = checkpoint::read(input)?;
        let mut report = write(input, output, form, half, checkpoint.sources().collect(), checkpoint.metadata())?;
        report.origin = Some(checkpoint.origin());
        report.notes = checkpoint.notes().to_vec();
        Ok(report)
    } else {
        let weights = Weights::open(input)?;
        write(input, output, form, half, weights.sources()?, weights.metadata())
    }
}

/// Whether a file is to be read as a checkpoint: it is a zip archive or a bare pickle, or its name says so.
fn is_checkpoint(path: &Path) -> Result<bool> {
    let mut start = [0; 2];
    let mut file = File::open(path).map_err(|source| Error::io(path, source))?;
    // A file of a byte or none is told apart by its name, and refused by its reader.
    let _ = file.read(&mut start);
    let named = path.extension().is_some_and(|extension| extension == "pt" || extension == "pth");
    Ok(&start == b"PK" || start == [0x80, 0x02] || named)
}

fn write(
    input: &Path,
    output: &Path,
    form: Form,
    half: bool,
    mut sources: Vec<TensorSource<'_>>,
    metadata: &NetworkMetadata,
) -> Result<Report> {
    if half {
        if let Some((name, value)) = sources.iter().find_map(|source| Some((source.name(), beyond_half(source)?))) {
            let problem =
                format!("`{name}` holds {value:e}, beyond f16's largest number {}: convert without --half", f16::MAX);
            return Err(Error::weights(input, problem));
        }
        sources = sources.into_iter().map(TensorSource::into_half).collect();
    }
    let tensors = sources.len();
    let parameters = sources.iter().filter(|source| is_parameter(source)).map(TensorSource::elements).sum();
    match form {
        Form::Safetensors => save(output, sources, metadata)?,
        Form::Npz => save_npz(output, sources)?,
    }
    let bytes = output.metadata().map_err(|source| Error::io(output, source))?.len();
    Ok(Report { tensors, parameters, bytes, origin: None, metadata: metadata.clone(), notes: vec![] })
}

fn is_parameter(source: &TensorSource<'_>) -> bool {
    const BUFFERS: [&str; 4] = ["running_mean", "running_var", "anchors", "anchor_grid"];
    let last = source.name().rsplit('.').next().unwrap_or_default();
    matches!(source.dtype(), StoredType::F16 | StoredType::BF16 | StoredType::F32) && !BUFFERS.contains(&last)
}

/// A finite number of the tensor that f16 cannot hold.
fn beyond_half(source: &TensorSource<'_>) -> Option<f32> {
    let lost = |value: &f32| value.is_finite() && f16::from_f32(*value).is_infinite();
    let bytes = match source.dtype() {
        StoredType::F32 | StoredType::BF16 => source.bytes(),
        _ => return None,
    };
    if source.dtype() == StoredType::BF16 {
        let (halves, _) = bytes.as_chunks::<2>();
        return halves.iter().map(|&[low, high]| f32::from_le_bytes([0, 0, low, high])).find(lost);
    }
    let (singles, _) = bytes.as_chunks::<4>();
    singles.iter().map(|&single| f32::from_le_bytes(single)).find(lost)
}
