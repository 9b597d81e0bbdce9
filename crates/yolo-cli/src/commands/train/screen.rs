//! What the user sees of a training run: YOLOv5's lines and tables, and a progress bar below them.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};
use yolo_train::trainer::{BatchReport, Event};
use yolo_train::validate::table;

/// Width of a column, and digits of a number in it.
const WIDTH: usize = 11;
const DIGITS: usize = 4;

/// The terminal during a run.
#[derive(Default)]
pub(super) struct Screen {
    bar: Option<ProgressBar>,
}

impl Screen {
    /// Shows an event. A closed standard output does not end a run.
    pub(super) fn show(&mut self, event: &Event<'_>) {
        match event {
            Event::Notice(text) => self.line(text),
            Event::Warning(text) => self.problem(&format!("warning: {text}")),
            Event::Labels { split, done, all } => {
                if self.bar.is_none() {
                    self.start(*all, 0, &format!("Scanning {}", split.name()));
                }
                self.bar.iter().for_each(|bar| bar.set_position(*done as u64));
                if done == all {
                    self.finish();
                }
            }
            Event::Epoch { masks, done, batches } => {
                self.finish();
                self.line(&header(*masks));
                self.start(*batches, *done, "");
            }
            Event::Batch(report) => {
                if let Some(bar) = &self.bar {
                    bar.set_message(row(report));
                    bar.inc(1);
                }
            }
            Event::Trained(report) => {
                self.finish();
                self.line(&row(report));
            }
            Event::Validation { batches, masks } => {
                self.finish();
                self.line(&table::header(*masks));
                self.start(*batches, 0, "");
            }
            Event::ValidationBatch => self.bar.iter().for_each(|bar| bar.inc(1)),
            Event::Validated { report, names, classes } => {
                self.finish();
                self.line(&table::total(report));
                if *classes && names.len() > 1 {
                    table::class_rows(report, names).iter().for_each(|row| self.line(row));
                }
            }
            _ => {}
        }
    }

    /// The bar goes.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn start(&mut self, steps: usize, done: usize, what: &str) {
        // indicatif draws on standard error, and only where that is a terminal.
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} [{elapsed}<{eta}]");
        let bar = ProgressBar::new(steps as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what.to_owned());
        bar.set_position(done as u64);
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn line(&self, text: &str) {
        let write = || {
            let _ = writeln!(io::stdout(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn problem(&self, text: &str) {
        let write = || {
            let _ = writeln!(io::stderr(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

fn header(masks: bool) -> String {
    let columns: &[&str] = if masks {
        &["Epoch", "GPU_mem", "box_loss", "seg_loss", "obj_loss", "cls_loss", "Instances", "Size"]
    } else {
        &["Epoch", "GPU_mem", "box_loss", "obj_loss", "cls_loss", "Instances", "Size"]
    };
    columns.iter().fold(String::from("\n"), |line, column| format!("{line}{column:>WIDTH$}"))
}

fn row(report: &BatchReport) -> String {
    let losses = report.losses;
    let mut values = vec![f64::from(losses.boxes)];
    if report.masks {
        values.push(f64::from(losses.masks));
    }
    values.extend([losses.objectness, losses.classes].map(f64::from));
    values.extend([report.instances, report.size].map(|count| count as f64));
    let epoch = format!("{}/{}", report.epoch, report.epochs - 1);
    // YOLOv5 prints the memory of a GPU that it manages itself; Candle does not tell.
    let start = format!("{epoch:>WIDTH$}{:>WIDTH$}", "0G");
    values.iter().fold(start, |line, value| format!("{line}{:>WIDTH$}", table::general(*value, DIGITS)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use yolo_train::loss::LossParts;

    #[test]
    fn lines_are_yolov5s() {
        let losses = LossParts { boxes: 0.045_67, masks: 0.031_2, objectness: 0.067_89, classes: 0.018_2 };
        let report = BatchReport { epoch: 0, epochs: 100, losses, masks: false, instances: 232, size: 640 };
        assert_eq!(header(false), "\n      Epoch    GPU_mem   box_loss   obj_loss   cls_loss  Instances       Size");
        assert_eq!(row(&report), "       0/99         0G    0.04567    0.06789     0.0182        232        640");
        let masks = BatchReport { masks: true, ..report };
        assert_eq!(row(&masks).len(), header(true).len() - 1);
    }
}
