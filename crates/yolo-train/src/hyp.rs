//! Hyper-parameters under YOLOv5's names.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Hyper-parameters of training and augmentation. Fields carry the keys of YOLOv5's files; what a file leaves out is 0 for
/// `fl_gamma`, `copy_paste` and `label_smoothing`, and an error else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are YOLOv5's own; the groups are described")]
pub struct Hyp {
    // Optimiser and schedule.
    pub lr0: f64,
    pub lrf: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub warmup_epochs: f64,
    pub warmup_momentum: f64,
    pub warmup_bias_lr: f64,
    // Loss.
    #[serde(rename = "box")]
    pub box_gain: f64,
    pub cls: f64,
    pub cls_pw: f64,
    pub obj: f64,
    pub obj_pw: f64,
    pub iou_t: f64,
    pub anchor_t: f64,
    #[serde(default)]
    pub fl_gamma: f64,
    #[serde(default)]
    pub label_smoothing: f64,
    // Augmentation: fractions, degrees, probabilities.
    pub hsv_h: f64,
    pub hsv_s: f64,
    pub hsv_v: f64,
    pub degrees: f64,
    pub translate: f64,
    pub scale: f64,
    pub shear: f64,
    pub perspective: f64,
    pub flipud: f64,
    pub fliplr: f64,
    pub mosaic: f64,
    pub mixup: f64,
    #[serde(default)]
    pub copy_paste: f64,
    /// Anchors a level for a new set of anchors; none keeps the network's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchors: Option<f64>,
}

impl Default for Hyp {
    /// The set called `low`.
    fn default() -> Self {
        Self {
            lr0: 0.01,
            lrf: 0.01,
            momentum: 0.937,
            weight_decay: 0.0005,
            warmup_epochs: 3.0,
            warmup_momentum: 0.8,
            warmup_bias_lr: 0.1,
            box_gain: 0.05,
            cls: 0.5,
            cls_pw: 1.0,
            obj: 1.0,
            obj_pw: 1.0,
            iou_t: 0.2,
            anchor_t: 4.0,
            fl_gamma: 0.0,
            label_smoothing: 0.0,
            hsv_h: 0.015,
            hsv_s: 0.7,
            hsv_v: 0.4,
            degrees: 0.0,
            translate: 0.1,
            scale: 0.5,
            shear: 0.0,
            perspective: 0.0,
            flipud: 0.0,
            fliplr: 0.5,
            mosaic: 1.0,
            mixup: 0.0,
            copy_paste: 0.0,
            anchors: None,
        }
    }
}

impl Hyp {
    /// A built-in set, `low`, `med`, `high` or `no-augmentation`; or a YAML file.
    ///
    /// # Errors
    /// Where the file cannot be read, lacks a key or has a value that is no number.
    pub fn open(name: &str) -> Result<Self> {
        let low = Self::default();
        let med = Self { lrf: 0.1, cls: 0.3, obj: 0.7, scale: 0.9, mixup: 0.1, ..low.clone() };
        match name {
            "low" => return Ok(low),
            "med" => return Ok(med),
            "high" => return Ok(Self { copy_paste: 0.1, ..med }),
            "no-augmentation" => return Ok(low.without_augmentation()),
            _ => {}
        }
        let text = std::fs::read_to_string(name).map_err(|cause| Error::io(name, cause))?;
        serde_yaml::from_str(&text).map_err(|problem| Error::data(name, format!("hyper-parameters: {problem}")))
    }

    /// The same without any change of the pictures.
    #[must_use]
    pub fn without_augmentation(self) -> Self {
        let none = 0.0;
        Self {
            hsv_h: none,
            hsv_s: none,
            hsv_v: none,
            degrees: none,
            translate: none,
            scale: none,
            shear: none,
            perspective: none,
            flipud: none,
            fliplr: none,
            mosaic: none,
            mixup: none,
            copy_paste: none,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let hyp = Hyp { lr0: 0.02, mixup: 0.3, ..Hyp::default() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&hyp).unwrap();
        assert!(text.contains("\nbox: 0.05"));
        std::fs::write(&file, &text).unwrap();
        assert_eq!(Hyp::open(file.to_str().unwrap()).unwrap(), hyp);
        std::fs::write(&file, text.replace("lr0: 0.02", "lr0: fast")).unwrap();
        let error = Hyp::open(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("hyp.yaml") && error.contains("lr0"), "{error}");
    }
}
