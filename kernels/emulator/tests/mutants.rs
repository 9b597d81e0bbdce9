//! Every mistake that is put into a kernel is caught.
#![allow(clippy::print_stderr, reason = "the list is for people")]

use std::path::Path;

use dyconv_emulator::Error;
use dyconv_emulator::module::{Language, Sources};
use dyconv_emulator::mutants::{self, Mutant};

fn all_caught(language: Language, list: &[Mutant]) {
    let sources = Sources::read(language).unwrap();
    for mutant in list {
        let found = sources.replaced(mutant.file, mutant.find, mutant.replacement).is_some();
        assert!(found, "`{}`: its text is not in {} exactly once", mutant.name, mutant.file);
    }
    let mut missed = Vec::new();
    for mutant in mutants::chosen(list) {
        match mutants::trial(mutant, &sources, Path::new(env!("CARGO_TARGET_TMPDIR"))) {
            Ok(caught) => eprintln!("{:<55} {caught}", mutant.name),
            Err(error @ Error::Unavailable(_)) => return eprintln!("skipped: {error}"),
            Err(error) => missed.push(error.to_string()),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn mistakes_in_cuda_kernels_are_caught() {
    all_caught(Language::Cuda, mutants::CUDA);
}

#[test]
fn mistakes_in_metal_kernels_are_caught() {
    all_caught(Language::Metal, mutants::METAL);
}
