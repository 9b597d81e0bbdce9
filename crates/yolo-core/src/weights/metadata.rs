//! What a weights file says about its own network.

use std::collections::BTreeMap;

/// The network that a weights file belongs to, as far as the file says.
///
/// In safetensors' `__metadata__` (a map of strings) the keys are `yaml` (the network's YAML, as text), `names` (the
/// class names, a JSON list), `imgsz` and `stride` (whole numbers in decimal) and `format` (always `pt`: PyTorch's
/// names). Keys that are not known are kept in [`extra`](Self::extra).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkMetadata {
    /// The network's description, YOLOv5's YAML.
    pub yaml: Option<String>,
    /// Class names; the index is the class.
    pub names: Option<Vec<String>>,
    /// Side of the square input that the network was trained on, in pixels.
    pub imgsz: Option<usize>,
    /// The network's largest stride, in pixels: the input's sides are multiples of it.
    pub stride: Option<usize>,
    /// Whatever else the file says.
    pub extra: BTreeMap<String, String>,
}

impl NetworkMetadata {
    /// Reads a safetensors metadata map; the error is a sentence about the key.
    pub(super) fn from_map(map: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut metadata = Self::default();
        for (key, value) in map {
            let number = |value: &str| match value.trim().parse::<usize>() {
                Ok(number) if number > 0 => Ok(Some(number)),
                _ => Err(format!("the metadata's `{key}` is `{value}`, expected a whole number above 0")),
            };
            match key.as_str() {
                "yaml" => metadata.yaml = Some(value),
                "names" => {
                    let names = serde_json::from_str(&value)
                        .map_err(|error| format!("the metadata's `names` are not a JSON list of strings ({error})"))?;
                    metadata.names = Some(names);
                }
                "imgsz" => metadata.imgsz = number(&value)?,
                "stride" => metadata.stride = number(&value)?,
                "format" => {}
                _ => {
                    metadata.extra.insert(key, value);
                }
            }
        }
        Ok(metadata)
    }

    /// The map that [`from_map`](Self::from_map) reads, in a fixed order.
    pub(super) fn to_map(&self) -> Vec<(String, String)> {
        let mut map = vec![("format".to_string(), "pt".to_string())];
        let number = |value: &Option<usize>| value.as_ref().map(usize::to_string);
        let names = self.names.as_ref().map(|names| serde_json::Value::from(names.as_slice()).to_string());
        let known = [
            ("yaml", self.yaml.clone()),
            ("names", names),
            ("imgsz", number(&self.imgsz)),
            ("stride", number(&self.stride)),
        ];
        map.extend(known.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
        map.extend(self.extra.iter().map(|(key, value)| (key.clone(), value.clone())));
        map
    }
}
