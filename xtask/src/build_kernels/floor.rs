//! The floor under each kernel's time: its bytes over the memory's bandwidth or its operations over the arithmetic's rate,
//! whichever is longer.

use std::fmt::Write as _;

use super::document;
use super::launches::Launch;

/// What a machine can do at most, as its maker publishes it.
struct Machine {
    name: &'static str,
    /// Bytes a second.
    bandwidth: f64,
    /// f32 operations a second outside of matrix units, which these kernels do not use.
    rate: f64,
}

/// A100: NVIDIA A100 80 GB SXM data sheet. H100: NVIDIA H100 SXM data sheet. M1 Max: Apple's announcement of M1 Pro and M1 Max.
const MACHINES: [Machine; 3] = [
    Machine { name: "A100", bandwidth: 2039e9, rate: 19.5e12 },
    Machine { name: "H100", bandwidth: 3350e9, rate: 67e12 },
    Machine { name: "M1 Max", bandwidth: 400e9, rate: 10.4e12 },
];

impl Machine {
    /// Seconds, and whether the memory is what takes them.
    fn floor(&self, bytes: f64, operations: f64) -> (f64, bool) {
        let (memory, arithmetic) = (bytes / self.bandwidth, operations / self.rate);
        (memory.max(arithmetic), memory >= arithmetic)
    }
}

/// Prints the table and puts it into the documentation.
pub(super) fn run(launches: &[Launch], check: bool) -> anyhow::Result<()> {
    document::put("floors", &table(launches)?, check)
}

/// Launches that move less than this take as long as it takes to launch them.
const WORTH_A_ROW: f64 = 1e5;

/// A row a kernel and shape, in f32.
fn table(launches: &[Launch]) -> anyhow::Result<String> {
    let mut text = String::from("| Shape | Kernel | Blocks | MB | GFLOP |");
    for machine in &MACHINES {
        write!(text, " {} |", machine.name)?;
    }
    text.push_str("\n|---|---|--:|--:|--:|");
    text.push_str(&"--:|".repeat(MACHINES.len()));
    text.push('\n');
    for launch in launches {
        let Some(kernel) = launch.kernel.strip_suffix("_f32") else { continue };
        if launch.bytes < WORTH_A_ROW {
            continue;
        }
        let (bytes, operations) = (launch.bytes / 1e6, launch.operations / 1e9);
        write!(text, "| {} | `{kernel}` | {} | {bytes:.2} | {operations:.3} |", launch.case, launch.blocks)?;
        for machine in &MACHINES {
            let (seconds, memory) = machine.floor(launch.bytes, launch.operations);
            write!(text, " {:.1} {} |", seconds * 1e6, if memory { "m" } else { "a" })?;
        }
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::MACHINES;

    #[test]
    fn the_longer_of_the_two_is_the_floor() {
        let a100 = &MACHINES[0];
        assert_eq!(a100.floor(2039e9, 1.0), (1.0, true));
        assert_eq!(a100.floor(1.0, 39e12), (2.0, false));
    }
}
