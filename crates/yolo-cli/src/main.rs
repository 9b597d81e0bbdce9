//! The `yolo` command: one file a subcommand, errors printed once.
#![deny(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this crate is the one that talks to the terminal")]

mod allocator;
mod built_in;
mod commands;
mod device;
mod fetch;
mod precision;
mod predict;
mod stdout;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

/// YOLOv5 with dynamic convolution, without Python.
#[derive(Debug, Parser)]
#[command(name = "yolo", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Benchmark(commands::benchmark::Args),
    Convert(commands::convert::Args),
    Data(commands::data::Args),
    Fetch(commands::fetch::Args),
    Forward(commands::forward::Args),
    #[command(visible_alias = "detect")]
    Predict(commands::predict::Args),
    Summary(commands::summary::Args),
    Train(Box<commands::train::Args>),
    Val(commands::val::Args),
}

/// Ends quietly, as other commands do, when nobody reads the output any more (`yolo summary | head`); the standard library has
/// set the signal to be ignored, after which printing panics.
#[cfg(unix)]
fn end_with_the_reader() {
    let always = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    // Without it, all else works.
    let _ = signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, always);
}

/// Takes `-1` for a value, not for a flag, so that what refuses it says of which flag, and what it expects.
fn with_negative_numbers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        arg.allow_negative_numbers(takes_values)
    });
    command.mut_subcommands(with_negative_numbers)
}

fn main() -> ExitCode {
    allocator::keep_pages();
    let matches = with_negative_numbers(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut Cli::command()).exit());
    // `predict` finishes what it has begun, and tells by its status.
    #[cfg(unix)]
    if !matches!(cli.command, Command::Predict(_)) {
        end_with_the_reader();
    }
    let outcome = yolo_core::plan::check_instruction_set()
        .map_err(anyhow::Error::from)
        .and_then(|()| run(&cli.command, &matches));
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

/// `matches` tells what was written on the command line from what is only the default.
fn run(command: &Command, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    match command {
        Command::Benchmark(args) => commands::benchmark::run(args),
        Command::Convert(args) => commands::convert::run(args),
        Command::Data(args) => commands::data::run(args),
        Command::Fetch(args) => commands::fetch::run(args),
        Command::Forward(args) => commands::forward::run(args),
        Command::Predict(args) => commands::predict::run(args),
        Command::Summary(args) => commands::summary::run(args),
        Command::Train(args) => commands::train::run(args, matches.subcommand().map(|(_, matches)| matches)),
        Command::Val(args) => commands::val::run(args),
    }
}
