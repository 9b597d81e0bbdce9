//! Lines of text on pictures, from the embedded Roboto and, for what it lacks, a font of the system.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use ab_glyph::{Font, FontArc, FontVec, GlyphId, PxScale, ScaleFont, point};
use image::RgbImage;

use super::draw::{blend, stroke_rectangle};

/// Roboto Medium (Apache-2.0, see the licence beside it).
static ROBOTO: LazyLock<FontArc> = LazyLock::new(|| {
    FontArc::try_from_slice(include_bytes!("../../assets/Roboto-Medium.ttf")).expect("the embedded font can be read")
});

/// The font for characters that Roboto lacks; looked for once, when the first one comes.
static FALLBACK: LazyLock<Option<FontArc>> = LazyLock::new(find_fallback);

/// Starts of file names of fonts with Chinese, Japanese and Korean characters, lower case without spaces, best first.
const FALLBACK_NAMES: [&str; 20] = [
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "pingfang",
    "msyh",
    "hiraginosansgb",
    "wqy-microhei",
    "wqy-zenhei",
    "stheiti",
    "simhei",
    "deng",
    "simsun",
    "notoserifcjk",
    "sourcehanserif",
    "notosanstc",
    "notosansjp",
    "msjh",
    "uming",
    "droidsansfallback",
    "arialunicode",
];

/// More pixels an em than any picture has use for; glyphs are drawn whole before they are cut off.
const LARGEST: f32 = 4096.0;

/// A size's share that a character in no font takes, as a hollow box.
const MISSING_ADVANCE: f32 = 0.6;

/// One line of text, laid out from its left end and baseline, in the embedded Roboto and, where that lacks a character, a font of
/// the system.
#[derive(Debug)]
pub struct TextLine {
    /// Width in pixels.
    pub width: f32,
    size: f32,
    pieces: Vec<(f32, Piece)>,
}

#[derive(Debug)]
enum Piece {
    Glyph(FontArc, PxScale, GlyphId),
    Missing,
}

impl TextLine {
    /// Lays out `text`, letters of `size` pixels an em, from 1 to 4096; others are taken for the nearest of these.
    pub fn new(text: &str, size: f32) -> Self {
        let size = if size.is_nan() { 1.0 } else { size.clamp(1.0, LARGEST) };
        let mut line = Self { width: 0.0, size, pieces: Vec::new() };
        let mut before: Option<(FontArc, GlyphId)> = None;
        for character in text.chars().filter(|&c| !is_invisible(c)) {
            let character = if character.is_control() { ' ' } else { character };
            let Some((font, glyph)) = font_of(character) else {
                line.pieces.push((line.width, Piece::Missing));
                line.width += size * MISSING_ADVANCE;
                before = None;
                continue;
            };
            let scale = em_scale(&font, size);
            let scaled = font.as_scaled(scale);
            if let Some((_, last)) = before.filter(|(last_font, _)| last_font.units_per_em() == font.units_per_em()) {
                line.width += scaled.kern(last, glyph);
            }
            let advance = scaled.h_advance(glyph);
            line.pieces.push((line.width, Piece::Glyph(font.clone(), scale, glyph)));
            line.width += advance;
            before = Some((font, glyph));
        }
        line
    }

    /// Height of the capitals over the baseline for `size` pixels an em.
    pub fn capital_height(size: f32) -> f32 {
        size * 0.711
    }

    /// Draws the line with its left end at `x` and its baseline at `y`; what leaves the picture is cut off.
    pub fn draw(&self, image: &mut RgbImage, x: f32, y: f32, colour: [u8; 3]) {
        for (offset, piece) in &self.pieces {
            match piece {
                Piece::Glyph(font, scale, glyph) => {
                    let glyph = glyph.with_scale_and_position(*scale, point(x + offset, y));
                    let Some(outline) = font.outline_glyph(glyph) else { continue };
                    let bounds = outline.px_bounds();
                    outline.draw(|column, row, coverage| {
                        let (px, py) = (bounds.min.x as i64 + i64::from(column), bounds.min.y as i64 + i64::from(row));
                        blend(image, px, py, colour, coverage);
                    });
                }
                Piece::Missing => {
                    let (left, right) =
                        (x + offset + 0.1 * self.size, x + offset + (MISSING_ADVANCE - 0.1) * self.size);
                    let corners =
                        [left.round(), (y - Self::capital_height(self.size)).round(), right.round(), y.round()];
                    stroke_rectangle(image, corners, (self.size / 16.0).max(1.0), colour);
                }
            }
        }
    }
}

/// Joiners and variation selectors, which have no shape of their own.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FE00}'..='\u{FE0F}' | '\u{FEFF}')
}

/// The scale at which an em is `size` pixels; `ab_glyph` counts from ascender to descender instead.
fn em_scale(font: &FontArc, size: f32) -> PxScale {
    let em = font.units_per_em().filter(|&em| em > 0.0).unwrap_or(1000.0);
    PxScale::from(size * font.height_unscaled() / em)
}

