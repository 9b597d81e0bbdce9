//! Precision, recall and F1 over confidence, and precision over recall.

use image::RgbImage;

use super::axes::{Axes, Entry, Range, Titles, legend};
use super::canvas::Canvas;
use super::colours::{self, STRONG};

const SIZE: (u32, u32) = (1800, 1200);
/// Pixels an em of the ticks' text.
const TEXT: f32 = 28.0;
/// Right of the frame, the legend's room.
const LEGEND: f32 = 440.0;
/// More classes than this are grey and without names.
const MOST_NAMED: usize = 20;
/// The share of a curve over which the mean is smoothed before its best place is looked for.
const SMOOTHING: f64 = 0.05;

/// Curves of all classes over common abscissas.
#[derive(Debug, Clone, Copy)]
pub struct MetricCurves<'a> {
    /// Names of the classes, one a curve.
    pub names: &'a [String],
    /// Confidences, or recalls for [`pr_curve`]; rising.
    pub x: &'a [f64],
    /// A curve a class.
    pub classes: &'a [Vec<f64>],
}

impl MetricCurves<'_> {
    /// The mean over the classes.
    fn mean(&self) -> Vec<f64> {
        let count = self.classes.len().max(1) as f64;
        (0..self.x.len()).map(|i| self.classes.iter().filter_map(|y| y.get(i)).sum::<f64>() / count).collect()
    }
}

/// `PR_curve.png`: precision over recall, with the average precision at an IoU of 0.5 of every class.
pub fn pr_curve(curves: MetricCurves<'_>, average_precisions: &[f64]) -> RgbImage {
    let of_class = |class: usize| average_precisions.get(class).copied().unwrap_or(f64::NAN);
    let mean = average_precisions.iter().sum::<f64>() / average_precisions.len().max(1) as f64;
    let titles = Titles { title: "Precision-Recall Curve", x: "Recall", y: "Precision" };
    let summary = format!("all classes {mean:.3} mAP@0.5");
    draw(curves, &curves.mean(), titles, summary, |class, name| format!("{name} {:.3}", of_class(class)))
}

/// `F1_curve.png`: F1 over confidence.
pub fn f1_curve(curves: MetricCurves<'_>) -> RgbImage {
    over_confidence(curves, "F1")
}

/// `P_curve.png`: precision over confidence.
pub fn p_curve(curves: MetricCurves<'_>) -> RgbImage {
    over_confidence(curves, "Precision")
}

/// `R_curve.png`: recall over confidence.
pub fn r_curve(curves: MetricCurves<'_>) -> RgbImage {
    over_confidence(curves, "Recall")
}

fn over_confidence(curves: MetricCurves<'_>, metric: &str) -> RgbImage {
    let mean = smoothed(&curves.mean());
    let best = mean.iter().zip(curves.x).max_by(|a, b| a.0.total_cmp(b.0));
    let summary = match best {
        Some((value, confidence)) => format!("all classes {value:.2} at {confidence:.3}"),
        None => "all classes".into(),
    };
    let title = format!("{metric}-Confidence Curve");
    let titles = Titles { title: &title, x: "Confidence", y: metric };
    draw(curves, &mean, titles, summary, |_, name| name.to_string())
}

/// The mean of every value's neighbours; at the ends, the last value stands for what is beyond.
fn smoothed(values: &[f64]) -> Vec<f64> {
    let reach = (values.len() as f64 * SMOOTHING * 2.0).round() as usize / 2;
    let at = |index: usize| values[index.saturating_sub(reach).min(values.len() - 1)];
    let sum = |index: usize| (index..=index + 2 * reach).map(at).sum::<f64>();
    (0..values.len()).map(|index| sum(index) / (2 * reach + 1) as f64).collect()
}

fn draw(
    curves: MetricCurves<'_>,
    mean: &[f64],
    titles: Titles<'_>,
    summary: String,
    text: impl Fn(usize, &str) -> String,
) -> RgbImage {
    let mut canvas = Canvas::new(SIZE.0, SIZE.1);
    let [_, _, right, bottom] = canvas.area();
    let outer = [TEXT, TEXT * 0.6, right - LEGEND, bottom - TEXT * 0.5];
    let axes = Axes::draw(&mut canvas, outer, Range::UNIT, Range::UNIT, titles, TEXT);
    let named = curves.classes.len() <= MOST_NAMED;
    let mut entries = Vec::new();
    for (class, y) in curves.classes.iter().enumerate() {
        let colour = if named { colours::curve(class) } else { [190; 3] };
        axes.curve(&mut canvas, curves.x, y, if named { 2.5 } else { 1.2 }, colour);
        if named {
            let name = curves.names.get(class).cloned().unwrap_or_else(|| class.to_string());
            entries.push(Entry { text: text(class, &name), colour, width: 2.5 });
        }
    }
    axes.curve(&mut canvas, curves.x, mean, 8.0, STRONG);
    entries.push(Entry { text: summary, colour: STRONG, width: 8.0 });
    let [_, top, frame_right, _] = axes.area;
    legend(&mut canvas, &entries, [frame_right + TEXT * 0.5, top], right - frame_right - TEXT, TEXT * 0.9);
    canvas.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_constants_and_the_middle_of_lines() {
        assert!(smoothed(&[0.25; 50]).iter().all(|v| (v - 0.25).abs() < 1e-12));
        let line: Vec<f64> = (0..100).map(f64::from).collect();
        let smooth = smoothed(&line);
        assert!((smooth[50] - 50.0).abs() < 1e-9 && smooth[0] > 0.0 && smooth[99] < 99.0);
        assert!(smoothed(&[]).is_empty());
    }
}
