//! All labels of a split.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::cache;
use super::dataset::{DatasetConfig, Split};
use super::labels::{Labels, Look, State, look};
use crate::{Error, Result};

/// How many label files were found, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LabelCounts {
    /// With a label file, whether there is anything in it or not.
    pub found: usize,
    /// Without a label file: background.
    pub missing: usize,
    /// With an empty label file: background.
    pub empty: usize,
    /// Skipped, because the picture or its labels cannot be used.
    pub corrupt: usize,
}

/// The pictures of a split that can be used, with their labels.
#[derive(Debug, Clone)]
pub struct Dataset {
    name: String,
    classes: Vec<String>,
    labels: Vec<Labels>,
    counts: LabelCounts,
    messages: Vec<String>,
    cached: bool,
}

impl Dataset {
    /// Looks at all pictures of a split and their labels, or takes what an earlier look left in the label cache.
    ///
    /// `single_class` makes all classes class 0. `progress` is told how many pictures of how many are done, from several
    /// threads; it hears nothing where the cache is used. A cache that cannot be written is not an error.
    ///
    /// # Errors
    /// As [`DatasetConfig::pictures`]; and where no picture is fit for use.
    pub fn open(
        config: &DatasetConfig,
        split: Split,
        single_class: bool,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Self> {
        let pictures = config.pictures(split)?;
        let fingerprint = cache::fingerprint(&pictures);
        let file = config.cache_file(split, &pictures);
        let remembered = file.as_ref().and_then(|file| cache::load(file, &pictures, fingerprint));
        let cached = remembered.is_some();
        let mut messages = Vec::new();
        let looks = remembered.unwrap_or_else(|| {
            let done = AtomicUsize::new(0);
            let looks: Vec<Look> = pictures
                .par_iter()
                .map(|picture| {
                    let look = look(picture);
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, pictures.len());
                    look
                })
                .collect();
            // Labels were read one by one: what changed meanwhile may be in half of them.
            if cache::fingerprint(&pictures) == fingerprint
                && let Some(Err(error)) = file.as_ref().map(|file| cache::save(file, &looks, fingerprint))
            {
                messages.push(format!("labels are not cached: {error}"));
            }
            looks
        });
        let classes = match config.classes() {
            several if single_class && several.len() > 1 => vec!["item".to_owned()],
            classes => classes.to_vec(),
        };
        let name = format!("{} ({})", config.file().display(), split.name());
        let mut set = Self { name, classes, labels: Vec::new(), counts: LabelCounts::default(), messages, cached };
        for look in looks {
            set.add(look, single_class);
        }
        if set.labels.is_empty() {
            let first = set.messages.first().cloned().unwrap_or_default();
            let problem = format!(
                "none of the {} pictures of `{}` can be used; the first: {first}",
                pictures.len(),
                split.name()
            );
            return Err(Error::data(config.file(), problem));
        }
        Ok(set)
    }

    fn add(&mut self, mut look: Look, single_class: bool) {
        if single_class {
            look.labels.classes.fill(0);
        }
        let count = self.classes.len();
        if let Some(class) = look.labels.classes.iter().find(|class| **class >= count) {
            let problem = format!("class {class} is beyond the data set's {count} (0 to {})", count - 1);
            look.message = Some(format!("{}: skipped: {problem}", look.labels.picture.display()));
            look.state = State::Corrupt;
        }
        self.messages.extend(look.message);
        match look.state {
            State::Corrupt => {
                self.counts.corrupt += 1;
                return;
            }
            State::Missing => self.counts.missing += 1,
            State::Found => self.counts.found += 1,
            State::Empty => {
                self.counts.found += 1;
                self.counts.empty += 1;
            }
        }
        self.labels.push(look.labels);
    }

    /// The YAML and the split, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The classes' names by index; one, where all classes are taken for one.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// One entry a picture, in the order of their paths.
    #[must_use]
    pub fn labels(&self) -> &[Labels] {
        &self.labels
    }

    /// How the label files were found.
    #[must_use]
    pub fn counts(&self) -> LabelCounts {
        self.counts
    }

    /// What was skipped or mended and why, a sentence each.
    #[must_use]
    pub fn messages(&self) -> &[String] {
        &self.messages
    }

    /// Whether the labels came from the cache.
    #[must_use]
    pub fn from_cache(&self) -> bool {
        self.cached
    }

    /// The number of objects of each class.
    #[must_use]
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for class in self.labels.iter().flat_map(|labels| &labels.classes) {
            counts[*class] += 1;
        }
        counts
    }

    /// The number of objects.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.labels.iter().map(|labels| labels.boxes.len()).sum()
    }
}
