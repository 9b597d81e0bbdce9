//! Rules of Metal's language that neither the emulator nor the lint of address spaces can see, read off the text; and that both
//! languages' kernels take the same arguments.

use std::collections::HashMap;

use dyconv_emulator::cases::{self, Case, ConvCase};
use dyconv_emulator::module::{Language, Sources};
use dyconv_kernels::Routing;
use dyconv_kernels::gpu::conv::Conv;
use dyconv_kernels::gpu::mix::{Mix, sum_parts};
use dyconv_kernels::gpu::route::Route;
use dyconv_kernels::gpu::{Access, Element, Kernel, Launch};

/// A language's files by path, without comments and the ends of macros' lines.
fn texts(language: Language) -> HashMap<String, String> {
    let plain = |line: &str| line.split("//").next().unwrap_or_default().trim_end_matches('\\').trim().to_owned();
    let sources = Sources::read(language).unwrap();
    let own = sources.files().filter(|(path, _)| *path != "params.h");
    own.map(|(path, text)| (path.to_owned(), text.lines().map(plain).collect::<Vec<_>>().join("\n"))).collect()
}

/// Words and signs, one after another.
fn tokens(text: &str) -> Vec<&str> {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if in_word(first) { rest.find(|c| !in_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        tokens.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    tokens
}

/// Where the bracket at `open` closes.
fn closing(tokens: &[&str], open: usize) -> usize {
    let (up, down) = if tokens[open] == "(" { ("(", ")") } else { ("{", "}") };
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        depth += i32::from(*token == up) - i32::from(*token == down);
        if depth == 0 {
            return at;
        }
    }
    panic!("`{up}` is not closed");
}

#[test]
fn words_that_metal_lacks_are_not_used() {
    const LACKING: [&str; 19] = [
        "double",
        "static_cast",
        "dynamic_cast",
        "new",
        "delete",
        "goto",
        "virtual",
        "throw",
        "try",
        "catch",
        "thread_local",
        "std",
        "vertex",
        "fragment",
        "sampler",
        "patch",
        "long",
        "nullptr",
        "auto",
    ];
    for (path, text) in texts(Language::Metal) {
        let tokens = tokens(&text);
        for word in LACKING {
            assert!(!tokens.contains(&word), "{path}: `{word}`");
        }
        // Lambdas.
        for sign in ["[&]", "[=]", "[]"] {
            assert!(!text.contains(sign), "{path}: `{sign}`");
        }
    }
}

#[test]
fn threadgroup_memory_is_an_argument() {
    for (path, text) in texts(Language::Metal) {
        let tokens = tokens(&text);
        for (at, _) in tokens.iter().enumerate().filter(|(_, token)| **token == "threadgroup") {
            // `threadgroup float *`, or the attribute of the argument.
            let kept = tokens[at + 1..].iter().take_while(|token| !["*", ")", ";", "&"].contains(token)).count();
            let attribute = path == "metal/common.h" && tokens[at + 1] == "(";
            assert!(attribute || tokens[at + 1 + kept] == "*", "{path}: {}", tokens[at..at + 6].join(" "));
        }
    }
}

#[test]
fn functions_do_not_recur() {
    const CONTROL: [&str; 4] = ["if", "for", "while", "switch"];
    let mut found = 0;
    for (path, text) in texts(Language::Metal) {
        let tokens = tokens(&text);
        for open in (1..tokens.len()).filter(|at| tokens[*at] == "(" && !CONTROL.contains(&tokens[at - 1])) {
            let name = tokens[open - 1];
            let mut after = closing(&tokens, open) + 1;
            if tokens.get(after) == Some(&"const") {
                after += 1;
            }
            if tokens.get(after) != Some(&"{") {
                continue;
            }
            found += 1;
            let body = &tokens[after..closing(&tokens, after)];
            assert!(!body.windows(2).any(|pair| pair == [name, "("]), "{path}: `{name}` calls itself");
        }
        // Without declarations ahead of definitions a function calls only those above it.
        let mut depth = 0;
        for (at, token) in tokens.iter().enumerate() {
            depth += i32::from(*token == "{") - i32::from(*token == "}");
            let declared = depth == 0 && *token == ")" && tokens.get(at + 1) == Some(&";");
            assert!(
                !declared,
                "{path}: a declaration before its definition, {}",
                tokens[at.saturating_sub(8)..at].join(" ")
            );
        }
    }
    assert!(found > 40, "only {found} functions found: does this test still read the text?");
}

/// One argument: its name, its type without qualifiers, and its attribute.
type Argument = (String, String, String);

/// The arguments of each kernel by name without the type at its end, and the words of its head.
fn signatures(language: Language) -> HashMap<String, (String, Vec<Argument>)> {
    let mut all = HashMap::new();
    for text in texts(language).values() {
        let tokens = tokens(text);
        for at in (0..tokens.len()).filter(|at| tokens[*at..].starts_with(&["#", "#", "NAME", "("])) {
            let name = tokens[at - 1].trim_end_matches('_').to_owned();
            let list = &tokens[at + 4..closing(&tokens, at + 3)];
            let head = tokens[at.saturating_sub(12)..at - 1].join(" ");
            let arguments = list.split(|token| *token == ",").map(|words| {
                const QUALIFIERS: [&str; 5] = ["device", "constant", "const", "*", "&"];
                let (words, attribute) = words.split_at(words.iter().position(|w| *w == "[").unwrap_or(words.len()));
                let (name, kind) = words.split_last().unwrap();
                let kind: Vec<&str> = kind.iter().copied().filter(|word| !QUALIFIERS.contains(word)).collect();
                (name.to_string(), kind.join(" "), attribute.concat())
            });
            all.insert(name, (head, arguments.collect()));
        }
    }
    all
}

#[test]
fn both_languages_take_the_same_arguments() {
    let (cuda, metal) = (signatures(Language::Cuda), signatures(Language::Metal));
    assert_eq!(metal.len(), Kernel::ALL.len());
    for (name, (_, arguments)) in &metal {
        // What Metal passes besides: memory of the block, and places, at the end.
        let own = arguments.iter().filter(|(_, kind, attribute)| !(kind.is_empty() && attribute.is_empty())).count();
        let rest: Vec<&str> = arguments[own..].iter().map(|(name, ..)| name.as_str()).collect();
        assert!(rest == ["PLACE"] || rest == ["SHARED", "PLACE"], "{name}: {rest:?}");
        for (index, (argument, _, attribute)) in arguments[..own].iter().enumerate() {
            assert_eq!(*attribute, format!("[[buffer({index})]]"), "{name}: {argument}");
        }
        let plain = |arguments: &[Argument]| -> Vec<(String, String)> {
            arguments.iter().map(|(name, kind, _)| (name.clone(), kind.clone())).collect()
        };
        assert_eq!(plain(&arguments[..own]), plain(&cuda[name].1), "{name}");
    }
}

/// One launch at least of each kernel.
fn launches() -> Vec<Launch> {
    let element = Element::F32;
    let mut all = vec![sum_parts(2, 100, element)];
    for case in cases::all() {
        match case {
            Case::Conv(ConvCase { shape, per_sample, tail }) => {
                let conv = Conv { shape: &shape, element, per_sample, aligned: true };
                all.extend([conv.forward(tail), conv.epilogue(tail), conv.grad_input(), conv.grad_kernels()]);
            }
            Case::Mix(batch, experts, length) => {
                let mix = Mix { batch, experts, length, element, aligned: true };
                all.extend([mix.forward(), mix.grad_routing()]);
            }
            Case::Route(batch, channels, pixels, experts, _) => {
                let routing = Routing::Sigmoid;
                let route = Route { batch, channels, pixels, experts, routing, element, aligned: true };
                all.extend([route.fused(), route.pool(), route.pooled(), route.grad_logits(), route.grad_input()]);
            }
        }
    }
    all.into_iter().collect::<Result<_, _>>().unwrap()
}

#[test]
fn launches_are_those_that_the_kernels_are_written_for() {
    let metal = texts(Language::Metal);
    let constants: HashMap<&str, u32> = metal
        .values()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.strip_prefix("constant constexpr uint ")?.split_once(" = "))
        .filter_map(|(name, value)| Some((name, value.trim_end_matches(';').parse().ok()?)))
        .collect();
    let signatures = signatures(Language::Metal);
    let launches = launches();
    for kernel in Kernel::ALL {
        assert!(launches.iter().any(|launch| launch.kernel == *kernel), "{} is not launched", kernel.name());
    }
    for launch in launches {
        let (head, arguments) = &signatures[launch.kernel.name()];
        let bound = head.split("KERNEL ( ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        assert_eq!(constants.get(bound), Some(&launch.block.iter().product()), "{}: {head}", launch.entry());
        for (buffer, (argument, kind, _)) in launch.buffers.iter().zip(arguments) {
            assert_eq!(buffer.name, argument, "{}", launch.entry());
            let f32_always = kind == "float";
            assert!(!f32_always || buffer.element == Element::F32, "{}: {argument}", launch.entry());
        }
        let written = launch.buffers.iter().filter(|buffer| buffer.access == Access::Write).count();
        assert_eq!(written, 1, "{}", launch.entry());
        let shared = arguments.iter().any(|(name, ..)| name == "SHARED");
        assert!(shared || launch.shared == 0, "{}: memory that the kernel does not take", launch.entry());
    }
}
