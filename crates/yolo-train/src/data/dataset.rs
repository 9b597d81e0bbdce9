//! A data set's YAML: where its pictures lie and what its classes are called.

use std::path::{Component, Path, PathBuf};

use super::document::{Document, Names};
use crate::{Error, Result};

/// Endings of picture files that are looked for: those of YOLOv5 that can be read here.
const EXTENSIONS: [&str; 8] = ["bmp", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"];
/// Folders in folders that are followed: a link to a folder above ends here.
const MAX_DEPTH: usize = 32;
/// Classes that a data set may have, as many as a network.
const MAX_CLASSES: usize = yolo_core::config::MAX_CLASSES;

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What the network learns from.
    Train,
    /// What it is judged by while it learns.
    Val,
    /// What it is judged by at the end.
    Test,
}

impl Split {
    /// The key in the YAML.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// YOLOv5's dataset YAML with its paths resolved.
#[derive(Debug, Clone)]
pub struct DatasetConfig {
    file: PathBuf,
    classes: Vec<String>,
    /// By [`Split`]: folders and list files.
    sources: [Vec<PathBuf>; 3],
    root: PathBuf,
}

impl DatasetConfig {
    /// Reads a data set's YAML: `path`, `train`, `val`, `test` (each a folder, a list file or several of them), `names` (list
    /// or map), `nc`.
    ///
    /// A relative `path` begins at the YAML's folder or, where nothing is there, at the working directory; the splits are
    /// relative to it. Pictures are looked for only by [`pictures`](Self::pictures).
    ///
    /// # Errors
    /// Where the file cannot be read or is no YAML of a data set, its names do not number `nc`, or its `path` is nowhere.
    pub fn open(file: impl AsRef<Path>) -> Result<Self> {
        let file = file.as_ref();
        let document = Document::open(file)?;
        let classes = class_names(file, document.names, document.nc)?;
        let hint =
            if document.download { "; the YAML's `download` is not run here: fetch the data set by hand" } else { "" };
        let root = find_root(file, document.path.as_deref(), hint)?;
        let mut sources = document.sources;
        for source in sources.iter_mut().flatten() {
            *source = resolve(&root, source);
        }
        Ok(Self { file: file.to_path_buf(), classes, sources, root })
    }

    /// The YAML file.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The folder that the splits are relative to.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The classes' names by index.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Whether the YAML has this split.
    #[must_use]
    pub fn has(&self, split: Split) -> bool {
        !self.sources[split as usize].is_empty()
    }

    /// The picture files of a split, sorted and each once; folders are searched through.
    ///
    /// # Errors
    /// Where the YAML lacks the split, a folder or list file cannot be read, or there is no picture in any of them.
    pub fn pictures(&self, split: Split) -> Result<Vec<PathBuf>> {
        let sources = &self.sources[split as usize];
        if sources.is_empty() {
            let problem = format!("there is no `{}`: name a folder or a list of pictures", split.name());
            return Err(Error::data(&self.file, problem));
        }
        let mut pictures = Vec::new();
        for source in sources {
            collect(source, &mut pictures).map_err(|cause| {
                let problem = format!("`{}` is {}: {cause}", split.name(), source.display());
                Error::data(&self.file, problem)
            })?;
        }
        pictures.sort();
        pictures.dedup();
        if pictures.is_empty() {
            let places: Vec<String> = sources.iter().map(|source| source.display().to_string()).collect();
            let problem = format!(
                "`{}` has no pictures: looked for {} in {}",
                split.name(),
                EXTENSIONS.join(", "),
                places.join(", ")
            );
            return Err(Error::data(&self.file, problem));
        }
        Ok(pictures)
    }

