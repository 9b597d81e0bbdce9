//! Pictures of a data set, fitted into the network's size, and what is kept of them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use image::RgbImage;
use yolo_core::picture::{open, resize_bilinear};

use super::loader::PictureCache;
use super::resize::resize_area;
use crate::Result;

/// Reads pictures, whose longer sides become `size`.
pub(super) struct Pictures {
    paths: Vec<PathBuf>,
    size: u32,
    /// Average when shrinking, instead of interpolating.
    area: bool,
    disk: bool,
    /// One a picture, where they are kept in memory.
    kept: Option<Vec<OnceLock<Arc<RgbImage>>>>,
}

impl Pictures {
    pub(super) fn new(paths: Vec<PathBuf>, size: u32, area: bool, cache: PictureCache) -> Self {
        let kept = (cache == PictureCache::Ram).then(|| paths.iter().map(|_| OnceLock::new()).collect());
        Self { paths, size, area, disk: cache == PictureCache::Disk, kept }
    }

    /// A picture whose longer side is the size.
    pub(super) fn get(&self, index: usize) -> Result<Arc<RgbImage>> {
        let Some(kept) = &self.kept else { return self.read(index).map(Arc::new) };
        if let Some(picture) = kept[index].get() {
            return Ok(picture.clone());
        }
        let picture = self.read(index).map(Arc::new)?;
        Ok(kept[index].get_or_init(|| picture).clone())
    }

    fn read(&self, index: usize) -> Result<RgbImage> {
        let path = &self.paths[index];
        let picture = if self.disk { read_through(path)? } else { open(path)? };
        let (width, height) = picture.dimensions();
        let ratio = f64::from(self.size) / f64::from(width.max(height));
        if ratio == 1.0 {
            return Ok(picture);
        }
        // Rounded up, as YOLOv5 does it: a long side may become a pixel too long, which the letterbox takes off again.
        let [width, height] = [width, height].map(|side| (f64::from(side) * ratio).ceil() as u32);
        if ratio < 1.0 && self.area {
            resize_area(&picture, width, height)
        } else {
            Ok(resize_bilinear(&picture, width, height)?)
        }
    }
}

/// What the pictures take in memory at this size, in bytes.
pub(super) fn bytes_kept(sizes: impl Iterator<Item = (u32, u32)>, size: u32) -> u64 {
    sizes
        .map(|(height, width)| {
            let ratio = f64::from(size) / f64::from(height.max(width).max(1));
            (f64::from(height) * ratio * f64::from(width) * ratio * 3.0) as u64
        })
        .sum()
}

/// Memory that can be had without swapping, where the system tells.
pub(super) fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The decoded picture from the file beside it, which is written where it is missing or older than the picture.
fn read_through(path: &Path) -> Result<RgbImage> {
    let beside = path.with_extension("npy");
    let time = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let fresh = matches!((time(&beside), time(path)), (Some(cached), Some(picture)) if cached >= picture);
    if fresh
        && let Ok(bytes) = std::fs::read(&beside)
        && let Some(picture) = from_npy(&bytes)
    {
        return Ok(picture);
    }
    let picture = open(path)?;
    // A folder that cannot be written to only costs time.
    let _unwritable = yolo_core::files::write_whole(&beside, |out| {
        std::io::Write::write_all(out, &to_npy(&picture)).map_err(|cause| yolo_core::Error::io(&beside, cause))
    });
    Ok(picture)
}

/// NumPy's format, version 1.0: YOLOv5 keeps decoded pictures beside the files in it, too, with blue before red.
const NPY: &[u8] = b"\x93NUMPY\x01\x00";

fn to_npy(picture: &RgbImage) -> Vec<u8> {
    let shape = format!("({}, {}, 3)", picture.height(), picture.width());
    let mut header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}");
    // The data begin at a multiple of 64 bytes.
    while !(NPY.len() + 2 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = NPY.to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(picture.as_raw().as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [b, g, r]));
    bytes
}

fn from_npy(bytes: &[u8]) -> Option<RgbImage> {
    let (length, rest) = bytes.strip_prefix(NPY)?.split_first_chunk::<2>()?;
    let (header, data) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let header = std::str::from_utf8(header).ok()?;
    if !header.contains("'|u1'") || !header.contains("False") {
        return None;
    }
    let shape = header.split_once('(')?.1.split_once(')')?.0;
    let sides: Vec<u32> = shape.split(',').map(|side| side.trim().parse()).collect::<Result<_, _>>().ok()?;
    let [height, width, 3] = sides[..] else { return None };
    if width == 0 || height == 0 || u64::from(width) * u64::from(height) * 3 != data.len() as u64 {
        return None;
    }
    let pixels = data.as_chunks::<3>().0.iter().flat_map(|&[b, g, r]| [r, g, b]).collect();
    RgbImage::from_raw(width, height, pixels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn decoded_pictures_are_kept_beside_the_files_until_these_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let picture = RgbImage::from_fn(13, 11, |x, y| Rgb([x as u8 * 9, y as u8 * 7, 200]));
        picture.save(&path).unwrap();
        let pictures = || Pictures::new(vec![path.clone()], 13, false, PictureCache::Disk);
        assert_eq!(*pictures().get(0).unwrap(), picture);
        let beside = folder.path().join("a.npy");
        let bytes = std::fs::read(&beside).unwrap();
        assert_eq!(from_npy(&bytes).unwrap(), picture);
        assert_eq!(bytes.len() % 64, (13 * 11 * 3) % 64);

        // What is in the file counts, ...
        let other = RgbImage::from_pixel(13, 11, Rgb([1, 2, 3]));
        std::fs::write(&beside, to_npy(&other)).unwrap();
        assert_eq!(*pictures().get(0).unwrap(), other);
        // ... unless it is damaged or older than the picture.
        std::fs::write(&beside, &bytes[..bytes.len() - 1]).unwrap();
        assert_eq!(*pictures().get(0).unwrap(), picture);
        std::fs::write(&beside, to_npy(&other)).unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        std::fs::File::options().write(true).open(&beside).unwrap().set_modified(old).unwrap();
        assert_eq!(*pictures().get(0).unwrap(), picture);
    }

    #[test]
    fn longer_sides_become_the_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        RgbImage::new(40, 30).save(&path).unwrap();
        for (size, area) in [(20, true), (20, false), (33, true), (80, true)] {
            let pictures = Pictures::new(vec![path.clone()], size, area, PictureCache::Ram);
            let first = pictures.get(0).unwrap();
            assert_eq!(first.dimensions(), (size, (f64::from(size) * 0.75).ceil() as u32));
            assert!(Arc::ptr_eq(&first, &pictures.get(0).unwrap()));
        }
        assert_eq!(bytes_kept([(30, 40)].into_iter(), 20), 20 * 15 * 3);
    }
}
