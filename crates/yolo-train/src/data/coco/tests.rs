//! COCO's JSON to folders and back.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A folder with two pictures and a COCO file about them.
struct Place(TempDir);

impl Place {
    fn new(file: &Value) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("pictures")).unwrap();
        for (name, width, height) in [("12.png", 64, 48), ("7.png", 33, 50)] {
            RgbImage::new(width, height).save(place.at("pictures").join(name)).unwrap();
        }
        fs::write(place.at("instances_val2017.json"), file.to_string()).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn to_yolo(&self, options: ToYolo) -> crate::Result<ToYoloReport> {
        let source =
            Source { json: self.at("instances_val2017.json"), split: None, pictures: Some(self.at("pictures")) };
        to_yolo(&[source], &self.at("out"), options).map(|mut reports| reports.remove(0))
    }

    fn labels(&self, stem: &str) -> String {
        fs::read_to_string(self.at("out/labels/val2017").join(stem).with_extension("txt")).unwrap()
    }

    fn back(&self, names: &[&str]) -> Value {
        let picture = |stem: &str| {
            (self.at(&format!("out/images/val2017/{stem}.png")), self.at(&format!("out/labels/val2017/{stem}.txt")))
        };
        let source = FromYolo {
            pictures: vec![picture("12"), picture("7")],
            names: names.iter().map(ToString::to_string).collect(),
            coco80: false,
        };
        from_yolo(&source, &self.at("back.json")).unwrap();
        serde_json::from_str(&fs::read_to_string(self.at("back.json")).unwrap()).unwrap()
    }
}

/// Boxes, polygons, a crowd, an object of two parts, one without an outline, one without an area.
fn example() -> Value {
    json!({
        "info": {"year": 2017},
        "images": [
            {"id": 12, "file_name": "12.png", "width": 64, "height": 48, "license": 3},
            {"id": 7, "file_name": "7.png", "width": 33, "height": 50},
        ],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 18, "bbox": [1.25, 2.5, 10.0, 20.0], "area": 100.0, "iscrowd": 0,
             "segmentation": [[1.25, 2.5, 11.25, 2.5, 11.25, 22.5]]},
            {"id": 2, "image_id": 12, "category_id": 3, "bbox": [20.0, 20.0, 20.0, 10.0], "area": 6.0, "iscrowd": 0,
             "segmentation": [[20, 20, 22, 20, 22, 30], [38, 20, 40, 20, 40, 30], [1, 2]]},
            {"id": 3, "image_id": 12, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1,
             "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
            {"id": 4, "image_id": 12, "category_id": 3, "bbox": [60.0, 40.0, 10.0, 10.0], "iscrowd": 0, "segmentation": []},
            {"id": 5, "image_id": 12, "category_id": 3, "bbox": [6.0, 4.0, 0.0, 10.0]},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car: red"}],
    })
}

#[test]
fn boxes_go_there_and_back() {
    let place = Place::new(&example());
    let report = place.to_yolo(ToYolo::default()).unwrap();
    let expected = ToYoloReport {
        split: "val2017".into(),
        pictures: 2,
        empty: 1,
        objects: 3,
        crowds: 1,
        flat: 1,
        clipped: 1,
        ..ToYoloReport::default()
    };
    assert_eq!(report, expected);
    assert_eq!(place.labels("12").lines().next().unwrap(), "0 0.09765625 0.26041666 0.15625 0.41666666");
    assert_eq!(place.labels("7"), "");
    let yaml: serde_yaml::Value =
        serde_yaml::from_str(&fs::read_to_string(place.at("out/data.yaml")).unwrap()).unwrap();
    assert_eq!((&yaml["val"], &yaml["names"][1]), (&"images/val2017".into(), &"car: red".into()));

    let back = place.back(&["dog", "car: red"]);
    assert_eq!(
        back["images"],
        json!([
            {"id": 12, "file_name": "12.png", "width": 64, "height": 48},
            {"id": 7, "file_name": "7.png", "width": 33, "height": 50},
        ])
    );
    let boxes: Vec<_> = back["annotations"].as_array().unwrap().iter().map(|a| a["bbox"].clone()).collect();
    assert_eq!(boxes, [json!([1.25, 2.5, 10.0, 20.0]), json!([20.0, 20.0, 20.0, 10.0]), json!([60.0, 40.0, 4.0, 8.0])]);
    assert_eq!(back["annotations"][0]["category_id"], 0);
    assert_eq!(back["annotations"][0]["area"], 200.0);
    assert_eq!(back["categories"], json!([{"id": 0, "name": "dog"}, {"id": 1, "name": "car: red"}]));
}

