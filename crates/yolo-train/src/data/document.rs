//! The keys of a data set's YAML.

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::yaml::{read_map, show};
use crate::{Error, Result};

/// What a data set's YAML says.
pub(super) struct Document {
    pub(super) path: Option<String>,
    /// Of `train`, `val` and `test`: folders and list files.
    pub(super) sources: [Vec<PathBuf>; 3],
    pub(super) names: Option<Names>,
    pub(super) nc: Option<usize>,
    pub(super) download: bool,
}

/// Names of classes.
pub(super) enum Names {
    List(Vec<String>),
    /// By the classes' numbers, sorted by them.
    Map(Vec<(u64, String)>),
}

impl Document {
    /// Reads the keys that are known.
    ///
    /// # Errors
    /// Where the file cannot be read, is no map, or a key has a value that it cannot have.
    pub(super) fn open(file: &Path) -> Result<Self> {
        let map = read_map(file, "a data set's YAML (expected path, train, val, names)")?;
        Self::of(&map).map_err(|problem| Error::data(file, problem))
    }

    fn of(map: &Mapping) -> Result<Self, String> {
        let path = match map.get("path") {
            None | Some(Value::Null) => None,
            Some(Value::String(path)) => Some(path.clone()),
            Some(other) => return Err(format!("`path` is {}, expected a folder", show(other))),
        };
        let nc = match map.get("nc") {
            None | Some(Value::Null) => None,
            Some(value) => {
                let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
                Some(number.ok_or_else(|| format!("`nc` is {}, expected the number of classes", show(value)))?)
            }
        };
        Ok(Self {
            path,
            sources: [sources(map, "train")?, sources(map, "val")?, sources(map, "test")?],
            names: map.get("names").map(names).transpose()?.flatten(),
            nc,
            download: map.get("download").is_some_and(|value| !value.is_null()),
        })
    }
}

fn sources(map: &Mapping, key: &str) -> Result<Vec<PathBuf>, String> {
    let expected = "expected a folder, a file that lists pictures, or a list of these";
    match map.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(path)) => Ok(vec![path.into()]),
        Some(Value::Sequence(list)) => list
            .iter()
            .map(|entry| match entry {
                Value::String(path) => Ok(path.into()),
                other => Err(format!("`{key}` has {} in its list, {expected}", show(other))),
            })
            .collect(),
        Some(other) => Err(format!("`{key}` is {}, {expected}", show(other))),
    }
}

fn names(value: &Value) -> Result<Option<Names>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Sequence(list) => {
            let names = list.iter().enumerate().map(|(class, value)| name(&class, value));
            Ok(Some(Names::List(names.collect::<Result<_, _>>()?)))
        }
        Value::Mapping(map) => {
            let entry = |(key, value): (&Value, &Value)| {
                let class = key.as_u64().ok_or_else(|| {
                    format!("`names` has the key {}, expected the number of a class, from 0 on", show(key))
                })?;
                Ok((class, name(&class, value)?))
            };
            let mut entries = map.iter().map(entry).collect::<Result<Vec<_>, String>>()?;
            entries.sort();
            Ok(Some(Names::Map(entries)))
        }
        other => Err(format!("`names` is {}, expected a list of class names, or a map of them from 0 on", show(other))),
    }
}

/// A class may be called 7 or true, which YAML does not take for text.
fn name(class: &dyn std::fmt::Display, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Number(number) => Ok(match (number.as_i64(), number.as_f64()) {
            (None, Some(float)) => float.to_string(),
            _ => number.to_string(),
        }),
        other => Err(format!("`names`: class {class} is {}, expected a name", show(other))),
    }
}
