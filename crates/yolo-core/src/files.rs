//! Files that are written whole or not at all, and read up to a limit.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `path` through `fill`, under a temporary name in the same folder that is renamed at the end: whoever looks
/// sees the old file or the new one, never half of it.
///
/// A link stays, and the file that it leads to is replaced. Devices and pipes (`/dev/null`, `/dev/stdout`) are written to as they
/// are: a file of their name would do away with them.
///
/// # Errors
/// [`Error::Io`] that names `path`, or whatever `fill` returns; the temporary file is removed then.
pub fn write_whole(path: impl AsRef<Path>, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    if is_written_in_place(path) {
        let file = OpenOptions::new().write(true).open(path).map_err(|cause| Error::io(path, cause))?;
        let mut writer = BufWriter::with_capacity(BUFFER, file);
        fill(&mut writer)?;
        return writer.flush().map_err(|cause| Error::io(path, cause));
    }
    let target = match path.canonicalize() {
        Ok(target) if path.is_symlink() => Cow::Owned(target),
        _ => Cow::Borrowed(path),
    };
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".yolo-").suffix(".tmp");
    // A temporary file is its owner's alone by default; the finished one gets what the user's umask gives any file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(folder).map_err(|cause| Error::io(path, cause))?;
    let (file, name) = temporary.into_parts();
    let mut writer = BufWriter::with_capacity(BUFFER, file);
    fill(&mut writer)?;
    writer.flush().map_err(|source| Error::io(path, source))?;
    drop(writer);
    name.persist(&target).map_err(|error| Error::io(path, error.error))
}

/// Bytes that are written at a time.
const BUFFER: usize = 1 << 20;

/// Whether a path leads to something else than a file or a folder, or to a file that has no name of its own.
fn is_written_in_place(path: &Path) -> bool {
    let Ok(metadata) = path.metadata() else { return false };
    !metadata.is_file() && !metadata.is_dir() || path.canonicalize().is_err()
}

/// Reads a file of at most so many bytes: also one without an end, such as a device, cannot take all memory.
///
/// # Errors
/// [`Error::Io`] where it cannot be read or is larger.
pub fn read(path: impl AsRef<Path>, most: u64) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let too_large = || io::Error::new(ErrorKind::FileTooLarge, format!("larger than the {most} bytes that are read"));
    let read = || {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if len > most {
            return Err(too_large());
        }
        let mut bytes = Vec::with_capacity(len as usize);
        file.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
    };
    read().map_err(|cause| Error::io(path, cause))
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
    fn larger_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err().to_string();
        assert!(error.ends_with("file: larger than the 4 bytes that are read"), "{error}");
        assert!(read(folder.path().join("none"), 4).unwrap_err().to_string().contains("none: "));
        #[cfg(unix)]
        assert!(read("/dev/zero", 1000).unwrap_err().to_string().starts_with("/dev/zero: larger than"));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_whole("/no/such/folder/file", |_| Ok(())).unwrap_err();
        assert!(error.to_string().starts_with("/no/such/folder/file: "), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_stay_what_they_are() {
        use std::os::unix::fs::{FileTypeExt, symlink};

        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write =
            |path: &Path| write_whole(path, |out| out.write_all(b"new").map_err(|cause| Error::io(path, cause)));
        std::fs::write(at("file"), b"old").unwrap();
        symlink("file", at("link")).unwrap();
        write(&at("link")).unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(std::fs::read(at("file")).unwrap(), b"new");

        // In the place of a device, which a machine may lose by this test.
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        symlink("socket", at("to socket")).unwrap();
        for name in ["socket", "to socket"] {
            assert!(write(&at(name)).unwrap_err().to_string().contains(name));
            assert!(at(name).metadata().unwrap().file_type().is_socket());
        }
        assert!(at("to socket").is_symlink());

        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
        if Path::new(&path).exists() {
            write(Path::new(&path)).unwrap();
            drop(writer);
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            assert_eq!(read, b"new");
        }
        assert!(
            std::fs::read_dir(folder.path())
                .unwrap()
                .all(|entry| { !entry.unwrap().file_name().to_string_lossy().ends_with(".tmp") })
        );
    }
}
