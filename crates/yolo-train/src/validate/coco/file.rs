//! COCO's files: annotations and results.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use yolo_core::files::write_whole;
use yolo_core::picture::MAX_PIXELS;

use super::{Annotation, ImageId, Record, Rle, Truth};
use crate::{Error, Result};

#[derive(Deserialize)]
struct Annotations {
    images: Vec<Image>,
    annotations: Vec<Object>,
}

#[derive(Deserialize)]
struct Image {
    id: ImageId,
    #[serde(default)]
    height: u32,
    #[serde(default)]
    width: u32,
}

#[derive(Deserialize)]
struct Object {
    image_id: ImageId,
    category_id: u64,
    bbox: [f64; 4],
    #[serde(default)]
    area: Option<f64>,
    #[serde(default)]
    iscrowd: u8,
    #[serde(default)]
    segmentation: Option<Segmentation>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Segmentation {
    Outlines(Vec<Vec<f64>>),
    Runs(Rle),
}

/// Reads a file of annotations in COCO's form, such as `instances_val2017.json`; masks only where they are wanted.
///
/// # Errors
/// Where it cannot be read, or is not of that form.
pub fn open_annotations(path: impl AsRef<Path>, masks: bool) -> Result<Truth> {
    let path = path.as_ref();
    let text = std::fs::read(path).map_err(|cause| Error::io(path, cause))?;
    let fail = |problem: String| Error::data(path, format!("not annotations in COCO's form: {problem}"));
    let Annotations { images, annotations } = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    let sizes: BTreeMap<&ImageId, (u32, u32)> =
        images.iter().map(|image| (&image.id, (image.height, image.width))).collect();
    let annotation = |(index, object): (usize, Object)| {
        let fail = |problem: String| fail(format!("annotation {index}: {problem}"));
        let Some(&(height, width)) = sizes.get(&object.image_id) else {
            return Err(fail(format!("there is no picture {}", object.image_id)));
        };
        let segmentation = match object.segmentation {
            Some(Segmentation::Outlines(outlines)) if masks => {
                if u64::from(height) * u64::from(width) > MAX_PIXELS {
                    return Err(fail(format!("a picture of {width}x{height} pixels is too large")));
                }
                Some(Rle::of_outlines(&outlines, height, width))
            }
            Some(Segmentation::Runs(runs)) if masks => Some(runs),
            _ => None,
        };
        let area = object.area.unwrap_or(object.bbox[2] * object.bbox[3]);
        Ok(Annotation {
            image_id: object.image_id,
            category_id: object.category_id,
            bbox: object.bbox,
            area,
            crowd: object.iscrowd != 0,
            segmentation,
        })
    };
    let annotations = annotations.into_iter().enumerate().map(annotation).collect::<Result<_>>()?;
    let images: BTreeSet<ImageId> = images.into_iter().map(|image| image.id).collect();
    Ok(Truth { images, annotations })
}

/// Reads a file of results.
///
/// # Errors
/// Where it cannot be read, or is no list of detections.
pub fn open_records(path: impl AsRef<Path>) -> Result<Vec<Record>> {
    let path = path.as_ref();
    let text = std::fs::read(path).map_err(|cause| Error::io(path, cause))?;
    serde_json::from_slice(&text).map_err(|error| Error::data(path, format!("not results in COCO's form: {error}")))
}

/// Writes a file of results, whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write_records(path: impl AsRef<Path>, records: &[Record]) -> Result<()> {
    let path = path.as_ref();
    let io = |cause| yolo_core::Error::io(path, cause);
    Ok(write_whole(path, |out| {
        out.write_all(b"[").map_err(io)?;
        for (index, record) in records.iter().enumerate() {
            out.write_all(if index == 0 { b"\n" } else { b",\n" }).map_err(io)?;
            serde_json::to_writer(&mut *out, record).map_err(|error| io(error.into()))?;
        }
        out.write_all(b"\n]\n").map_err(io)
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.json");
        let mask = Rle::of_outlines(&[vec![1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]], 4, 5);
        let record =
            |name: &str| Record::new(ImageId::Name(name.into()), 3, [1.0, 1.0, 3.0, 3.0], 0.5, Some(mask.clone()));
        let records = [record("a"), record("b")];
        write_records(&file, &records).unwrap();
        assert_eq!(open_records(&file).unwrap(), records);
        write_records(&file, &[]).unwrap();
        assert_eq!(open_records(&file).unwrap(), []);

        let text = r#"{"images": [{"id": 7, "height": 4, "width": 5, "file_name": "7.jpg"}], "categories": [], "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "area": 4, "iscrowd": 0,
             "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 5, 4], "area": 20, "iscrowd": 1,
             "segmentation": {"size": [4, 5], "counts": [0, 20]}}]}"#;
        std::fs::write(&file, text).unwrap();
        let truth = open_annotations(&file, true).unwrap();
        assert_eq!(truth.annotations[0].segmentation.as_ref(), Some(&mask));
        assert!(truth.annotations[1].crowd && truth.annotations[1].segmentation.as_ref().unwrap().area() == 20);
        assert_eq!(open_annotations(&file, false).unwrap().annotations[0].segmentation, None);

        for (old, new) in [("\"image_id\": 7", "\"image_id\": 8"), ("[0, 20]", "[0, 21]"), ("\"images\"", "\"image\"")]
        {
            std::fs::write(&file, text.replacen(old, new, 1)).unwrap();
            let error = open_annotations(&file, true).unwrap_err().to_string();
            assert!(error.contains("a.json: not annotations in COCO's form"), "{error}");
        }
        std::fs::write(
            &file,
            text.replace("\"height\": 4, \"width\": 5", "\"height\": 4000000000, \"width\": 4000000000"),
        )
        .unwrap();
        assert!(open_annotations(&file, true).unwrap_err().to_string().contains("too large"));
        assert!(open_records(&file).is_err());
    }
}