#[test]
fn outlines_go_there_and_back() {
    let place = Place::new(&example());
    let report = place.to_yolo(ToYolo { segments: true, ..ToYolo::default() }).unwrap();
    assert_eq!((report.objects, report.joined, report.boxes), (3, 1, 1));
    let back = place.back(&["dog", "car: red"]);
    let objects = back["annotations"].as_array().unwrap();
    assert_eq!(objects[0]["segmentation"], json!([[1.25, 2.5, 11.25, 2.5, 11.25, 22.5]]));
    assert_eq!((&objects[0]["area"], &objects[0]["bbox"]), (&json!(100.0), &json!([1.25, 2.5, 10.0, 20.0])));
    // Two triangles of 10 each, joined.
    assert_eq!((&objects[1]["area"], &objects[1]["bbox"]), (&json!(20.0), &json!([20.0, 20.0, 20.0, 10.0])));
    assert_eq!(objects[2]["bbox"], json!([60.0, 40.0, 4.0, 8.0]));

    // And to YOLO's form once more: the same rows.
    let first = place.labels("12");
    fs::write(place.at("instances_val2017.json"), back.to_string()).unwrap();
    place.to_yolo(ToYolo { segments: true, ..ToYolo::default() }).unwrap();
    let numbers = |text: &str| -> Vec<f64> { text.split_whitespace().map(|word| word.parse().unwrap()).collect() };
    let (first, second) = (numbers(&first), numbers(&place.labels("12")));
    assert_eq!(first.len(), second.len());
    assert!(first.iter().zip(&second).all(|(a, b)| (a - b).abs() < 2e-5), "{first:?} {second:?}");
}

#[test]
fn masks_as_runs_get_an_outline() {
    let mut file = example();
    // Columns 10 to 19 and rows 5 to 14 of a picture 48 high.
    let mut counts = vec![10 * 48 + 5];
    (0..9).for_each(|_| counts.extend([10, 38]));
    counts.extend([10, 3072 - 19 * 48 - 15]);
    file["annotations"] = json!([{"id": 1, "image_id": 12, "category_id": 3, "iscrowd": false,
        "segmentation": {"size": [48, 64], "counts": counts}}]);
    let place = Place::new(&file);
    place.to_yolo(ToYolo { segments: true, ..ToYolo::default() }).unwrap();
    let back = place.back(&["dog", "car: red"]);
    assert_eq!(back["annotations"][0]["bbox"], json!([10.0, 5.0, 9.0, 9.0]));
}

/// The larger part has the simpler outline.
#[test]
fn parts_of_a_mask_are_joined() {
    let mut file = example();
    // Of a picture 48 high: columns 10 to 19 and rows 5 to 14, and a cross in columns 30 to 32.
    let mut counts = vec![10 * 48 + 5];
    (0..9).for_each(|_| counts.extend([10, 38]));
    counts.extend([10, 33 + 10 * 48 + 6, 1, 46, 3, 46, 1]);
    counts.push(3072 - counts.iter().sum::<i32>());
    file["annotations"] = json!([{"id": 1, "image_id": 12, "category_id": 3, "iscrowd": false,
        "segmentation": {"size": [48, 64], "counts": counts}}]);
    let place = Place::new(&file);
    place.to_yolo(ToYolo { segments: true, ..ToYolo::default() }).unwrap();
    assert_eq!(place.back(&["dog", "car: red"])["annotations"][0]["bbox"], json!([10.0, 5.0, 22.0, 9.0]));
}

#[test]
fn pictures_are_named_within_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut pictures = Vec::new();
    for name in ["images/a/1.png", "images/b/1.png"] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::new(8, 8).save(&path).unwrap();
        pictures.push((path.clone(), path.with_extension("txt")));
    }
    let source = FromYolo { pictures, names: vec!["dog".into()], ..FromYolo::default() };
    let json = folder.path().join("out.json");
    from_yolo(&source, &json).unwrap();
    let value: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    let picture = |id: u32, name: &str| json!({"id": id, "file_name": name, "width": 8, "height": 8});
    // Both are number 1 of their folder, so that they are counted instead.
    assert_eq!(value["images"], json!([picture(1, "a/1.png"), picture(2, "b/1.png")]));
}

