//! What a training run is asked to do; `opt.yaml` keeps it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::write_text;
use crate::data::PictureCache;
use crate::loss::BoxLoss;
use crate::optim::{NOMINAL_BATCH, OptimizerKind};
use crate::{Error, Hyp, Result};

/// Options of a run, under the names of YOLOv5's `opt.yaml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Weights to start from, `.safetensors` or `.pt`; none starts at random.
    pub weights: Option<PathBuf>,
    /// Network: a name of the zoo or a YAML file; none for what the weights say.
    pub cfg: Option<String>,
    /// The data set's YAML.
    pub data: PathBuf,
    /// Epochs.
    pub epochs: usize,
    /// Pictures a batch.
    pub batch_size: usize,
    /// Pictures that a step of the optimiser is for: gradients of smaller batches are gathered.
    #[serde(default = "nominal_batch")]
    pub nominal_batch: usize,
    /// Side of the square input in pixels.
    pub imgsz: usize,
    /// Batches of pictures of like proportions, without mosaics.
    pub rect: bool,
    /// Save only the last epoch.
    pub nosave: bool,
    /// Validate only the last epoch.
    pub noval: bool,
    /// Keep the network's anchors, whether they fit the labels or not.
    pub noautoanchor: bool,
    /// Draw no plots.
    pub noplots: bool,
    /// Where decoded pictures are kept: `ram` or `disk`.
    pub cache: Option<String>,
    /// Pictures of classes that do badly come more often.
    pub image_weights: bool,
    /// The device, as the user named it.
    pub device: String,
    /// Another size of input for each batch, from half to one and a half.
    pub multi_scale: bool,
    /// Take all classes for one.
    pub single_cls: bool,
    /// The rule of the steps.
    pub optimizer: OptimizerKind,
    /// Threads that make batches.
    pub workers: usize,
    /// Learning rates fall along a cosine.
    pub cos_lr: bool,
    /// What is taken from a box's own class and shared among all.
    pub label_smoothing: f64,
    /// Epochs without a better one after which training stops; 0 never stops.
    pub patience: usize,
    /// Layers that are not trained: their number from the first, or a list of them.
    pub freeze: Vec<usize>,
    /// Save every so many epochs under a name of their own; 0 does not.
    pub save_period: usize,
    /// What chance depends on.
    pub seed: u64,
    /// What a box's loss measures.
    #[serde(with = "box_loss")]
    pub box_loss: BoxLoss,
    /// Input pixels a mask pixel.
    pub mask_ratio: u32,
    /// Masks of a picture share one map, the smaller objects above.
    pub overlap_mask: bool,
    /// The run's folder.
    pub save_dir: PathBuf,
}

/// Of runs that do not say.
fn nominal_batch() -> usize {
    NOMINAL_BATCH
}

