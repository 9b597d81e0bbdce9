//! What can go wrong, told so that the caller sees which argument to change.

use candle_core::{DType, Device, Tensor};

/// An error of this crate.
///
/// It turns into [`candle_core::Error`] by `?`, so that the operations fit among Candle's own.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument that does not fit the others, or the operation.
    #[error("{operation}: `{argument}` must be {expected}, it is {got}")]
    Argument {
        /// The function called.
        operation: &'static str,
        /// The argument at fault.
        argument: &'static str,
        /// What would fit.
        expected: String,
        /// What came.
        got: String,
    },
    /// A failure of Candle or of the device.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => Self::wrap(error),
        }
    }
}

/// A function's name, to check its arguments with.
#[derive(Clone, Copy)]
pub(crate) struct Operation(pub(crate) &'static str);

impl Operation {
    /// The error that `argument` makes.
    pub(crate) fn wrong(self, argument: &'static str, expected: impl Into<String>, got: impl Into<String>) -> Error {
        Error::Argument { operation: self.0, argument, expected: expected.into(), got: got.into() }
    }

    /// The sizes of a tensor of rank `N`; `form` names them, as in "[B, C, H, W]".
    pub(crate) fn dims<const N: usize>(
        self,
        argument: &'static str,
        tensor: &Tensor,
        form: &str,
    ) -> Result<[usize; N]> {
        tensor.dims().try_into().map_err(|_| self.wrong(argument, form, format!("{:?}", tensor.dims())))
    }

    /// That a tensor has exactly these sizes; `form` says where they come from.
    pub(crate) fn shape(self, argument: &'static str, tensor: &Tensor, expected: &[usize], form: &str) -> Result<()> {
        if tensor.dims() == expected {
            return Ok(());
        }
        Err(self.wrong(argument, format!("{form} = {expected:?}"), format!("{:?}", tensor.dims())))
    }

    /// That all tensors are of the first one's floating type and on its device.
    pub(crate) fn alike(self, tensors: &[(&'static str, Option<&Tensor>)]) -> Result<()> {
        let mut given = tensors.iter().filter_map(|(name, tensor)| tensor.map(|tensor| (*name, tensor)));
        let Some((first, like)) = given.next() else { return Ok(()) };
        if !matches!(like.dtype(), DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
            return Err(self.wrong(first, "of a floating type", like.dtype().as_str()));
        }
        for (name, tensor) in given {
            if tensor.dtype() != like.dtype() {
                let expected = format!("{} as `{first}`", like.dtype().as_str());
                return Err(self.wrong(name, expected, tensor.dtype().as_str()));
            }
            if !tensor.device().same_device(like.device()) {
                let expected = format!("on {:?} as `{first}`", like.device().location());
                return Err(self.wrong(name, expected, format!("on {:?}", tensor.device().location())));
            }
        }
        Ok(())
    }
}

/// Whether the kernels of [`crate::cpu`] take a tensor.
pub(crate) fn on_cpu(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu) && x.dtype() == DType::F32
}
