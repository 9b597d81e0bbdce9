//! Finds objects in a picture: `cargo run --example detect -- WEIGHTS PICTURE`.
#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use yolo_core::{Detector, picture};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [weights, path] = arguments()?;
    let detector = Detector::open(weights)?;
    for found in detector.detect(&picture::open(path)?)? {
        let [x1, y1, x2, y2] = found.bbox;
        println!("{} {:.2} at {x1},{y1} to {x2},{y2}", detector.names()[found.class], found.confidence);
    }
    Ok(())
}

fn arguments<const N: usize>() -> Result<[String; N], String> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    given.try_into().map_err(|_| "usage: detect WEIGHTS PICTURE".into())
}
