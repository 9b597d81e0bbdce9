//! What is written about one picture: the drawn picture, the label file, rows of the table, crops, a line of JSON.
//!
//! Everything is made in memory here; [`super::writer`] puts it on disk.

use std::fmt::{Display, Write};
use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, RgbImage};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use serde::Serialize;
use yolo_core::picture::{self, Style};
use yolo_core::{Detection, Error};

use super::sources::Source;
use super::text::{class_name, general};

/// The JPEG quality of drawn pictures and crops, as in YOLOv5.
const JPEG_QUALITY: u8 = 95;

/// What the user wants of every picture.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The picture with what was found drawn in.
    pub(crate) picture: bool,
    /// A label file.
    pub(crate) txt: bool,
    /// Rows of `predictions.csv`.
    pub(crate) csv: bool,
    /// Every object as a picture of its own.
    pub(crate) crops: bool,
    /// A line of JSON.
    pub(crate) json: bool,
    /// How label lines look.
    pub(crate) labels: LabelForm,
    /// How pictures are drawn.
    pub(crate) style: Style,
}

/// How a label line gives an object's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LabelForm {
    /// What stands after the class.
    pub(crate) place: Place,
    /// A confidence stands at the end.
    pub(crate) confidence: bool,
}

/// An object's place in fractions of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Centre x and y, width, height: YOLO's form.
    Centre,
    /// x1 y1 x2 y2: Pascal VOC's corners.
    Corners,
    /// x y of every corner of the mask's outline.
    Outline,
}

/// All that is written about one picture.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pub(crate) picture: Option<Vec<u8>>,
    pub(crate) labels: Option<String>,
    pub(crate) rows: Vec<[String; 3]>,
    /// Class name and JPEG file of every object.
    pub(crate) crops: Vec<(String, Vec<u8>)>,
    pub(crate) json: Option<String>,
}

/// Makes what is wanted of one picture, in YOLOv5's order: the least confident object first (in JSON the most confident).
///
/// `file` is the name of the drawn picture: its ending is the format, and the table goes by it.
///
/// # Errors
/// A picture that its file format cannot hold.
pub(crate) fn make(
    mut image: RgbImage,
    detections: &[Detection],
    names: &[String],
    source: &Source,
    file: &Path,
    wanted: &Wanted,
) -> anyhow::Result<Record> {
    let mut record = Record::default();
    let size = image.dimensions();
    if wanted.json {
        record.json = Some(json_line(&source.to_string(), size, detections, names)?);
    }
    if wanted.txt && !detections.is_empty() {
        record.labels = Some(detections.iter().rev().map(|found| label_line(found, size, wanted.labels)).collect());
    }
    if wanted.csv {
        let file = file.to_string_lossy();
        let row = |found: &Detection| {
            [file.clone().into_owned(), class_name(names, found.class), format!("{:.2}", found.confidence)]
        };
        record.rows = detections.iter().rev().map(row).collect();
    }
    if wanted.crops {
        for found in detections.iter().rev() {
            // The crop keeps its colours at full resolution, as YOLOv5's do: it is what classifiers are trained on.
            let crop = jpeg(&picture::crop(&image, found.bbox)?, file, Subsampling::S444)?;
            record.crops.push((class_name(names, found.class), crop));
        }
    }
    if wanted.picture {
        picture::annotate(&mut image, detections, names, &wanted.style);
        record.picture = Some(encode(&image, file)?);
    }
    Ok(record)
}

/// The ending that a drawn picture gets: the source's own where that names a format, else `jpg`.
pub(crate) fn picture_ending(file: &Path) -> String {
    let ending = file.extension().and_then(|ending| ending.to_str());
    match ending {
        Some(ending) if ImageFormat::from_extension(ending).is_some_and(|format| format.writing_enabled()) => {
            ending.into()
        }
        _ => "jpg".into(),
    }
}

/// Encodes a picture in the format of a file name's ending; JPEG where it names none.
fn encode(image: &RgbImage, file: &Path) -> anyhow::Result<Vec<u8>> {
    let format = file.extension().and_then(ImageFormat::from_extension).filter(ImageFormat::writing_enabled);
    match format {
        Some(format) if format != ImageFormat::Jpeg => {
            let mut bytes = Cursor::new(Vec::new());
            image.write_to(&mut bytes, format).map_err(|error| unencoded(file, &error))?;
            Ok(bytes.into_inner())
        }
        // As OpenCV writes it.
        _ => jpeg(image, file, Subsampling::S420),
    }
}

/// Encodes a picture as JPEG; the image crate's encoder would take longer than a small network.
fn jpeg(image: &RgbImage, file: &Path, subsampling: Subsampling) -> anyhow::Result<Vec<u8>> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let encoded = compress(image, width, height, PixelFormat::Rgb, JPEG_QUALITY, subsampling);
    encoded.map_err(|error| unencoded(file, &error).into())
}

