//! `--source`: from a file, a folder, a pattern, a list or standard input to the pictures to look at.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use image::RgbImage;
use yolo_core::{files, picture};

use crate::built_in::{self, Picture};

/// Endings of pictures that can be decoded; a camera's .mpo is a JPEG with others behind it.
const PICTURES: [&str; 8] = ["bmp", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp"];
/// Endings of pictures that YOLOv5 reads and this program does not.
const FOREIGN_PICTURES: [&str; 2] = ["dng", "pfm"];
/// Endings of videos, as YOLOv5 lists them.
const VIDEOS: [&str; 11] = ["asf", "avi", "gif", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "ts", "wmv"];
/// The most bytes taken from standard input.
const MAX_STDIN_BYTES: u64 = picture::MAX_BYTES;
/// The most bytes of a list of pictures.
const MAX_LIST_BYTES: u64 = 1 << 28;

/// Where one picture comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A file, by its absolute path.
    File(PathBuf),
    /// The bytes of one picture on standard input.
    Stdin,
    /// A picture that is built in.
    BuiltIn(&'static Picture),
}

impl Source {
    /// Reads and decodes the picture.
    ///
    /// # Errors
    /// What cannot be read or is no picture; the message names it.
    pub(crate) fn read(&self) -> anyhow::Result<RgbImage> {
        match self {
            Self::File(path) => Ok(picture::open(path)?),
            Self::Stdin => {
                let stdin = std::io::stdin();
                if stdin.is_terminal() {
                    bail!(
                        "standard input is a terminal: pipe a picture into it, as in `yolo predict --source - < bus.jpg`"
                    );
                }
                let mut bytes = Vec::new();
                stdin.lock().take(MAX_STDIN_BYTES).read_to_end(&mut bytes).context("standard input")?;
                Ok(picture::from_bytes(&bytes, "standard input")?)
            }
            Self::BuiltIn(own) => Ok(picture::from_bytes(own.bytes, own.name)?),
        }
    }

    /// The name that results are filed under: the file's own, or `stdin.jpg`.
    pub(crate) fn file_name(&self) -> &OsStr {
        match self {
            Self::File(path) => path.file_name().unwrap_or(OsStr::new("picture.jpg")),
            Self::Stdin => OsStr::new("stdin.jpg"),
            Self::BuiltIn(picture) => OsStr::new(picture.name),
        }
    }

    /// The folder that the file is in.
    pub(crate) fn folder(&self) -> Option<&Path> {
        match self {
            Self::File(path) => path.parent(),
            Self::Stdin | Self::BuiltIn(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("-"),
            Self::BuiltIn(picture) => f.write_str(picture.name),
        }
    }
}

/// What a `--source` comes to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The pictures, in the order they are looked at.
    pub(crate) pictures: Vec<Source>,
    /// A sentence for everything that was asked for and cannot be used: a line of a list whose file is missing, a video.
    pub(crate) refused: Vec<String>,
}

/// The pictures that are built in.
pub(crate) fn built_in() -> Found {
    Found { pictures: built_in::PICTURES.iter().map(Source::BuiltIn).collect(), refused: Vec::new() }
}

/// Finds the pictures of a `--source`, in YOLOv5's order: a folder's and a pattern's by name, a list's by its sorted lines.
///
/// # Errors
/// A source that is missing, unreadable, empty or of a kind that is not supported.
pub(crate) fn find(argument: &Path) -> anyhow::Result<Found> {
    let mut found = Found::default();
    if argument == Path::new("-") {
        found.pictures.push(Source::Stdin);
        return Ok(found);
    }
    if argument.as_os_str().is_empty() {
        bail!("--source is empty: give a picture, a folder, a pattern or a list of pictures");
    }
    if argument.is_file() && has_ending(argument, &["txt"]) {
        found.add_list(argument)?;
    } else {
        found.add(argument)?;
    }
    if found.pictures.is_empty() && found.refused.is_empty() {
        let where_ = if argument.is_dir() { " in this folder (folders in it are not searched)" } else { "" };
        bail!("{}: no pictures{where_}; looked for {}", argument.display(), PICTURES.join(", "));
    }
    Ok(found)
}

impl Found {
    /// Adds one file, one folder's files or one pattern's matches.
    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        if path.is_dir() {
            self.add_folder(path)
        } else if path.exists() {
            self.add_file(path)
        } else {
            match path.to_str() {
                Some(text) if text.contains(['*', '?', '[']) && !text.contains("://") => self.add_matches(text),
                Some(text) => bail!("{}", why_missing(text)),
                None => bail!("{}: does not exist", path.display()),
            }
        }
    }

    /// A file that was named is tried whatever its ending, unless that promises something else.
    fn add_file(&mut self, path: &Path) -> anyhow::Result<()> {
        if let Some(problem) = unsupported(path) {
            bail!("{}: {problem}", path.display());
        }
        if has_ending(path, &["txt"]) {
            bail!("{}: a list within a list is not supported", path.display());
        }
        self.pictures.push(Source::File(absolute(path)));
        Ok(())
    }

    fn add_folder(&mut self, folder: &Path) -> anyhow::Result<()> {
        let unreadable = || format!("{}: the folder cannot be read", folder.display());
        let mut files = fs::read_dir(folder)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>())
            .with_context(unreadable)?;
        files.retain(|file| !is_hidden(file));
        files.sort();
        let folder = folder.canonicalize().with_context(unreadable)?;
        self.add_pictures(files.iter().filter_map(|file| Some(folder.join(file.file_name()?))));
        Ok(())
    }

    fn add_matches(&mut self, pattern: &str) -> anyhow::Result<()> {
        let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let matches = glob::glob_with(pattern, options).with_context(|| format!("{pattern}: not a valid pattern"))?;
        let mut files = Vec::new();
        for entry in matches {
            match entry {
                Ok(path) => files.push(absolute(&path)),
                Err(error) => self.refused.push(format!("{}: {}", error.path().display(), error.error())),
            }
        }
        files.sort();
        self.add_pictures(files.into_iter());
        Ok(())
    }

    /// Of files that were not named one by one, takes the pictures and passes over what is none.
    fn add_pictures(&mut self, files: impl Iterator<Item = PathBuf>) {
        for file in files.filter(|file| !file.is_dir()) {
            if let Some(problem) = unsupported(&file) {
                self.refused.push(format!("{}: {problem}", file.display()));
            } else if has_ending(&file, &PICTURES) {
                self.pictures.push(Source::File(file));
            }
        }
    }

    fn add_list(&mut self, list: &Path) -> anyhow::Result<()> {
        let bytes = files::read(list, MAX_LIST_BYTES).context("the list cannot be read")?;
        let Ok(text) = String::from_utf8(bytes) else {
            bail!("{}: not a list of pictures (expected UTF-8 text, a path a line)", list.display());
        };
        let lines = list_lines(&text);
        if lines.is_empty() {
            bail!("{}: the list is empty (expected a path a line)", list.display());
        }
        let folder = list.parent().unwrap_or(Path::new(""));
        for line in lines {
            if let Err(error) = self.add(&relative_to(folder, Path::new(line))) {
                self.refused.push(format!("{error:#}"));
            }
        }
        Ok(())
    }
}

