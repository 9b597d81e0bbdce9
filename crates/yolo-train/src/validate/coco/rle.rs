//! Masks as runs, in COCO's compressed text.

use serde::{Deserialize, Serialize};
use yolo_core::Mask;

/// A mask as lengths of runs, down the columns from the left one: outside, inside, outside, ...
///
/// In JSON it is `{"size": [height, width], "counts": "..."}` with COCO's compressed text; a list of numbers is read, too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct Rle {
    height: u32,
    width: u32,
    runs: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct Json {
    size: [u32; 2],
    counts: Counts,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Counts {
    Text(String),
    List(Vec<u32>),
}

impl From<Rle> for Json {
    fn from(rle: Rle) -> Self {
        Self { size: [rle.height, rle.width], counts: Counts::Text(rle.text()) }
    }
}

impl TryFrom<Json> for Rle {
    type Error = String;

    fn try_from(json: Json) -> Result<Self, String> {
        let [height, width] = json.size;
        let runs = match json.counts {
            Counts::List(runs) => runs,
            Counts::Text(text) => decoded(&text)?,
        };
        let pixels: u64 = runs.iter().map(|&run| u64::from(run)).sum();
        if pixels != u64::from(height) * u64::from(width) {
            return Err(format!("a mask of {width}x{height} pixels has runs of {pixels}"));
        }
        Ok(Self { height, width, runs })
    }
}

impl Rle {
    /// Of a mask whose data match its sides; what is missing counts as outside.
    pub fn of_mask(mask: &Mask) -> Self {
        let at = |y: u32, x: u32| mask.data.get(y as usize * mask.width as usize + x as usize).is_some_and(|&b| b != 0);
        Self::of_columns(mask.height, mask.width, (0..mask.width).flat_map(|x| (0..mask.height).map(move |y| at(y, x))))
    }

    fn of_columns(height: u32, width: u32, pixels: impl Iterator<Item = bool>) -> Self {
        let (mut runs, mut inside, mut run) = (Vec::new(), false, 0);
        for pixel in pixels {
            if pixel != inside {
                runs.push(std::mem::take(&mut run));
                inside = pixel;
            }
            run += 1;
        }
        runs.push(run);
        Self { height, width, runs }
    }

    /// Of outlines `[x, y, x, y, ...]` in pixels of a picture; a pixel is inside where any outline covers it.
    ///
    /// The rule for pixels on the edge is that of COCO's tools: outlines are drawn as lines of a five times finer grid, and
    /// columns are cut where those lines cross their middles.
    pub fn of_outlines(outlines: &[Vec<f64>], height: u32, width: u32) -> Self {
        let mut pixels = vec![false; height as usize * width as usize];
        for outline in outlines {
            let mut inside = false;
            let mut crossings = crossings(outline, height, width).into_iter().peekable();
            for (at, pixel) in pixels.iter_mut().enumerate() {
                while crossings.next_if_eq(&at).is_some() {
                    inside = !inside;
                }
                *pixel |= inside;
            }
        }
        Self::of_columns(height, width, pixels.into_iter())
    }

    /// Height and width.
    pub fn size(&self) -> (u32, u32) {
        (self.height, self.width)
    }

    /// Pixels inside.
    pub fn area(&self) -> u64 {
        self.runs.iter().skip(1).step_by(2).map(|&run| u64::from(run)).sum()
    }

    /// Pixels inside of both; 0 for masks of unlike sizes.
    pub fn intersection(&self, other: &Self) -> u64 {
        if self.size() != other.size() {
            return 0;
        }
        let (mut a, mut b) = (self.spans(), other.spans());
        let (mut one, mut two) = (a.next(), b.next());
        let mut shared = 0;
        while let (Some((start, end)), Some((other_start, other_end))) = (one, two) {
            shared += end.min(other_end).saturating_sub(start.max(other_start));
            if end <= other_end { one = a.next() } else { two = b.next() }
        }
        shared
    }

    /// Where the runs inside begin and end.
    fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut at = 0;
        let ends = self.runs.iter().map(move |&run| {
            let start = at;
            at += u64::from(run);
            (start, at)
        });
        ends.skip(1).step_by(2)
    }

    /// COCO's text: each run as its difference to the one before last, five bits a letter, the lowest first.
    fn text(&self) -> String {
        let mut text = String::new();
        for (index, &run) in self.runs.iter().enumerate() {
            let mut value = i64::from(run) - if index > 2 { i64::from(self.runs[index - 2]) } else { 0 };
            loop {
                let bits = (value & 31) as u8;
                value >>= 5;
                let more = if bits & 16 != 0 { value != -1 } else { value != 0 };
                text.push(char::from(bits + if more { 32 } else { 0 } + 48));
                if !more {
                    break;
                }
            }
        }
        text
    }
}

