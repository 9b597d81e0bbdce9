//! The subcommands.

pub(crate) mod benchmark;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod fetch;
pub(crate) mod forward;
mod network;
pub(crate) mod predict;
pub(crate) mod summary;
pub(crate) mod train;
pub(crate) mod val;
