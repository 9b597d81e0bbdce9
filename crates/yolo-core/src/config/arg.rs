//! A layer's argument: the few kinds of value that YOLOv5's YAML holds.

use serde_yaml::Value;

/// An argument of a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// `None` or null.
    None,
    /// `True`, `False`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Anything else that is a word: `nearest`, `nc`, `anchors`.
    Str(String),
    /// A list.
    List(Vec<Arg>),
}

impl Arg {
    /// Reads a YAML value; strings that Python would evaluate to a literal become that literal.
    pub(super) fn from_yaml(value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::Null => Self::None,
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(int), _) => Self::Int(int),
                (None, Some(float)) if float.is_finite() => Self::Float(float),
                _ => return Err(format!("{number} is not a number that a layer can use")),
            },
            Value::String(text) => Self::from_word(text),
            Value::Sequence(items) => Self::List(items.iter().map(Self::from_yaml).collect::<Result<_, _>>()?),
            Value::Mapping(_) | Value::Tagged(_) => {
                return Err("a map where a number, a word or a list was expected".into());
            }
        })
    }

    fn from_word(word: &str) -> Self {
        match word.trim() {
            "None" => Self::None,
            "True" => Self::Bool(true),
            "False" => Self::Bool(false),
            other => match (other.parse::<i64>(), other.parse::<f64>()) {
                (Ok(int), _) => Self::Int(int),
                (_, Ok(float)) if float.is_finite() => Self::Float(float),
                _ => Self::Str(word.to_owned()),
            },
        }
    }

    /// A list of numbers, whole ones as such.
    pub(crate) fn numbers(values: &[f64]) -> Self {
        let number = |&value: &f64| {
            if value.fract() == 0.0 && value.abs() < 1e15 { Self::Int(value as i64) } else { Self::Float(value) }
        };
        Self::List(values.iter().map(number).collect())
    }

    /// A list of whole numbers.
    pub(crate) fn ints(values: &[usize]) -> Self {
        Self::List(values.iter().map(|&v| Self::Int(v as i64)).collect())
    }

    pub(super) fn to_yaml(&self) -> String {
        match self {
            Self::Str(word) if word.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c)) => word.clone(),
            Self::Str(word) => format!("'{}'", word.replace('\'', "''")),
            Self::List(items) => format!("[{}]", items.iter().map(Self::to_yaml).collect::<Vec<_>>().join(", ")),
            other => other.to_string(),
        }
    }

    /// The argument in JSON, for machine-readable summaries.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::None => serde_json::Value::Null,
            Self::Bool(flag) => (*flag).into(),
            Self::Int(int) => (*int).into(),
            Self::Float(float) => (*float).into(),
            Self::Str(word) => word.as_str().into(),
            Self::List(items) => items.iter().map(Self::to_json).collect::<Vec<_>>().into(),
        }
    }
}

impl std::fmt::Display for Arg {
    /// As Python's `repr` prints it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Bool(flag) => f.write_str(if *flag { "True" } else { "False" }),
            Self::Int(int) => write!(f, "{int}"),
            Self::Float(float) => write!(f, "{float:?}"),
            Self::Str(word) => write!(f, "'{word}'"),
            Self::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{item}")?;
                }
                f.write_str("]")
            }
        }
    }
}
