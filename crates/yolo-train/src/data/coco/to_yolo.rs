//! From COCO's JSON to YOLO's folders.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use yolo_core::files::write_whole;

use super::classes::COCO80;
use super::join::join;
use super::json::{Annotation, Category, File, Id, Picture, Segmentation};
use super::rle;
use crate::data::yaml::{data_yaml, write_text};
use crate::{Error, Result};

/// A COCO file that becomes a split of a data set.
#[derive(Debug, Clone)]
pub struct Source {
    /// The JSON file.
    pub json: PathBuf,
    /// The split's name; the file's without `instances_` where absent.
    pub split: Option<String>,
    /// The folder that the pictures' names are relative to: they are linked into the data set, or copied where that is
    /// impossible. Where absent, only labels are written.
    pub pictures: Option<PathBuf>,
}

/// How to convert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ToYolo {
    /// Write polygons in place of boxes.
    pub segments: bool,
    /// Take the categories for COCO's own: 80 classes whatever the file lists. Else they are numbered in the file's order.
    pub coco80: bool,
}

/// What became of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToYoloReport {
    /// The split's name, as in `images/NAME`.
    pub split: String,
    /// Pictures of the file.
    pub pictures: usize,
    /// Pictures without an object.
    pub empty: usize,
    /// Objects written.
    pub objects: usize,
    /// Crowds, which YOLO's labels cannot say; left out.
    pub crowds: usize,
    /// Objects without an area in their picture; left out.
    pub flat: usize,
    /// Objects cut at their picture's sides.
    pub clipped: usize,
    /// Objects of several parts, joined to one polygon.
    pub joined: usize,
    /// Objects without an outline, whose boxes were written as polygons.
    pub boxes: usize,
    /// Pictures that are not in the folder of pictures.
    pub missing: Vec<PathBuf>,
}

impl ToYoloReport {
    fn add(mut self, other: Self) -> Self {
        self.empty += other.empty;
        self.objects += other.objects;
        self.crowds += other.crowds;
        self.flat += other.flat;
        self.clipped += other.clipped;
        self.joined += other.joined;
        self.boxes += other.boxes;
        self.missing.extend(other.missing);
        self
    }
}

/// Writes YOLO's folders into `out`: `labels/SPLIT` with a text file a picture, `images/SPLIT` where the pictures' folder is
/// known, and, when all else is there, `data.yaml`. The training split is the first with `train` in its name, or the first;
/// validation and test are those with `val` and `test`.
///
/// # Errors
/// A file that cannot be read or written, is no COCO file, has annotations of pictures or categories that it does not list, or
/// names pictures outside of their folder; files with different classes; two splits of one name.
pub fn to_yolo(sources: &[Source], out: &Path, options: ToYolo) -> Result<Vec<ToYoloReport>> {
    let mut names: Option<Vec<String>> = None;
    let mut reports: Vec<ToYoloReport> = Vec::new();
    for source in sources {
        let split = split_name(source)?;
        if reports.iter().any(|report| report.split == split) {
            let problem =
                format!("its split, {split}, has the name of another's: convert them one by one under other names");
            return Err(Error::data(&source.json, problem));
        }
        let file = read(&source.json)?;
        let classes = Classes::new(source, &file.categories, options.coco80)?;
        match &names {
            Some(names) if *names != classes.names => {
                let problem = format!("its categories are not those of {}", sources[0].json.display());
                return Err(Error::data(&source.json, problem));
            }
            _ => names = Some(classes.names.clone()),
        }
        reports.push(convert(source, split, &file, &classes, out, options)?);
    }
    let splits: Vec<_> = reports.iter().map(|report| report.split.as_str()).collect();
    let names = names.ok_or_else(|| Error::Argument { argument: "sources", problem: "expected a COCO file".into() })?;
    let about = "Converted from COCO's JSON.";
    write_text(&out.join("data.yaml"), &data_yaml(about, &roles(&splits), &names))?;
    Ok(reports)
}

fn read(path: &Path) -> Result<File> {
    let bytes = fs::read(path).map_err(|cause| Error::io(path, cause))?;
    serde_json::from_slice(&bytes).map_err(|problem| {
        Error::data(path, format!("not a COCO file (expected images, annotations, categories): {problem}"))
    })
}

fn split_name(source: &Source) -> Result<String> {
    let stem = source.json.file_stem().unwrap_or_default().to_string_lossy();
    let name = source.split.clone().unwrap_or_else(|| stem.strip_prefix("instances_").unwrap_or(&stem).to_string());
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', ':']);
    if plain {
        return Ok(name);
    }
    Err(Error::Argument { argument: "split", problem: format!("expected the name of a folder, got {name:?}") })
}