#[test]
fn coco_classes_are_numbered_without_gaps() {
    let mut file = example();
    file["categories"] = json!([]);
    file["annotations"][0]["category_id"] = json!(90);
    let place = Place::new(&file);
    let error = place.to_yolo(ToYolo::default()).unwrap_err().to_string();
    assert!(error.contains("--coco80"), "{error}");
    place.to_yolo(ToYolo { coco80: true, ..ToYolo::default() }).unwrap();
    let rows = place.labels("12");
    let classes: Vec<_> = rows.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(classes, ["79", "2", "2"]);
    let ids: Vec<_> = classes::COCO80.iter().map(|(id, _)| *id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    let missing: Vec<_> = (1..=90).filter(|id| !ids.contains(id)).collect();
    assert_eq!(missing, [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]);
}

#[test]
fn pictures_go_along() {
    let place = Place::new(&example());
    fs::remove_file(place.at("pictures/7.png")).unwrap();
    let report = place.to_yolo(ToYolo::default()).unwrap();
    assert_eq!(report.missing, [place.at("pictures/7.png")]);
    let same = |name: &str| {
        fs::read(place.at("out/images/val2017").join(name)).unwrap()
            == fs::read(place.at("pictures").join(name)).unwrap()
    };
    assert!(same("12.png"));
    // A second run replaces what it finds and leaves the source as it is.
    fs::copy(place.at("pictures/12.png"), place.at("pictures/7.png")).unwrap();
    place.to_yolo(ToYolo::default()).unwrap();
    assert!(same("12.png") && same("7.png"));
}

#[test]
fn files_that_do_not_fit_are_sentences() {
    let change = |path: &str, value: Value| {
        let mut file = example();
        *file.pointer_mut(path).unwrap() = value;
        let error = Place::new(&file).to_yolo(ToYolo { segments: true, ..ToYolo::default() });
        error.unwrap_err().to_string()
    };
    for (path, value, words) in [
        ("/images/1/id", json!(12), "two of its pictures have the id 12"),
        ("/images/1/file_name", json!("../7.png"), "leads out of the pictures' folder"),
        ("/images/1/file_name", json!("/etc/passwd"), "leads out of the pictures' folder"),
        ("/images/1/file_name", json!("12.jpg"), "the same name up to the ending"),
        ("/images/1/width", json!(0), "expected width and height of at least 1"),
        ("/annotations/1/image_id", json!(99), "annotation 2 is of picture 99"),
        ("/annotations/1/category_id", json!(4), "annotation 2 is of category 4"),
        (
            "/annotations/0/segmentation",
            json!({"size": [4, 4], "counts": "xx"}),
            "annotation 1: the mask cannot be used",
        ),
        ("/annotations", json!({}), "not a COCO file"),
        ("/categories/0/id", json!(3), "the same id"),
    ] {
        let error = change(path, value);
        assert!(error.contains("instances_val2017.json: ") && error.contains(words), "{error}");
    }
}

#[test]
fn label_files_that_do_not_fit_are_sentences() {
    let folder = tempfile::tempdir().unwrap();
    let (picture, labels) = (folder.path().join("a.png"), folder.path().join("a.txt"));
    RgbImage::new(8, 8).save(&picture).unwrap();
    let source = FromYolo {
        pictures: vec![(picture.clone(), labels.clone())],
        names: vec!["dog".into()],
        ..FromYolo::default()
    };
    let json = folder.path().join("out.json");
    for (row, words) in [
        ("1 .5 .5 .5 .5", "expected a class of 0 to 0, got 1"),
        ("0 .5 .5 .5", "got 3 numbers"),
        ("0 .1 .2 .3 .4 .5", "got 5 numbers"),
        ("0 .5 .5 .5 high", "expected a number, got high"),
        ("0 .5 .5 .5 nan", "expected a number, got nan"),
        ("dog .5 .5 .5 .5", "expected a class of 0 to 0, got dog"),
    ] {
        fs::write(&labels, format!("\n{row}\n")).unwrap();
        let error = from_yolo(&source, &json).unwrap_err().to_string();
        assert!(error.contains("a.txt: line 2: ") && error.contains(words), "{error}");
        assert!(!json.exists());
    }
    fs::remove_file(&labels).unwrap();
    let report = from_yolo(&source, &json).unwrap();
    assert_eq!(report, FromYoloReport { pictures: 1, empty: 1, ..FromYoloReport::default() });
    let value: Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    assert_eq!((&value["images"][0]["id"], &value["images"][0]["file_name"]), (&json!(1), &json!("a.png")));
    fs::write(&picture, "no picture").unwrap();
    assert!(from_yolo(&source, &json).unwrap_err().to_string().contains("a.png"));
    let wrong = FromYolo { coco80: true, ..source };
    assert!(from_yolo(&wrong, Path::new("x")).unwrap_err().to_string().contains("80 classes"));
}
