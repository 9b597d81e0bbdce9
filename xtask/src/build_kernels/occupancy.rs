//! How many warps of a kernel a multiprocessor holds at once.
//!
//! The formula is that of `cuda_occupancy.h`, which NVIDIA ships with the CUDA runtime; the limits are those of the CUDA C++
//! Programming Guide, "Technical Specifications per Compute Capability".

/// What one multiprocessor offers.
pub(super) struct Gpu {
    pub(super) name: &'static str,
    /// The machine code whose registers count.
    pub(super) arch: &'static str,
    /// Shared memory of a multiprocessor, bytes.
    shared: usize,
    /// Shared memory that one block may ask for, bytes.
    pub(super) shared_block: usize,
}

pub(super) const A100: Gpu = Gpu { name: "A100", arch: "sm_80", shared: 164 << 10, shared_block: 163 << 10 };
pub(super) const H100: Gpu = Gpu { name: "H100", arch: "sm_90", shared: 228 << 10, shared_block: 227 << 10 };

/// The limits that both share.
const WARPS: usize = 64;
const BLOCKS: usize = 32;
const REGISTERS: usize = 64 << 10;
/// Each of the four parts of a multiprocessor has its own registers and schedules its own warps.
const PARTS: usize = 4;
/// Registers are given out to a warp by this many.
const REGISTER_UNIT: usize = 256;
/// Shared memory is given out by this many bytes, and every block loses as much as `SHARED_RESERVED` to the system.
const SHARED_UNIT: usize = 128;
const SHARED_RESERVED: usize = 1024;

/// Blocks of a kernel that one multiprocessor runs at once: the least of what warps, registers and shared memory allow.
pub(super) fn blocks(gpu: &Gpu, threads: usize, registers: usize, shared: usize) -> usize {
    if shared > gpu.shared_block || threads == 0 || threads > 1024 {
        return 0;
    }
    let warps = threads.div_ceil(32);
    let by_registers = match (registers * 32).next_multiple_of(REGISTER_UNIT) {
        0 => BLOCKS,
        warp if warp * warps.next_multiple_of(PARTS) > REGISTERS => 0,
        warp => REGISTERS / PARTS / warp * PARTS / warps,
    };
    let by_shared = gpu.shared / (shared + SHARED_RESERVED).next_multiple_of(SHARED_UNIT);
    BLOCKS.min(WARPS / warps).min(by_registers).min(by_shared)
}

/// The part of a multiprocessor's warps that a kernel keeps busy, between 0 and 1.
pub(super) fn occupancy(gpu: &Gpu, threads: usize, registers: usize, shared: usize) -> f64 {
    (blocks(gpu, threads, registers, shared) * threads.div_ceil(32)) as f64 / WARPS as f64
}

#[cfg(test)]
mod tests {
    use super::{A100, H100, blocks, occupancy};

    /// Threads, registers, shared bytes; blocks on A100 and H100 as `cuda_occupancy.h` of CUDA 13.2 computes them.
    const KNOWN: [(usize, usize, usize, usize, usize); 14] = [
        (256, 32, 0, 8, 8),
        (256, 64, 0, 4, 4),
        (256, 65, 0, 3, 3),
        (256, 128, 49152, 2, 2),
        (128, 255, 0, 2, 2),
        (128, 40, 1296, 12, 12),
        (96, 33, 0, 16, 16),
        (1024, 64, 1024, 1, 1),
        (32, 16, 0, 32, 32),
        (256, 72, 33792, 3, 3),
        (64, 96, 20000, 7, 10),
        (512, 128, 102400, 1, 1),
        (256, 40, 65536, 2, 3),
        (256, 24, 166912, 1, 1),
    ];

    #[test]
    fn agrees_with_nvidias_header() {
        for (threads, registers, shared, a100, h100) in KNOWN {
            let case = (threads, registers, shared);
            assert_eq!(blocks(&A100, threads, registers, shared), a100, "A100 {case:?}");
            assert_eq!(blocks(&H100, threads, registers, shared), h100, "H100 {case:?}");
        }
    }

    #[test]
    fn what_does_not_fit_does_not_run() {
        assert_eq!(blocks(&A100, 256, 32, 166_913), 0);
        assert_eq!(blocks(&A100, 1024, 65, 0), 0);
        assert_eq!(blocks(&A100, 1025, 32, 0), 0);
        assert_eq!(occupancy(&H100, 256, 64, 0), 0.5);
    }
}