/// Classes of a file: their names, and the class of every category number.
struct Classes {
    names: Vec<String>,
    of: HashMap<i64, usize>,
}

impl Classes {
    fn new(source: &Source, categories: &[Category], coco80: bool) -> Result<Self> {
        let listed: Vec<(i64, &str)> = if coco80 {
            COCO80.to_vec()
        } else {
            categories.iter().map(|category| (category.id, category.name.as_str())).collect()
        };
        if listed.is_empty() {
            let problem = "it lists no categories; if they are COCO's own, say so with --coco80";
            return Err(Error::data(&source.json, problem));
        }
        let of: HashMap<_, _> = listed.iter().enumerate().map(|(class, (id, _))| (*id, class)).collect();
        if of.len() != listed.len() {
            return Err(Error::data(&source.json, "two of its categories have the same id"));
        }
        Ok(Self { names: listed.iter().map(|(_, name)| (*name).to_string()).collect(), of })
    }
}

fn convert(
    source: &Source,
    split: String,
    file: &File,
    classes: &Classes,
    out: &Path,
    options: ToYolo,
) -> Result<ToYoloReport> {
    let refuse = |problem: String| Error::data(&source.json, problem);
    let mut places: HashMap<&Id, usize> = HashMap::new();
    let mut stems = HashSet::new();
    for (place, picture) in file.images.iter().enumerate() {
        let Picture { id, file_name, width, height } = picture;
        if places.insert(id, place).is_some() {
            return Err(refuse(format!("two of its pictures have the id {id}")));
        }
        let sides_are_good = [width, height].into_iter().all(|side| side.is_finite() && *side >= 1.0);
        if !sides_are_good {
            return Err(refuse(format!(
                "{file_name}: expected width and height of at least 1, got {width} and {height}"
            )));
        }
        let name = relative(file_name).ok_or_else(|| {
            refuse(format!("the picture's name {file_name:?} leads out of the pictures' folder, or is empty"))
        })?;
        if !stems.insert(name.with_extension("")) {
            return Err(refuse(format!("{file_name}: another picture has the same name up to the ending")));
        }
    }
    let mut objects: Vec<Vec<&Annotation>> = file.images.iter().map(|_| Vec::new()).collect();
    for annotation in &file.annotations {
        let Annotation { id, image_id, category_id, .. } = annotation;
        let Some(&place) = places.get(image_id) else {
            return Err(refuse(format!("annotation {id} is of picture {image_id}, which is not in the file")));
        };
        if !classes.of.contains_key(category_id) {
            let list = if options.coco80 { "COCO's 80 classes" } else { "its categories" };
            return Err(refuse(format!("annotation {id} is of category {category_id}, which is not among {list}")));
        }
        objects[place].push(annotation);
    }
    let folders = Folders { labels: out.join("labels").join(&split), images: out.join("images").join(&split) };
    let total = file
        .images
        .par_iter()
        .zip(&objects)
        .map(|(picture, objects)| -> Result<_> {
            let mut report = ToYoloReport::default();
            let rows = rows(source, picture, objects, classes, options.segments, &mut report)?;
            folders.write(source, picture, &rows, &mut report)?;
            Ok(report)
        })
        .try_reduce(ToYoloReport::default, |sum, part| Ok(sum.add(part)))?;
    Ok(ToYoloReport { split, pictures: file.images.len(), ..total })
}

/// A picture's name as a path that stays in its folder.
fn relative(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (stays && path.file_name().is_some()).then(|| path.to_path_buf())
}

/// Where a split's files go.
struct Folders {
    labels: PathBuf,
    images: PathBuf,
}

impl Folders {
    fn write(&self, source: &Source, picture: &Picture, rows: &str, report: &mut ToYoloReport) -> Result<()> {
        let name = Path::new(&picture.file_name);
        let labels = self.labels.join(name.with_extension("txt"));
        make_parent(&labels)?;
        write_text(&labels, rows)?;
        let Some(folder) = &source.pictures else { return Ok(()) };
        let (from, to) = (folder.join(name), self.images.join(name));
        make_parent(&to)?;
        if !from.is_file() {
            report.missing.push(from);
            return Ok(());
        }
        match fs::hard_link(&from, &to) {
            Ok(()) => Ok(()),
            // Another file system, or a picture that is there: even the very file is safe, as the copy takes its place at once.
            Err(_) => Ok(write_whole(&to, |file| {
                let mut reader = fs::File::open(&from).map_err(|cause| yolo_core::Error::io(&from, cause))?;
                std::io::copy(&mut reader, file).map_err(|cause| yolo_core::Error::io(&to, cause))?;
                Ok(())
            })?),
        }
    }
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    fs::create_dir_all(folder).map_err(|cause| Error::io(folder, cause))
}

