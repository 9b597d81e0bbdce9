//! From YOLO's folders to COCO's JSON.

use std::collections::HashSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader};
use rayon::prelude::*;
use yolo_core::files::write_whole;

use super::classes::COCO80;
use super::join::area;
use super::json::{Annotation, Category, File, Flag, Id, Picture, Segmentation};
use crate::{Error, Result};

/// Pictures and what their classes are called.
#[derive(Debug, Clone, Default)]
pub struct FromYolo {
    /// Every picture with its label file; one that is not there stands for a picture without objects.
    pub pictures: Vec<(PathBuf, PathBuf)>,
    /// The classes' names by index.
    pub names: Vec<String>,
    /// Number the categories as COCO does, 1 to 90 with gaps. Else a category's number is the class's index, as in the JSON
    /// that validation writes.
    pub coco80: bool,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FromYoloReport {
    /// Pictures.
    pub pictures: usize,
    /// Pictures without an object.
    pub empty: usize,
    /// Objects.
    pub objects: usize,
    /// Objects with an outline.
    pub outlines: usize,
}

/// Writes the COCO file `json`, whole or not at all.
///
/// Pictures are named relative to the innermost folder that holds them all. Those whose file names are different whole numbers have these as their ids, as in the JSON that validation writes; else
/// they are numbered from 1 on. Coordinates are rounded to thousandths of a pixel.
///
/// # Errors
/// A picture or label file that cannot be read, a row that is neither a box nor a polygon, a class without a name, or a
/// `json` that cannot be written.
pub fn from_yolo(source: &FromYolo, json: &Path) -> Result<FromYoloReport> {
    if source.coco80 && source.names.len() != COCO80.len() {
        let problem = format!("COCO has 80 classes, this data set has {}", source.names.len());
        return Err(Error::Argument { argument: "coco80", problem });
    }
    let category = |class: usize| if source.coco80 { COCO80[class].0 } else { class as i64 };
    let ids = ids(&source.pictures);
    let root = common_folder(&source.pictures);
    let read: Vec<(Picture, Vec<Object>)> = source
        .pictures
        .par_iter()
        .zip(ids)
        .map(|((path, labels), id)| {
            let size = picture_size(path)?;
            let file_name = name_of(path, root);
            let objects = objects(labels, size, source.names.len())?;
            Ok((Picture { id: Id::Number(id), file_name, width: size[0], height: size[1] }, objects))
        })
        .collect::<Result<_>>()?;

    let mut report = FromYoloReport { pictures: read.len(), ..FromYoloReport::default() };
    let mut file = File { images: Vec::with_capacity(read.len()), annotations: Vec::new(), categories: Vec::new() };
    for (picture, objects) in read {
        report.empty += usize::from(objects.is_empty());
        report.objects += objects.len();
        for object in objects {
            report.outlines += usize::from(object.polygon.is_some());
            // From 1 on: COCO's own tools take 0 for no match.
            let id = file.annotations.len() as u64 + 1;
            file.annotations.push(object.annotation(id, &picture.id, category));
        }
        file.images.push(picture);
    }
    file.categories = source
        .names
        .iter()
        .enumerate()
        .map(|(class, name)| Category { id: category(class), name: name.clone() })
        .collect();
    write_whole(json, |out| {
        let io = |cause: std::io::Error| yolo_core::Error::io(json, cause);
        serde_json::to_writer(&mut *out, &file).map_err(|error| io(error.into()))?;
        out.write_all(b"\n").map_err(io)
    })?;
    Ok(report)
}

/// Numbers of the pictures.
fn ids(pictures: &[(PathBuf, PathBuf)]) -> Vec<i64> {
    let number = |(path, _): &(PathBuf, PathBuf)| {
        let stem = path.file_stem()?.to_str()?;
        stem.bytes().all(|byte| byte.is_ascii_digit()).then(|| stem.parse::<i64>().ok()).flatten()
    };
    let by_name: Option<Vec<i64>> = pictures.iter().map(number).collect();
    let distinct = |ids: &Vec<i64>| ids.iter().collect::<HashSet<_>>().len() == ids.len();
    by_name.filter(distinct).unwrap_or_else(|| (1..=pictures.len() as i64).collect())
}

/// The innermost folder that holds all pictures.
fn common_folder(pictures: &[(PathBuf, PathBuf)]) -> &Path {
    let Some((first, _)) = pictures.first() else { return Path::new("") };
    let holds_all = |folder: &&Path| pictures.iter().all(|(path, _)| path.starts_with(folder));
    first.ancestors().skip(1).find(holds_all).unwrap_or(Path::new(""))
}

/// A picture's name, with the separators of the files that COCO publishes.
fn name_of(path: &Path, root: &Path) -> String {
    let name = path.strip_prefix(root).unwrap_or(path);
    name.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Width and height of a picture, upright, without its pixels.
fn picture_size(path: &Path) -> Result<[f64; 2]> {
    let io = |cause| Error::io(path, cause);
    let damaged = |error: image::ImageError| Error::data(path, format!("the picture's size cannot be read: {error}"));
    let reader = ImageReader::open(path).map_err(io)?.with_guessed_format().map_err(io)?;
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let lies = matches!(
        decoder.orientation().unwrap_or(Orientation::NoTransforms),
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    let sides = if lies { [height, width] } else { [width, height] };
    Ok(sides.map(f64::from))
}

/// An object of a label file, in pixels.
struct Object {
    class: usize,
    /// Left, top, width, height.
    bbox: [f64; 4],
    polygon: Option<Vec<[f64; 2]>>,
}

impl Object {
    fn annotation(self, id: u64, picture: &Id, category: impl Fn(usize) -> i64) -> Annotation {
        let Self { class, bbox, polygon } = self;
        let area = polygon.as_deref().map_or(bbox[2] * bbox[3], area);
        let outlines = polygon.map(|points| points.as_flattened().iter().copied().map(round).collect());
        Annotation {
            id,
            image_id: picture.clone(),
            category_id: category(class),
            bbox: Some(bbox.map(round)),
            area: round(area),
            segmentation: Some(Segmentation::Polygons(outlines.into_iter().collect())),
            iscrowd: Flag(false),
        }
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The rows of a label file; none where there is no such file.
fn objects(path: &Path, size: [f64; 2], classes: usize) -> Result<Vec<Object>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(Error::io(path, cause)),
    };
    let mut objects = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let object = object(line, size, classes);
        objects.push(object.map_err(|problem| Error::data(path, format!("line {}: {problem}", index + 1)))?);
    }
    Ok(objects)
}

fn object(line: &str, size: [f64; 2], classes: usize) -> Result<Object, String> {
    let mut words = line.split_whitespace();
    let word = words.next().unwrap_or_default();
    let class = word.parse::<f64>().ok().filter(|class| class.fract() == 0.0 && (0.0..classes as f64).contains(class));
    let class = class.ok_or_else(|| format!("expected a class of 0 to {}, got {word}", classes.saturating_sub(1)))?;
    let number = |word: &str| {
        let value = word.parse::<f64>().ok().filter(|value| value.is_finite());
        value.ok_or_else(|| format!("expected a number, got {word}"))
    };
    let values: Vec<f64> = words.map(number).collect::<Result<_, _>>()?;
    let scaled = |[x, y]: [f64; 2]| [x * size[0], y * size[1]];
    let class = class as usize;
    if let [cx, cy, width, height] = values[..] {
        let ([x, y], [width, height]) = (scaled([cx - width / 2.0, cy - height / 2.0]), scaled([width, height]));
        return Ok(Object { class, bbox: [x, y, width, height], polygon: None });
    }
    let (points, rest) = values.as_chunks();
    if points.len() < 3 || !rest.is_empty() {
        let got = values.len();
        return Err(format!("expected 4 numbers of a box, or x and y of at least 3 points; got {got} numbers"));
    }
    let points: Vec<[f64; 2]> = points.iter().copied().map(scaled).collect();
    let low = points.iter().fold([f64::INFINITY; 2], |low, p| [low[0].min(p[0]), low[1].min(p[1])]);
    let high = points.iter().fold([f64::NEG_INFINITY; 2], |high, p| [high[0].max(p[0]), high[1].max(p[1])]);
    Ok(Object { class, bbox: [low[0], low[1], high[0] - low[0], high[1] - low[1]], polygon: Some(points) })
}
