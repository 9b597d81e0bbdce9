//! Metrics and validation.
