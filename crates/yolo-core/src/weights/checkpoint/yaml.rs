//! A network's YAML, written back from the dict that a checkpoint keeps of it.

use std::fmt::Write;

use super::pickle::{Arena, Fault, Id, Node};

/// The deepest nesting; YOLOv5's files nest four deep.
const MAX_DEPTH: usize = 16;
/// The longest text, in bytes.
const MAX_LEN: usize = 1 << 20;

/// Writes the dict as YOLOv5's files are written: a key a line, a layer a line. `nc`, where given, is the number of
/// classes that the network has, whatever the dict says.
pub(super) fn render(arena: &Arena<'_>, dict: Id, nc: Option<usize>) -> Result<String, Fault> {
    let mut text = String::new();
    for &(key, value) in arena.dict(dict).unwrap_or_default() {
        let name = arena.str(key).ok_or_else(|| format!("a key of it is {}", arena.describe(key)))?;
        if text.len() > MAX_LEN {
            return Err("it is larger than any network's".into());
        }
        scalar_text(&mut text, name);
        text.push(':');
        match (name, nc, arena.list(value)) {
            ("nc", Some(nc), _) => drop(write!(text, " {nc}")),
            (_, _, Some(rows)) if rows.iter().any(|&row| arena.list(row).is_some()) => {
                for &row in rows {
                    text.push_str("\n  - ");
                    flow(&mut text, arena, row, 0).map_err(|fault| format!("its `{name}` {fault}"))?;
                }
            }
            _ => {
                text.push(' ');
                flow(&mut text, arena, value, 0).map_err(|fault| format!("its `{name}` {fault}"))?;
            }
        }
        text.push('\n');
    }
    Ok(text)
}

/// A value on one line.
fn flow(text: &mut String, arena: &Arena<'_>, id: Id, depth: usize) -> Result<(), Fault> {
    if depth > MAX_DEPTH || text.len() > MAX_LEN {
        return Err("is larger than any network's".into());
    }
    match arena.get(id) {
        Node::None => text.push_str("null"),
        Node::Bool(truth) => drop(write!(text, "{truth}")),
        Node::Int(number) => drop(write!(text, "{number}")),
        Node::Float(number) => float(text, *number),
        Node::Str(string) => scalar_text(text, string),
        Node::List(items) => {
            text.push('[');
            for (index, &item) in items.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                flow(text, arena, item, depth + 1)?;
            }
            text.push(']');
        }
        Node::Dict(pairs) => {
            text.push('{');
            for (index, &(key, value)) in pairs.iter().enumerate() {
                text.push_str(if index == 0 { "" } else { ", " });
                flow(text, arena, key, depth + 1)?;
                text.push_str(": ");
                flow(text, arena, value, depth + 1)?;
            }
            text.push('}');
        }
        _ => return Err(format!("holds {}, which is not plain data", arena.describe(id))),
    }
    Ok(())
}

/// A float that every YAML reader takes for one: with a point, without an exponent.
fn float(text: &mut String, number: f64) {
    let _ = if number.is_nan() {
        write!(text, ".nan")
    } else if number.is_infinite() {
        write!(text, "{}.inf", if number < 0.0 { "-" } else { "" })
    } else if number.fract() == 0.0 {
        write!(text, "{number:.1}")
    } else {
        write!(text, "{number}")
    };
}

/// A string, in quotes where a reader might take it for something else.
fn scalar_text(text: &mut String, string: &str) {
    const RESERVED: [&str; 11] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf"];
    let mut bytes = string.bytes();
    let is_word = bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
    if is_word && !RESERVED.contains(&string.to_ascii_lowercase().as_str()) {
        text.push_str(string);
    } else {
        // A JSON string is a YAML string.
        text.push_str(&serde_json::Value::from(string).to_string());
    }
}
