//! The small print: numbers and lists as Python writes them, so that what is printed and saved reads as YOLOv5's does.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};

use yolo_core::Detection;

/// `%g`, as C and Python have it: six significant digits, trailing zeros dropped, an exponent below 1e-4 and from 1e6 on.
pub(crate) fn general(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    // The exponent decides after rounding: 999999.5 is 1e+06.
    let scientific = format!("{value:.5e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let Ok(exponent) = exponent.parse::<i32>() else { return scientific };
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).unwrap_or(0);
        without_trailing_zeros(&format!("{value:.decimals$}")).into()
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", without_trailing_zeros(digits), exponent.abs())
    }
}

fn without_trailing_zeros(number: &str) -> &str {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.') } else { number }
}

/// How many of each class, by class index, as in `4 persons, 1 bus, `; `(no detections), ` where there is none.
pub(crate) fn tally(detections: &[Detection], names: &[String]) -> String {
    if detections.is_empty() {
        return "(no detections), ".into();
    }
    let mut counts = BTreeMap::<usize, usize>::new();
    for detection in detections {
        *counts.entry(detection.class).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(class, n)| format!("{n} {}{}, ", class_name(names, class), if n > 1 { "s" } else { "" }))
        .collect()
}

/// A class's name, or its number where the network has no name for it.
pub(crate) fn class_name(names: &[String], class: usize) -> String {
    names.get(class).cloned().unwrap_or_else(|| class.to_string())
}

/// `True` or `False`.
pub(crate) fn boolean(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// `[640, 640]`.
pub(crate) fn list<T: Debug>(values: &[T]) -> String {
    format!("{values:?}")
}

/// `['a.pt', 'b.pt']`.
pub(crate) fn quoted_list<T: Display>(values: &[T]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("'{value}'")).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides are what CPython 3.11 prints for `"%g" % value`.
    #[test]
    fn general_is_pythons() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (5.0, "5"),
            (10.0, "10"),
            (100000.0, "100000"),
            (1000000.0, "1e+06"),
            (999999.0, "999999"),
            (999999.4, "999999"),
            (999999.5, "1e+06"),
            (1234567.0, "1.23457e+06"),
            (123456.5, "123456"),
            (0.5, "0.5"),
            (0.1 + 0.2, "0.3"),
            (1.0 / 3.0, "0.333333"),
            (2.0 / 3.0, "0.666667"),
            (0.0001, "0.0001"),
            (0.00012345678, "0.000123457"),
            (0.00009999995, "0.0001"),
            (0.000099999949, "9.99999e-05"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (-1.5e-7, "-1.5e-07"),
            (1e100, "1e+100"),
            (1.25e-300, "1.25e-300"),
            (5e-324, "4.94066e-324"),
            (f64::from(0.49180886_f32), "0.491809"),
            (f64::from(0.87576_f32), "0.87576"),
            (f64::from(0.1_f32), "0.1"),
            (-0.0444444, "-0.0444444"),
            (100.5, "100.5"),
            (99999.95, "99999.9"),
            (99999.96, "100000"),
            (f64::NAN, "nan"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
        ];
        for (value, expected) in cases {
            assert_eq!(general(value), expected, "{value:?}");
        }
    }

    fn of(class: usize) -> Detection {
        Detection { bbox: [0.0; 4], class, confidence: 0.5, mask: None, polygon: None }
    }

    #[test]
    fn counts_go_by_class_and_take_an_s() {
        let names: Vec<String> = ["person", "bicycle", "bus"].map(String::from).into();
        assert_eq!(tally(&[of(2), of(0), of(0)], &names), "2 persons, 1 bus, ");
        assert_eq!(tally(&[of(2), of(2)], &names), "2 buss, ");
        assert_eq!(tally(&[of(7)], &names), "1 7, ");
        assert_eq!(tally(&[], &names), "(no detections), ");
    }

    #[test]
    fn lists_are_pythons() {
        assert_eq!(list(&[640, 480]), "[640, 480]");
        assert_eq!(quoted_list(&["a.pt"]), "['a.pt']");
        assert_eq!(boolean(true), "True");
    }
}
