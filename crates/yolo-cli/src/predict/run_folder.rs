//! Where results go: `runs/detect/exp`, `exp2`, `exp3`, and a name of its own for every picture's files.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// As far as YOLOv5 counts.
const MAX_NUMBER: usize = 9999;

/// `path` itself if nothing is there yet, else the first free of `path2`, `path3`, ...; a file keeps its ending: `a2.jpg`.
pub(crate) fn increment_path(path: &Path) -> Option<PathBuf> {
    candidates(path).find(|candidate| !candidate.exists())
}

/// YOLOv5's numbering of a path: itself, then `path2`, `path3`, ...
fn candidates(path: &Path) -> impl Iterator<Item = PathBuf> {
    let suffix = if path.is_file() { path.extension().map(OsStr::to_os_string) } else { None };
    let base = if suffix.is_some() { path.with_extension("") } else { path.to_path_buf() };
    let numbered = (2..MAX_NUMBER).map(move |n| {
        let mut name = base.clone().into_os_string();
        name.push(n.to_string());
        if let Some(suffix) = &suffix {
            name.push(".");
            name.push(suffix);
        }
        PathBuf::from(name)
    });
    std::iter::once(path.to_path_buf()).chain(numbered)
}

/// Makes the folder of a run, `project/name` or the first free of its numbers, with `subfolders` in it.
///
/// # Errors
/// A folder that cannot be made: no permission, a full disk, a file in its place.
pub(crate) fn create(project: &Path, name: &str, exist_ok: bool) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(project).with_context(|| cannot_make(project))?;
    let wanted = project.join(name);
    if exist_ok {
        fs::create_dir_all(&wanted).with_context(|| cannot_make(&wanted))?;
        return Ok(wanted);
    }
    if let Some(parent) = wanted.parent() {
        fs::create_dir_all(parent).with_context(|| cannot_make(parent))?;
    }
    // Making and testing in one step: two runs that start together get a folder each.
    for candidate in candidates(&wanted) {
        match fs::create_dir(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| cannot_make(&candidate)),
        }
    }
    bail!("{}: all numbers up to {MAX_NUMBER} are taken", wanted.display())
}

/// The sentence for a folder that cannot be made.
pub(crate) fn cannot_make(folder: &Path) -> String {
    format!("{}: the folder cannot be made", folder.display())
}

/// Gives every file name of a run a stem that no other has: the first `a` is `a`, the next is `a2`.
///
/// YOLOv5 lets the second picture of a name overwrite the first one's files. Names are given as stem and ending; a number
/// is skipped where it would meet another file's own name.
pub(crate) fn distinct(names: &[(OsString, OsString)]) -> Vec<OsString> {
    let own: HashSet<_> = names.iter().map(|(stem, ending)| key(stem, ending)).collect();
    let mut taken = HashSet::new();
    let mut next = HashMap::<_, usize>::new();
    names
        .iter()
        .map(|(stem, ending)| {
            let first = key(stem, ending);
            if taken.insert(first.clone()) {
                return stem.clone();
            }
            let number = next.entry(first).or_insert(2);
            loop {
                let mut numbered = stem.clone();
                numbered.push(number.to_string());
                *number += 1;
                let key = key(&numbered, ending);
                if !own.contains(&key) && taken.insert(key) {
                    return numbered;
                }
            }
        })
        .collect()
}

/// What makes two file names one: on Windows and macOS the case of letters does not tell them apart.
fn key(stem: &OsStr, ending: &OsStr) -> OsString {
    let mut name = stem.to_os_string();
    name.push(".");
    name.push(ending);
    if cfg!(any(windows, target_os = "macos")) { name.to_string_lossy().to_lowercase().into() } else { name }
}

/// A class name as a folder name: what a file system takes for something else becomes `_`.
pub(crate) fn class_folder(name: &str) -> String {
    let folder: String =
        name.chars()
            .map(|c| {
                if c.is_control() || matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|') {
                    '_'
                } else {
                    c
                }
            })
            .collect();
    match folder.as_str() {
        "" | "." | ".." => "_".repeat(folder.len().max(1)),
        _ => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_numbered() {
        let project = tempfile::tempdir().unwrap();
        let made: Vec<_> = (0..3).map(|_| create(project.path(), "exp", false).unwrap()).collect();
        assert_eq!(made, ["exp", "exp2", "exp3"].map(|name| project.path().join(name)));
        assert_eq!(create(project.path(), "exp", true).unwrap(), project.path().join("exp"));
        fs::remove_dir(project.path().join("exp2")).unwrap();
        assert_eq!(create(project.path(), "exp", false).unwrap(), project.path().join("exp2"));
        assert_eq!(create(project.path(), "a/b", false).unwrap(), project.path().join("a/b"));
        assert_eq!(create(project.path(), "v1.5", false).unwrap(), project.path().join("v1.5"));
        assert_eq!(create(project.path(), "v1.5", false).unwrap(), project.path().join("v1.52"));
    }

    #[test]
    fn a_file_in_the_way_of_the_project_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = format!("{:#}", create(&file, "exp", false).unwrap_err());
        assert!(error.contains("file: the folder cannot be made"), "{error}");
        assert!(create(folder.path(), "file", true).is_err());
        assert_eq!(create(folder.path(), "file", false).unwrap(), folder.path().join("file2"));
    }

    #[test]
    fn files_keep_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.jpg");
        assert_eq!(increment_path(&path).unwrap(), path);
        fs::write(&path, "").unwrap();
        assert_eq!(increment_path(&path).unwrap(), folder.path().join("bus2.jpg"));
        fs::write(folder.path().join("bus2.jpg"), "").unwrap();
        assert_eq!(increment_path(&path).unwrap(), folder.path().join("bus3.jpg"));
    }

    fn distinct_of(names: &[(&str, &str)]) -> Vec<String> {
        let names: Vec<_> = names.iter().map(|(stem, ending)| (stem.into(), ending.into())).collect();
        distinct(&names).iter().map(|stem| stem.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn names_that_meet_are_numbered() {
        assert_eq!(distinct_of(&[("a", "txt"), ("b", "txt"), ("a", "txt"), ("a", "txt")]), ["a", "b", "a2", "a3"]);
        assert_eq!(distinct_of(&[("a", "jpg"), ("a", "png")]), ["a", "a"]);
        // a2 belongs to the picture of that name, wherever it comes.
        assert_eq!(distinct_of(&[("a", "txt"), ("a", "txt"), ("a2", "txt"), ("a2", "txt")]), ["a", "a3", "a2", "a22"]);
    }

    #[test]
    fn class_names_stay_in_their_folder() {
        assert_eq!(class_folder("traffic light"), "traffic light");
        assert_eq!(class_folder("and/or"), "and_or");
        assert_eq!(class_folder("../../etc"), ".._.._etc");
        assert_eq!(class_folder(".."), "__");
        assert_eq!(class_folder(""), "_");
        assert_eq!(class_folder("a\0b\n"), "a_b_");
    }
}
