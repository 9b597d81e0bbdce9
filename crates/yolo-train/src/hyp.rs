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
    /// Anchors a level for a new set of anchors; none or 0 keeps the network's.
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
    /// A built-in set, `low`, `med`, `high` or `no-augmentation`; or a YAML file. `warn` is told of keys that are not known.
    ///
    /// # Errors
    /// Where the file cannot be read, lacks a key or has a value that is no number or cannot be meant.
    pub fn open(name: &str, warn: &mut dyn FnMut(String)) -> Result<Self> {
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
        if !file.exists() {
            let problem = format!("{name}: no such file, and none of the built-in low, med, high and no-augmentation");
            return Err(Error::Argument { argument: "hyp", problem });
        }
        let map = read_map(file, "a file of hyper-parameters (expected lr0, momentum and the others, each a number)")?;
        let hyp = Self::of(&map).and_then(|hyp| hyp.check().map(|()| hyp));
        let hyp = hyp.map_err(|problem| Error::data(file, format!("hyper-parameters: {problem}")))?;
        let known = keys();
        for key in map.keys().filter(|key| !known.iter().any(|known| key.as_str() == Some(known))) {
            warn(format!("{name}: `{}` is not one of the hyper-parameters: it has no effect", show(key)));
        }
        Ok(hyp)
    }

    /// Refuses what cannot be meant, such as a probability above 1.
    ///
    /// # Errors
    /// The key, its value, and what was expected.
    pub fn check(&self) -> Result<(), String> {
        let fail = |key, value, expected| Err(format!("`{key}` is {value}, expected {expected}"));
        let positive =
            [("lr0", self.lr0), ("anchor_t", self.anchor_t), ("cls_pw", self.cls_pw), ("obj_pw", self.obj_pw)];
        for (key, value) in positive {
            if !(value > 0.0 && value.is_finite()) {
                return fail(key, value, "a number above 0");
            }
        }
        let not_negative = [
            ("lrf", self.lrf),
            ("weight_decay", self.weight_decay),
            ("warmup_epochs", self.warmup_epochs),
            ("warmup_bias_lr", self.warmup_bias_lr),
            ("box", self.box_gain),
            ("cls", self.cls),
            ("obj", self.obj),
            ("fl_gamma", self.fl_gamma),
        ];
        for (key, value) in not_negative {
            if !(value >= 0.0 && value.is_finite()) {
                return fail(key, value, "a number of at least 0");
            }
        }
        let below_1 = [
            ("momentum", self.momentum),
            ("warmup_momentum", self.warmup_momentum),
            ("label_smoothing", self.label_smoothing),
        ];
        for (key, value) in below_1 {
            if !(0.0..1.0).contains(&value) {
                return fail(key, value, "0 to below 1");
            }
        }
        let probabilities = [
            ("flipud", self.flipud),
            ("fliplr", self.fliplr),
            ("mosaic", self.mosaic),
            ("mixup", self.mixup),
            ("copy_paste", self.copy_paste),
        ];
        for (key, value) in probabilities {
            if !(0.0..=1.0).contains(&value) {
                return fail(key, value, "a probability, from 0 to 1");
            }
        }
        let strengths = [
            ("iou_t", self.iou_t),
            ("hsv_h", self.hsv_h),
            ("hsv_s", self.hsv_s),
            ("hsv_v", self.hsv_v),
            ("degrees", self.degrees),
            ("translate", self.translate),
            ("scale", self.scale),
            ("shear", self.shear),
            ("perspective", self.perspective),
        ];
        for (key, value) in strengths {
            if !value.is_finite() {
                return fail(key, value, "a number");
            }
        }
        match self.anchors {
            Some(count) if count != 0.0 && !(1.0..=64.0).contains(&count.round_ties_even()) => {
                fail("anchors", count, "a number from 1 to 64, or 0 for those of the network")
            }
            _ => Ok(()),
        }
    }

    /// Anchors a level that replace those of the network.
    pub(crate) fn anchor_count(&self) -> Option<usize> {
        // As Python rounds; whole and small after `check`.
        self.anchors.map(|count| count.round_ties_even() as usize).filter(|count| *count > 0)
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

    /// Nothing is told of it.
    fn open(file: &Path) -> Result<Hyp> {
        Hyp::open(file.to_str().unwrap(), &mut |warning| panic!("{warning}"))
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let hyp = Hyp { lr0: 0.02, mixup: 0.3, ..Hyp::default() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&hyp).unwrap();
        assert!(text.contains("\nbox: 0.05"));
        std::fs::write(&file, &text).unwrap();
        assert_eq!(open(&file).unwrap(), hyp);
    }

    /// What is told of the set `low` with a change.
    fn refused(old: &str, new: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&Hyp::default()).unwrap();
        assert!(text.contains(old), "{text}");
        std::fs::write(&file, text.replace(old, new)).unwrap();
        let error = open(&file).unwrap_err().to_string();
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
        let error = open(&file).unwrap_err().to_string();
        assert!(error.contains("it is a word, not a map of keys to values"), "{error}");
    }

    #[test]
    fn what_cannot_be_meant_is_told_by_its_key() {
        for key in ["flipud", "fliplr", "mosaic", "mixup", "copy_paste"] {
            for value in ["2", "-0.1", "1.001", ".nan"] {
                let text = serde_yaml::to_string(&Hyp::default()).unwrap();
                let old = text.lines().find(|line| line.starts_with(key)).unwrap();
                let error = refused(old, &format!("{key}: {value}"));
                let value = value.replace(".nan", "NaN");
                assert!(
                    error.ends_with(&format!("`{key}` is {value}, expected a probability, from 0 to 1")),
                    "{error}"
                );
            }
        }
        // Pictures that are moved out of sight have no objects left, and nothing else would tell.
        let text = serde_yaml::to_string(&Hyp { anchors: Some(3.0), ..Hyp::default() }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        for line in text.lines() {
            let key = line.split(':').next().unwrap();
            for (value, shown) in [(".inf", "inf"), ("-.inf", "-inf"), (".nan", "NaN")] {
                std::fs::write(&file, text.replace(&format!("{line}\n"), &format!("{key}: {value}\n"))).unwrap();
                let error = open(&file).unwrap_err().to_string();
                assert!(error.contains(&format!("`{key}` is {shown}, expected ")), "{line}: {error}");
            }
        }
        assert!(refused("scale: 0.5", "scale: .inf").ends_with("`scale` is inf, expected a number"));
        assert!(refused("momentum: 0.937", "momentum: 1").ends_with("`momentum` is 1, expected 0 to below 1"));
        assert!(
            refused("mosaic: 1", "anchors: 65\nmosaic: 1").contains("`anchors` is 65, expected a number from 1 to 64")
        );
    }

    #[test]
    fn keys_that_are_not_known_are_told_and_yolov5s_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&Hyp { anchors: Some(3.2), ..Hyp::default() }).unwrap();
        std::fs::write(&file, &text).unwrap();
        assert_eq!(open(&file).unwrap().anchor_count(), Some(3));
        // YOLOv5: 0 to ignore.
        std::fs::write(&file, text.replace("anchors: 3.2", "anchors: 0")).unwrap();
        assert_eq!(open(&file).unwrap().anchor_count(), None);
        std::fs::write(&file, format!("{text}mosiac: 0.5\n7: 1\n")).unwrap();
        let mut told = Vec::new();
        Hyp::open(file.to_str().unwrap(), &mut |warning| told.push(warning)).unwrap();
        let sentence =
            |key: &str| format!("{}: `{key}` is not one of the hyper-parameters: it has no effect", file.display());
        assert_eq!(told, [sentence("mosiac"), sentence("7")]);
    }

    #[test]
    fn what_may_be_left_out_is_none_or_0() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hyp.yaml");
        let text = serde_yaml::to_string(&Hyp::default()).unwrap();
        let kept = |line: &&str| !OPTIONAL.iter().any(|key| line.starts_with(key));
        std::fs::write(&file, text.lines().filter(kept).collect::<Vec<_>>().join("\n")).unwrap();
        assert_eq!(open(&file).unwrap(), Hyp::default());
    }
}
