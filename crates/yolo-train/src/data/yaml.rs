//! The YAML of a data set that is made here.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use yolo_core::files::write_whole;

use crate::Result;

/// Splits (`train`, `val`, `test`) with their folders of pictures, and class names; it can be moved with its folder.
pub(super) fn data_yaml<N: AsRef<str>>(about: &str, splits: &[(&str, String)], names: &[N]) -> String {
    // JSON's quotes are YAML's too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = format!("# {about}\n# YOLOv5's own train.py takes nothing but a whole path here.\npath: .\n");
    for (split, folder) in splits {
        let _ = writeln!(text, "{split}: {}", quoted(folder));
    }
    text.push_str("names:\n");
    for (class, name) in names.iter().enumerate() {
        let _ = writeln!(text, "  {class}: {}", quoted(name.as_ref()));
    }
    text
}

/// Writes a text file whole or not at all.
pub(super) fn write_text(path: &Path, text: &str) -> Result<()> {
    Ok(write_whole(path, |file| file.write_all(text.as_bytes()).map_err(|cause| yolo_core::Error::io(path, cause)))?)
}
