//! The one error type of this crate.

use std::path::{Path, PathBuf};

/// What can go wrong between a data set and trained weights; the texts are for the person at the terminal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A data set, a label file or a file of hyper-parameters that cannot be used.
    #[error("{}: {problem}", file.display())]
    Data {
        /// The file.
        file: PathBuf,
        /// What is wrong, what was expected, what to do.
        problem: String,
    },
    /// An argument out of its range.
    #[error("{argument}: {problem}")]
    Argument {
        /// The argument's name.
        argument: &'static str,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// Training that cannot go on.
    #[error("{0}")]
    Training(String),
    /// Training whose loss, weights or outputs are no finite numbers any more.
    #[error("{0}: the training has diverged, a lower learning rate (`lr0` in the hyper-parameters) may help")]
    Diverged(String),
    /// A network that gives no numbers.
    #[error("weights: the network gives values that are not numbers (NaN): convert or download the weights again")]
    NotNumbers,
    /// An error of the networks' crate.
    #[error(transparent)]
    Core(#[from] yolo_core::Error),
    /// An error of a kernel.
    #[error(transparent)]
    Kernel(#[from] dyconv_kernels::Error),
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A file that cannot be used.
    pub fn data(file: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Data { file: file.as_ref().to_path_buf(), problem: problem.into() }
    }

    /// A file that cannot be read or written.
    pub fn io(path: impl AsRef<Path>, cause: std::io::Error) -> Self {
        Self::Core(yolo_core::Error::io(path, cause))
    }
}