impl TrainOptions {
    /// train.py's defaults.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>, save_dir: impl Into<PathBuf>) -> Self {
        Self {
            weights: None,
            cfg: None,
            data: data.into(),
            epochs: 100,
            batch_size: 16,
            nominal_batch: NOMINAL_BATCH,
            imgsz: 640,
            rect: false,
            nosave: false,
            noval: false,
            noautoanchor: false,
            noplots: false,
            cache: None,
            image_weights: false,
            device: String::new(),
            multi_scale: false,
            single_cls: false,
            optimizer: OptimizerKind::Sgd,
            workers: 8,
            cos_lr: false,
            label_smoothing: 0.0,
            patience: 100,
            freeze: vec![0],
            save_period: 0,
            seed: 0,
            box_loss: BoxLoss::Ciou,
            mask_ratio: 4,
            overlap_mask: true,
            save_dir: save_dir.into(),
        }
    }

    /// Reads a run's `opt.yaml`.
    ///
    /// # Errors
    /// Where the file cannot be read, or is none of this program's.
    pub fn open(file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file).map_err(|cause| Error::io(file, cause))?;
        serde_yaml::from_str(&text).map_err(|problem| Error::data(file, format!("not the options of a run: {problem}")))
    }

    /// Writes `opt.yaml` and `hyp.yaml` into the run's folder.
    ///
    /// # Errors
    /// Where one of them cannot be written.
    pub(super) fn save(&self, hyp: &Hyp) -> Result<()> {
        let yaml = |file: PathBuf, text: serde_yaml::Result<String>| {
            let text = text.map_err(|problem| Error::data(&file, problem.to_string()))?;
            write_text(&file, &text)
        };
        yaml(self.save_dir.join("opt.yaml"), serde_yaml::to_string(self))?;
        yaml(self.save_dir.join("hyp.yaml"), serde_yaml::to_string(hyp))
    }

    /// Where decoded pictures are kept.
    pub(super) fn picture_cache(&self) -> Result<PictureCache> {
        match self.cache.as_deref() {
            None => Ok(PictureCache::None),
            Some("ram") => Ok(PictureCache::Ram),
            Some("disk") => Ok(PictureCache::Disk),
            Some(other) => Err(Error::Argument {
                argument: "cache",
                problem: format!("`{other}` is no place for pictures, expected ram or disk"),
            }),
        }
    }

    /// Refuses what no run can be made of.
    pub(super) fn check(&self, hyp: &Hyp) -> Result<()> {
        let fail = |argument, problem: String| Err(Error::Argument { argument, problem });
        if self.epochs == 0 || self.epochs > 1_000_000 {
            return fail("epochs", format!("{} epochs: expected 1 to 1000000", self.epochs));
        }
        if self.batch_size == 0 || self.batch_size > 65_536 {
            return fail("batch-size", format!("{} pictures a batch: expected 1 to 65536", self.batch_size));
        }
        if self.imgsz == 0 || self.imgsz > 16_384 {
            return fail("imgsz", format!("{} pixels: expected 32 to 16384", self.imgsz));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return fail("label-smoothing", format!("{} is not from 0 to below 1", self.label_smoothing));
        }
        if self.rect && self.image_weights {
            return fail(
                "image-weights",
                "pictures of rectangular batches come in a fixed order: leave out --rect".into(),
            );
        }
        hyp.check().or_else(|problem| fail("hyp", problem))
    }
}

/// The box loss by its name.
mod box_loss {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::loss::BoxLoss;

    pub(super) fn serialize<S: Serializer>(kind: &BoxLoss, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(kind)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BoxLoss, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = TrainOptions::new("data.yaml", folder.path());
        options.optimizer = OptimizerKind::AdamW;
        options.box_loss = BoxLoss::FocalEiou;
        options.freeze = vec![1, 2];
        options.save(&Hyp::default()).unwrap();
        let file = folder.path().join("opt.yaml");
        assert_eq!(TrainOptions::open(&file).unwrap(), options);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("batch_size: 16") && text.contains("box_loss: focal-eiou"), "{text}");
        std::fs::write(&file, text.replace("epochs: 100", "epochs: many")).unwrap();
        let error = TrainOptions::open(&file).unwrap_err().to_string();
        assert!(error.contains("opt.yaml") && error.contains("epochs"), "{error}");
    }

    #[test]
    fn what_no_run_can_be_made_of_is_refused() {
        let refused = |change: &dyn Fn(&mut TrainOptions, &mut Hyp)| {
            let (mut options, mut hyp) = (TrainOptions::new("data.yaml", "run"), Hyp::default());
            assert!(options.check(&hyp).is_ok());
            change(&mut options, &mut hyp);
            options.check(&hyp).unwrap_err().to_string()
        };
        assert!(refused(&|o, _| o.epochs = 0).starts_with("epochs: "));
        assert!(refused(&|o, _| o.batch_size = 0).starts_with("batch-size: "));
        assert!(refused(&|o, _| o.label_smoothing = 1.0).starts_with("label-smoothing: "));
        assert!(refused(&|_, h| h.lr0 = f64::NAN).contains("`lr0` is NaN"));
        assert!(refused(&|_, h| h.momentum = 1.0).contains("`momentum`"));
    }
}
