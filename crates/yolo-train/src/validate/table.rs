//! The lines that YOLOv5 prints of a validation.

use super::report::{Metrics, Report, Summary};

/// Per-class rows are printed unasked below this many classes.
const FEW_CLASSES: usize = 50;

/// The header of the table, wider where masks are measured, too.
pub fn header(masks: bool) -> String {
    let columns: &[&str] = if masks {
        &["Images", "Instances", "Box(P", "R", "mAP50", "mAP50-95)", "Mask(P", "R", "mAP50", "mAP50-95)"]
    } else {
        &["Images", "Instances", "P", "R", "mAP50", "mAP50-95"]
    };
    columns.iter().fold(format!("{:>22}", "Class"), |line, column| format!("{line}{column:>11}"))
}

/// A row of the table: a class, or `all`.
pub fn row(name: &str, images: usize, instances: usize, boxes: &Metrics, masks: Option<&Metrics>) -> String {
    let mut line = format!("{name:>22}{images:>11}{instances:>11}");
    for metrics in std::iter::once(boxes).chain(masks) {
        for value in [metrics.precision, metrics.recall, metrics.map50, metrics.map] {
            line.push_str(&format!("{:>11}", general(value, 3)));
        }
    }
    line
}

/// The row of all classes.
pub fn total(report: &Report) -> String {
    let masks = report.masks.as_ref().map(|masks| &masks.mean);
    row("all", report.images, report.labels(), &report.boxes.mean, masks)
}

/// The row of each class that has labels; a class that `names` lacks goes by its number.
pub fn class_rows(report: &Report, names: &[String]) -> Vec<String> {
    let of = |summary: &Summary, class: usize| {
        summary.classes.iter().find(|other| other.class == class).map(|found| found.metrics).unwrap_or_default()
    };
    // Boxes may all be wrong where masks are not, and the other way round.
    let longer = match &report.masks {
        Some(masks) if report.boxes.classes.is_empty() => &masks.classes,
        _ => &report.boxes.classes,
    };
    let row = |class: &super::ClassMetrics| {
        let name = names.get(class.class).cloned().unwrap_or_else(|| class.class.to_string());
        let masks = report.masks.as_ref().map(|masks| of(masks, class.class));
        row(&name, report.images, class.instances, &of(&report.boxes, class.class), masks.as_ref())
    };
    longer.iter().map(row).collect()
}

/// Whether the classes' rows are printed, by YOLOv5's rule: where asked for, or where there are few; and never for a single one.
pub fn shows_classes(verbose: bool, training: bool, classes: usize) -> bool {
    (verbose || (classes < FEW_CLASSES && !training)) && classes > 1
}

/// The line on speed; `shape` is that of a whole batch.
pub fn speed(report: &Report, shape: [usize; 4]) -> String {
    let [pre_process, inference, nms] = report.times.per_picture(report.images);
    let [batch, channels, height, width] = shape;
    format!(
        "Speed: {pre_process:.1}ms pre-process, {inference:.1}ms inference, {nms:.1}ms NMS per image at shape \
         ({batch}, {channels}, {height}, {width})"
    )
}

/// `%.{digits}g`, as C and Python have it: so many significant digits, trailing zeros dropped, an exponent below 1e-4 and where
/// there are more digits before the point.
pub fn general(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "nan".into() } else { format!("{value}") };
    }
    let digits = digits.max(1);
    // The exponent decides after rounding: 99.96 with three digits is 100.
    let scientific = format!("{value:.*e}", digits - 1);
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let Ok(exponent) = exponent.parse::<i32>() else { return scientific };
    let trimmed = |number: &str| match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => number.to_string(),
    };
    if exponent >= -4 && exponent < digits as i32 {
        let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
        trimmed(&format!("{value:.decimals$}"))
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_pythons() {
        // `"%.3g" % value` of CPython.
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (0.995, "0.995"),
            (0.6070001, "0.607"),
            (0.5, "0.5"),
            (0.0123456, "0.0123"),
            (0.00012345, "0.000123"),
            (0.000099999, "0.0001"),
            (0.0000123, "1.23e-05"),
            (999.4, "999"),
            (1234.0, "1.23e+03"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(general(value, 3), expected, "{value}");
        }
        assert_eq!(general(0.491_808_9, 6), "0.491809");
    }

    #[test]
    fn lines_are_yolov5s() {
        let metrics = Metrics { precision: 0.607, recall: 0.5, map50: 0.549, map: 0.35 };
        assert_eq!(
            header(false),
            "                 Class     Images  Instances          P          R      mAP50   mAP50-95"
        );
        assert_eq!(
            row("all", 128, 929, &metrics, None),
            "                   all        128        929      0.607        0.5      0.549       0.35"
        );
        assert!(header(true).ends_with("     Mask(P          R      mAP50  mAP50-95)"));
        assert_eq!(row("all", 1, 2, &metrics, Some(&metrics)).len(), header(true).len());
    }

    #[test]
    fn classes_are_shown_by_yolov5s_rule() {
        assert!(shows_classes(false, false, 49) && shows_classes(true, true, 80));
        assert!(!shows_classes(false, false, 50) && !shows_classes(false, true, 5) && !shows_classes(true, false, 1));
    }
}
