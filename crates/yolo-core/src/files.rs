//! Files that are written whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `path` through `fill`, under a temporary name in the same folder that is renamed at the end: whoever looks
/// sees the old file or the new one, never half of it.
///
/// # Errors
/// [`Error::Io`] that names `path`, or whatever `fill` returns; the temporary file is removed then.
pub fn write_whole(path: impl AsRef<Path>, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".yolo-").suffix(".tmp");
    // A temporary file is its owner's alone by default; the finished one gets what the user's umask gives any file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(|source| Error::io(path, source))?;
    let (file, name) = temporary.into_parts();
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    fill(&mut writer)?;
    writer.flush().map_err(|source| Error::io(path, source))?;
    drop(writer);
    name.persist(path).map_err(|error| Error::io(path, error.error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write_whole(&path, |out| out.write_all(b"old").map_err(|e| Error::io("x", e))).unwrap();
        let failed = write_whole(&path, |out| {
            out.write_all(b"half").map_err(|e| Error::io("x", e))?;
            Err(Error::Device("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_whole("/no/such/folder/file", |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/folder/file: "), "{error}");
    }
}
