//! Mistakes put into the kernels, each of which must be caught.
