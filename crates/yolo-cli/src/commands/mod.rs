//! The subcommands.

pub(crate) mod benchmark;
pub(crate) mod convert;
pub(crate) mod fetch;
pub(crate) mod forward;
pub(crate) mod predict;
pub(crate) mod summary;
