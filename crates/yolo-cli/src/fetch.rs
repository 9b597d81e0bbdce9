//! Weights by name: a file, or a trained network that is fetched once into the cache.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use yolo_core::files::write_whole;
use yolo_core::weights::{Weights, convert};

use crate::built_in;

/// Overrides the cache folder.
const CACHE_VARIABLE: &str = "YOLO_CACHE";
/// Overrides the folder of the release that weights are fetched from: a mirror, or a test's server.
const RELEASE_VARIABLE: &str = "YOLO_WEIGHTS_URL";
/// Larger files are not networks.
const MAX_BYTES: u64 = 4 << 30;
/// Counts the changes of what a conversion writes, so that an older one in the cache is not taken for a new one.
const CONVERSION: u32 = 1;

/// `weights/manifest.toml`.
#[derive(Debug, Deserialize)]
struct Manifest {
    licence: String,
    release: String,
    weights: Vec<Entry>,
}

/// A network of the manifest.
#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    size: Option<u64>,
    sha256: Option<String>,
}

impl Manifest {
    fn embedded() -> anyhow::Result<Self> {
        toml::from_str(include_str!("../../../weights/manifest.toml")).context("the embedded weights/manifest.toml")
    }
}

/// The weights that `--weights ARG` means: a file, as of [`resolve_weights`], or a network that is built in.
///
/// A checkpoint is read also where the cache cannot be written: each time anew.
pub(crate) fn open_weights(arg: &str) -> anyhow::Result<Weights> {
    let path = Path::new(arg);
    if let Some(network) = built_in::network(arg).filter(|_| !path.exists()) {
        return Ok(Weights::from_static(network.name, network.bytes)?);
    }
    if is_checkpoint(path) && path.is_file() {
        let target = converted_place(path)?;
        if let Err(problem) = make_folder(&target) {
            let folder = tempfile::tempdir().map_err(|_| with_advice(&problem, path))?;
            let target = folder.path().join("weights.safetensors");
            convert(path, &target, false)?;
            // Read through a map, which outlives the file's name.
            return Ok(Weights::open(target)?);
        }
    }
    Ok(Weights::open(resolve_weights(arg)?)?)
}

fn is_checkpoint(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "pt" || extension == "pth")
}

/// The safetensors file that `--weights ARG` means.
///
/// A `.safetensors` file is taken as it is; a `.pt` file is converted once into the cache. Where there is no such file, a
/// name of the manifest (`yolov5s`, `yolov5s.pt`) is looked up in the cache, or fetched and converted into it; a network that
/// is built in is written there.
pub(crate) fn resolve_weights(arg: &str) -> anyhow::Result<PathBuf> {
    let path = Path::new(arg);
    if path.is_dir() {
        bail!("{arg} is a folder, expected a weights file");
    }
    if path.exists() && !path.is_file() {
        bail!("{arg} is a pipe or a device, expected a weights file, which can be mapped into memory");
    }
    if path.is_file() {
        return if is_checkpoint(path) { converted(path) } else { Ok(path.to_path_buf()) };
    }
    if let Some(network) = built_in::network(arg) {
        return written(network);
    }
    let manifest = Manifest::embedded()?;
    let name = arg.strip_suffix(".pt").or_else(|| arg.strip_suffix(".safetensors")).unwrap_or(arg);
    let Some(entry) = manifest.weights.iter().find(|entry| entry.name == name) else {
        let names: Vec<_> = manifest.weights.iter().map(|entry| entry.name.as_str()).collect();
        let built_in: Vec<_> = built_in::NETWORKS.iter().map(|network| network.name).collect();
        bail!(
            "{arg}: there is no such file, and it is none of the networks that are built in ({}) or can be fetched: {}",
            built_in.join(", "),
            names.join(", ")
        );
    };
    cached(entry, &manifest)
}

