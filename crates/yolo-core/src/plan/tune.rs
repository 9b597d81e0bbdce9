//! Algorithms chosen by measurement: each candidate computes the convolution on this machine, and what was fastest is kept in a
//! file for the next time.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dyconv_kernels::Routing;
use dyconv_kernels::cpu::channels_last::{
    Algorithm, Builder, Convolution, Input, Kernels, LINE, Program, Router, RunOptions, Session, View, Window,
};
use dyconv_kernels::cpu::chosen;

use super::choose::Place;
use crate::graph::{Graph, Op};
use crate::{Error, Result, files};

/// Convolutions of a measured program, so that they outweigh what else it does.
const REPEATED: usize = 4;
/// Each candidate runs so often at least, in turn with the others, and all of them so long together.
const ROUNDS: usize = 5;
const TIME: Duration = Duration::from_millis(30);
/// What the file begins with.
const HEADER: &str =
    "# The fastest algorithm of each convolution on this machine, measured. Remove the file to measure anew.\n";

/// What was measured before, and is now.
pub(super) struct Tuning {
    file: PathBuf,
    /// The name of the fastest algorithm of a convolution, by [`Tuning::key`].
    fastest: BTreeMap<String, String>,
    threads: usize,
    measured: usize,
}

impl Tuning {
    /// What the file says, where there is one.
    pub(super) fn open(file: &Path, threads: usize) -> Result<Self> {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(file, error)),
        };
        let fastest: Option<BTreeMap<String, String>> = serde_yaml::from_slice(&text).map_err(|error| {
            let problem = format!("{}: {error}; it should hold one algorithm a convolution: remove it", file.display());
            Error::Argument { argument: "tuning", problem }
        })?;
        Ok(Self { file: file.to_owned(), fastest: fastest.unwrap_or_default(), threads, measured: 0 })
    }

    /// The fastest of some algorithms: as the file says, or measured.
    pub(super) fn fastest(&mut self, graph: &Graph, place: &Place<'_>, candidates: &[Algorithm]) -> Result<Algorithm> {
        let experts = experts(graph, place);
        let key = self.key(place, experts, candidates);
        let known = self.fastest.get(&key).and_then(|name| candidates.iter().find(|a| a.name() == name));
        if let Some(&known) = known {
            return Ok(known);
        }
        let best = measure(place, experts, candidates, self.threads)?;
        self.fastest.insert(key, best.name().to_owned());
        self.measured += 1;
        Ok(best)
    }

    /// Writes the file, where anything is new.
    pub(super) fn save(&self) -> Result<()> {
        if self.measured == 0 {
            return Ok(());
        }
        files::write_whole(&self.file, |out| {
            let write = |out: &mut dyn std::io::Write| {
                out.write_all(HEADER.as_bytes())?;
                serde_yaml::to_writer(out, &self.fastest).map_err(std::io::Error::other)
            };
            write(out).map_err(|error| Error::io(&self.file, error))
        })
    }

    /// All that the choice depends on.
    fn key(&self, place: &Place<'_>, experts: usize, candidates: &[Algorithm]) -> String {
        let geometry = &place.conv.geometry;
        let mixed = if experts > 1 { format!(" mixed of {experts} experts") } else { String::new() };
        let names: Vec<&str> = candidates.iter().map(|algorithm| algorithm.name()).collect();
        format!(
            "{} {} threads, {}x{} to {}x{}, {} to {} channels{mixed}, padding {}x{}, {}",
            chosen().name(),
            self.threads,
            place.input.0,
            place.input.1,
            place.output.0,
            place.output.1,
            geometry.in_channels,
            geometry.out_channels,
            geometry.padding.0,
            geometry.padding.1,
            names.join(" or "),
        )
    }
}

/// Sets of kernels that are mixed; one where none are.
fn experts(graph: &Graph, place: &Place<'_>) -> usize {
    let of = |op: &Op| if let Op::DynamicConv2d { num_experts, .. } = op { Some(*num_experts) } else { None };
    place.conv.sources.iter().find_map(|source| of(&graph.nodes()[source.node].op)).unwrap_or(1)
}

/// The algorithm whose fastest run is the fastest of all.
fn measure(place: &Place<'_>, experts: usize, candidates: &[Algorithm], threads: usize) -> Result<Algorithm> {
    let started = |cause: std::io::Error| Error::Argument {
        argument: "threads",
        problem: format!("{threads} threads cannot be started: {cause}"),
    };
    let mut programs = candidates
        .iter()
        .map(|&algorithm| {
            let program = program(place, experts, algorithm, threads);
            let session = program.session().map_err(started)?;
            Ok((program, session, Duration::MAX))
        })
        .collect::<Result<Vec<(Program, Session, Duration)>>>()?;
    let x = noise(place.input.0 * place.input.1 * place.conv.geometry.in_channels);
    let start = Instant::now();
    let mut round = 0;
    while round < ROUNDS || start.elapsed() < TIME {
        for (program, session, fastest) in &mut programs {
            let start = Instant::now();
            let run = program.run(session, &[Input::Maps(&x)], &mut [], RunOptions { threshold: None, profile: false });
            run.map_err(|problem| Error::Candle(candle_core::Error::msg(problem)))?;
            *fastest = start.elapsed().min(*fastest);
        }
        round += 1;
    }
    let best = programs.iter().zip(candidates).min_by_key(|((.., fastest), _)| *fastest);
    Ok(best.map_or(Algorithm::Direct, |(_, &algorithm)| algorithm))
}

/// The convolution some times over.
fn program(place: &Place<'_>, experts: usize, algorithm: Algorithm, threads: usize) -> Program {
    let geometry = &place.conv.geometry;
    let from = View::dense(0, place.input.0, place.input.1, geometry.in_channels);
    let start = from.end(1).next_multiple_of(LINE);
    let to = View::dense(start, place.output.0, place.output.1, geometry.out_channels);
    let window = geometry.in_channels / geometry.groups * geometry.kernel.0 * geometry.kernel.1;
    let values = noise(experts * geometry.out_channels * window);
    let kernels = if experts == 1 {
        Kernels::Fixed { kernels: &values, bias: &[] }
    } else {
        let router = Router {
            squeeze: None,
            weight: noise(experts * geometry.in_channels),
            bias: vec![0.0; experts],
            routing: Routing::Sigmoid,
        };
        Kernels::Mixed { router, averaged: vec![from.into()], experts: &values, bias: &[], shift: &[] }
    };
    let mut builder = Builder::new(1, threads, to.end(1).next_multiple_of(LINE));
    builder.import(from, (0, 0));
    for _ in 0..REPEATED {
        builder.convolution(&Convolution {
            name: "measured",
            window: Window {
                kernel: geometry.kernel,
                stride: geometry.stride,
                padding: geometry.padding,
                dilation: geometry.dilation,
            },
            groups: geometry.groups,
            inputs: vec![from.into()],
            output: to,
            residual: None,
            act: place.conv.act,
            kernels: kernels.clone(),
            algorithm,
        });
    }
    builder.finish()
}

/// Values between -1 and 1 without a pattern.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
