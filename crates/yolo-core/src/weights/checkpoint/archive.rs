//! The zip archive that `torch.save` writes: a pickle, and one record a storage.

use std::io::{self, Cursor};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::pickle::Fault;

/// First bytes of the format that PyTorch wrote before 1.6: its magic number, pickled.
const LEGACY: [u8; 14] = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Where a tar archive says that it is one.
const TAR: Range<usize> = 257..262;

/// A checkpoint's records, found but not read.
pub(super) struct Archive<'a> {
    bytes: &'a [u8],
    zip: ZipArchive<Cursor<&'a [u8]>>,
    /// Folder of all records, with its slash: `archive/`, or the name that the file was first saved under.
    prefix: String,
}

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, Fault> {
        if !bytes.starts_with(b"PK\x03\x04") {
            return Err(foreign(bytes));
        }
        let damaged =
            |error| format!("the zip archive is cut off or damaged ({error}): download or copy the file again");
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(damaged)?;
        let pickle = zip.file_names().filter_map(|name| name.strip_suffix("data.pkl"));
        let prefix =
            pickle.filter(|prefix| prefix.is_empty() || prefix.ends_with('/')).min_by_key(|prefix| prefix.len());
        let prefix = prefix.ok_or("this zip archive holds no data.pkl, so it is no PyTorch checkpoint")?.to_string();
        let mut archive = Self { bytes, zip, prefix };
        if archive.find("constants.pkl").is_some() {
            return Err(
                "this is a TorchScript program, expected a checkpoint (`torch.save` of a model or of its state_dict())"
                    .into(),
            );
        }
        if let Some(order) = archive.find("byteorder").is_some().then(|| archive.record("byteorder")).transpose()?
            && order.trim_ascii() != b"little"
        {
            return Err("this checkpoint was written on a big-endian machine: load it with PyTorch and save it again on a little-endian one".into());
        }
        Ok(archive)
    }

    /// The pickle that describes the checkpoint.
    pub(super) fn pickle(&mut self) -> Result<&'a [u8], Fault> {
        self.record("data.pkl")
    }

    /// Where the bytes of a storage lie in the file, their checksum compared.
    pub(super) fn storage(&mut self, key: &str) -> Result<Range<usize>, Fault> {
        self.locate(&format!("data/{key}"))
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.zip.index_for_name(&format!("{}{name}", self.prefix))
    }

    fn record(&mut self, name: &str) -> Result<&'a [u8], Fault> {
        let range = self.locate(name)?;
        Ok(self.bytes.get(range).unwrap_or_default())
    }

    fn locate(&mut self, name: &str) -> Result<Range<usize>, Fault> {
        let index = self.find(name).ok_or_else(|| format!("record `{name}` is missing from the archive"))?;
        let damaged = |error: &dyn std::fmt::Display| {
            format!("record `{name}` of the archive is damaged ({error}): download or copy the file again")
        };
        let mut record = self.zip.by_index(index).map_err(|error| damaged(&error))?;
        if record.compression() != CompressionMethod::Stored {
            return Err(format!(
                "record `{name}` is compressed, which `torch.save` never does: save the checkpoint with PyTorch again"
            ));
        }
        let start = record.data_start().and_then(|start| usize::try_from(start).ok());
        let len = usize::try_from(record.size()).ok();
        let range = start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?));
        let range =
            range.filter(|range| range.end <= self.bytes.len()).ok_or_else(|| damaged(&"it ends after the file"))?;
        // Reading to the end compares the checksum; PyTorch writes 0 where it was told to spare itself the sum.
        if record.crc32() != 0 {
            let read = io::copy(&mut record, &mut io::sink()).map_err(|error| damaged(&error))?;
            if read != range.len() as u64 {
                return Err(damaged(&"it ends too soon"));
            }
        }
        Ok(range)
    }
}

/// What a file that is no zip archive is, and what to do about it.
fn foreign(bytes: &[u8]) -> Fault {
    let resave = "load it with a newer PyTorch and save it again: \
        python -c \"import torch; torch.save(torch.load('OLD.pt', map_location='cpu', weights_only=False), 'NEW.pt')\"";
    if bytes.is_empty() {
        "the file is empty, expected a PyTorch checkpoint".into()
    } else if bytes.starts_with(&LEGACY) {
        format!("this checkpoint has the form of PyTorch before 1.6, which is not read: {resave}")
    } else if bytes.get(TAR) == Some(b"ustar") {
        format!("this checkpoint has the form of PyTorch before 0.1.10 (tar), which is not read: {resave}")
    } else if bytes.starts_with(b"version https://git-lfs") {
        "this is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`".into()
    } else if bytes.get(8) == Some(&b'{') {
        "this seems to be a safetensors file, expected a PyTorch checkpoint: name it .safetensors".into()
    } else if bytes.iter().take(512).all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        "this is a text file, expected a PyTorch checkpoint".into()
    } else {
        "this is no PyTorch checkpoint (a zip archive), or its beginning is damaged".into()
    }
}
