//! The launches that the library would make, as its example `launches` prints them.

use std::process::Command;

use anyhow::{Context, bail};

use crate::process::{cargo, run as execute, target};

/// One launch at one shape.
pub(super) struct Launch {
    /// The shape in words.
    pub(super) case: String,
    /// The kernel's name with its type.
    pub(super) kernel: String,
    /// Threads a block.
    pub(super) threads: usize,
    /// Dynamic shared memory, bytes.
    pub(super) shared: usize,
    /// Blocks.
    pub(super) blocks: usize,
    /// Bytes that must cross the memory bus: every input once, every output once.
    pub(super) bytes: f64,
    /// Floating-point operations, a multiply-add being two.
    pub(super) operations: f64,
}

/// Builds and runs the example.
pub(super) fn read() -> anyhow::Result<Vec<Launch>> {
    execute(cargo().args(["build", "--quiet", "--workspace", "--example", "launches"]))?;
    let program = target().join("debug/examples/launches").with_extension(std::env::consts::EXE_EXTENSION);
    let output = Command::new(&program).output().with_context(|| format!("{} cannot be run", program.display()))?;
    if !output.status.success() {
        bail!("the example `launches` failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// A launch a line: case, kernel, threads, shared bytes, blocks, bytes, operations, with tabs between.
fn parse(text: &str) -> anyhow::Result<Vec<Launch>> {
    text.lines()
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            let &[case, kernel, threads, shared, blocks, bytes, operations] = fields.as_slice() else {
                bail!("the example `launches` printed a line of {} fields: `{line}`", fields.len());
            };
            let whole = |field: &str| field.parse::<usize>().with_context(|| format!("`{field}` in `{line}`"));
            Ok(Launch {
                case: case.to_owned(),
                kernel: kernel.to_owned(),
                threads: whole(threads)?,
                shared: whole(shared)?,
                blocks: whole(blocks)?,
                bytes: whole(bytes)? as f64,
                operations: whole(operations)? as f64,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn lines_are_launches() {
        let launches = parse("64->64 k1 @20 x1\tconv_pointwise_f32\t256\t17408\t7\t221952\t3276800\n").unwrap();
        let [launch] = launches.as_slice() else { panic!("{} launches", launches.len()) };
        assert_eq!((launch.case.as_str(), launch.kernel.as_str()), ("64->64 k1 @20 x1", "conv_pointwise_f32"));
        assert_eq!((launch.threads, launch.shared, launch.blocks), (256, 17408, 7));
        assert_eq!((launch.bytes, launch.operations), (221952.0, 3276800.0));
        for text in ["a\tb\t1\t2\t3\t4\n", "a\tb\tc\t2\t3\t4\t5\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