/// The paths of a list, sorted as YOLOv5 sorts them.
fn list_lines(text: &str) -> Vec<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

/// A list's paths start at the list; where that leads nowhere, at the working folder, as YOLOv5 has it.
fn relative_to(folder: &Path, path: &Path) -> PathBuf {
    let joined = folder.join(path);
    if !joined.exists() && path.exists() { path.to_path_buf() } else { joined }
}

/// Why a path that does not exist cannot be a source, told by what it looks like.
fn why_missing(text: &str) -> String {
    let lower = text.to_lowercase();
    if lower.contains("://") {
        format!("{text}: URLs and streams are not supported; download the picture and give its path")
    } else if text.bytes().all(|b| b.is_ascii_digit()) {
        format!("{text}: webcams are not supported; give a picture, a folder, a pattern or a list of pictures")
    } else if lower == "screen" || lower.starts_with("screen ") {
        format!("{text}: screenshots are not supported; give a picture, a folder, a pattern or a list of pictures")
    } else {
        format!("{text}: does not exist")
    }
}

/// Why a file is refused for its ending, if it is.
fn unsupported(path: &Path) -> Option<&'static str> {
    if has_ending(path, &VIDEOS) {
        Some("videos are not supported; extract its frames and give their folder")
    } else if has_ending(path, &["streams"]) {
        Some("streams are not supported; give a picture, a folder, a pattern or a list of pictures")
    } else if has_ending(path, &FOREIGN_PICTURES) {
        Some("this kind of picture is not supported; convert it to JPEG, PNG, BMP, WebP or TIFF")
    } else {
        None
    }
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().and_then(OsStr::to_str).map(str::to_lowercase);
    ending.is_some_and(|ending| endings.contains(&ending.as_str()))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The absolute path of a file with `..` and links resolved but for the last part: a link's own name is what the user gave.