    /// Where the labels of a split are remembered: beside a list file, or beside the folder of its labels.
    pub(super) fn cache_file(&self, split: Split, pictures: &[PathBuf]) -> Option<PathBuf> {
        let first = self.sources[split as usize].first()?;
        if first.is_file() {
            return Some(first.with_extension("cache"));
        }
        let labels = label_path(pictures.first()?);
        let folder = labels.parent().filter(|folder| folder.file_name().is_some())?;
        let mut name = folder.file_name()?.to_os_string();
        name.push(".cache");
        Some(folder.with_file_name(name))
    }
}

fn class_names(file: &Path, names: Option<Names>, nc: Option<usize>) -> Result<Vec<String>> {
    let count = match &names {
        Some(Names::List(list)) => list.len(),
        Some(Names::Map(map)) => map.len(),
        None => nc.unwrap_or(0),
    };
    if count == 0 || count > MAX_CLASSES {
        let problem =
            format!("expected `names` of 1 to {MAX_CLASSES} classes, as a list or a map from 0 on; got {count}");
        return Err(Error::data(file, problem));
    }
    if let Some(nc) = nc.filter(|&nc| nc != count) {
        return Err(Error::data(file, format!("nc is {nc}, but `names` has {count} classes: correct one of them")));
    }
    match names {
        None => Ok((0..count).map(|class| format!("class{class}")).collect()),
        Some(Names::List(list)) => Ok(list),
        Some(Names::Map(map)) => {
            if let Some((expected, (got, _))) = (0u64..).zip(&map).find(|(expected, (got, _))| expected != got) {
                let problem = format!(
                    "the keys of `names` must be 0 to {} without a gap: {expected} is missing, {got} is there",
                    count - 1
                );
                return Err(Error::data(file, problem));
            }
            Ok(map.into_iter().map(|(_, name)| name).collect())
        }
    }
}

fn find_root(file: &Path, path: Option<&str>, hint: &str) -> Result<PathBuf> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let Some(path) = path.filter(|path| !path.is_empty()) else { return Ok(folder.to_path_buf()) };
    let beside = folder.join(path);
    let here = PathBuf::from(path);
    for candidate in [&beside, &here] {
        if candidate.is_dir() {
            return Ok(tidy(candidate));
        }
    }
    let problem = if beside == here {
        format!("`path` is {path}: there is no such folder{hint}")
    } else {
        format!(
            "`path` is {path}: there is no such folder beside the YAML ({}) or in the working directory{hint}",
            beside.display()
        )
    };
    Err(Error::data(file, problem))
}

/// A split's place: in the root; without the `../` that many exported data sets begin with; or in the working directory.
fn resolve(root: &Path, source: &Path) -> PathBuf {
    let inside = source.strip_prefix("..").ok().map(|rest| root.join(rest));
    [Some(root.join(source)), inside, Some(source.to_path_buf())]
        .into_iter()
        .flatten()
        .find(|path| path.exists())
        .map_or_else(|| tidy(&root.join(source)), |path| tidy(&path))
}

/// The path without `.` in the middle.
fn tidy(path: &Path) -> PathBuf {
    let parts: PathBuf = path.components().filter(|part| !matches!(part, Component::CurDir)).collect();
    if parts.as_os_str().is_empty() { PathBuf::from(".") } else { parts }
}

fn is_picture(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

fn collect(source: &Path, pictures: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if source.is_dir() {
        return search(source, 0, pictures);
    }
    let text = std::fs::read_to_string(source)?;
    let folder = source.parent().unwrap_or(Path::new(""));
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // A list's own folder is meant only where a line says so; else paths are the user's, from the working directory or,
        // where nothing is there, from the list.
        let path = match line.strip_prefix("./") {
            Some(rest) => folder.join(rest),
            None if Path::new(line).is_relative() && !Path::new(line).exists() => folder.join(line),
            None => PathBuf::from(line),
        };
        if is_picture(&path) {
            pictures.push(path);
        }
    }
    Ok(())
}

fn search(folder: &Path, depth: usize, pictures: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                search(&path, depth + 1, pictures)?;
            }
        } else if is_picture(&path) {
            pictures.push(path);
        }
    }
    Ok(())
}

/// The label file of a picture: the last folder called `images` becomes `labels`, the ending becomes `.txt`.
#[must_use]
pub fn label_path(picture: &Path) -> PathBuf {
    let parts: Vec<Component<'_>> = picture.components().collect();
    let folders = parts.len().saturating_sub(1);
    let images = parts[..folders].iter().rposition(|part| part.as_os_str() == "images");
    let path: PathBuf = parts
        .iter()
        .enumerate()
        .map(|(index, part)| if Some(index) == images { "labels".as_ref() } else { part.as_os_str() })
        .collect();
    path.with_extension("txt")
}
