//! `results.png`: every column of `results.csv` over the epochs.

use std::path::Path;

use image::RgbImage;

use super::Curve;
use super::axes::{Axes, Entry, Range, Titles, legend};
use super::canvas::{Align, BLACK, Canvas};
use super::colours;
use crate::{Error, Result};

/// Pixels of a panel, and an em of its text.
const PANEL: (f32, f32) = (480.0, 480.0);
const TEXT: f32 = 18.0;
/// Standard deviation of the Gaussian that smooths the dotted curves, epochs.
const SMOOTHING: f64 = 3.0;
/// Groups of columns that share a panel, each with its own curve and a legend.
const MOST_IN_LEGEND: usize = 10;

/// Reads `results.csv` and plots it with [`results`].
///
/// # Errors
/// Where the file cannot be read, has no `epoch` column first, no row, or something that is no number.
pub fn results_file(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    let file = std::fs::File::open(path).map_err(|cause| Error::io(path, cause))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let broken = |problem: csv::Error| Error::data(path, format!("not a table of results: {problem}"));
    let mut columns: Vec<Curve> = reader
        .headers()
        .map_err(broken)?
        .iter()
        .map(|name| Curve { name: name.to_string(), ..Curve::default() })
        .collect();
    if columns.first().is_none_or(|column| column.name != "epoch") {
        return Err(Error::data(path, "not a table of results: expected `epoch` as the first column"));
    }
    for record in reader.records() {
        let record = record.map_err(broken)?;
        let row = record.position().map_or(0, csv::Position::line);
        let values = record.iter().zip(&columns).map(|(text, column)| {
            // YOLOv5 ends every line with a comma.
            if column.name.is_empty() {
                return Ok(f64::NAN);
            }
            text.parse::<f64>()
                .map_err(|_| Error::data(path, format!("line {row}, {}: expected a number, got {text:?}", column.name)))
        });
        let values = values.collect::<Result<Vec<f64>>>()?;
        let Some(&epoch) = values.first() else { continue };
        for (column, value) in columns.iter_mut().zip(values) {
            column.x.push(epoch);
            column.y.push(value);
        }
    }
    columns.remove(0);
    columns.retain(|column| !column.name.is_empty());
    if columns.iter().all(|column| column.y.is_empty()) {
        return Err(Error::data(path, "the table of results has no row yet"));
    }
    Ok(results(&columns))
}

/// Plots the columns of a run's results over its epochs, by their names: training losses, precisions and recalls over validation
/// losses and average precisions, as YOLOv5 does, a panel each. Learning rates (`x/...`) are left out; columns of any other group
/// (`routing/...`) share a panel below.
pub fn results(columns: &[Curve]) -> RgbImage {
    let panels = panels(columns);
    let across = panels.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let title_room = TEXT * 0.5;
    let height = PANEL.1 * panels.len().max(1) as f32 + title_room;
    let mut canvas = Canvas::new((PANEL.0 * across as f32) as u32, height as u32);
    for (row, line) in panels.iter().enumerate() {
        for (place, panel) in line.iter().enumerate() {
            let (left, top) = (PANEL.0 * place as f32, PANEL.1 * row as f32 + title_room);
            let outer = [left + 6.0, top + 6.0, left + PANEL.0 - 6.0, top + PANEL.1 - 6.0];
            panel.draw(&mut canvas, outer, row == 0 && place == 1);
        }
    }
    if panels.is_empty() {
        canvas.text("no results", [PANEL.0 / 2.0, PANEL.1 / 2.0], TEXT, BLACK, Align::Middle);
    }
    canvas.finish()
}

/// What is in one frame.
struct Panel<'a> {
    title: String,
    curves: Vec<&'a Curve>,
}

/// Panels by row.
fn panels(columns: &[Curve]) -> Vec<Vec<Panel<'_>>> {
    let group = |curve: &Curve| curve.name.split('/').next().unwrap_or_default().to_string();
    let is_average = |curve: &Curve| curve.name.starts_with("metrics/mAP");
    let alone = |wanted: &dyn Fn(&Curve) -> bool| -> Vec<Panel<'_>> {
        let members = columns.iter().filter(|curve| wanted(curve));
        members.map(|curve| Panel { title: curve.name.clone(), curves: vec![curve] }).collect()
    };
    let mut first = alone(&|curve| group(curve) == "train");
    first.extend(alone(&|curve| group(curve) == "metrics" && !is_average(curve)));
    let mut second = alone(&|curve| group(curve) == "val");
    second.extend(alone(&is_average));

    let mut others: Vec<Panel<'_>> = Vec::new();
    for curve in columns.iter().filter(|curve| !["train", "val", "metrics", "x", "epoch"].contains(&&*group(curve))) {
        let title = group(curve);
        match others.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.curves.push(curve),
            None => others.push(Panel { title, curves: vec![curve] }),
        }
    }
    [first, second, others].into_iter().filter(|row| !row.is_empty()).collect()
}