fn absolute(path: &Path) -> PathBuf {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn names(found: &Found) -> Vec<String> {
        found.pictures.iter().map(|source| source.file_name().to_string_lossy().into_owned()).collect()
    }

    fn problem(argument: impl AsRef<Path>) -> String {
        format!("{:#}", find(argument.as_ref()).unwrap_err())
    }

    #[test]
    fn a_folder_gives_its_pictures_by_name() {
        let folder = folder_of(&["b.JPG", "a.png", "B.webp", ".hidden.jpg", "notes.txt", "noending", "sub/c.jpg"]);
        let found = find(folder.path()).unwrap();
        assert_eq!(names(&found), ["B.webp", "a.png", "b.JPG"]);
        assert!(found.refused.is_empty());
        assert!(found.pictures.iter().all(|source| source.folder().unwrap().is_absolute()));
    }

    #[test]
    fn what_a_folder_holds_and_cannot_be_used_is_named() {
        let folder = folder_of(&["a.jpg", "b.MPO", "clip.mp4", "raw.DNG"]);
        let found = find(folder.path()).unwrap();
        assert_eq!(names(&found), ["a.jpg", "b.MPO"]);
        assert_eq!(found.refused.len(), 2);
        assert!(found.refused[0].contains("clip.mp4: videos are not supported"), "{:?}", found.refused);
        assert!(found.refused[1].contains("raw.DNG: this kind of picture"), "{:?}", found.refused);
    }

    #[test]
    fn an_empty_folder_and_a_missing_path_are_told() {
        let folder = folder_of(&["notes.md", "sub/a.jpg"]);
        assert!(problem(folder.path()).contains("no pictures in this folder"));
        assert!(problem(folder.path().join("nothing.jpg")).ends_with("nothing.jpg: does not exist"));
        assert!(problem(folder.path().join("*.jpg")).contains("no pictures"));
        assert!(problem("").contains("--source is empty"));
        assert!(problem("a[.jpg").contains("not a valid pattern"));
    }

    #[test]
    fn what_is_no_file_is_told_apart() {
        assert!(problem("https://example.com/bus.jpg").contains("URLs and streams are not supported"));
        assert!(problem("rtsp://camera/*").contains("URLs and streams are not supported"));
        assert!(problem("0").contains("webcams are not supported"));
        assert!(problem("screen").contains("screenshots are not supported"));
        let folder = folder_of(&["clip.mov", "list.streams", "x.pfm"]);
        assert!(problem(folder.path().join("clip.mov")).contains("videos are not supported"));
        assert!(problem(folder.path().join("list.streams")).contains("streams are not supported"));
        assert!(problem(folder.path().join("x.pfm")).contains("this kind of picture is not supported"));
    }

    #[test]
    fn a_named_file_is_taken_whatever_its_ending() {
        let folder = folder_of(&["upload", "photo.xyz"]);
        assert_eq!(names(&find(&folder.path().join("upload")).unwrap()), ["upload"]);
        assert_eq!(names(&find(&folder.path().join("photo.xyz")).unwrap()), ["photo.xyz"]);
    }

    #[test]
    fn a_pattern_gives_its_pictures_by_path() {
        let folder = folder_of(&["b/2.jpg", "a/1.jpg", "a/3.png", "a/.x.jpg", "a/read.me", "a/deep/4.jpg"]);
        assert_eq!(names(&find(&folder.path().join("*/*.jpg")).unwrap()), ["1.jpg", "2.jpg"]);
        assert_eq!(names(&find(&folder.path().join("**/*.*")).unwrap()), ["1.jpg", "3.png", "4.jpg", "2.jpg"]);
        assert_eq!(names(&find(&folder.path().join("a/[13].*")).unwrap()), ["1.jpg", "3.png"]);
    }

    #[test]
    fn a_file_whose_name_looks_like_a_pattern_is_that_file() {
        let folder = folder_of(&["a[1].jpg"]);
        assert_eq!(names(&find(&folder.path().join("a[1].jpg")).unwrap()), ["a[1].jpg"]);
    }

    #[test]
    fn a_list_starts_at_its_own_folder() {
        let folder = folder_of(&["x/a.jpg", "x/b.jpg", "y/c.jpg", "y/d.png"]);
        let list = folder.path().join("x/list.txt");
        fs::write(
            &list,
            format!("\u{feff}b.jpg\r\n\n  a.jpg  \n../y\n{}\ngone.jpg\n", folder.path().join("y/d.png").display()),
        )
        .unwrap();
        let found = find(&list).unwrap();
        assert_eq!(names(&found), ["c.jpg", "d.png", "d.png", "a.jpg", "b.jpg"]);
        assert_eq!(found.refused.len(), 1);
        assert!(found.refused[0].ends_with("gone.jpg: does not exist"), "{:?}", found.refused);
    }

    #[test]
    fn lines_of_a_list_are_trimmed_and_sorted() {
        assert_eq!(list_lines("\u{feff} c\r\nb\n\n\ta \n"), ["a", "b", "c"]);
        assert!(list_lines(" \n\r\n").is_empty());
    }

    #[test]
    fn an_empty_or_foreign_list_is_told() {
        let folder = folder_of(&["empty.txt"]);
        assert!(problem(folder.path().join("empty.txt")).contains("the list is empty"));
        fs::write(folder.path().join("bytes.txt"), [0xFF, 0xFE, 0x00]).unwrap();
        assert!(problem(folder.path().join("bytes.txt")).contains("not a list of pictures"));
        fs::write(folder.path().join("outer.txt"), "empty.txt\n").unwrap();
        let found = find(&folder.path().join("outer.txt")).unwrap();
        assert!(found.refused[0].contains("a list within a list"), "{:?}", found.refused);
    }
}
