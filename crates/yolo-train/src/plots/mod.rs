//! Plots of data, curves and results.
