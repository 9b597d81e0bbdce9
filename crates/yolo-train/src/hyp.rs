//! Hyper-parameters under YOLOv5's names.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_yaml::{Mapping, Value};

use crate::yaml::{read_map, show};
use crate::{Error, Result};

/// Keys that a file may leave out.
const OPTIONAL: [&str; 4] = ["fl_gamma", "label_smoothing", "copy_paste", "anchors"];

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
        let file = Path::new(name);
        let map = read_map(file, "a file of hyper-parameters (expected lr0, momentum and the others, each a number)")?;
        Self::of(&map).map_err(|problem| Error::data(file, format!("hyper-parameters: {problem}")))
    }

    /// Reads the values of all keys that are known.
    fn of(map: &Mapping) -> Result<Self, String> {
        let mut values = Mapping::new();
        for key in keys() {
            match map.get(&key) {
                Some(value @ Value::Number(_)) => {
                    values.insert(key.into(), value.clone());
                }
                None | Some(Value::Null) if OPTIONAL.contains(&key.as_str()) => {}
                None => return Err(format!("`{key}` is missing, expected a number")),
                Some(other) => return Err(format!("`{key}` is {}, expected a number", show(other))),
            }
        }
        serde_yaml::from_value(Value::Mapping(values)).map_err(|problem| problem.to_string())
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

/// All keys, in the order in which they are written.
fn keys() -> Vec<String> {
    let all = serde_yaml::to_value(Hyp { anchors: Some(0.0), ..Hyp::default() });
    let Ok(Value::Mapping(map)) = all else { return Vec::new() };
    map.keys().filter_map(Value::as_str).map(str::to_owned).collect()
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
    }

    /// What is told of the set `low` with a change.
    fn refused(old: &str, new: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&Hyp::default()).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(&file, text.replace(old, new)).unwrap();
        let error = Hyp::open(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", file.display())), "{error}");
        error
    }

    #[test]
    fn what_is_no_number_is_told_by_its_key() {
        assert!(refused("lr0: 0.01", "lr0: fast").ends_with("hyper-parameters: `lr0` is fast, expected a number"));
        assert!(refused("box: 0.05", "box: [1]").ends_with("`box` is [1], expected a number"));
        assert!(refused("box: 0.05", "box:").ends_with("`box` is null, expected a number"));
        assert!(refused("box: 0.05", "").ends_with("`box` is missing, expected a number"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        std::fs::write(&file, "a word").unwrap();
        let error = Hyp::open(file.to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("it is a word, not a map of keys to values"), "{error}");
    }

    #[test]
    fn what_may_be_left_out_is_none_or_0() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&Hyp::default()).unwrap();
        let kept = |line: &&str| !OPTIONAL.iter().any(|key| line.starts_with(key));
        std::fs::write(&file, text.lines().filter(kept).collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!(Hyp::open(file.to_str().unwrap()).unwrap(), Hyp::default());
    }
}