/// A file of a network that is built in.
fn written(network: &built_in::Network) -> anyhow::Result<PathBuf> {
    let sum = hex(&Sha256::digest(network.bytes));
    let target = cache_folder()?.join(&sum[..16]).join(format!("{}.safetensors", network.name));
    if std::fs::read(&target).is_ok_and(|bytes| bytes == network.bytes) {
        return Ok(target);
    }
    make_folder(&target)?;
    write_whole(&target, |out| out.write_all(network.bytes).map_err(|error| yolo_core::Error::io(&target, error)))?;
    Ok(target)
}

/// Where the cache has the safetensors of a user's checkpoint, by its content.
fn converted_place(checkpoint: &Path) -> anyhow::Result<PathBuf> {
    let mut hash = Sha256::new();
    let mut file = File::open(checkpoint).with_context(|| checkpoint.display().to_string())?;
    io::copy(&mut file, &mut hash).with_context(|| checkpoint.display().to_string())?;
    let sum = hex(&hash.finalize());
    let stem = checkpoint.file_stem().unwrap_or_default().to_string_lossy();
    Ok(cache_folder()?.join(format!("{}-{CONVERSION}", &sum[..16])).join(format!("{stem}.safetensors")))
}

/// The cached safetensors of a user's checkpoint.
fn converted(checkpoint: &Path) -> anyhow::Result<PathBuf> {
    let target = converted_place(checkpoint)?;
    if Weights::open(&target).is_ok() {
        return Ok(target);
    }
    make_folder(&target).map_err(|problem| with_advice(&problem, checkpoint))?;
    if let Err(error) = convert(checkpoint, &target, false) {
        // Empty, unless another process has been faster.
        let _ = target.parent().map(std::fs::remove_dir);
        return Err(error.into());
    }
    Ok(target)
}

fn with_advice(problem: &anyhow::Error, checkpoint: &Path) -> anyhow::Error {
    anyhow!("{problem:#}, or convert the checkpoint yourself: yolo convert {} OUT.safetensors", checkpoint.display())
}

/// The cached safetensors of a manifest's network; fetched where it is not there yet.
fn cached(entry: &Entry, manifest: &Manifest) -> anyhow::Result<PathBuf> {
    let folder = cache_folder()?;
    let target = folder.join(format!("{}.safetensors", entry.name));
    if Weights::open(&target).is_ok() {
        return Ok(target);
    }
    make_folder(&target)?;
    let release = std::env::var(RELEASE_VARIABLE).unwrap_or_else(|_| manifest.release.clone());
    let url = format!("{}/{}.pt", release.trim_end_matches('/'), entry.name);

    // Where someone without a network connection was told to put it.
    let by_hand = folder.join(format!("{}.pt", entry.name));
    if by_hand.is_file() {
        let mut file = File::open(&by_hand).with_context(|| by_hand.display().to_string())?;
        let mut hash = Sha256::new();
        let size = io::copy(&mut file, &mut hash).with_context(|| by_hand.display().to_string())?;
        verify(entry, size, &hex(&hash.finalize()))
            .with_context(|| format!("{}: remove it, or download {url} again", by_hand.display()))?;
        convert(&by_hand, &target, false)?;
        return Ok(target);
    }

    // A file of its own for each process; the last step, in `convert`, is a rename.
    let mut download = tempfile::Builder::new()
        .prefix(&format!(".{}-", entry.name))
        .suffix(".pt")
        .tempfile_in(&folder)
        .map_err(|error| unwritable(&folder, &error))?;
    let advice = || {
        let built_in: Vec<_> = built_in::NETWORKS.iter().map(|network| network.name).collect();
        format!(
            "cannot fetch {} (download {url} yourself and put it at {}; built in are {})",
            entry.name,
            by_hand.display(),
            built_in.join(", ")
        )
    };
    eprintln!("fetching {url} ({})", manifest.licence);
    let (size, sum) = fetch(&url, download.as_file_mut()).with_context(advice)?;
    verify(entry, size, &sum).with_context(advice)?;
    convert(download.path(), &target, false)
        .map_err(|error| match error {
            yolo_core::Error::Checkpoint { problem, .. } => anyhow!("what the server sent cannot be read: {problem}"),
            other => other.into(),
        })
        .with_context(advice)?;
    Ok(target)
}

