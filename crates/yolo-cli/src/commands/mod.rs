//! The subcommands.

pub(crate) mod convert;
pub(crate) mod fetch;
pub(crate) mod predict;
