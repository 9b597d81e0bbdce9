//! `results.csv`: a row an epoch.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::checkpoint::{Exact, write_text};
use crate::loss::LossParts;
use crate::validate::Report;
use crate::validate::table::general;
use crate::{Error, Result};

/// Width of a column and digits of a number.
const WIDTH: usize = 20;
const DIGITS: usize = 5;

/// Sums over an epoch's batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EpochSums {
    pub(super) batches: usize,
    boxes: Exact,
    masks: Exact,
    objectness: Exact,
    classes: Exact,
    /// By router: the entropy of its weights.
    pub(super) routing: Vec<(String, Exact)>,
}

impl EpochSums {
    /// Adds a batch.
    pub(super) fn add(&mut self, parts: &LossParts, routing: &[(String, Tensor)]) -> Result<()> {
        self.batches += 1;
        self.boxes.0 += f64::from(parts.boxes);
        self.masks.0 += f64::from(parts.masks);
        self.objectness.0 += f64::from(parts.objectness);
        self.classes.0 += f64::from(parts.classes);
        if self.routing.len() != routing.len() {
            self.routing = routing.iter().map(|(name, _)| (name.clone(), Exact(0.0))).collect();
        }
        for ((_, sum), (_, weights)) in self.routing.iter_mut().zip(routing) {
            sum.0 += entropy(weights)?;
        }
        Ok(())
    }

    /// Means over the batches so far.
    pub(super) fn means(&self) -> LossParts {
        let mean = |sum: Exact| (sum.0 / self.batches.max(1) as f64) as f32;
        LossParts {
            boxes: mean(self.boxes),
            masks: mean(self.masks),
            objectness: mean(self.objectness),
            classes: mean(self.classes),
        }
    }
}

/// How evenly a router weighs its experts, `[B, K]`, a mean over the batch: 0 where one expert gets all, 1 where all get the
/// same. It is the entropy of the weights, which are scaled to sum to one, over its greatest value.
fn entropy(weights: &Tensor) -> Result<f64> {
    let (batch, experts) = weights.dims2()?;
    if experts < 2 || batch == 0 {
        return Ok(0.0);
    }
    let rows: Vec<Vec<f32>> = weights.to_device(&Device::Cpu)?.to_vec2()?;
    let of_row = |row: &Vec<f32>| {
        let sum: f64 = row.iter().map(|weight| f64::from(*weight)).sum();
        let part = |weight: &f32| {
            let share = f64::from(*weight) / sum;
            if share > 0.0 { -share * share.ln() } else { 0.0 }
        };
        row.iter().map(part).sum::<f64>() / (experts as f64).ln()
    };
    Ok(rows.iter().map(of_row).sum::<f64>() / batch as f64)
}

/// The table of a run.
#[derive(Debug)]
pub(super) struct Results {
    file: PathBuf,
    masks: bool,
    rows: Vec<String>,
}

/// An epoch's row.
pub(super) struct Row<'a> {
    pub(super) epoch: usize,
    pub(super) sums: &'a EpochSums,
    /// None where the epoch was not validated.
    pub(super) validation: Option<(&'a Report, LossParts)>,
    pub(super) learning_rates: [f64; 3],
}

impl Results {
    /// An empty table, of a network that makes masks or not.
    pub(super) fn new(folder: &Path, masks: bool) -> Self {
        Self { file: folder.join("results.csv"), masks, rows: Vec::new() }
    }

    /// YOLOv5's columns, and one a router of the network.
    fn header(&self, sums: &EpochSums) -> String {
        let metrics = ["precision", "recall", "mAP_0.5", "mAP_0.5:0.95"];
        let losses: &[&str] = if self.masks { &["box", "seg", "obj", "cls"] } else { &["box", "obj", "cls"] };
        let mut columns = vec!["epoch".to_owned()];
        columns.extend(losses.iter().map(|loss| format!("train/{loss}_loss")));
        for end in if self.masks { &["(B)", "(M)"][..] } else { &[""][..] } {
            columns.extend(metrics.iter().map(|metric| format!("metrics/{metric}{end}")));
        }
        columns.extend(losses.iter().map(|loss| format!("val/{loss}_loss")));
        columns.extend((0..3).map(|group| format!("x/lr{group}")));
        columns.extend(sums.routing.iter().map(|(router, _)| format!("routing/{router}")));
        line(&columns)
    }