/// Downloads `url` into `file`; its size and SHA-256.
fn fetch(url: &str, file: &mut File) -> anyhow::Result<(u64, String)> {
    let agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(Duration::from_secs(15)))
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("yolo/", env!("CARGO_PKG_VERSION")))
        .build()
        .new_agent();
    let response = agent.get(url).call().map_err(|error| match error {
        ureq::Error::StatusCode(404) => anyhow!("the server has no such file (404)"),
        ureq::Error::StatusCode(status) => anyhow!("the server answered with status {status}"),
        ureq::Error::Io(error) => anyhow!("the server cannot be reached: {error}"),
        error => anyhow!("the server cannot be reached: {error}"),
    })?;
    let expected = response.body().content_length();
    let bar = progress(expected);
    let mut body = response.into_body().into_with_config().limit(MAX_BYTES).reader();
    let mut hash = Sha256::new();
    let mut size = 0;
    let mut buffer = vec![0; 1 << 16];
    let of = expected.map(|expected| format!(" of {expected}")).unwrap_or_default();
    loop {
        let count = body
            .read(&mut buffer)
            .map_err(|error| anyhow!("the connection broke off after {size}{of} bytes ({error})"))?;
        if count == 0 {
            break;
        }
        let bytes = &buffer[..count];
        hash.update(bytes);
        file.write_all(bytes).context("the download cannot be written")?;
        size += count as u64;
        bar.set_position(size);
    }
    bar.finish_and_clear();
    if expected.is_some_and(|expected| expected != size) {
        bail!("the connection broke off after {size}{of} bytes");
    }
    file.flush().context("the download cannot be written")?;
    Ok((size, hex(&hash.finalize())))
}

/// Compares a file with what the manifest knows of it.
fn verify(entry: &Entry, size: u64, sum: &str) -> anyhow::Result<()> {
    if let Some(expected) = entry.size.filter(|&expected| expected != size) {
        bail!("the file has {size} bytes, expected {expected}");
    }
    if let Some(expected) = entry.sha256.as_ref().filter(|&expected| expected != sum) {
        bail!("the file is another: its SHA-256 is {sum}, expected {expected}");
    }
    Ok(())
}

/// A bar where someone watches, with its end where that is known.
fn progress(bytes: Option<u64>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::hidden());
    let style = "{bar:40} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(if bytes.is_some() { style } else { "{spinner} {decimal_bytes}" }) {
        bar.set_style(style);
    }
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    bar
}

/// The cache: `$YOLO_CACHE`, or `yolo` in the user's folder for caches.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let folder = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = folder(CACHE_VARIABLE) {
        return Ok(folder);
    }
    let base = if cfg!(target_os = "windows") {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME")
            .filter(|base| base.is_absolute())
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    let base = base.ok_or_else(|| anyhow!("there is no home folder to keep weights in: set {CACHE_VARIABLE}"))?;
    Ok(base.join("yolo"))
}

/// Where the fastest algorithms of this machine are kept; its folder is there.
pub(crate) fn tuning_file() -> anyhow::Result<PathBuf> {
    let file = cache_folder()?.join("tuning.yaml");
    make_folder(&file)?;
    Ok(file)
}

fn make_folder(target: &Path) -> anyhow::Result<()> {
    let folder = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    // Asked now, not after a long download.
    tempfile::tempfile_in(folder).map(drop).map_err(|error| unwritable(folder, &error))
}

fn unwritable(folder: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!("the cache folder {} cannot be written ({error}): set {CACHE_VARIABLE} to another", folder.display())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_every_official_network_once() {
        let manifest = Manifest::embedded().unwrap();
        let mut names: Vec<_> = manifest.weights.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names.len(), 15);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 15);
        for entry in &manifest.weights {
            assert!(entry.sha256.as_ref().is_none_or(|sum| sum.len() == 64), "{entry:?}");
        }
    }
}
