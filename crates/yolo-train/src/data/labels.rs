//! The labels of one picture: boxes and outlines of a text file, with YOLOv5's checks.

use std::path::{Path, PathBuf};

use yolo_core::{files, picture as pictures};

use super::dataset::label_path;

/// Pictures with a shorter side are no good to anyone.
const MIN_SIDE: u32 = 10;
/// Bytes of a label file; what is longer is something else.
const MAX_BYTES: u64 = 64 << 20;
/// Columns of a row with a box.
const BOX_COLUMNS: usize = 5;
/// Rows with more columns have an outline.
const MAX_BOX_COLUMNS: usize = 6;

/// What is on one picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels {
    /// The picture's file.
    pub picture: PathBuf,
    /// Height and width in pixels.
    pub size: (u32, u32),
    /// Each object's class.
    pub classes: Vec<usize>,
    /// Each object's centre, width and height in shares of the picture.
    pub boxes: Vec<[f32; 4]>,
    /// Each object's outline in shares of the picture; empty, where the file has only boxes, or as many as there are boxes.
    pub segments: Vec<Vec<[f32; 2]>>,
}

/// How a label file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// With objects.
    Found,
    /// Without any object.
    Empty,
    /// There is none: the picture is background.
    Missing,
    /// It, or the picture, cannot be used.
    Corrupt,
}

/// What a look at a picture and its label file gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    pub(super) labels: Labels,
    pub(super) state: State,
    /// For the person at the terminal: why it is skipped, or what was mended.
    pub(super) message: Option<String>,
}

/// Decodes a picture and reads its labels. Nothing here is an error: what cannot be used is said in the message.
pub(super) fn look(picture: &Path) -> Look {
    let mut labels = Labels { picture: picture.to_path_buf(), ..Labels::default() };
    match inspect(picture, &mut labels) {
        Ok((state, message)) => Look { labels, state, message },
        Err(problem) => {
            let message = Some(format!("{}: skipped: {problem}", picture.display()));
            Look { labels: Labels { picture: labels.picture, ..Labels::default() }, state: State::Corrupt, message }
        }
    }
}

fn inspect(picture: &Path, labels: &mut Labels) -> Result<(State, Option<String>), String> {
    let bytes = files::read(picture, pictures::MAX_BYTES).map_err(|error| match error {
        yolo_core::Error::Io { cause, .. } => cause.to_string(),
        other => other.to_string(),
    })?;
    // Decoded to the end: a damaged picture shall be told now, not in the middle of an epoch.
    let decoded = yolo_core::picture::from_bytes(&bytes, picture).map_err(|error| match error {
        yolo_core::Error::Picture { problem, .. } => problem,
        other => other.to_string(),
    })?;
    let (width, height) = decoded.dimensions();
    labels.size = (height, width);
    if width < MIN_SIDE || height < MIN_SIDE {
        return Err(format!("the picture is {width}x{height} pixels; a side needs at least {MIN_SIDE}"));
    }
    let file = label_path(picture);
    let text = match read(&file) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok((State::Missing, None)),
        Err(problem) => return Err(format!("{}: {problem}", file.display())),
    };
    let duplicates = parse(&text, labels).map_err(|problem| format!("{}: {problem}", file.display()))?;
    let state = if labels.boxes.is_empty() { State::Empty } else { State::Found };
    let message = (duplicates > 0).then(|| {
        let rows = if duplicates == 1 { "row" } else { "rows" };
        format!("{}: {duplicates} duplicate {rows} removed", file.display())
    });
    Ok((state, message))
}

/// The text of a label file, if there is one.
fn read(file: &Path) -> Result<Option<String>, String> {
    match std::fs::metadata(file) {
        Ok(metadata) if !metadata.is_file() => return Ok(None),
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            return Err(format!("{} bytes is too long for a label file", metadata.len()));
        }
        Ok(_) => {}
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(cause.to_string()),
    }
    std::fs::read_to_string(file).map(Some).map_err(|cause| cause.to_string())
}

/// Reads rows of `class cx cy w h` or `class x1 y1 x2 y2 x3 y3 ...` into `labels` and gives the number of rows that stood
/// there before. Where one row has an outline, all have one: a box's is its four corners.
fn parse(text: &str, labels: &mut Labels) -> Result<usize, String> {
    let mut rows: Vec<Vec<f32>> = Vec::new();
    // Some programs end lines with a carriage return alone.
    for (index, line) in text.lines().flat_map(|line| line.split('\r')).enumerate() {
        let row: Vec<f32> = line
            .split_whitespace()
            .map(|word| match word.parse::<f32>() {
                Ok(value) if value.is_finite() => Ok(value),
                _ => Err(format!("line {}: {word:?} is no number", index + 1)),
            })
            .collect::<Result<_, _>>()?;
        if row.is_empty() {
            continue;
        }
        check(&row).map_err(|problem| format!("line {}: {problem}", index + 1))?;
        rows.push(row);
    }
    let all = rows.len();
    let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let mut seen = std::collections::HashSet::new();
    rows.retain(|row| seen.insert(bits(row)));

    let outlines = rows.iter().any(|row| row.len() > MAX_BOX_COLUMNS);
    for row in &rows {
        labels.classes.push(row[0] as usize);
        let numbers = &row[1..];
        if row.len() == BOX_COLUMNS {
            let bbox = [numbers[0], numbers[1], numbers[2], numbers[3]];
            labels.boxes.push(bbox);
            if outlines {
                labels.segments.push(corners(bbox));
            }
        } else {
            let points: Vec<[f32; 2]> = numbers.as_chunks::<2>().0.to_vec();
            labels.boxes.push(bounds(&points));
            labels.segments.push(points);
        }
    }
    Ok(all - rows.len())
}