    /// Takes the rows of a cut run's file up to an epoch; those of later epochs come again.
    pub(super) fn resume(&mut self, before: usize) -> Result<()> {
        let text = match std::fs::read_to_string(&self.file) {
            Ok(text) => text,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(Error::io(&self.file, cause)),
        };
        let epoch = |row: &str| row.split(',').next().and_then(|first| first.trim().parse::<usize>().ok());
        let kept = text.lines().skip(1).filter(|row| epoch(row).is_some_and(|epoch| epoch < before));
        self.rows = kept.map(str::to_owned).collect();
        Ok(())
    }

    /// Adds an epoch and writes the file.
    pub(super) fn add(&mut self, row: &Row<'_>) -> Result<()> {
        let losses = |parts: LossParts| {
            let [b, m, o, c] = [parts.boxes, parts.masks, parts.objectness, parts.classes].map(f64::from);
            if self.masks { vec![b, m, o, c] } else { vec![b, o, c] }
        };
        let mut values = losses(row.sums.means());
        let (report, validation) = row.validation.map_or((None, LossParts::default()), |(r, parts)| (Some(r), parts));
        let boxes = report.map(|report| report.boxes.mean).unwrap_or_default();
        let masks = report.and_then(|report| report.masks.as_ref()).map(|masks| masks.mean).unwrap_or_default();
        for metrics in [boxes, masks].iter().take(if self.masks { 2 } else { 1 }) {
            values.extend([metrics.precision, metrics.recall, metrics.map50, metrics.map]);
        }
        values.extend(losses(validation));
        values.extend(row.learning_rates);
        let batches = row.sums.batches.max(1) as f64;
        values.extend(row.sums.routing.iter().map(|(_, sum)| sum.0 / batches));
        let mut cells = vec![row.epoch.to_string()];
        cells.extend(values.iter().map(|value| general(*value, DIGITS)));
        self.rows.push(line(&cells));
        write_text(&self.file, &format!("{}\n{}\n", self.header(row.sums), self.rows.join("\n")))
    }
}

fn line(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("{cell:>WIDTH$}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_of_even_and_single_choices() {
        let of = |rows: Vec<Vec<f32>>| entropy(&Tensor::new(rows, &Device::Cpu).unwrap()).unwrap();
        assert!((of(vec![vec![0.25; 4]]) - 1.0).abs() < 1e-12);
        assert!((of(vec![vec![0.5; 4], vec![0.0, 0.0, 1.0, 0.0]]) - 0.5).abs() < 1e-12);
        assert!((of(vec![vec![0.5, 0.5, 0.0, 0.0]]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_resumed_table_has_each_epoch_once() {
        let folder = tempfile::tempdir().unwrap();
        let row = |results: &mut Results, epoch: usize, loss: f32| {
            let mut sums = EpochSums::default();
            let parts = LossParts { boxes: loss, ..LossParts::default() };
            let routing = [("model.2".to_owned(), Tensor::new(&[[1f32, 1.0]], &Device::Cpu).unwrap())];
            sums.add(&parts, &routing).unwrap();
            let row = Row { epoch, sums: &sums, validation: None, learning_rates: [0.1, 0.0, 0.0] };
            results.add(&row).unwrap();
        };
        let mut results = Results::new(folder.path(), false);
        (0..3).for_each(|epoch| row(&mut results, epoch, 0.5));
        let uncut = std::fs::read_to_string(&results.file).unwrap();
        let mut results = Results::new(folder.path(), false);
        results.resume(2).unwrap();
        row(&mut results, 2, 0.5);
        assert_eq!(std::fs::read_to_string(&results.file).unwrap(), uncut);
        let lines: Vec<&str> = uncut.lines().collect();
        assert!(lines[0].starts_with("               epoch,      train/box_loss,"), "{}", lines[0]);
        assert!(lines[0].ends_with("x/lr2,     routing/model.2"), "{}", lines[0]);
        assert!(
            lines[1].starts_with("                   0,                 0.5,                   0,"),
            "{}",
            lines[1]
        );
        assert_eq!(lines[1].split(',').count(), lines[0].split(',').count());
    }
}
