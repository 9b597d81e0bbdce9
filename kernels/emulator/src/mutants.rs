//! Mistakes put into the kernels, each of which must be caught: the check of the checks.

use std::path::Path;

use dyconv_kernels::gpu::Element;

use crate::conformance::{self, Table};
use crate::device::Emulator;
use crate::module::{Module, Sources};
use crate::{Error, cases};

mod metal;
pub use metal::METAL;

/// One mistake.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    /// What is wrong.
    pub name: &'static str,
    /// The file, below `kernels/`.
    pub file: &'static str,
    /// Text that is in it exactly once.
    pub find: &'static str,
    /// What stands there instead.
    pub replacement: &'static str,
    /// The kernel file that is run.
    pub runs: &'static str,
    /// A part of what must be reported.
    pub expected: &'static str,
}

/// Runs a mutant; gives the first line of what caught it.
///
/// # Errors
/// [`Error::Found`] where the text is not there or nothing, or the wrong thing, was reported; others where it cannot be run.
pub fn trial(mutant: &Mutant, sources: &Sources, folder: &Path) -> Result<String, Error> {
    let Some(changed) = sources.replaced(mutant.file, mutant.find, mutant.replacement) else {
        return Err(Error::Found(format!("`{}`: its text is not in {} exactly once", mutant.name, mutant.file)));
    };
    let mut emulator = Emulator::new(sources, folder)?;
    emulator.replace(mutant.runs, Module::build(&changed, mutant.runs, folder)?);
    match conformance::run(&emulator, &cases::of_file(mutant.runs), Element::F32, &mut Table::default()) {
        Ok(()) => Err(Error::Found(format!("`{}` was not caught", mutant.name))),
        Err(error @ (Error::Found(_) | Error::Wrong { .. })) => {
            let text = error.to_string();
            let line = text.lines().find(|line| line.contains(mutant.expected)).map(str::to_owned);
            line.ok_or_else(|| Error::Found(format!("`{}`: expected `{}`, got {text}", mutant.name, mutant.expected)))
        }
        Err(error) => Err(error),
    }
}