fn decoded(text: &str) -> Result<Vec<u32>, String> {
    let bad = || format!("{text:?} is not a mask in COCO's text");
    let mut runs: Vec<u32> = Vec::new();
    let mut letters = text.bytes();
    while let Some(first) = letters.next() {
        let (mut value, mut shift, mut letter) = (0i64, 0, first);
        loop {
            // Seven letters hold more than any run.
            let bits = letter.checked_sub(48).filter(|bits| *bits < 64 && shift < 35).ok_or_else(bad)?;
            value |= i64::from(bits & 31) << shift;
            shift += 5;
            if bits & 32 == 0 {
                if bits & 16 != 0 {
                    value |= -1 << shift;
                }
                break;
            }
            letter = letters.next().ok_or_else(bad)?;
        }
        let before = if runs.len() > 2 { i64::from(runs[runs.len() - 2]) } else { 0 };
        runs.push(u32::try_from(value + before).map_err(|_| bad())?);
    }
    Ok(runs)
}

/// Where an outline's columns change between outside and inside: rising places in a column-major picture.
fn crossings(outline: &[f64], height: u32, width: u32) -> Vec<usize> {
    const FINE: f64 = 5.0;
    // Further out than any picture, and near enough for lines to be walked point by point.
    const FAR: f64 = 1e5;
    let fine = |value: f64| (FINE * value.clamp(-FAR, FAR) + 0.5) as i64;
    let corners: Vec<(i64, i64)> = outline.chunks_exact(2).map(|xy| (fine(xy[0]), fine(xy[1]))).collect();
    let (limit_x, limit_y) = (f64::from(width), f64::from(height));
    let mut places = Vec::new();
    let mut last: Option<(i64, i64)> = None;
    for (index, &from) in corners.iter().enumerate() {
        for point in line(from, corners[(index + 1) % corners.len()]) {
            if let Some(before) = last.replace(point).filter(|before| before.0 != point.0) {
                let x = if point.0 < before.0 { point.0 } else { point.0 - 1 };
                let x = (x as f64 + 0.5) / FINE - 0.5;
                if x.floor() == x && x >= 0.0 && x <= limit_x - 1.0 {
                    let y = ((point.1.min(before.1) as f64 + 0.5) / FINE - 0.5).clamp(0.0, limit_y).ceil();
                    places.push(x as usize * height as usize + y as usize);
                }
            }
        }
    }
    places.sort_unstable();
    places
}

