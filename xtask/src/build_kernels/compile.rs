//! CUDA's sources through nvcc.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, bail};

use super::document;
use super::launches::Launch;
use super::occupancy::{A100, Gpu, H100, occupancy};
use super::toolkit::Tool;
use crate::process::root;

/// Machine code is made for these, as far as the compiler knows them; the first two must be known.
const GPUS: [&str; 4] = ["sm_80", "sm_90", "sm_100", "sm_120"];

/// The release whose numbers stand in the documentation.
const DOCUMENTED: &str = "release 13.2,";

/// What ptxas says of one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Resources {
    registers: usize,
    /// Static shared memory, bytes.
    shared: usize,
    /// Bytes spilled, stores and loads.
    spills: usize,
    /// Bytes of local memory a thread.
    local: usize,
}

/// Kernel and GPU to resources.
type Table = BTreeMap<(String, &'static str), Resources>;

pub(super) fn run(nvcc: &Tool, launches: &[Launch], check: bool) -> anyhow::Result<()> {
    let sources = sources("cuda", "cu")?;
    let known = String::from_utf8(nvcc.command().arg("--list-gpu-code").output()?.stdout)?;
    let known = |gpu: &&str| known.lines().any(|line| line.trim() == *gpu);
    if let Some(missing) = GPUS[..2].iter().find(|gpu| !known(gpu)) {
        bail!("this nvcc does not know {missing}: {}", nvcc.version().unwrap_or_default().trim());
    }
    let out = root().join("target/kernels");
    fs::create_dir_all(&out)?;
    let gpus: Vec<_> = GPUS.into_iter().filter(known).collect();
    let jobs: Vec<_> = sources
        .iter()
        .flat_map(|source| [None].into_iter().chain(gpus.iter().copied().map(Some)).map(move |gpu| (source, gpu)))
        .collect();
    let version = nvcc.version().unwrap_or_default();
    println!("{} files to PTX and {}, {}", sources.len(), gpus.join(", "), version.lines().nth(3).unwrap_or_default());

    let (next, table) = (AtomicUsize::new(0), Mutex::new(Table::new()));
    let work = || -> anyhow::Result<()> {
        while let Some((source, gpu)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let found = compile(nvcc, source, *gpu, &out)?;
            if let (Some(gpu), Ok(mut table)) = (gpu, table.lock()) {
                table.extend(found.into_iter().map(|(kernel, resources)| ((kernel, *gpu), resources)));
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            worker.join().map_err(|_| anyhow::anyhow!("a worker of build-kernels panicked"))??;
        }
        Ok(())
    })?;
    let table = table.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    report(&table, launches)?;
    // Other compilers count other registers.
    if version.contains(DOCUMENTED) {
        document::put("resources", &summary(&table, launches)?, check)?;
    }
    Ok(())
}

/// The sources of one language, sorted.
pub(super) fn sources(folder: &str, extension: &str) -> anyhow::Result<Vec<PathBuf>> {
    let folder = root().join("kernels").join(folder);
    let entries = fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?;
    let mut paths: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    paths.sort();
    if paths.is_empty() {
        bail!("{} holds no .{extension}", folder.display());
    }
    Ok(paths)
}

/// One file to PTX (no GPU given) or machine code.
fn compile(nvcc: &Tool, source: &Path, gpu: Option<&str>, out: &Path) -> anyhow::Result<Vec<(String, Resources)>> {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let mut command = nvcc.command();
    command.args(["-std=c++17", "-O3", "-Werror", "all-warnings"]);
    match gpu {
        None => command.args(["-ptx", "-arch=compute_80", "-o"]).arg(out.join(format!("{stem}.ptx"))),
        Some(gpu) => command
            .args(["-cubin", "-Xptxas", "-v,-warn-spills", &format!("-arch={gpu}"), "-o"])
            .arg(out.join(format!("{stem}.{gpu}.cubin"))),
    };
    let output = command.arg(source).output().context("nvcc cannot be run")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let target = gpu.unwrap_or("compute_80");
    if !output.status.success() {
        let said: Vec<_> =
            text.lines().filter(|line| !line.starts_with("ptxas info") && !line.starts_with("    ")).collect();
        bail!("{} for {target}:\n{}", source.display(), said.join("\n"));
    }
    let found = parse(&text);
    if let Some((kernel, resources)) = found.iter().find(|(_, r)| r.spills > 0) {
        bail!("{kernel} for {target} spills {} bytes of registers", resources.spills);
    }
    if gpu.is_some() && found.is_empty() {
        bail!("{} for {target}: the compiler reports no kernel", source.display());
    }
    Ok(found)
}

/// ptxas's report: a line that names the entry, one with the stack and spills, one with registers and shared memory.
fn parse(text: &str) -> Vec<(String, Resources)> {
    let number = |line: &str, unit: &str| -> usize {
        let words = line.find(unit).map(|at| line[..at].trim_end());
        words.and_then(|words| words.rsplit([' ', ',']).next()).and_then(|word| word.parse().ok()).unwrap_or(0)
    };
    let mut found: Vec<(String, Resources)> = Vec::new();
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            found.push((name.to_owned(), Resources::default()));
        } else if let Some((_, resources)) = found.last_mut() {
            if line.contains("bytes stack frame") {
                resources.local = number(line, "bytes stack frame");
                resources.spills = number(line, "bytes spill stores") + number(line, "bytes spill loads");
            } else if line.contains("Used ") {
                resources.registers = number(line, "registers");
                resources.shared = number(line, "bytes smem");
            }
        }
    }
    found
}