fn unencoded(file: &Path, error: &dyn Display) -> Error {
    Error::picture(file, format!("the drawn picture cannot be encoded: {error}"))
}

/// One line of a label file, fractions computed in f32 and printed with `%g` as YOLOv5 does.
fn label_line(found: &Detection, (width, height): (u32, u32), form: LabelForm) -> String {
    let (width, height) = (width as f32, height as f32);
    let [x1, y1, x2, y2] = found.bbox;
    let mut line = found.class.to_string();
    let mut put = |value: f32| {
        // Writing to a String cannot fail.
        let _ = write!(line, " {}", general(value.into()));
    };
    match form.place {
        Place::Centre => {
            let place = [(x1 + x2) / 2.0 / width, (y1 + y2) / 2.0 / height, (x2 - x1) / width, (y2 - y1) / height];
            place.into_iter().for_each(&mut put);
        }
        Place::Corners => [x1 / width, y1 / height, x2 / width, y2 / height].into_iter().for_each(&mut put),
        Place::Outline => {
            let outline = found.polygon.as_deref().unwrap_or_default();
            outline.iter().flat_map(|[x, y]| [x / width, y / height]).for_each(&mut put);
        }
    }
    if form.confidence {
        put(found.confidence);
    }
    line + "\n"
}

#[derive(Serialize)]
struct JsonPicture<'a> {
    path: &'a str,
    width: u32,
    height: u32,
    boxes: Vec<JsonBox<'a>>,
}

#[derive(Serialize)]
struct JsonBox<'a> {
    #[serde(rename = "box")]
    corners: [f32; 4],
    class: usize,
    name: String,
    confidence: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    polygon: Option<&'a [[f32; 2]]>,
}

#[derive(Serialize)]
struct JsonProblem<'a> {
    path: &'a str,
    error: &'a str,
}

fn json_line(
    path: &str,
    (width, height): (u32, u32),
    detections: &[Detection],
    names: &[String],
) -> serde_json::Result<String> {
    let boxes = detections
        .iter()
        .map(|found| JsonBox {
            corners: found.bbox,
            class: found.class,
            name: class_name(names, found.class),
            confidence: found.confidence,
            polygon: found.polygon.as_deref(),
        })
        .collect();
    serde_json::to_string(&JsonPicture { path, width, height, boxes })
}

