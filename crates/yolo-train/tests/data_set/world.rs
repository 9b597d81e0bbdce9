//! Small data sets of coloured rectangles on black: a class is a colour.

use std::path::{Path, PathBuf};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

/// Each class's colour.
pub(crate) const COLOURS: [[u8; 3]; 3] = [[250, 20, 20], [20, 250, 20], [20, 20, 250]];

/// A data set in a temporary folder.
pub(crate) struct World {
    folder: TempDir,
}

/// A rectangle of whole pixels: class, left, top, right, bottom.
pub(crate) type Rectangle = (usize, u32, u32, u32, u32);

impl World {
    /// With a YAML of three classes, and no pictures.
    pub(crate) fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["images/train", "images/val", "labels/train", "labels/val"] {
            std::fs::create_dir_all(folder.path().join(part)).unwrap();
        }
        let world = Self { folder };
        world.write("data.yaml", "train: images/train\nval: images/val\nnames: [red, green, blue]\n");
        world
    }

    /// With `count` pictures of several sizes, each with two or three rectangles, in each split.
    pub(crate) fn new(count: usize, outlines: bool) -> Self {
        let world = Self::empty();
        for split in ["train", "val"] {
            for index in 0..count {
                let (width, height) = [(96, 64), (64, 96), (80, 80), (120, 50)][index % 4];
                let mut rectangles = vec![
                    (index % 3, 4, 5, width / 2 - 4, height / 2 - 3),
                    ((index + 1) % 3, width / 2 + 3, height / 2 + 2, width - 6, height - 4),
                ];
                if index % 2 == 0 {
                    rectangles.push(((index + 2) % 3, width / 2 + 5, 3, width - 8, height / 2 - 6));
                }
                world.add(split, &format!("{index:03}"), (width, height), &rectangles, outlines);
            }
        }
        world
    }

    pub(crate) fn add(
        &self,
        split: &str,
        name: &str,
        (width, height): (u32, u32),
        rectangles: &[Rectangle],
        outlines: bool,
    ) {
        let mut picture = RgbImage::new(width, height);
        let mut text = String::new();
        for &(class, left, top, right, bottom) in rectangles {
            for (x, y) in (top..bottom).flat_map(|y| (left..right).map(move |x| (x, y))) {
                picture.put_pixel(x, y, Rgb(COLOURS[class]));
            }
            let [left, right] = [left, right].map(|x| f64::from(x) / f64::from(width));
            let [top, bottom] = [top, bottom].map(|y| f64::from(y) / f64::from(height));
            text += &if outlines {
                format!("{class} {left} {top} {right} {top} {right} {bottom} {left} {bottom}\n")
            } else {
                format!("{class} {} {} {} {}\n", (left + right) / 2.0, (top + bottom) / 2.0, right - left, bottom - top)
            };
        }
        picture.save(self.path(&format!("images/{split}/{name}.png"))).unwrap();
        self.write(&format!("labels/{split}/{name}.txt"), &text);
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    pub(crate) fn yaml(&self) -> PathBuf {
        self.path("data.yaml")
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }
}
