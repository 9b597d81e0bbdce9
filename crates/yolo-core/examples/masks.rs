//! Draws objects and their masks into a picture: `cargo run --example masks -- WEIGHTS PICTURE OUTPUT.png`, with the weights
//! of a segmentation network. Masks are made at the picture's own resolution.
#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use yolo_core::picture::{self, Style};
use yolo_core::{DetectOptions, Detector};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [weights, path, output] = given.as_slice() else {
        return Err("usage: masks WEIGHTS PICTURE OUTPUT.png".into());
    };
    let options = DetectOptions { conf_thres: 0.4, retina_masks: true, ..DetectOptions::default() };
    let detector = Detector::open(weights)?.with_options(options)?;
    let mut image = picture::open(path)?;
    let found = detector.detect(&image)?;
    for object in &found {
        let pixels = object.mask.iter().flat_map(|mask| &mask.data).filter(|inside| **inside == 1).count();
        println!("{}: {pixels} pixels", detector.names()[object.class]);
    }
    picture::annotate(&mut image, &found, detector.names(), &Style::default());
    picture::save_png(output, &image)?;
    Ok(())
}
