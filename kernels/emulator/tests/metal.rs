//! Every Metal kernel and type on every case, with all checks on.
#![allow(clippy::print_stderr, reason = "the table is for people")]

use std::path::Path;

use dyconv_emulator::conformance::{self, Table};
use dyconv_emulator::device::Emulator;
use dyconv_emulator::module::{Language, Sources};
use dyconv_emulator::{Error, cases};
use dyconv_kernels::gpu::Element;

#[test]
fn metal_kernels_agree_with_their_twins() {
    let sources = Sources::read(Language::Metal).unwrap();
    let emulator = match Emulator::new(&sources, Path::new(env!("CARGO_TARGET_TMPDIR"))) {
        Ok(emulator) => emulator,
        Err(error @ Error::Unavailable(_)) => return eprintln!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    };
    let mut table = Table::default();
    for element in Element::ALL {
        conformance::run(&emulator, &cases::all(), element, &mut table).unwrap_or_else(|error| panic!("{error}"));
    }
    eprintln!("{table}");
    assert_eq!(table.missing(), Vec::<String>::new(), "kernels that no case reaches");
}