fn font_of(character: char) -> Option<(FontArc, GlyphId)> {
    let glyph_in = |font: &FontArc| {
        let glyph = font.glyph_id(character);
        (glyph.0 != 0).then(|| (font.clone(), glyph))
    };
    glyph_in(&ROBOTO).or_else(|| FALLBACK.as_ref().and_then(glyph_in))
}

/// The font that `YOLO_FONT` names, or the best of the system's.
fn find_fallback() -> Option<FontArc> {
    let asked = std::env::var_os("YOLO_FONT").map(PathBuf::from);
    if let Some(font) = asked.and_then(|path| load(&path)) {
        return Some(font);
    }
    let mut found = Vec::new();
    for folder in font_folders() {
        list_fonts(&folder, 4, &mut found);
    }
    found.sort();
    found.into_iter().find_map(|(_, path)| load(&path))
}

fn font_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        ["/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "/Library/Fonts"]
            .iter()
            .map(PathBuf::from)
            .collect();
    let below = |variable: &str, parts: &[&str]| {
        let base = std::env::var_os(variable).filter(|base| !base.is_empty())?;
        Some(parts.iter().fold(PathBuf::from(base), |path, part| path.join(part)))
    };
    folders.extend(below("HOME", &[".local", "share", "fonts"]));
    folders.extend(below("HOME", &[".fonts"]));
    folders.extend(below("HOME", &["Library", "Fonts"]));
    folders.extend(below("SystemRoot", &["Fonts"]));
    folders.extend(below("LOCALAPPDATA", &["Microsoft", "Windows", "Fonts"]));
    folders
}

/// Gathers the known fonts of a folder and those below it, each with its rank.
fn list_fonts(folder: &Path, depth: usize, found: &mut Vec<((usize, usize), PathBuf)>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if depth > 0 {
                list_fonts(&path, depth - 1, found);
            }
        } else if let Some(rank) = rank(&path) {
            found.push((rank, path));
        }
    }
}

/// Place in [`FALLBACK_NAMES`], then how far the weight is from an ordinary one; `None` for other files.
fn rank(path: &Path) -> Option<(usize, usize)> {
    let extension = path.extension()?.to_str()?.to_lowercase();
    if !["ttf", "otf", "ttc", "otc"].contains(&extension.as_str()) {
        return None;
    }
    let name: String = path.file_stem()?.to_str()?.to_lowercase().split_whitespace().collect();
    let place = FALLBACK_NAMES.iter().position(|start| name.starts_with(start))?;
    let plain = ["medium", "regular"].iter().position(|weight| name.contains(weight));
    let heavy = ["thin", "light", "bold", "black", "heavy", "mono"].iter().any(|weight| name.contains(weight));
    Some((place, plain.unwrap_or(if heavy { 3 } else { 2 })))
}

fn load(path: &Path) -> Option<FontArc> {
    let bytes = std::fs::read(path).ok()?;
    // The third face of a pan-CJK collection is the one for simplified Chinese.
    let pan_cjk = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains("CJK"));
    let index = if pan_cjk && bytes.starts_with(b"ttcf") { 2 } else { 0 };
    let face = |index| FontVec::try_from_vec_and_index(bytes.clone(), index).ok();
    face(index).or_else(|| face(0)).map(FontArc::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_advances_and_skips_what_has_no_shape() {
        let width = |text: &str| TextLine::new(text, 20.0).width;
        // Pillow's length of the same words in the same font and size; it rounds to 1/64 pixel.
        assert!((width("person 0.88") - 106.58).abs() < 0.5, "{}", width("person 0.88"));
        assert_eq!(width("a\u{FE0F}\u{200B}b"), width("ab"));
        assert_eq!(width("a\nb"), width("a b"));
        assert_eq!(width(""), 0.0);
        for (size, taken) in [(f32::INFINITY, LARGEST), (f32::NAN, 1.0), (-3.0, 1.0)] {
            assert_eq!(TextLine::new("a", size).width, TextLine::new("a", taken).width);
        }
        // No font has a noncharacter.
        assert_eq!(width("\u{FFFE}"), 12.0);
    }

    #[test]
    fn system_fonts_are_ranked() {
        let rank = |name: &str| rank(Path::new(name));
        assert!(rank("NotoSansCJK-Regular.ttc") < rank("NotoSansCJK-Black.ttc"));
        assert!(rank("/x/NotoSansCJK-Bold.ttc") < rank("/x/wqy-zenhei.ttc"));
        assert!(rank("Hiragino Sans GB.ttc").is_some());
        assert_eq!(rank("DejaVuSans.ttf"), None);
        assert_eq!(rank("wqy-zenhei.txt"), None);
    }

    #[test]
    fn what_is_no_font_is_passed_over() {
        assert!(load(Path::new(env!("CARGO_MANIFEST_DIR"))).is_none());
        assert!(load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).is_none());
    }
}