/// The line of JSON that stands for a picture that cannot be used.
pub(crate) fn json_problem(path: &str, error: &str) -> serde_json::Result<String> {
    serde_json::to_string(&JsonProblem { path, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// YOLOv5n on bus.jpg (810x1080): boxes, and the lines that detect.py writes for them.
    const BUS: [([f32; 4], usize, f32, &str); 3] = [
        ([54.0, 398.0, 210.0, 889.0], 0, 0.875_76, "0 0.162963 0.595833 0.192593 0.45463 0.87576\n"),
        ([0.0, 573.0, 72.0, 893.0], 0, 0.519_066_9, "0 0.0444444 0.678704 0.0888889 0.296296 0.519067\n"),
        ([23.0, 228.0, 806.0, 781.0], 5, 0.491_808_86, "5 0.511728 0.46713 0.966667 0.512037 0.491809\n"),
    ];

    fn found(bbox: [f32; 4], class: usize, confidence: f32) -> Detection {
        Detection { bbox, class, confidence, mask: None, polygon: None }
    }

    fn form(place: Place, confidence: bool) -> LabelForm {
        LabelForm { place, confidence }
    }

    #[test]
    fn label_lines_are_yolov5s() {
        for (bbox, class, confidence, line) in BUS {
            assert_eq!(label_line(&found(bbox, class, confidence), (810, 1080), form(Place::Centre, true)), line);
        }
        let bus = found(BUS[2].0, 5, 0.5);
        assert_eq!(
            label_line(&bus, (810, 1080), form(Place::Corners, false)),
            "5 0.0283951 0.211111 0.995062 0.723148\n"
        );
        let outlined = Detection { polygon: Some(vec![[1.0, 2.0], [3.0, 4.0], [5.0, 8.0]]), ..bus.clone() };
        assert_eq!(label_line(&outlined, (10, 16), form(Place::Outline, true)), "5 0.1 0.125 0.3 0.25 0.5 0.5 0.5\n");
        assert_eq!(label_line(&bus, (10, 16), form(Place::Outline, false)), "5\n");
    }

    fn everything() -> Wanted {
        Wanted {
            picture: true,
            txt: true,
            csv: true,
            crops: true,
            json: true,
            labels: form(Place::Centre, false),
            style: Style::default(),
        }
    }

    #[test]
    fn files_go_from_the_least_confident_and_json_from_the_most() {
        let image = RgbImage::from_pixel(40, 20, image::Rgb([9, 9, 9]));
        let names = ["cat, big".to_string(), "dog".to_string()];
        let detections = [found([0.0, 0.0, 10.0, 10.0], 1, 0.9), found([10.0, 5.0, 30.0, 15.0], 0, 0.126)];
        let record =
            make(image, &detections, &names, &Source::File("/x/a.png".into()), Path::new("a.png"), &everything())
                .unwrap();
        assert_eq!(record.labels.as_deref(), Some("0 0.5 0.5 0.5 0.5\n1 0.125 0.25 0.25 0.5\n"));
        assert_eq!(
            record.rows,
            [["a.png", "cat, big", "0.13"], ["a.png", "dog", "0.90"]].map(|row| row.map(String::from))
        );
        assert_eq!(record.crops.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["cat, big", "dog"]);
        assert_eq!(image::guess_format(&record.crops[0].1).unwrap(), ImageFormat::Jpeg);
        assert_eq!(image::guess_format(&record.picture.unwrap()).unwrap(), ImageFormat::Png);
        let expected = r#"{"path":"/x/a.png","width":40,"height":20,"boxes":[{"box":[0.0,0.0,10.0,10.0],"class":1,"name":"dog","confidence":0.9},{"box":[10.0,5.0,30.0,15.0],"class":0,"name":"cat, big","confidence":0.126}]}"#;
        assert_eq!(record.json.as_deref(), Some(expected));
    }

    #[test]
    fn a_picture_with_nothing_has_no_label_file() {
        let record =
            make(RgbImage::new(4, 4), &[], &[], &Source::Stdin, Path::new("stdin.jpg"), &everything()).unwrap();
        assert_eq!(record.labels, None);
        assert_eq!(record.json.as_deref(), Some(r#"{"path":"-","width":4,"height":4,"boxes":[]}"#));
    }

    #[test]
    fn pictures_keep_their_format() {
        for (name, ending) in [("a.JPG", "JPG"), ("a.png", "png"), ("a.tiff", "tiff"), ("a.heic", "jpg"), ("a", "jpg")]
        {
            assert_eq!(picture_ending(Path::new(name)), ending);
        }
        for (name, format) in [
            ("a.bmp", ImageFormat::Bmp),
            ("a.TIF", ImageFormat::Tiff),
            ("a.webp", ImageFormat::WebP),
            ("a.jpeg", ImageFormat::Jpeg),
            ("a", ImageFormat::Jpeg),
        ] {
            let bytes = encode(&RgbImage::new(5, 3), Path::new(name)).unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format, "{name}");
        }
    }

    #[test]
    fn jpeg_holds_pictures_of_any_size() {
        let sides = [1, 2, 7, 8, 9, 15, 16, 17, 33];
        for (width, height) in sides.into_iter().flat_map(|width| sides.map(|height| (width, height))) {
            // Smooth, so that half as many colours are enough.
            let image = RgbImage::from_fn(width, height, |x, y| image::Rgb([100 + 2 * x as u8, 3 * y as u8, 200]));
            let bytes = encode(&image, Path::new("a.jpg")).unwrap();
            let back = image::load_from_memory(&bytes).unwrap().into_rgb8();
            assert_eq!(back.dimensions(), (width, height));
            let off = back.iter().zip(image.iter()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(off <= Some(6), "{width}x{height}: {off:?}");
        }
        let error = encode(&RgbImage::new(65_536, 1), Path::new("long.jpg")).unwrap_err().to_string();
        assert!(error.contains("long.jpg") && error.contains("65535"), "{error}");
    }

    #[test]
    fn crops_keep_every_pixels_colour() {
        // Columns of red and blue by turns: with colours of half the resolution all would be purple.
        let image =
            RgbImage::from_fn(40, 24, |x, _| image::Rgb(if x % 2 == 0 { [230, 30, 30] } else { [30, 30, 230] }));
        let detections = [found([6.0, 6.0, 34.0, 18.0], 0, 0.9)];
        let wanted = Wanted { picture: false, ..everything() };
        let record = make(image.clone(), &detections, &[], &Source::Stdin, Path::new("stdin.jpg"), &wanted).unwrap();
        let crop = image::load_from_memory(&record.crops[0].1).unwrap().into_rgb8();
        let expected = picture::crop(&image, detections[0].bbox).unwrap();
        assert_eq!(crop.dimensions(), expected.dimensions());
        let off = crop.iter().zip(expected.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(off <= Some(30), "{off:?}");
    }

    #[test]
    fn json_quotes_what_it_must() {
        assert_eq!(json_problem("a\"b\n", "no").unwrap(), r#"{"path":"a\"b\n","error":"no"}"#);
    }
}
