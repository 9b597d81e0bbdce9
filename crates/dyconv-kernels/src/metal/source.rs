//! The kernels' text.

const PARAMS: &str = include_str!("../../kernels/params.h");
const COMMON: &str = include_str!("../../kernels/metal/common.h");
const GEMM: &str = include_str!("../../kernels/metal/gemm.h");

/// Each file of kernels with the files that it includes, in their order.
const FILES: [(&str, &[&str]); 7] = [
    ("conv_depthwise", &[PARAMS, COMMON, include_str!("../../kernels/metal/conv_depthwise.metal")]),
    ("conv_gemm", &[PARAMS, COMMON, GEMM, include_str!("../../kernels/metal/conv_gemm.metal")]),
    ("conv_grad", &[PARAMS, COMMON, GEMM, include_str!("../../kernels/metal/conv_grad.metal")]),
    ("conv_pointwise", &[PARAMS, COMMON, GEMM, include_str!("../../kernels/metal/conv_pointwise.metal")]),
    ("epilogue", &[PARAMS, COMMON, include_str!("../../kernels/metal/epilogue.metal")]),
    ("mix", &[PARAMS, COMMON, include_str!("../../kernels/metal/mix.metal")]),
    ("route", &[PARAMS, COMMON, include_str!("../../kernels/metal/route.metal")]),
];

/// The text of one file of kernels with what it includes in place: Metal's compiler has no files when a program runs.
pub(super) fn text(file: &str) -> Option<String> {
    let (_, parts) = FILES.iter().find(|(name, _)| *name == file)?;
    let elsewhere = |line: &&str| !line.starts_with("#include \"") && !line.starts_with("#pragma once");
    Some(
        parts
            .iter()
            .flat_map(|part| part.lines())
            .filter(elsewhere)
            .fold(String::new(), |text, line| text + line + "\n"),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::gpu::Kernel;

    /// What a file includes, each once, before the file itself.
    fn parts<'a>(file: &'a str, texts: &HashMap<&'a str, &'a str>, seen: &mut Vec<&'a str>) {
        for line in texts[file].lines() {
            let Some(name) = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"')) else { continue };
            let (name, _) = texts.get_key_value(name.trim_start_matches("../")).unwrap();
            if !seen.contains(name) {
                parts(name, texts, seen);
            }
        }
        seen.push(file);
    }

    #[test]
    fn texts_hold_what_their_files_include() {
        let mut texts = HashMap::from([("params.h", PARAMS), ("common.h", COMMON), ("gemm.h", GEMM)]);
        texts.extend(FILES.map(|(file, parts)| (file, parts[parts.len() - 1])));
        for (file, listed) in FILES {
            let mut included = Vec::new();
            parts(file, &texts, &mut included);
            let included: Vec<&str> = included.into_iter().map(|name| texts[name]).collect();
            assert_eq!(included, listed, "{file}");
        }
    }

    #[test]
    fn every_kernel_has_its_text() {
        for kernel in Kernel::ALL {
            let text = text(kernel.file()).unwrap();
            assert!(text.contains(&format!(" {}_##NAME(", kernel.name())), "{}", kernel.name());
            assert!(!text.contains("#include \""), "{}: a file that is not there", kernel.file());
            assert_eq!(text.matches("struct ConvParams {").count(), 1, "{}", kernel.file());
        }
        assert_eq!(text("none"), None);
    }
}
