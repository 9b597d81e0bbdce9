//! The run that a bare `--resume` goes on with.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context;

/// Folders in folders that are looked into: enough for any run, and few enough for a home folder.
const DEPTH: usize = 8;
/// Folders that hold no runs and very many files; hidden ones are left out, too.
const SKIPPED: [&str; 2] = ["node_modules", "target"];

/// The run that was saved last and is not finished: below `project` or, where none is named, in the working directory.
pub(super) fn latest(project: Option<&Path>) -> anyhow::Result<PathBuf> {
    let mut found = None;
    match project {
        Some(project) => search(project, 0, &mut found),
        None => {
            search(Path::new("."), 0, &mut found);
            // Links are not followed, but the folder of runs may be one: to a larger disk.
            search(Path::new("runs"), 0, &mut found);
        }
    }
    let run = found.map(|(_, run)| match run.strip_prefix(".") {
        Ok(inside) if !inside.as_os_str().is_empty() => inside.to_path_buf(),
        _ => run,
    });
    run.with_context(|| {
        let place = project.unwrap_or(Path::new("."));
        let place = std::path::absolute(place).unwrap_or_else(|_| place.to_path_buf());
        format!(
            "--resume: no run that was cut is in {}: looked for weights/resume.safetensors {DEPTH} folders deep, but not in \
             hidden folders, {} or behind links; name the run's folder",
            place.display(),
            SKIPPED.join(", ")
        )
    })
}

/// Looks at `folder` and those below it; a folder that cannot be read holds no run.
fn search(folder: &Path, depth: usize, latest: &mut Option<(SystemTime, PathBuf)>) {
    let state = folder.join("weights").join("resume.safetensors");
    if let Ok(metadata) = state.metadata()
        && metadata.is_file()
    {
        let saved = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if latest.as_ref().is_none_or(|(last, _)| saved > *last) {
            *latest = Some((saved, folder.to_path_buf()));
        }
    }
    if depth == DEPTH {
        return;
    }
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        // Of a link, this is no folder's: nothing is walked twice, or for ever.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with('.') && !SKIPPED.contains(&name.as_ref()) {
                search(&entry.path(), depth + 1, latest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;

    fn cut(folder: &Path, age: u64) {
        fs::create_dir_all(folder.join("weights")).unwrap();
        let file = File::create(folder.join("weights/resume.safetensors")).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }

    #[test]
    fn the_run_saved_last_is_found_anywhere_but_where_none_can_be() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let error = format!("{:#}", latest(Some(place.path())).unwrap_err());
        assert!(error.contains(place.path().to_str().unwrap()) && error.contains("--resume: no run"), "{error}");
        cut(&at("runs/train/exp"), 30);
        cut(&at("work/a/b/exp2"), 20);
        cut(&at("runs/train-seg/exp"), 40);
        for skipped in [".git/exp", "a/node_modules/exp", "target/exp", "1/2/3/4/5/6/7/8/exp"] {
            cut(&at(skipped), 10);
        }
        fs::create_dir_all(at("finished/weights")).unwrap();
        assert_eq!(latest(Some(place.path())).unwrap(), at("work/a/b/exp2"));
        // The folder itself may be the run, and may have a name that is skipped below others.
        assert_eq!(latest(Some(&at("target"))).unwrap(), at("target/exp"));
        assert_eq!(latest(Some(&at("runs/train/exp"))).unwrap(), at("runs/train/exp"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("folder");
        cut(&place.path().join("elsewhere/exp"), 10);
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(place.path(), folder.join("link")).unwrap();
        assert!(latest(Some(&folder)).is_err());
    }
}
