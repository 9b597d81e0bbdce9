//! PyTorch as a function to time: a Python process that runs a dynamic convolution as often as it is told.

#![allow(clippy::print_stderr, reason = "a benchmark talks to the terminal")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

/// The environment variable that names a Python with PyTorch.
pub const PYTHON: &str = "BENCH_PYTHON";

/// The environment variable that asks for the comparison with references, of convolutions whose names contain its value.
pub const COMPARE: &str = "BENCH_COMPARE";

/// One convolution with as many experts as stand here, all channels and pixels square.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Channels read and written.
    pub channels: (usize, usize),
    /// Kernel size; the padding keeps the map's size.
    pub kernel: usize,
    /// Height and width.
    pub size: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Samples.
    pub batch: usize,
    /// Experts, K.
    pub experts: usize,
}

impl Case {
    /// Without the batch: `256 to 256, k3 @20`.
    pub fn kind(&self) -> String {
        let Self { channels: (input, output), kernel, size, groups, .. } = *self;
        let depthwise = if groups > 1 { ", depthwise" } else { "" };
        format!("{input} to {output}, k{kernel} @{size}{depthwise}")
    }

    /// All of it, in characters that any file may be called by.
    pub fn name(&self) -> String {
        format!("{}, batch {}", self.kind(), self.batch)
    }

    /// Operations of the convolution, two for a multiplication with its addition.
    pub fn operations(&self) -> f64 {
        let taps = self.channels.0 / self.groups * self.kernel * self.kernel;
        2.0 * (self.batch * self.channels.1 * taps * self.size * self.size) as f64
    }
}

/// A Python process with PyTorch.
#[derive(Debug)]
pub struct Torch {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Torch {
    /// Starts it where [`PYTHON`] is set.
    ///
    /// # Errors
    /// Where that Python does not start, or has no PyTorch.
    pub fn start(threads: usize) -> anyhow::Result<Option<Self>> {
        let Some(python) = std::env::var_os(PYTHON) else { return Ok(None) };
        let mut child = Command::new(&python)
            .args(["-c", include_str!("torch_server.py"), &threads.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{PYTHON} is {}, which does not start", python.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipe to Python") };
        let mut torch = Self { child, input, output: BufReader::new(output) };
        let version = torch.line().context("PyTorch does not load; its own words stand above")?;
        eprintln!("PyTorch {version}, {threads} threads");
        Ok(Some(torch))
    }

    /// Runs a case `count` times, `dynamic` with routing and mixing, else with one kernel; the time of all.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn time(&mut self, case: &Case, dynamic: bool, count: u64) -> anyhow::Result<Duration> {
        let Case { channels, kernel, size, groups, batch, experts } = *case;
        let (input, output) = channels;
        let kind = u8::from(dynamic);
        writeln!(self.input, "{kind} {count} {input} {output} {kernel} {size} {groups} {batch} {experts}")?;
        Ok(Duration::from_secs_f64(self.line()?.parse()?))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("Python has ended");
        }
        Ok(line.trim().to_string())
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
