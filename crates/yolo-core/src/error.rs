//! The one error type of this crate: every message names the file or layer, what was expected and what came.

use std::path::{Path, PathBuf};

/// What can go wrong between a network's YAML and a drawn picture.
///
/// The texts are written for the person at the terminal; the variants are for code that wants to tell the cases apart.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A network description that cannot be read as one.
    #[error("{file}: {problem}")]
    Config {
        /// The YAML file, or the name of the built-in network.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A layer of a network description that cannot be built.
    #[error("{file}: layer {layer} ({module}): {problem}")]
    Layer {
        /// The YAML file, or the name of the built-in network.
        file: String,
        /// Index of the layer, counted over backbone and head as YOLOv5 does.
        layer: usize,
        /// The module as the YAML names it.
        module: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A tensor whose shape the network cannot take.
    #[error("{what}: expected {expected}, got {got}")]
    Shape {
        /// The argument or the layer.
        what: String,
        /// The shape that was expected.
        expected: String,
        /// The shape that came.
        got: String,
    },
    /// A weights file (safetensors) that is damaged or belongs to another network.
    #[error("{}: {problem}", file.display())]
    Weights {
        /// The file.
        file: PathBuf,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A PyTorch checkpoint that cannot be read.
    #[error("{}: {problem}", file.display())]
    Checkpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A picture that cannot be decoded or used.
    #[error("{}: {problem}", file.display())]
    Picture {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said. Not called `source`: it stands in the message already, and printers of chains
        /// would say it twice.
        cause: std::io::Error,
    },
    /// An argument out of its range.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// A device that is not compiled in or not there.
    #[error("{0}")]
    Device(String),
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An I/O error that names its file.
    pub fn io(path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), cause }
    }

    /// A damaged or foreign weights file.
    pub fn weights(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Weights { file: file.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// A checkpoint that cannot be read.
    pub fn checkpoint(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Checkpoint { file: file.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// A picture that cannot be used.
    pub fn picture(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Picture { file: file.as_ref().to_path_buf(), problem: problem.into() }
    }
}
