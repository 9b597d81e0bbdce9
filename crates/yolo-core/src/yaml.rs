//! YAML of strangers: what a file can cost is bounded before it is parsed.

use std::path::Path;

use serde_yaml::Value;

use crate::{Error, Result, files};

/// The parser's time grows with the square of how deep brackets are nested.
const MAX_BRACKETS: usize = 200;

/// Parses a text.
///
/// # Errors
/// A sentence about what is wrong with it.
pub fn parse(text: &str) -> Result<Value, String> {
    if brackets(text) > MAX_BRACKETS {
        return Err(format!("brackets are nested more than {MAX_BRACKETS} deep"));
    }
    serde_yaml::from_str(text).map_err(|problem| problem.to_string())
}

/// Reads a file's text, of at most so many bytes.
///
/// # Errors
/// [`Error::Io`] where it cannot be read, is larger, or is no text in UTF-8.
pub fn read(path: impl AsRef<Path>, most: u64) -> Result<String> {
    let path = path.as_ref();
    String::from_utf8(files::read(path, most)?)
        .map_err(|_| Error::io(path, std::io::Error::new(std::io::ErrorKind::InvalidData, "not a text in UTF-8")))
}

/// How deep brackets are nested, at most; those in comments and strings count, too.
fn brackets(text: &str) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        most = most.max(depth);
    }
    most
}
