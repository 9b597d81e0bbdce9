//! What a look at all pictures gave, in a file: decoding them all again takes minutes on a large data set.
//!
//! Little-endian throughout: the magic, a fingerprint of the pictures and label files, the number of looks, the looks, a
//! checksum of all that. A file that is of another version, damaged, or about other files is as good as none.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::dataset::label_path;
use super::labels::{Labels, Look, State};
use crate::Result;

/// Names the format and its version.
const MAGIC: &[u8; 16] = b"yolo labels v1\r\n";

/// FNV-1a, 64 bits: guards against accidents, not against malice.
struct Hash(u64);

impl Hash {
    fn new() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }

    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
    }
}

/// A number that changes when a picture or a label file is added, removed, renamed or written.
pub(super) fn fingerprint(pictures: &[PathBuf]) -> u64 {
    let mut hash = Hash::new();
    for picture in pictures {
        for path in [picture, &label_path(picture)] {
            hash.add(path.as_os_str().as_encoded_bytes());
            let (len, time) = std::fs::metadata(path).map_or((u64::MAX, 0), |metadata| {
                let time = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                (metadata.len(), time.map_or(0, |time| time.as_nanos() as u64))
            });
            hash.add(&len.to_le_bytes());
            hash.add(&time.to_le_bytes());
        }
    }
    hash.0
}

/// The looks at `pictures`, if `file` has them and nothing has changed since.
pub(super) fn load(file: &Path, pictures: &[PathBuf], fingerprint: u64) -> Option<Vec<Look>> {
    let bytes = std::fs::read(file).ok()?;
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    let mut hash = Hash::new();
    hash.add(body);
    if hash.0 != u64::from_le_bytes(*checksum) {
        return None;
    }
    let mut reader = Reader(body);
    if reader.take(MAGIC.len())? != MAGIC || reader.u64()? != fingerprint || reader.u64()? != pictures.len() as u64 {
        return None;
    }
    let looks = pictures.iter().map(|picture| reader.look(picture)).collect::<Option<Vec<_>>>()?;
    reader.0.is_empty().then_some(looks)
}

/// Writes the looks, whole or not at all.
pub(super) fn save(file: &Path, looks: &[Look], fingerprint: u64) -> Result<()> {
    let mut out = MAGIC.to_vec();
    out.extend(fingerprint.to_le_bytes());
    out.extend((looks.len() as u64).to_le_bytes());
    for look in looks {
        encode(look, &mut out);
    }
    let mut hash = Hash::new();
    hash.add(&out);
    out.extend(hash.0.to_le_bytes());
    yolo_core::files::write_whole(file, |writer| {
        writer.write_all(&out).map_err(|cause| yolo_core::Error::io(file, cause))
    })?;
    Ok(())
}

fn encode(look: &Look, out: &mut Vec<u8>) {
    out.push(match look.state {
        State::Found => 0,
        State::Empty => 1,
        State::Missing => 2,
        State::Corrupt => 3,
    });
    let mut number = |value: u64| out.extend(value.to_le_bytes());
    number(u64::from(look.labels.size.0));
    number(u64::from(look.labels.size.1));
    let message = look.message.as_deref().unwrap_or("");
    number(message.len() as u64);
    number(look.labels.classes.len() as u64);
    number(look.labels.segments.len() as u64);
    out.extend(message.as_bytes());
    for class in &look.labels.classes {
        out.extend((*class as u64).to_le_bytes());
    }
    for value in look.labels.boxes.as_flattened() {
        out.extend(value.to_le_bytes());
    }
    for segment in &look.labels.segments {
        out.extend((segment.len() as u64).to_le_bytes());
        for value in segment.as_flattened() {
            out.extend(value.to_le_bytes());
        }
    }
}