/// Of the CUDA kernels; the first [`ALWAYS`] run with every test.
pub const CUDA: &[Mutant] = &[
    Mutant {
        name: "the tiles do not alternate",
        file: "cuda/gemm.cuh",
        find: "        half ^= 1u;\n",
        replacement: "",
        runs: "conv_gemm",
        expected: "race: ",
    },
    Mutant {
        name: "threads without a pixel return early",
        file: "cuda/conv_pointwise.cu",
        find: "    float sum[4][4] = {};",
        replacement: "    if (at.column + thread_column() >= p.out_height * p.out_width) return;\n    float sum[4][4] = {};",
        runs: "conv_pointwise",
        expected: "threads of the block returned",
    },
    Mutant {
        name: "no guard of the last pixels of a plane",
        file: "cuda/conv_depthwise.cu",
        find: "if (pixel < pixels) each(pixel);",
        replacement: "each(pixel);",
        runs: "conv_depthwise",
        expected: "out-of-bounds",
    },
    Mutant {
        name: "vectors are computed and not stored",
        file: "cuda/epilogue.cu",
        find: "        store4(y + at, v);\n",
        replacement: "",
        runs: "epilogue",
        expected: "bytes of y are never written",
    },
    Mutant {
        name: "no barrier before the matrix product",
        file: "cuda/gemm.cuh",
        find: "    __syncthreads();\n    unsigned half = 0;",
        replacement: "    unsigned half = 0;",
        runs: "conv_gemm",
        expected: "read of uninitialised memory: shared memory",
    },
    Mutant {
        name: "no barrier after a step of the matrix product",
        file: "cuda/gemm.cuh",
        find: "            b.put(tiles_b + half * TILE_VALUES, next_b);\n        }\n        __syncthreads();",
        replacement: "            b.put(tiles_b + half * TILE_VALUES, next_b);\n        }",
        runs: "conv_gemm",
        expected: "read of uninitialised memory: shared memory",
    },
    Mutant {
        name: "tiles larger than the shared memory asked for",
        file: "cuda/gemm.cuh",
        find: "TILE_STRIDE = 68u;",
        replacement: "TILE_STRIDE = 72u;",
        runs: "conv_gemm",
        expected: "out-of-bounds",
    },
    Mutant {
        name: "no guard of the last channels of a group",
        file: "cuda/gemm.cuh",
        find: "        if (row >= p.out_per_group) return;\n",
        replacement: "",
        runs: "conv_gemm",
        expected: "out-of-bounds",
    },
    Mutant {
        name: "one pixel too many",
        file: "cuda/gemm.cuh",
        find: "if (column + j < pixels) to[j]",
        replacement: "if (column + j <= pixels) to[j]",
        runs: "conv_pointwise",
        expected: "race: write after write",
    },
    Mutant {
        name: "vectors where the buffer forbids them",
        file: "cuda/gemm.cuh",
        find: "if (row && vector && first < depth)",
        replacement: "if (row && depth % 4u == 0 && first < depth)",
        runs: "conv_gemm",
        expected: "misaligned access: kernels",
    },
    Mutant {
        name: "the row below the map",
        file: "cuda/conv_gemm.cu",
        find: "iy < int(p.height)",
        replacement: "iy <= int(p.height)",
        runs: "conv_gemm",
        expected: "out-of-bounds read",
    },
    Mutant {
        name: "a pixel left of the map",
        file: "cuda/conv_gemm.cu",
        find: "ix >= 0",
        replacement: "ix >= -1",
        runs: "conv_gemm",
        expected: "out-of-bounds read",
    },
    Mutant {
        name: "division off by one",
        file: "cuda/common.cuh",
        find: "__umulhi(n, multiplier)",
        replacement: "__umulhi(n, multiplier - 1u)",
        runs: "conv_gemm",
        expected: "of the largest value",
    },
    Mutant {
        name: "a chunk of coefficients overwritten while it is read",
        file: "cuda/mix.cu",
        find: "        __syncthreads(); // the last chunk has been read\n",
        replacement: "",
        runs: "mix",
        expected: "race: ",
    },
    Mutant {
        name: "threads beyond the row return between barriers",
        file: "cuda/mix.cu",
        find: "if (first >= p.length) continue;",
        replacement: "if (first >= p.length) return;",
        runs: "mix",
        expected: "threads of the block returned",
    },
    Mutant {
        name: "coefficients of rows that do not exist",
        file: "cuda/mix.cu",
        find: "i < rows ? to_float(coefficients[at]) : 0.0f",
        replacement: "to_float(coefficients[at])",
        runs: "mix",
        expected: "out-of-bounds read",
    },
    Mutant {
        name: "sums of warps overwritten before they are added",
        file: "cuda/mix.cu",
        find: "        __syncthreads(); // before the next chunk writes\n",
        replacement: "",
        runs: "mix",
        expected: "race: ",
    },
    Mutant {
        name: "logits read before they are there",
        file: "cuda/route.cu",
        find: "    __syncthreads();\n    // A handful of experts",
        replacement: "    // A handful of experts",
        runs: "route",
        expected: "read of uninitialised memory: shared memory",
    },
    Mutant {
        name: "every lane writes the sum of its plane",
        file: "cuda/route.cu",
        find: "if (lane == 0) shared[c] = sum * p.pool_scale;",
        replacement: "shared[c] = sum * p.pool_scale;",
        runs: "route",
        expected: "race: write after write",
    },
    Mutant {
        name: "a warp adds half of its lanes",
        file: "cuda/common.cuh",
        find: "step = WARP / 2;",
        replacement: "step = WARP / 4;",
        runs: "route",
        expected: "of the largest value",
    },
    Mutant {
        name: "outputs between strides",
        file: "cuda/conv_grad.cu",
        find: "oy * p.stride_h == unsigned(down) && ",
        replacement: "",
        runs: "conv_grad",
        expected: "of the largest value",
    },
    Mutant {
        name: "the last part runs past the last chunk",
        file: "cuda/conv_grad.cu",
        find: "min(begin + p.part_chunks, p.set_chunks)",
        replacement: "begin + p.part_chunks",
        runs: "conv_grad",
        expected: "out-of-bounds read",
    },
    Mutant {
        name: "kernels used while they are staged",
        file: "cuda/conv_depthwise.cu",
        find: "shared[i] = to_float(kernels[i]);\n    __syncthreads();",
        replacement: "shared[i] = to_float(kernels[i]);",
        runs: "conv_depthwise",
        expected: "read of uninitialised memory: shared memory",
    },
    Mutant {
        name: "the first part counts twice",
        file: "cuda/epilogue.cu",
        find: "for (unsigned i = 1; i < p.parts; i++)",
        replacement: "for (unsigned i = 0; i < p.parts; i++)",
        runs: "epilogue",
        expected: "of the largest value",
    },
];

/// How many of a list run with every test; the others run where `DYCONV_MUTANTS=all` asks for them.
pub const ALWAYS: usize = 4;

/// The mutants of a list to run now.
pub fn chosen(list: &[Mutant]) -> &[Mutant] {
    if std::env::var("DYCONV_MUTANTS").is_ok_and(|value| value == "all") {
        list
    } else {
        &list[..ALWAYS.min(list.len())]
    }
}
