//! `cargo xtask bench regress BASE`: whether the working tree is slower than another revision, without a look at absolute times.
//!
//! Instructions are counted by Callgrind, which hardly depends on what else the machine does; with `--paired`, or without
//! Valgrind, both binaries run in turn and the ratios of their times count, as far as they stand out of the ratios' noise.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::{program, release};
use crate::process::{cargo, root, run as execute, starts, target};

const NETWORK: &str = "yolov5n";
/// What a revision must have to be compared with.
const COMMAND: &str = "crates/yolo-cli/src/commands/benchmark.rs";
/// The largest ratio of instructions that is let through.
const MOST_INSTRUCTIONS: f64 = 1.03;
/// The largest ratio of times that is let through, beyond noise.
const MOST_TIME: f64 = 1.05;
/// Forward passes whose instructions are counted: what two runs differ by is that of passes alone, without loading.
const PASSES: u32 = 4;
/// Pairs of runs, an odd number.
const PAIRS: usize = 15;

pub(crate) fn run(options: &[&str]) -> anyhow::Result<()> {
    let (revision, paired) = match options {
        [revision] if !revision.starts_with('-') => (*revision, false),
        [revision, "--paired"] | ["--paired", revision] if !revision.starts_with('-') => (*revision, true),
        _ => bail!("`bench regress {}`: expected a git revision, and --paired at most", options.join(" ")),
    };
    let base = build_base(revision)?;
    let new = release(&mut cargo(), &target())?.join(program("yolo"));
    if paired || !starts("valgrind") {
        if !paired {
            println!("valgrind is not installed: comparing times");
        }
        by_time(&base, &new, revision)
    } else {
        by_instructions(&base, &new, revision)
    }
}

/// The binary of a revision.
///
/// It has a build folder of its own: in a shared one Cargo takes the crates of two checkouts for each other.
fn build_base(revision: &str) -> anyhow::Result<PathBuf> {
    let folder = target().join("regress");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let tree = folder.join("tree");
    check_out(revision, &tree)?;
    if !tree.join(COMMAND).exists() {
        bail!("{revision} has no `yolo benchmark` yet: take a later revision");
    }
    Ok(release(cargo().current_dir(tree), &folder.join("build"))?.join(program("yolo")))
}

/// Puts a revision into a folder, which stays for the next time.
fn check_out(revision: &str, tree: &Path) -> anyhow::Result<()> {
    let git = |folder: &Path| {
        let mut git = Command::new("git");
        git.current_dir(folder);
        git
    };
    // A branch may move: its commit is what is checked out.
    let named = git(&root()).args(["rev-parse", "--verify", "--quiet"]).arg(format!("{revision}^{{commit}}")).output();
    let named = named.context("git cannot be run")?;
    if !named.status.success() {
        bail!("there is no revision `{revision}`");
    }
    let commit = String::from_utf8_lossy(&named.stdout).trim().to_owned();
    if tree.join(".git").exists() {
        execute(git(tree).args(["checkout", "--quiet", "--force", "--detach", &commit]))
    } else {
        execute(git(&root()).args(["worktree", "prune"]))?;
        execute(git(&root()).args(["worktree", "add", "--quiet", "--force", "--detach"]).arg(tree).arg(&commit))
    }
}

fn by_instructions(base: &Path, new: &Path, revision: &str) -> anyhow::Result<()> {
    let (base, new) = (instructions(base)?, instructions(new)?);
    let ratio = new / base;
    println!("{NETWORK} at 128x128: {:.1} million instructions a pass, {:.1} at {revision}", new / 1e6, base / 1e6);
    println!("ratio {ratio:.4}, at most {MOST_INSTRUCTIONS} is let through");
    if ratio > MOST_INSTRUCTIONS {
        bail!("more instructions than at {revision}");
    }
    Ok(())
}

/// Instructions of one forward pass.
fn instructions(yolo: &Path) -> anyhow::Result<f64> {
    let once = counted(yolo, 1)?;
    Ok((counted(yolo, 1 + PASSES)? - once) / f64::from(PASSES))
}

/// Instructions of a whole run with so many passes.
fn counted(yolo: &Path, passes: u32) -> anyhow::Result<f64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(yolo);
    valgrind.args(["benchmark", "--cfg", NETWORK, "--imgsz", "128", "--warmup", "0", "--threads", "1"]);
    valgrind.args(["--iters", &passes.to_string()]);
    // Valgrind knows no AVX-512. Candle's own threads obey the environment only; more than one of them wait in loops, for as many
    // instructions as chance has it.
    valgrind.env("DYCONV_ISA", "avx2").env("RAYON_NUM_THREADS", "1");
    let told = printed(&mut valgrind)?;
    collected(&told).with_context(|| format!("Callgrind printed no number of instructions:\n{told}"))
}

/// The number in Callgrind's line `==1== Collected : 123`.
fn collected(told: &str) -> Option<f64> {
    let line = told.lines().find(|line| line.contains("Collected :"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

fn by_time(base: &Path, new: &Path, revision: &str) -> anyhow::Result<()> {
    let mut ratios = Vec::with_capacity(PAIRS);
    for pair in 0..PAIRS {
        // Who runs first changes, so that neither has the better of it.
        let (first, second) = if pair % 2 == 0 { (base, new) } else { (new, base) };
        let (first, second) = (milliseconds(first)?, milliseconds(second)?);
        ratios.push(if pair % 2 == 0 { second / first } else { first / second });
    }
    let ratio = median(&mut ratios);
    let mut distances: Vec<f64> = ratios.iter().map(|value| (value - ratio).abs()).collect();
    // Two standard errors of a median, from the median distance: 1.4826 and 1.2533 are those of normal noise.
    let noise = 2.0 * 1.4826 * 1.2533 * median(&mut distances) / (PAIRS as f64).sqrt();
    println!("{NETWORK}: ratio of times {ratio:.3} +- {noise:.3} to {revision}, {PAIRS} pairs of runs");
    println!("at most {MOST_TIME} beyond noise is let through");
    if ratio - noise > MOST_TIME {
        bail!("slower than at {revision}");
    }
    Ok(())
}

fn milliseconds(yolo: &Path) -> anyhow::Result<f64> {
    let mut command = Command::new(yolo);
    command.args(["benchmark", "--cfg", NETWORK, "--imgsz", "320", "--warmup", "3", "--iters", "15", "--json"]);
    let told = printed(&mut command)?;
    median_ms(&told).with_context(|| format!("no time in what `yolo benchmark --json` printed:\n{told}"))
}

/// The value of `"median_ms"` in a line of JSON.
fn median_ms(told: &str) -> Option<f64> {
    let (_, value) = told.rsplit_once("\"median_ms\":")?;
    value.split([',', '}']).next()?.trim().parse().ok()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a command prints on both its outputs; fails where it does.
fn printed(command: &mut Command) -> anyhow::Result<String> {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{line} cannot be run"))?;
    let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if !output.status.success() {
        bail!("{line} failed:\n{told}");
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::{collected, median, median_ms};

    #[test]
    fn numbers_are_found_in_what_programs_print() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 1234\n==7==\n"), Some(1234.0));
        assert_eq!(collected("nothing"), None);
        assert_eq!(median_ms("median 1 ms\n{\"cfg\":\"n\",\"median_ms\":2.5,\"runs\":3}\n"), Some(2.5));
        assert_eq!(median_ms("{}"), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    }
}