/// Takes from the front; `None` past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u64(&mut self) -> Option<u64> {
        let (taken, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*taken))
    }

    fn count(&mut self) -> Option<usize> {
        // No more than there are bytes: a wrong number must not ask for all memory.
        usize::try_from(self.u64()?).ok().filter(|count| *count <= self.0.len())
    }

    fn floats<const N: usize>(&mut self, count: usize) -> Option<Vec<[f32; N]>> {
        let bytes = self.take(count.checked_mul(4 * N)?)?;
        let (values, _) = bytes.as_chunks::<4>();
        Some(values.chunks_exact(N).map(|row| std::array::from_fn(|i| f32::from_le_bytes(row[i]))).collect())
    }

    fn look(&mut self, picture: &Path) -> Option<Look> {
        let state = match self.take(1)? {
            [0] => State::Found,
            [1] => State::Empty,
            [2] => State::Missing,
            [3] => State::Corrupt,
            _ => return None,
        };
        let size = (u32::try_from(self.u64()?).ok()?, u32::try_from(self.u64()?).ok()?);
        let (message, objects, outlines) = (self.count()?, self.count()?, self.count()?);
        let message = std::str::from_utf8(self.take(message)?).ok()?;
        let classes = (0..objects).map(|_| self.u64().map(|class| class as usize)).collect::<Option<Vec<_>>>()?;
        let boxes = self.floats(objects)?;
        let segments = (0..outlines)
            .map(|_| {
                let points = self.count()?;
                self.floats(points)
            })
            .collect::<Option<Vec<_>>>()?;
        let message = (!message.is_empty()).then(|| message.to_owned());
        let labels = Labels { picture: picture.to_path_buf(), size, classes, boxes, segments };
        Some(Look { labels, state, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(pictures: &[PathBuf]) -> Vec<Look> {
        let labels = |index: usize| Labels {
            picture: pictures[index].clone(),
            size: (480, 640 + index as u32),
            classes: vec![3; index],
            boxes: vec![[0.5, 0.25, 0.125, 1.0]; index],
            segments: vec![vec![[0.1, 0.2], [0.3, 0.4], [0.5, index as f32]]; index],
        };
        vec![
            Look { labels: labels(0), state: State::Missing, message: None },
            Look { labels: labels(1), state: State::Found, message: Some("picture: mended".into()) },
            Look { labels: labels(2), state: State::Corrupt, message: None },
        ]
    }

    #[test]
    fn what_is_written_is_read_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let pictures: Vec<PathBuf> = ["a", "b", "c"].iter().map(PathBuf::from).collect();
        let file = folder.path().join("labels.cache");
        save(&file, &looks(&pictures), 77).unwrap();
        assert_eq!(load(&file, &pictures, 77).unwrap(), looks(&pictures));
        assert!(load(&file, &pictures, 78).is_none());
        assert!(load(&file, &pictures[..2], 77).is_none());

        let bytes = std::fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            std::fs::write(&file, &damaged).unwrap();
            assert!(load(&file, &pictures, 77).is_none(), "byte {at}");
            std::fs::write(&file, &bytes[..at]).unwrap();
            assert!(load(&file, &pictures, 77).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn hostile_counts_are_refused() {
        // A right checksum over counts that no file can have.
        let mut out = MAGIC.to_vec();
        for value in [5u64, 1] {
            out.extend(value.to_le_bytes());
        }
        out.push(0);
        for value in [1, 1, 0, u64::MAX / 2, u64::MAX] {
            out.extend(value.to_le_bytes());
        }
        let mut hash = Hash::new();
        hash.add(&out);
        out.extend(hash.0.to_le_bytes());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("labels.cache");
        std::fs::write(&file, out).unwrap();
        assert!(load(&file, &["a".into()], 5).is_none());
    }

    #[test]
    fn a_changed_file_changes_the_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = vec![folder.path().join("images/a.png")];
        std::fs::create_dir_all(folder.path().join("images")).unwrap();
        std::fs::create_dir_all(folder.path().join("labels")).unwrap();
        let mut seen = vec![fingerprint(&pictures)];
        std::fs::write(&pictures[0], "x").unwrap();
        seen.push(fingerprint(&pictures));
        std::fs::write(folder.path().join("labels/a.txt"), "").unwrap();
        seen.push(fingerprint(&pictures));
        std::fs::write(folder.path().join("labels/a.txt"), "0 1 1 1 1").unwrap();
        seen.push(fingerprint(&pictures));
        seen.push(fingerprint(&[]));
        assert_eq!(seen.iter().collect::<std::collections::HashSet<_>>().len(), 5);
        assert_eq!(fingerprint(&pictures), seen[3]);
    }
}
