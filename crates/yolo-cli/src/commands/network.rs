//! The network that a command's `--cfg` and `--weights` name.

use anyhow::bail;
use candle_core::Device;
use yolo_core::weights::{NetworkMetadata, Weights};
use yolo_core::{Graph, NetworkConfig};

use crate::fetch;

/// Opens it: `cfg` decides where it is given, else what the weights say; without weights they are random, of `seed`.
///
/// # Errors
/// Where neither is given, or one of them cannot be read.
pub(super) fn open(cfg: Option<&str>, weights: Option<&str>, seed: u64) -> anyhow::Result<(Graph, Weights)> {
    let weights = weights.map(fetch::open_weights).transpose()?;
    let config = match (cfg, &weights) {
        (Some(cfg), _) => NetworkConfig::open(cfg)?,
        (None, Some(weights)) => NetworkConfig::of_weights(weights)?,
        (None, None) => bail!("--cfg: name a network"),
    };
    let graph = Graph::new(&config)?;
    let weights = match weights {
        Some(weights) => weights,
        None => Weights::from_tensors(graph.init(seed, &Device::Cpu)?, NetworkMetadata::default()),
    };
    Ok((graph, weights))
}