fn check(row: &[f32]) -> Result<(), String> {
    let columns = row.len();
    if columns != BOX_COLUMNS && columns <= MAX_BOX_COLUMNS {
        return Err(format!("a box has {BOX_COLUMNS} columns (class cx cy w h), got {columns}"));
    }
    if columns > MAX_BOX_COLUMNS && columns.is_multiple_of(2) {
        return Err(format!("an outline has a class and pairs of x and y, got {columns} columns"));
    }
    // Of an outline single corners may lie outside the picture, as in YOLOv5: its box is what counts.
    let bbox = if columns > MAX_BOX_COLUMNS { &bounds(row[1..].as_chunks().0)[..] } else { &row[1..] };
    if let Some(value) = row[..1].iter().chain(bbox).find(|value| **value < 0.0) {
        return Err(format!("negative value {value}"));
    }
    if let Some(value) = bbox.iter().find(|value| **value > 1.0) {
        return Err(format!("{value} is more than 1: coordinates are shares of the picture's sides"));
    }
    if row[0].fract() != 0.0 || row[0] > 1e6 {
        return Err(format!("{} is no class: a whole number from 0 on is expected", row[0]));
    }
    Ok(())
}

/// The box of some points, as centre, width and height.
pub(super) fn bounds(points: &[[f32; 2]]) -> [f32; 4] {
    let mut low = [f32::INFINITY; 2];
    let mut high = [f32::NEG_INFINITY; 2];
    for point in points {
        for axis in 0..2 {
            low[axis] = low[axis].min(point[axis]);
            high[axis] = high[axis].max(point[axis]);
        }
    }
    [(low[0] + high[0]) / 2.0, (low[1] + high[1]) / 2.0, high[0] - low[0], high[1] - low[1]]
}

/// The outline of a box given as centre, width and height.
pub(super) fn corners([x, y, width, height]: [f32; 4]) -> Vec<[f32; 2]> {
    let (left, right) = (x - width / 2.0, x + width / 2.0);
    let (top, bottom) = (y - height / 2.0, y + height / 2.0);
    vec![[left, top], [right, top], [right, bottom], [left, bottom]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Labels, usize), String> {
        let mut labels = Labels::default();
        parse(text, &mut labels).map(|duplicates| (labels, duplicates))
    }

    #[test]
    fn boxes_and_outlines_are_read() {
        let (labels, duplicates) = parsed("0 0.5 0.5 0.25 0.5\n\n2 .1 .2 .3 .4\n0 0.5 0.5 0.25 0.5\n").unwrap();
        assert_eq!((labels.classes, duplicates), (vec![0, 2], 1));
        assert_eq!(labels.boxes, [[0.5, 0.5, 0.25, 0.5], [0.1, 0.2, 0.3, 0.4]]);
        assert!(labels.segments.is_empty());

        let (labels, _) = parsed("1 0.25 0.25 0.75 0.25 0.5 0.75\n3 0.5 0.5 0.5 0.25").unwrap();
        assert_eq!(labels.classes, [1, 3]);
        assert_eq!(labels.boxes, [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.25]]);
        assert_eq!(labels.segments[0], [[0.25, 0.25], [0.75, 0.25], [0.5, 0.75]]);
        assert_eq!(labels.segments[1], [[0.25, 0.375], [0.75, 0.375], [0.75, 0.625], [0.25, 0.625]]);
        assert_eq!(parsed(" \n").unwrap().0.boxes.len(), 0);

        // Three rows on one line would be taken for an outline of seven points.
        let rows = ["0 .5 .5 .2 .2", "1 .2 .2 .1 .1", "0 .3 .3 .1 .1"];
        let expected = parsed(&rows.join("\n")).unwrap();
        assert_eq!((expected.0.boxes.len(), expected.0.segments.len()), (3, 0));
        for end in ["\r\n", "\r"] {
            assert_eq!(parsed(&(rows.join(end) + end)).unwrap(), expected, "{end:?}");
        }
    }

    #[test]
    fn corners_of_an_outline_may_lie_outside_the_picture() {
        let (labels, _) = parsed("1 -0.25 0.25 0.75 0.25 0.5 1.25").unwrap();
        assert_eq!(labels.boxes, [[0.25, 0.75, 1.0, 1.0]]);
        assert_eq!(labels.segments[0], [[-0.25, 0.25], [0.75, 0.25], [0.5, 1.25]]);
    }

    #[test]
    fn bad_rows_are_named() {
        for (text, expected) in [
            ("0 .5 .5 .5 .5\n0 .5 .5 .5", "line 2: a box has 5 columns (class cx cy w h), got 4"),
            ("0 .5 .5 .5 .5 .5", "line 1: a box has 5 columns (class cx cy w h), got 6"),
            ("0 .5 .5 .5 .5 .5 .5 .5", "line 1: an outline has a class and pairs of x and y, got 8 columns"),
            ("0 .5 -.5 .5 .5", "line 1: negative value -0.5"),
            ("-1 .5 .5 .5 .5", "line 1: negative value -1"),
            ("0 .5 1.5 .5 .5", "line 1: 1.5 is more than 1: coordinates are shares of the picture's sides"),
            ("0 -.5 .5 .25 .5 .25 .75", "line 1: negative value -0.125"),
            ("0 .5 .5 .5 1.75 .25 1.75", "line 1: 1.125 is more than 1: coordinates are shares of the picture's sides"),
            ("0 .5 nan .5 .5", "line 1: \"nan\" is no number"),
            ("cat .5 .5 .5 .5", "line 1: \"cat\" is no number"),
            ("0.5 .5 .5 .5 .5", "line 1: 0.5 is no class: a whole number from 0 on is expected"),
        ] {
            assert_eq!(parsed(text).unwrap_err(), expected);
        }
    }
}
