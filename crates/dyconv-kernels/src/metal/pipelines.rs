//! Compiled kernels, kept for each device.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{LazyLock, Mutex};

use candle_core::metal_backend::MetalError;
use candle_core::{MetalDevice, Result, bail};
use candle_metal_kernels::metal::{ComputePipeline, Library};
use objc2_metal::{MTLCompileOptions, MTLComputePipelineState};

use super::source;
use crate::gpu::{Element, Kernel, Launch};

/// Threads that the kernels' sums run over without a barrier.
const SIMD_GROUP: usize = 32;

/// What was compiled for one device.
#[derive(Default)]
struct Compiled {
    files: HashMap<&'static str, Library>,
    pipelines: HashMap<(Kernel, Element), ComputePipeline>,
}

/// By the device's number in the system's registry. Candle's own cache knows Candle's kernels only.
static COMPILED: LazyLock<Mutex<HashMap<u64, Compiled>>> = LazyLock::new(Mutex::default);

/// The kernel of a launch, compiled now where it was not before.
pub(super) fn pipeline(device: &MetalDevice, launch: &Launch) -> Result<ComputePipeline> {
    let metal = device.metal_device();
    // Whatever panicked left whole entries behind.
    let mut all = COMPILED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let compiled = all.entry(metal.registry_id()).or_default();
    let key = (launch.kernel, launch.element);
    if let Some(pipeline) = compiled.pipelines.get(&key) {
        return Ok(pipeline.clone());
    }
    let file = launch.kernel.file();
    let library = match compiled.files.get(file) {
        Some(library) => library.clone(),
        None => {
            let Some(text) = source::text(file) else {
                bail!("{}: there is no file of kernels `{file}`", launch.entry())
            };
            let library = metal.new_library_with_source(&text, Some(&options())).map_err(MetalError::from)?;
            compiled.files.insert(file, library.clone());
            library
        }
    };
    let function = library.get_function(&launch.entry(), None).map_err(MetalError::from)?;
    let pipeline = metal.new_compute_pipeline_state_with_function(&function).map_err(MetalError::from)?;
    let width = pipeline.as_ref().threadExecutionWidth();
    if width < SIMD_GROUP {
        bail!("{}: this GPU's SIMD groups have {width} threads, the kernels need {SIMD_GROUP}", launch.entry());
    }
    let (threads, most) = (launch.block.iter().product::<u32>(), pipeline.max_total_threads_per_threadgroup());
    if threads as usize > most {
        bail!("{}: this GPU runs {most} threads in a threadgroup, the kernel needs {threads}", launch.entry());
    }
    compiled.pipelines.insert(key, pipeline.clone());
    Ok(pipeline)
}

/// Without fast mathematics, which takes liberties with infinities: the sigmoid of a large number passes through one.
fn options() -> impl Deref<Target = MTLCompileOptions> {
    let options = MTLCompileOptions::new();
    #[expect(deprecated, reason = "its successor is not there before macOS 15")]
    options.setFastMathEnabled(false);
    options
}
