//! Files of a run: weights that describe themselves, and what a resumed run needs to go on as if it had not been cut.

use std::borrow::Cow;
use std::io::Write;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use yolo_core::files::write_whole;
use yolo_core::weights::{NetworkMetadata, StoredType, TensorSource, Weights, save};

use super::results::EpochSums;
use crate::{Error, Result};

/// Key of the state in a file's metadata.
const KEY: &str = "training";
/// Changes where older programs could not read the state.
const VERSION: u32 = 1;
/// The largest number of f16.
const LARGEST_HALF: f32 = 65_504.0;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// The epoch that is under way.
    pub(super) epoch: usize,
    /// Batches of it that are done.
    pub(super) batch: usize,
    /// The batch of the last step, counted over all epochs; -1 before the first.
    pub(super) last_step: i64,
    /// Steps of the optimiser.
    pub(super) steps: u64,
    /// Updates of the running average.
    pub(super) updates: u64,
    /// The best fitness so far, and its epoch.
    pub(super) best_fitness: Exact,
    pub(super) best_epoch: usize,
    /// Whether any epoch was validated.
    pub(super) validated: bool,
    /// Whether patience is out: what is left is the last validation.
    #[serde(default)]
    pub(super) stopped: bool,
    /// Whether the run wrote its last and its best weights: others of these names may lie in its folder. Earlier versions
    /// did not note it.
    #[serde(default = "noted")]
    pub(super) last_saved: bool,
    #[serde(default = "noted")]
    pub(super) best_saved: bool,
    /// What the epoch's batches summed up to.
    pub(super) sums: EpochSums,
    /// mAP by class of the last validation.
    pub(super) maps: Vec<Exact>,
    /// Pictures and batches of the data set: a run can go on only with the same.
    pub(super) pictures: usize,
    pub(super) batches: usize,
}

/// Of states that do not say.
fn noted() -> bool {
    true
}

impl State {
    /// A run that has not begun.
    pub(super) fn new(pictures: usize, batches: usize, classes: usize) -> Self {
        Self {
            version: VERSION,
            epoch: 0,
            batch: 0,
            last_step: -1,
            steps: 0,
            updates: 0,
            best_fitness: Exact(0.0),
            best_epoch: 0,
            validated: false,
            stopped: false,
            last_saved: false,
            best_saved: false,
            sums: EpochSums::default(),
            maps: vec![Exact(0.0); classes],
            pictures,
            batches,
        }
    }

    /// Reads the state out of a file of [`save_state`].
    pub(super) fn of(weights: &Weights) -> Result<Self> {
        let fail = |problem: String| Error::data(weights.path(), problem);
        let text = weights.metadata().extra.get(KEY).ok_or_else(|| fail("holds no state of a training run".into()))?;
        let state: Self =
            serde_json::from_str(text).map_err(|problem| fail(format!("the run's state is damaged: {problem}")))?;
        if state.version != VERSION {
            let problem = format!("the run's state is of version {}, this program reads {VERSION}", state.version);
            return Err(fail(problem));
        }
        Ok(state)
    }
}

/// A number that is written with all its digits and read back the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, PartialOrd)]
pub(super) struct Exact(pub(super) f64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // As text: readers of JSON numbers may be off by the last bit.
        serializer.serialize_str(&format!("{:?}", self.0))
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Writes a text file whole or not at all.
pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |out| out.write_all(text.as_bytes()).map_err(|cause| yolo_core::Error::io(path, cause)))?;
    Ok(())
}

/// Writes weights for use: in f16, but for tensors with values beyond its range.
pub(super) fn save_weights<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    metadata: &NetworkMetadata,
) -> Result<()> {
    let mut sources = Vec::new();
    for (name, tensor) in tensors {
        let (source, largest) = source(name.to_owned(), tensor)?;
        sources.push(if largest > LARGEST_HALF { source } else { source.into_half() });
    }
    Ok(save(path, sources, metadata)?)
}

/// Writes all of a run's tensors in f32, and its state.
pub(super) fn save_state(
    path: &Path,
    tensors: impl Iterator<Item = (String, Tensor)>,
    state: &State,
    metadata: &NetworkMetadata,
) -> Result<()> {
    let mut sources = Vec::new();
    for (name, tensor) in tensors {
        sources.push(source(name, &tensor)?.0);
    }
    sources.sort_by(|a, b| a.name().cmp(b.name()));
    let text = serde_json::to_string(state).map_err(|problem| Error::data(path, problem.to_string()))?;
    let mut metadata = metadata.clone();
    metadata.extra.insert(KEY.into(), text);
    Ok(save(path, sources, &metadata)?)
}

/// A tensor's bytes, and its largest magnitude.
fn source(name: String, tensor: &Tensor) -> Result<(TensorSource<'static>, f32)> {
    let values: Vec<f32> = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?;
    let largest = values.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let source = TensorSource::new(name, StoredType::F32, tensor.dims(), move || Cow::Owned(bytes.clone()));
    Ok((source, largest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resume.safetensors");
        let mut state = State::new(12, 3, 2);
        state.best_fitness = Exact(0.1 + 0.2);
        state.maps = vec![Exact(1.0 / 3.0), Exact(f64::MIN_POSITIVE)];
        state.sums.routing = vec![("model.2".into(), Exact(0.7))];
        let values = Tensor::new(&[1.0f32 / 3.0, -0.0, f32::MIN_POSITIVE / 2.0, 3e38], &Device::Cpu).unwrap();
        save_state(&file, [("network.w".to_owned(), values.clone())].into_iter(), &state, &NetworkMetadata::default())
            .unwrap();
        let weights = Weights::open(&file).unwrap();
        assert_eq!(State::of(&weights).unwrap(), state);
        let read = weights.tensor("network.w", DType::F32, &Device::Cpu).unwrap();
        let bits = |t: &Tensor| t.to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read), bits(&values));
    }

    #[test]
    fn weights_without_a_state_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("w.safetensors");
        let w = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        save_weights(&file, [("w", &w)].into_iter(), &NetworkMetadata::default()).unwrap();
        let error = State::of(&Weights::open(&file).unwrap()).unwrap_err().to_string();
        assert!(error.contains("w.safetensors") && error.contains("no state"), "{error}");
    }

    #[test]
    fn what_half_precision_cannot_hold_stays_single() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("w.safetensors");
        let (small, large) =
            (Tensor::new(&[0.5f32], &Device::Cpu).unwrap(), Tensor::new(&[1e6f32], &Device::Cpu).unwrap());
        save_weights(&file, [("a", &small), ("b", &large)].into_iter(), &NetworkMetadata::default()).unwrap();
        let weights = Weights::open(&file).unwrap();
        assert_eq!(weights.dtype("a"), Some(StoredType::F16));
        assert_eq!(weights.dtype("b"), Some(StoredType::F32));
    }
}
