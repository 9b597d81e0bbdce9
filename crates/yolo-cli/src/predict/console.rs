//! What the user sees while a run goes on.

use std::io::{self, Write};

use indicatif::{ProgressBar, ProgressStyle};

/// Runs of at least this many pictures get a progress bar.
const LONG_RUN: usize = 20;

/// Where YOLOv5's lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Standard output.
    Stdout,
    /// Standard error, where standard output is taken by JSON.
    Stderr,
    /// Nowhere.
    Off,
}

/// The terminal: lines, problems, and a progress bar that keeps out of their way.
pub(crate) struct Console {
    lines: Lines,
    bar: ProgressBar,
}

impl Console {
    pub(crate) fn new(lines: Lines, pictures: usize) -> Self {
        // indicatif draws on standard error, and only where that is a terminal.
        let bar = if pictures < LONG_RUN {
            ProgressBar::hidden()
        } else {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} pictures, {elapsed} (left: {eta})");
            ProgressBar::new(pictures as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        };
        Self { lines, bar }
    }

    /// Prints a line of YOLOv5's.
    ///
    /// # Errors
    /// As [`Console::output`].
    pub(crate) fn line(&self, text: &str) -> anyhow::Result<()> {
        match self.lines {
            Lines::Stdout => self.output(text),
            Lines::Stderr => {
                self.problem(text);
                Ok(())
            }
            Lines::Off => Ok(()),
        }
    }

    /// Prints a line of results on standard output.
    ///
    /// # Errors
    /// Standard output that is closed or full; the [`io::Error`] can be taken out again.
    pub(crate) fn output(&self, text: &str) -> anyhow::Result<()> {
        self.bar.suspend(|| crate::stdout::line(format_args!("{text}")))
    }

    /// Prints a line on standard error; where that is closed there is nobody to tell.
    pub(crate) fn problem(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }

    /// One picture is through.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// All is done: the bar goes.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