impl Panel<'_> {
    fn draw(&self, canvas: &mut Canvas, outer: [f32; 4], with_legend: bool) {
        let values = || self.curves.iter().flat_map(|curve| curve.y.iter().copied());
        let epochs = || self.curves.iter().flat_map(|curve| curve.x.iter().copied());
        let titles = Titles { title: &self.title, x: "", y: "" };
        let axes = Axes::draw(canvas, outer, Range::around(epochs()), Range::around(values()), titles, TEXT);
        let single = self.curves.len() == 1;
        for (place, curve) in self.curves.iter().enumerate() {
            let colour = colours::curve(place);
            axes.curve(canvas, &curve.x, &curve.y, if single { 2.5 } else { 1.8 }, colour);
            if single {
                axes.dots(canvas, &curve.x, &curve.y, 4.0, colour);
                axes.dotted(canvas, &curve.x, &smoothed(&curve.y), 3.0, colours::curve(1));
            }
        }
        let entry = |text: &str, place| Entry { text: text.into(), colour: colours::curve(place), width: 3.0 };
        let entries: Vec<Entry> = if !single {
            let named = self.curves.iter().enumerate().take(MOST_IN_LEGEND);
            named.map(|(place, curve)| entry(curve.name.split_once('/').map_or("", |(_, name)| name), place)).collect()
        } else if with_legend {
            vec![entry("results", 0), entry("smooth", 1)]
        } else {
            return;
        };
        let [left, top, right, _] = axes.area;
        // On the right, where curves that fall have left room; what is wider than half of the panel is cut.
        let room = (right - left) * 0.6;
        let width = legend(&mut Canvas::new(1, 1), &entries, [0.0, 0.0], room, TEXT * 0.85);
        legend(canvas, &entries, [right - width - 8.0, top + 8.0], room, TEXT * 0.85);
    }
}

/// A Gaussian mean of every value's neighbours; beyond the ends, the values are mirrored.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let reach = (4.0 * SMOOTHING) as i64;
    let count = values.len() as i64;
    let mirrored = |index: i64| {
        let place = index.rem_euclid(2 * count);
        values[place.min(2 * count - 1 - place) as usize]
    };
    (0..count)
        .map(|middle| {
            let (mut sum, mut weights) = (0.0, 0.0);
            for offset in -reach..=reach {
                let value = mirrored(middle + offset);
                // A value that is missing weighs nothing.
                if value.is_finite() {
                    let weight = (-0.5 * (offset as f64 / SMOOTHING).powi(2)).exp();
                    sum += value * weight;
                    weights += weight;
                }
            }
            sum / weights
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(names: &[&str]) -> Vec<Vec<String>> {
        let columns: Vec<Curve> =
            names.iter().map(|name| Curve { name: (*name).into(), x: vec![0.0], y: vec![1.0] }).collect();
        panels(&columns).iter().map(|row| row.iter().map(|panel| panel.title.clone()).collect()).collect()
    }

    #[test]
    fn panels_lie_as_in_the_reference() {
        let rows = titles(&[
            "train/box_loss",
            "train/obj_loss",
            "train/cls_loss",
            "metrics/precision",
            "metrics/recall",
            "metrics/mAP_0.5",
            "metrics/mAP_0.5:0.95",
            "val/box_loss",
            "val/obj_loss",
            "val/cls_loss",
            "x/lr0",
            "routing/entropy_2",
            "routing/entropy_4",
        ]);
        let first = ["train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall"];
        let second = ["val/box_loss", "val/obj_loss", "val/cls_loss", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"];
        assert_eq!(rows, [first.to_vec(), second.to_vec(), vec!["routing"]]);
        let rows = titles(&[
            "metrics/precision(B)",
            "metrics/recall(B)",
            "metrics/mAP_0.5(B)",
            "metrics/mAP_0.5:0.95(B)",
            "metrics/precision(M)",
            "metrics/recall(M)",
            "metrics/mAP_0.5(M)",
            "metrics/mAP_0.5:0.95(M)",
        ]);
        assert_eq!(rows[0], ["metrics/precision(B)", "metrics/recall(B)", "metrics/precision(M)", "metrics/recall(M)"]);
        assert_eq!(rows[1].len(), 4);
        assert_eq!(titles(&["x/lr0", "epoch"]), Vec::<Vec<String>>::new());
    }

    #[test]
    fn smoothing_is_a_mean() {
        assert!(smoothed(&[2.0; 7]).iter().all(|v| (v - 2.0).abs() < 1e-12));
        let step: Vec<f64> = (0..40).map(|i| f64::from(u8::from(i >= 20))).collect();
        let smooth = smoothed(&step);
        assert!((smooth[19] + smooth[20] - 1.0).abs() < 1e-9 && smooth[15] > 0.0 && smooth[5] < 1e-3);
        assert!(smoothed(&[1.0, f64::NAN, 1.0]).iter().all(|v| (v - 1.0).abs() < 1e-12));
        assert!(smoothed(&[]).is_empty());
    }

    #[test]
    fn a_table_is_read_and_its_faults_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.csv");
        let draw = |text: &str| {
            std::fs::write(&path, text).unwrap();
            results_file(&path)
        };
        let picture = draw("   epoch,  train/box_loss,  val/box_loss,\n  0,  0.5,  nan,\n  1,  0.4,  0.3,\n").unwrap();
        assert_eq!(picture.dimensions(), (480, 969));
        assert!(picture.pixels().any(|pixel| pixel.0 == colours::curve(0)));
        for (text, words) in [
            ("a,b\n1,2\n", "expected `epoch` as the first column"),
            ("epoch,b\n", "no row yet"),
            ("epoch,b\n0,high\n", "line 2, b: expected a number, got \"high\""),
            ("epoch,b\n0\n", "not a table of results"),
        ] {
            let error = draw(text).unwrap_err().to_string();
            assert!(error.contains("results.csv: ") && error.contains(words), "{error}");
        }
        assert!(results_file(folder.path().join("none.csv")).unwrap_err().to_string().contains("none.csv"));
    }
}
