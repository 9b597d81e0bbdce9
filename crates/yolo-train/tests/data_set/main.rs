//! Data sets from files to batches.

mod bad_input;
mod batches;
mod files;
mod world;
