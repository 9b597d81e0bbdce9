//! Writing JPEG: baseline, full colour resolution, the standard's own Huffman tables.
//!
//! `image` has an encoder too, and tests hold this one to it; but it spends more on a photograph than a small network does on
//! finding what is in it.

use image::RgbImage;

use crate::{Error, Result};

/// The longest side that the format can hold.
const MAX_SIDE: u32 = 65_535;

/// Quantisation of luma and chroma at quality 50 (ITU-T T.81, tables K.1 and K.2).
#[rustfmt::skip]
const QUANTISATION: [[u8; 64]; 2] = [
    [
        16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55,
        14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
        18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
        49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
    ],
    [
        17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99,
        24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    ],
];

/// A Huffman table as a file holds it: the number of codes of each length, 1 to 16 bits, and the symbols by their codes.
struct Symbols {
    lengths: [u8; 16],
    symbols: &'static [u8],
}

/// Differences of mean values, of luma and chroma (tables K.3 and K.4).
const MEANS: [Symbols; 2] = [
    Symbols {
        lengths: [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
        symbols: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    },
    Symbols {
        lengths: [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
        symbols: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    },
];

/// The other coefficients, of luma and chroma (tables K.5 and K.6): zeros before it in the upper four bits, size in the lower.
#[rustfmt::skip]
const REST: [Symbols; 2] = [
    Symbols {
        lengths: [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
        symbols: b"\
\x01\x02\x03\x00\x04\x11\x05\x12\x21\x31\x41\x06\x13\x51\x61\x07\x22\x71\x14\x32\x81\x91\xA1\x08\x23\x42\xB1\xC1\x15\x52\xD1\xF0\
\x24\x33\x62\x72\x82\x09\x0A\x16\x17\x18\x19\x1A\x25\x26\x27\x28\x29\x2A\x34\x35\x36\x37\x38\x39\x3A\x43\x44\x45\x46\x47\x48\x49\
\x4A\x53\x54\x55\x56\x57\x58\x59\x5A\x63\x64\x65\x66\x67\x68\x69\x6A\x73\x74\x75\x76\x77\x78\x79\x7A\x83\x84\x85\x86\x87\x88\x89\
\x8A\x92\x93\x94\x95\x96\x97\x98\x99\x9A\xA2\xA3\xA4\xA5\xA6\xA7\xA8\xA9\xAA\xB2\xB3\xB4\xB5\xB6\xB7\xB8\xB9\xBA\xC2\xC3\xC4\xC5\
\xC6\xC7\xC8\xC9\xCA\xD2\xD3\xD4\xD5\xD6\xD7\xD8\xD9\xDA\xE1\xE2\xE3\xE4\xE5\xE6\xE7\xE8\xE9\xEA\xF1\xF2\xF3\xF4\xF5\xF6\xF7\xF8\
\xF9\xFA",
    },
    Symbols {
        lengths: [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119],
        symbols: b"\
\x00\x01\x02\x03\x11\x04\x05\x21\x31\x06\x12\x41\x51\x07\x61\x71\x13\x22\x32\x81\x08\x14\x42\x91\xA1\xB1\xC1\x09\x23\x33\x52\xF0\
\x15\x62\x72\xD1\x0A\x16\x24\x34\xE1\x25\xF1\x17\x18\x19\x1A\x26\x27\x28\x29\x2A\x35\x36\x37\x38\x39\x3A\x43\x44\x45\x46\x47\x48\
\x49\x4A\x53\x54\x55\x56\x57\x58\x59\x5A\x63\x64\x65\x66\x67\x68\x69\x6A\x73\x74\x75\x76\x77\x78\x79\x7A\x82\x83\x84\x85\x86\x87\
\x88\x89\x8A\x92\x93\x94\x95\x96\x97\x98\x99\x9A\xA2\xA3\xA4\xA5\xA6\xA7\xA8\xA9\xAA\xB2\xB3\xB4\xB5\xB6\xB7\xB8\xB9\xBA\xC2\xC3\
\xC4\xC5\xC6\xC7\xC8\xC9\xCA\xD2\xD3\xD4\xD5\xD6\xD7\xD8\xD9\xDA\xE2\xE3\xE4\xE5\xE6\xE7\xE8\xE9\xEA\xF2\xF3\xF4\xF5\xF6\xF7\xF8\
\xF9\xFA",
    },
];

/// The order in which a block's coefficients are written.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// The same in the transposed block.
const TRANSPOSED: [u8; 64] = {
    let mut places = ZIGZAG;
    let mut at = 0;
    while at < 64 {
        places[at] = transposed(ZIGZAG[at] as usize) as u8;
        at += 1;
    }
    places
};

/// Encodes a picture as JPEG of `quality` 1 to 100, with full colour resolution.
///
/// # Errors
/// [`Error::Argument`] where the quality is out of its range, or a side has no pixel or more than 65535.
pub fn encode_jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    if !(1..=100).contains(&quality) {
        let problem = format!("{quality} is not a JPEG quality from 1 to 100");
        return Err(Error::Argument { argument: "quality", problem });
    }
    let (width, height) = image.dimensions();
    if ![width, height].iter().all(|side| (1..=MAX_SIDE).contains(side)) {
        let problem = format!("{width}x{height} pixels: JPEG holds from 1 to {MAX_SIDE} a side");
        return Err(Error::Argument { argument: "picture", problem });
    }
    let tables = [0, 1].map(|kind| Tables::new(kind, quality));
    // About what a photograph comes to at quality 95.
    let mut bytes = Vec::with_capacity(1024 + image.as_raw().len() / 4);
    head(&mut bytes, (width as u16, height as u16), &tables);
    let mut bits = Bits { bytes, pending: 0, count: 0 };
    let stride = width as usize * 3;
    let mut strip = Strip::new(width as usize);
    let mut means = [0; 3];
    for rows in image.as_raw().chunks(8 * stride) {
        strip.fill(rows, stride);
        let [luma, chroma_blue, chroma_red] = &strip.channels;
        for ((luma, chroma_blue), chroma_red) in luma.iter().zip(chroma_blue).zip(chroma_red) {
            for ((block, mean), kind) in [luma, chroma_blue, chroma_red].into_iter().zip(&mut means).zip([0, 1, 1]) {
                bits.put_block(&tables[kind].quantised(block), mean, &tables[kind]);
            }
        }
    }
    Ok(bits.finish())
}

/// What precedes the coefficients.
fn head(bytes: &mut Vec<u8>, (width, height): (u16, u16), tables: &[Tables; 2]) {
    bytes.extend([0xFF, 0xD8]);
    let mut segment = |marker: u8, parts: &[&[u8]]| {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        bytes.extend([0xFF, marker]);
        bytes.extend((len as u16 + 2).to_be_bytes());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
    };
    segment(0xE0, &[b"JFIF\0\x01\x02\0\0\x01\0\x01\0\0"]);
    // Three channels of full resolution; the first goes by tables 0, the others by tables 1.
    segment(0xC0, &[&[8], &height.to_be_bytes(), &width.to_be_bytes(), &[3, 1, 0x11, 0, 2, 0x11, 1, 3, 0x11, 1]]);
    for (kind, tables) in (0u8..).zip(tables) {
        segment(0xDB, &[&[kind], &ZIGZAG.map(|place| tables.quantisation[usize::from(place)])]);
        for (class, symbols) in [(0, &MEANS), (0x10, &REST)] {
            let Symbols { lengths, symbols } = &symbols[usize::from(kind)];
            segment(0xC4, &[&[class | kind], lengths, symbols]);
        }
    }
    segment(0xDA, &[&[3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0]]);
}

/// A code and its length in bits.
#[derive(Clone, Copy, Default)]
struct Code {
    bits: u16,
    len: u8,
}

/// What the blocks of luma (0) or chroma (1) are written with.
struct Tables {
    quantisation: [u8; 64],
    /// What turns the transform's sums into quantised coefficients; transposed, as these are.
    factors: [f32; 64],
    means: [Code; 256],
    rest: [Code; 256],
}

impl Tables {
    fn new(kind: usize, quality: u8) -> Self {
        // As libjpeg scales them.
        let quality = u32::from(quality);
        let scale = if quality < 50 { 5000 / quality } else { 200 - quality * 2 };
        let quantisation = QUANTISATION[kind].map(|step| ((u32::from(step) * scale + 50) / 100).clamp(1, 255) as u8);
        let left_out = |index: usize| match index {
            0 => 1.0,
            _ => (index as f64 * std::f64::consts::PI / 16.0).cos() * std::f64::consts::SQRT_2,
        };
        let factors = std::array::from_fn(|place| {
            let scale = left_out(place / 8) * left_out(place % 8) * 8.0;
            (1.0 / (scale * f64::from(quantisation[transposed(place)]))) as f32
        });
        Self { quantisation, factors, means: codes(&MEANS[kind]), rest: codes(&REST[kind]) }
    }

    /// The rounded coefficients of a block, in the order in which they are written.
    fn quantised(&self, block: &Block) -> [i16; 64] {
        let mut block = *block;
        transform(&mut block);
        block = std::array::from_fn(|row| std::array::from_fn(|column| block[column][row]));
        transform(&mut block);
        let mut rounded = [0; 64];
        for ((rounded, sum), factor) in rounded.iter_mut().zip(block.as_flattened()).zip(&self.factors) {
            // This sum has the rounded number in the last bits of its mantissa, below 1.5 * 2^23.
            *rounded = (sum * factor + 12_582_912.0).to_bits() as i16;
        }
        TRANSPOSED.map(|place| rounded[usize::from(place & 63)])
    }
}

/// The place of a block's element in the transposed block.
const fn transposed(place: usize) -> usize {
    place % 8 * 8 + place / 8
}

/// The code of every symbol.
fn codes(Symbols { lengths, symbols }: &Symbols) -> [Code; 256] {
    let mut codes = [Code::default(); 256];
    let mut symbols = symbols.iter();
    let mut next = 0;
    for (len, count) in (1..).zip(lengths) {
        for symbol in symbols.by_ref().take(usize::from(*count)) {
            codes[usize::from(*symbol)] = Code { bits: next, len };
            next += 1;
        }
        next <<= 1;
    }
    codes
}

/// 8 x 8 samples of one channel, or what becomes of them.
type Block = [[f32; 8]; 8];

/// The discrete cosine transform of each column, but for a factor for each row (Arai, Agui and Nakajima, 1988).
// Inlined, it is not vectorised.
#[inline(never)]
fn transform(rows: &mut Block) {
    use std::f32::consts::FRAC_1_SQRT_2;
    // sin(pi/8), and cos(pi/8) less and more that.
    const SINE: f32 = 0.382_683_43;
    const LESS: f32 = 0.541_196_1;
    const MORE: f32 = 1.306_563;
    for x in 0..8 {
        let sum = |a: usize, b: usize| rows[a][x] + rows[b][x];
        let difference = |a: usize, b: usize| rows[a][x] - rows[b][x];
        let (s0, s1, s2, s3) = (sum(0, 7), sum(1, 6), sum(2, 5), sum(3, 4));
        let (d0, d1, d2, d3) = (difference(0, 7), difference(1, 6), difference(2, 5), difference(3, 4));

        let (outer, inner) = (s0 + s3, s1 + s2);
        let (outer_difference, inner_difference) = (s0 - s3, s1 - s2);
        let turned = (outer_difference + inner_difference) * FRAC_1_SQRT_2;
        rows[0][x] = outer + inner;
        rows[4][x] = outer - inner;
        rows[2][x] = outer_difference + turned;
        rows[6][x] = outer_difference - turned;

        let (low, middle, high) = (d3 + d2, (d2 + d1) * FRAC_1_SQRT_2, d1 + d0);
        let shared = (low - high) * SINE;
        let (low, high) = (low * LESS + shared, high * MORE + shared);
        let (plus, minus) = (d0 + middle, d0 - middle);
        rows[5][x] = minus + low;
        rows[3][x] = minus - low;
        rows[1][x] = plus + high;
        rows[7][x] = plus - high;
    }
}

/// Eight rows of a picture as blocks of luma and the two chromas. What a block has beyond the border repeats the border.
struct Strip {
    channels: [Vec<Block>; 3],
    /// One row's red, green and blue, apart so that vector instructions can take them.
    row: [Vec<u8>; 3],
    /// One channel of them.
    mixed: Vec<f32>,
}

impl Strip {
    fn new(width: usize) -> Self {
        let blocks = width.div_ceil(8);
        Self {
            channels: std::array::from_fn(|_| vec![[[0.0; 8]; 8]; blocks]),
            row: std::array::from_fn(|_| vec![0; blocks * 8]),
            mixed: vec![0.0; blocks * 8],
        }
    }

    /// Takes up to eight rows of `stride` bytes.
    fn fill(&mut self, rows: &[u8], stride: usize) {
        for y in 0..8 {
            let at = y.min(rows.len() / stride - 1) * stride;
            let (pixels, _) = rows[at..at + stride].as_chunks::<3>();
            let [red, green, blue] = &mut self.row;
            for (((pixel, red), green), blue) in pixels.iter().zip(&mut *red).zip(&mut *green).zip(&mut *blue) {
                [*red, *green, *blue] = *pixel;
            }
            for samples in [&mut *red, green, blue] {
                let last = samples[pixels.len() - 1];
                samples[pixels.len()..].fill(last);
            }
            // JFIF's matrix; all three around 0.
            let matrix =
                [[0.299, 0.587, 0.114], [-0.168_735_89, -0.331_264_1, 0.5], [0.5, -0.418_687_6, -0.081_312_41]];
            for ((blocks, [r, g, b]), base) in self.channels.iter_mut().zip(matrix).zip([-128.0, 0.0, 0.0]) {
                let samples = red.iter().zip(&*green).zip(&*blue);
                for (mixed, ((&red, &green), &blue)) in self.mixed.iter_mut().zip(samples) {
                    *mixed = r * f32::from(red) + g * f32::from(green) + b * f32::from(blue) + base;
                }
                for (block, mixed) in blocks.iter_mut().zip(self.mixed.as_chunks().0) {
                    block[y] = *mixed;
                }
            }
        }
    }
}

/// The coded coefficients.
struct Bits {
    bytes: Vec<u8>,
    /// Its last `count` bits are not in `bytes` yet; fewer than 32 between calls.
    pending: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, bits: u32, len: u32) {
        self.pending = self.pending << len | u64::from(bits);
        self.count += len;
        if self.count >= 32 {
            self.count -= 32;
            let word = (self.pending >> self.count) as u32;
            // The second makes a byte's highest bit of each 0xFF.
            if (!word).wrapping_sub(0x0101_0101) & word & 0x8080_8080 == 0 {
                self.bytes.extend_from_slice(&word.to_be_bytes());
            } else {
                word.to_be_bytes().into_iter().for_each(|byte| self.put_byte(byte));
            }
        }
    }

    /// A byte that would pass for the start of a marker is told apart from one by a 0 behind it.
    fn put_byte(&mut self, byte: u8) {
        self.bytes.push(byte);
        if byte == 0xFF {
            self.bytes.push(0);
        }
    }

    /// The code of a value's size, with `zeros` before it, and the value's bits.
    fn put_value(&mut self, value: i32, zeros: u32, codes: &[Code; 256]) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        let Code { bits, len } = codes[(zeros << 4 | size) as usize & 255];
        let value = (value + (value >> 31)) as u32 & ((1 << size) - 1);
        self.put(u32::from(bits) << size | value, u32::from(len) + size);
    }

    /// A block's coefficients; `mean` is the channel's last block's first one, and becomes this block's.
    fn put_block(&mut self, coefficients: &[i16; 64], mean: &mut i32, tables: &Tables) {
        let first = i32::from(coefficients[0]);
        self.put_value(first - *mean, 0, &tables.means);
        *mean = first;
        let mut left = (1..64).fold(0, |set, at| set | u64::from(coefficients[at] != 0) << at);
        let mut last = 0;
        while left != 0 {
            let at = left.trailing_zeros();
            left &= left - 1;
            let mut zeros = at - last - 1;
            while zeros > 15 {
                let Code { bits, len } = tables.rest[0xF0];
                self.put(bits.into(), len.into());
                zeros -= 16;
            }
            self.put_value(coefficients[at as usize].into(), zeros, &tables.rest);
            last = at;
        }
        if last != 63 {
            let Code { bits, len } = tables.rest[0];
            self.put(bits.into(), len.into());
        }
    }

    /// All bytes with the end marker; the last one is filled with ones.
    fn finish(mut self) -> Vec<u8> {
        self.put(0x7F, 7);
        while self.count >= 8 {
            self.count -= 8;
            self.put_byte((self.pending >> self.count) as u8);
        }
        self.bytes.extend([0xFF, 0xD9]);
        self.bytes
    }
}
