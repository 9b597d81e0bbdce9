//! The subcommands.

pub(crate) mod predict;
