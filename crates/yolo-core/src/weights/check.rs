//! Weights against the network that should take them.

use std::collections::HashSet;
use std::fmt::Write;

use super::Weights;
use crate::text::edit_distance;
use crate::{Error, Result};

/// So many keys of each kind are spelled out in a message.
const SPELLED_OUT: usize = 8;
/// So many near names are offered for a key.
const NEAREST: usize = 2;
/// Names of the tensors with which a file may carry an example of its network.
const EXAMPLES: [&str; 3] = ["input", "output0", "output1"];

/// A tensor that a network asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Name in PyTorch's state dict.
    pub name: String,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// May be absent.
    pub optional: bool,
}

impl Weights {
    /// Compares the file with what the network `network` (its name, for the message) expects: nothing may be missing,
    /// misshapen or left over.
    ///
    /// BatchNorm's counters `num_batches_tracked` and old checkpoints' `anchor_grid` may be absent or present, and the tensors `input`, `output0`,
    /// `output1`, with which a file carries an example of its network, may be there.
    ///
    /// # Errors
    /// [`Error::Weights`] that counts and names the keys, with the nearest names on the other side.
    pub fn check(&self, expected: &[Expected], network: &str) -> Result<()> {
        let wanted: HashSet<&str> = expected.iter().map(|key| key.name.as_str()).collect();
        let counter = |name: &str| name.ends_with("num_batches_tracked");
        // YOLOv5 before its version 6 kept the anchors in pixels, too.
        let superfluous = |name: &str| counter(name) || name.ends_with(".anchor_grid") || EXAMPLES.contains(&name);
        let extra = |name: &&str| !wanted.contains(name) && !superfluous(name);
        let unexpected: Vec<&str> = self.names().filter(extra).collect();
        let missing: Vec<&Expected> = expected
            .iter()
            .filter(|key| !key.optional && !counter(&key.name) && self.shape(&key.name).is_none())
            .collect();
        let misshapen: Vec<(&Expected, &[usize])> = expected
            .iter()
            .filter_map(|key| Some((key, self.shape(&key.name)?)))
            .filter(|(key, shape)| *shape != key.shape)
            .collect();
        if unexpected.is_empty() && missing.is_empty() && misshapen.is_empty() {
            return Ok(());
        }

        let required = expected.iter().filter(|key| !key.optional && !counter(&key.name)).count();
        let fitting = required.saturating_sub(missing.len() + misshapen.len());
        let mut problem = String::new();
        if fitting * 10 <= required {
            let _ = write!(
                problem,
                "these weights belong to another network than {network}: {fitting} of the {required} tensors that it expects fit"
            );
        } else {
            let _ = write!(problem, "the weights do not fit the network {network}");
        }
        let nearest = |name: &str, others: &[&str]| {
            let near = nearest(name, others);
            if near.is_empty() { String::new() } else { format!(" (nearest: {})", near.join(", ")) }
        };
        list(&mut problem, "missing from the file", &missing, |key| {
            format!("{} {:?}{}", key.name, key.shape, nearest(&key.name, &unexpected))
        });
        list(&mut problem, "of another shape", &misshapen, |(key, shape)| {
            format!("{}: the network expects {:?}, the file has {shape:?}", key.name, key.shape)
        });
        let absent: Vec<&str> = missing.iter().map(|key| key.name.as_str()).collect();
        list(&mut problem, "not expected by the network", &unexpected, |name| {
            format!("{name} {:?}{}", self.shape(name).unwrap_or_default(), nearest(name, &absent))
        });
        Err(Error::weights(self.path(), problem))
    }
}

/// Adds a counted list of `keys` to a message.
fn list<T>(message: &mut String, what: &str, keys: &[T], line: impl Fn(&T) -> String) {
    if keys.is_empty() {
        return;
    }
    let _ = write!(message, "\n  {} {what}:", keys.len());
    for key in keys.iter().take(SPELLED_OUT) {
        let _ = write!(message, "\n    {}", line(key));
    }
    if keys.len() > SPELLED_OUT {
        let _ = write!(message, "\n    and {} more", keys.len() - SPELLED_OUT);
    }
}

/// The names nearest to `name`, best first: those of which at most a third would have to change.
fn nearest<'a>(name: &str, others: &[&'a str]) -> Vec<&'a str> {
    // A hostile file may hold names of any length and number; a hint is not worth more than this.
    let candidates = others.iter().take(2000).filter(|other| other.len() <= 200);
    let mut near: Vec<_> = candidates.map(|&other| (edit_distance(name, other), other)).collect();
    near.retain(|&(distance, _)| name.len() <= 200 && distance * 3 <= name.len());
    near.sort_unstable();
    near.into_iter().take(NEAREST).map(|(_, other)| other).collect()
}