/// The points of a line on the grid, both ends among them, from the one to the other.
fn line(from: (i64, i64), to: (i64, i64)) -> Box<dyn Iterator<Item = (i64, i64)>> {
    let (across, down) = ((to.0 - from.0).abs(), (to.1 - from.1).abs());
    let wide = across >= down;
    // Lines are reckoned from their left or upper end, so that both directions give the same points.
    let flip = if wide { from.0 > to.0 } else { from.1 > to.1 };
    let ((x1, y1), (x2, y2)) = if flip { (to, from) } else { (from, to) };
    let count = if wide { across } else { down };
    let slope = match (wide, count) {
        (_, 0) => 0.0,
        (true, _) => (y2 - y1) as f64 / across as f64,
        (false, _) => (x2 - x1) as f64 / down as f64,
    };
    Box::new((0..=count).map(move |step| {
        let t = if flip { count - step } else { step };
        match wide {
            true => (t + x1, (y1 as f64 + slope * t as f64 + 0.5) as i64),
            false => ((x1 as f64 + slope * t as f64 + 0.5) as i64, t + y1),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(width: u32, height: u32, inside: impl Fn(u32, u32) -> bool) -> Rle {
        let data = (0..width * height).map(|at| u8::from(inside(at % width, at / width))).collect();
        Rle::of_mask(&Mask { width, height, data })
    }

    #[test]
    fn runs_go_down_the_columns() {
        let rle = mask(3, 2, |x, y| x == 1 || (x == 0 && y == 1));
        assert_eq!((rle.runs.as_slice(), rle.area()), (&[1, 3, 2][..], 3));
        assert_eq!(mask(2, 2, |_, _| true).runs, [0, 4]);
        assert_eq!(mask(2, 2, |_, _| false).runs, [4]);
    }

    #[test]
    fn text_is_cocos() {
        // `pycocotools.mask.encode` of a disc.
        let disc = mask(40, 30, |x, y| (f64::from(x) - 19.5).powi(2) + (f64::from(y) - 14.0).powi(2) < 100.0);
        let json = serde_json::to_string(&disc).unwrap();
        assert_eq!(json, format!(r#"{{"size":[30,40],"counts":"{}"}}"#, DISC));
        assert_eq!(serde_json::from_str::<Rle>(&json).unwrap(), disc);
        let list: Rle = serde_json::from_str(r#"{"size":[2,3],"counts":[1,3,2]}"#).unwrap();
        assert_eq!(list.area(), 3);
    }

    const DISC: &str = "g97e04M2N2N2O0O2O00000000000001N101N2N2N3LS9";

    #[test]
    fn damaged_text_is_an_error() {
        for counts in [r#""4""#, r#""~~~""#, r#""é""#, r#""ooooooooooooo""#, r#""P""#, r#""_""#, "[1,2]", "[]"] {
            let text = format!(r#"{{"size":[2,3],"counts":{counts}}}"#);
            assert!(serde_json::from_str::<Rle>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn intersections_are_those_of_pixels() {
        let (a, b) = (mask(13, 11, |x, y| x * y % 3 == 0), mask(13, 11, |x, y| (x + y) % 2 == 0));
        let both = mask(13, 11, |x, y| x * y % 3 == 0 && (x + y) % 2 == 0);
        assert_eq!(a.intersection(&b), both.area());
        assert_eq!(a.intersection(&a), a.area());
        assert_eq!(a.intersection(&mask(11, 13, |_, _| true)), 0);
    }

    #[test]
    fn outlines_are_filled_as_cocos_tools_fill_them() {
        let square = Rle::of_outlines(&[vec![2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]], 8, 10);
        assert_eq!(square, mask(10, 8, |x, y| (2..6).contains(&x) && (1..5).contains(&y)));
        // `pycocotools.mask.frPyObjects` of each and `merge` of both.
        let outlines =
            [vec![2.3, 1.7, 30.2, 4.1, 25.9, 22.8, 11.1, 27.6, 3.3, 15.0], vec![10.0, 10.0, -5.0, 20.0, 50.0, 29.0]];
        let text = |outlines: &[Vec<f64>]| Rle::of_outlines(outlines, 30, 40).text();
        assert_eq!(text(&outlines[..1]), "n11m0<D2N1O2N2N1O2N100O0000O1000000O10000O2O000O100M3L4L4K]9");
        assert_eq!(
            text(&outlines[1..]),
            "`05i00O1O101N1O100O1O10010O01O001O0010O0001O001O010O001O001O010O001O001O010O00001OXO"
        );
        assert_eq!(
            text(&outlines),
            "`05i00BL15O=01O0000001O2N100O0000O1000000O10000O2O01O000000GIK71NN2M34<O001O001O010O00001OXO"
        );
        assert_eq!(Rle::of_outlines(&[vec![], vec![1.0], vec![f64::NAN; 8]], 4, 4).area(), 0);
        assert_eq!(Rle::of_outlines(&[vec![-9e99, -9e99, 9e99, -9e99, 9e99, 9e99, -9e99, 9e99]], 0, 0).area(), 0);
    }
}
