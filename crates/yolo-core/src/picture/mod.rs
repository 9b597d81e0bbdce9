//! Pictures: reading them as YOLOv5 does, fitting them into a network's input, and drawing what was found.
//!
//! Everything that decides a detection follows OpenCV to the bit: [`resize_bilinear`] is its 8-bit `INTER_LINEAR`, and
//! [`open`] decodes to three 8-bit channels as `imread(..., IMREAD_COLOR)` does, but for JPEG files: another decoder differs by up to 5 of 255,
//! in the last two columns by more where colours change sharply.
//! The channel order is RGB throughout.

mod draw;
mod font;
mod interpolate;
mod letterbox;
mod read;
pub mod reference;
mod resize;
mod write;

pub use draw::{PALETTE, Style, annotate, colour};
pub use font::TextLine;
pub use interpolate::{Tap, interpolate, taps};
pub use letterbox::{LetterboxOptions, Letterboxed, Placement, letterbox, letterbox_shape, to_tensor};
pub use read::{MAX_BYTES, MAX_PIXELS, from_bytes, open};
pub use resize::resize_bilinear;
pub(crate) use resize::resize_plane;
pub use write::{crop, save_jpeg, save_png};

#[cfg(test)]
pub(crate) mod tests;
