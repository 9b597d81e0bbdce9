//! `yolo fetch`: weights by name.

use std::process::ExitCode;

use crate::fetch::resolve_weights;
use crate::stdout::say;

/// Fetch trained weights by name, convert them, and print where they are.
///
/// They are kept in the cache: $YOLO_CACHE, or the folder `yolo` in the user's cache folder. $YOLO_WEIGHTS_URL names a
/// mirror of YOLOv5's release. The weights are Ultralytics' (AGPL-3.0).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// yolov5n, s, m, l or x, with 6 or -seg behind it where wanted; or a file.
    name: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    say!("{}", resolve_weights(&args.name)?.display())?;
    Ok(ExitCode::SUCCESS)
}
