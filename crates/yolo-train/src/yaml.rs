//! YAML files of the user, read so that what is wrong can be told by key.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use crate::{Error, Result};

/// Larger files describe no data set and no run.
const MAX_BYTES: u64 = 16 << 20;
/// Characters of a value that a message shows.
const SHOWN: usize = 60;

/// The map that a file holds; `what` says what it should be.
pub(crate) fn read_map(file: &Path, what: &str) -> Result<Mapping> {
    let text = yolo_core::yaml::read(file, MAX_BYTES)?;
    let problem = match yolo_core::yaml::parse(&text) {
        Ok(Value::Mapping(map)) => return Ok(map),
        Ok(Value::Null) => "the file is empty".to_owned(),
        Ok(other) => format!("it is {}, not a map of keys to values", show(&other)),
        Err(problem) => problem,
    };
    Err(Error::data(file, format!("not {what}: {problem}")))
}

/// A value as YAML writes it, in one line and cut to what fits in a message.
pub(crate) fn show(value: &Value) -> String {
    let text = match value {
        // On one line, YAML's lists and maps are JSON's.
        Value::Sequence(_) | Value::Mapping(_) => serde_json::to_string(value).ok(),
        _ => serde_yaml::to_string(value).ok(),
    };
    let line = text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_in_a_line() {
        let shown = |text: &str| show(&serde_yaml::from_str(text).unwrap());
        assert_eq!(shown("null"), "null");
        assert_eq!(shown("2.5"), "2.5");
        assert_eq!(shown("'5'"), "'5'");
        assert_eq!(shown("[a, 1]"), "[\"a\",1]");
        assert_eq!(shown(&"ä".repeat(100)), format!("{}...", "ä".repeat(60)));
    }
}
