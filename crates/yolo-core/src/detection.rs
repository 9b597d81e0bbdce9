//! What the engine finds in a picture.

/// One object in a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Box corners `[x1, y1, x2, y2]` in pixels of the picture, rounded to whole pixels and clipped to it, as YOLOv5 prints them.
    pub bbox: [f32; 4],
    /// Class index into the network's names.
    pub class: usize,
    /// Confidence, objectness times class probability, in 0..=1.
    pub confidence: f32,
    /// The object's mask at the picture's size (segmentation networks only).
    pub mask: Option<Mask>,
    /// Outline of the mask's largest part as `[x, y]` in pixels of the picture (segmentation networks only; empty where the mask is).
    pub polygon: Option<Vec<[f32; 2]>>,
}

/// A binary mask, row-major.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// One byte a pixel: 1 inside, 0 outside.
    pub data: Vec<u8>,
}