/// One kernel's needs on one GPU, and how much of it they keep busy.
struct Row<'a> {
    launch: &'a Launch,
    a100: (Resources, f64),
    h100: (Resources, f64),
}

/// The row of a kernel, at the launch that leaves the fewest of its blocks on a multiprocessor.
fn row<'a>(table: &Table, kernel: &str, launches: &'a [Launch]) -> anyhow::Result<Row<'a>> {
    let of_kernel = launches.iter().filter(|launch| launch.kernel == kernel);
    let Some(launch) = of_kernel.max_by_key(|launch| (launch.threads, launch.shared)) else {
        bail!("{kernel}: no launch description uses it, or none at the shapes of the example `launches`");
    };
    let on = |gpu: &Gpu| {
        let r = table.get(&(kernel.to_owned(), gpu.arch)).copied().unwrap_or_default();
        (r, 100.0 * occupancy(gpu, launch.threads, r.registers, r.shared + launch.shared))
    };
    Ok(Row { launch, a100: on(&A100), h100: on(&H100) })
}

/// Prints a line a kernel; a kernel that no launch uses, or a launch that names no kernel, is an error.
fn report(table: &Table, launches: &[Launch]) -> anyhow::Result<()> {
    println!(
        "{:32} {:>7} {:>15} {:>8} {:>6} {:>6} {:>10} {:>5}",
        "kernel", "threads", "registers", "shared", "local", "spills", "occupancy", ""
    );
    let [a, h] = [&A100, &H100].map(|gpu| gpu.name);
    println!("{:40} {:>9} {:>5} {:>8} {:>6} {:>6} {a:>10} {h:>5}", "", A100.arch, H100.arch, "bytes", "bytes", "bytes");
    let kernels: BTreeSet<_> = table.keys().map(|(kernel, _)| kernel.as_str()).collect();
    if let Some(launch) = launches.iter().find(|launch| !kernels.contains(launch.kernel.as_str())) {
        bail!("{}: launched, but no source defines it", launch.kernel);
    }
    for kernel in kernels {
        let Row { launch, a100: (a, busy_a), h100: (h, busy_h) } = row(table, kernel, launches)?;
        println!(
            "{kernel:32} {:>7} {:>9} {:>5} {:>8} {:>6} {:>6} {busy_a:>9.0}% {busy_h:>4.0}%",
            launch.threads,
            a.registers,
            h.registers,
            a.shared + launch.shared,
            a.local.max(h.local),
            a.spills + h.spills,
        );
    }
    Ok(())
}

/// The same for the documentation: a row a kernel, the most that any of its types needs.
fn summary(table: &Table, launches: &[Launch]) -> anyhow::Result<String> {
    let mut text = format!(
        "| Kernel | Threads | Registers {} | {} | Shared bytes | Spills | Occupancy {} | {} |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
        A100.arch, H100.arch, A100.name, H100.name
    );
    let base = |entry: &str| entry.rsplit_once('_').map_or(entry, |(base, _)| base).to_owned();
    let kernels: BTreeSet<_> = table.keys().map(|(entry, _)| base(entry)).collect();
    for kernel in kernels {
        let entries: BTreeSet<_> = table.keys().map(|(entry, _)| entry).filter(|entry| base(entry) == kernel).collect();
        let rows = entries.into_iter().map(|entry| row(table, entry, launches)).collect::<anyhow::Result<Vec<_>>>()?;
        let most = |of: &dyn Fn(&Row<'_>) -> usize| rows.iter().map(of).max().unwrap_or(0);
        let least = |of: &dyn Fn(&Row<'_>) -> f64| rows.iter().map(of).fold(100.0, f64::min);
        writeln!(
            text,
            "| `{kernel}` | {} | {} | {} | {} | {} | {:.0}% | {:.0}% |",
            most(&|row| row.launch.threads),
            most(&|row| row.a100.0.registers),
            most(&|row| row.h100.0.registers),
            most(&|row| row.a100.0.shared + row.launch.shared),
            most(&|row| row.a100.0.spills + row.h100.0.spills),
            least(&|row| row.a100.1),
            least(&|row| row.h100.1),
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::{Resources, parse};

    #[test]
    fn reads_the_compilers_report() {
        let text = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'softmax_f32' for 'sm_90'
ptxas info    : Function properties for softmax_f32
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 16 bytes cumulative stack size, 1296 bytes smem
ptxas info    : Compile time = 8.136 ms
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
";
        let softmax = Resources { registers: 38, shared: 1296, spills: 20, local: 16 };
        let plain = Resources { registers: 12, ..Resources::default() };
        assert_eq!(parse(text), [("softmax_f32".to_owned(), softmax), ("plain".to_owned(), plain)]);
    }
}
