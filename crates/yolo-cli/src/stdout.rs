//! Lines on standard output.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::Context;

/// Prints a line on standard output: `say!("{count} pictures")?`. Where that is closed or full, `println!` would panic.
macro_rules! say {
    ($($text:tt)*) => { $crate::stdout::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// Prints a line.
///
/// # Errors
/// Standard output that is closed or full; the [`io::Error`] can be taken out again.
pub(crate) fn line(text: Arguments<'_>) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}").context("standard output")
}