/// A picture's label file.
fn rows(
    source: &Source,
    picture: &Picture,
    objects: &[&Annotation],
    classes: &Classes,
    segments: bool,
    report: &mut ToYoloReport,
) -> Result<String> {
    let sides = [picture.width, picture.height];
    let mut text = String::new();
    for object in objects {
        if object.iscrowd.0 {
            report.crowds += 1;
            continue;
        }
        let parts = outlines(object).map_err(|problem| {
            Error::data(&source.json, format!("annotation {}: the mask cannot be used: {problem}", object.id))
        })?;
        let Some(corners) = corners(object, &parts) else {
            report.flat += 1;
            continue;
        };
        let inside = clamped(corners, sides);
        let (width, height) = (inside[1][0] - inside[0][0], inside[1][1] - inside[0][1]);
        if width <= 0.0 || height <= 0.0 {
            report.flat += 1;
            continue;
        }
        report.clipped += usize::from(inside != corners);
        let values = if segments {
            report.joined += usize::from(parts.len() > 1);
            report.boxes += usize::from(parts.is_empty());
            let [[x1, y1], [x2, y2]] = inside;
            let polygon = if parts.is_empty() { vec![[x1, y1], [x2, y1], [x2, y2], [x1, y2]] } else { join(parts) };
            clamped(polygon, sides).into_iter().flat_map(|[x, y]| [x / sides[0], y / sides[1]]).collect()
        } else {
            let [[x1, y1], _] = inside;
            vec![(x1 + width / 2.0) / sides[0], (y1 + height / 2.0) / sides[1], width / sides[0], height / sides[1]]
        };
        report.objects += 1;
        let _ = write!(text, "{}", classes.of[&object.category_id]);
        for value in values {
            // As many digits as the loader's type holds.
            let _ = write!(text, " {}", value as f32);
        }
        text.push('\n');
    }
    report.empty += usize::from(text.is_empty());
    Ok(text)
}

/// An object's parts; what has no three points is no part.
fn outlines(object: &Annotation) -> Result<Vec<Vec<[f64; 2]>>, String> {
    let mut parts: Vec<Vec<[f64; 2]>> = match &object.segmentation {
        None => Vec::new(),
        Some(Segmentation::Polygons(polygons)) => polygons.iter().map(|flat| flat.as_chunks().0.to_vec()).collect(),
        Some(Segmentation::Runs { size, counts }) => rle::outlines(*size, counts)?,
    };
    parts.retain(|part| part.len() >= 3);
    if parts.as_flattened_points().any(|value| !value.is_finite()) {
        return Err("a point of it is not finite".into());
    }
    Ok(parts)
}

trait Points {
    fn as_flattened_points(&self) -> impl Iterator<Item = &f64>;
}

impl Points for Vec<Vec<[f64; 2]>> {
    fn as_flattened_points(&self) -> impl Iterator<Item = &f64> {
        self.iter().flatten().flatten()
    }
}

/// Upper left and lower right corner of an object's box, or of its outline where it has no box.
fn corners(object: &Annotation, parts: &[Vec<[f64; 2]>]) -> Option<[[f64; 2]; 2]> {
    if let Some([x, y, width, height]) = object.bbox {
        let good = [x, y, width, height].into_iter().all(f64::is_finite) && width > 0.0 && height > 0.0;
        return good.then_some([[x, y], [x + width, y + height]]);
    }
    let points = || parts.iter().flatten().copied();
    let low = points().reduce(|a, b| [a[0].min(b[0]), a[1].min(b[1])])?;
    let high = points().reduce(|a, b| [a[0].max(b[0]), a[1].max(b[1])])?;
    Some([low, high])
}

/// Points moved into the picture.
fn clamped<T: AsMut<[[f64; 2]]>>(mut points: T, sides: [f64; 2]) -> T {
    for point in points.as_mut() {
        *point = [point[0].clamp(0.0, sides[0]), point[1].clamp(0.0, sides[1])];
    }
    points
}

/// Which split is for what, by its name.
fn roles(splits: &[&str]) -> Vec<(&'static str, String)> {
    let named = |word: &str| splits.iter().copied().find(|split| split.contains(word));
    let train = named("train").unwrap_or(splits[0]);
    let val = named("val").unwrap_or(train);
    let test = named("test").filter(|test| *test != train && *test != val);
    let roles = [("train", Some(train)), ("val", Some(val)), ("test", test)];
    roles.into_iter().filter_map(|(role, split)| Some((role, format!("images/{}", split?)))).collect()
}
