//! The tables that stand in `docs/kernels.md` between marks.

use std::fs;

use anyhow::{Context, bail};

use crate::process::root;

/// Prints a table, and writes it into the documentation or compares it with what stands there.
pub(super) fn put(name: &str, table: &str, check: bool) -> anyhow::Result<()> {
    print!("{table}");
    let path = root().join("docs/kernels.md");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let wanted = replace(&text, name, table).with_context(|| {
        format!("{}: no table between `<!-- {name}: ... -->` and `<!-- end of {name} -->`", path.display())
    })?;
    if wanted == text {
        return Ok(());
    }
    if check {
        bail!("the table of {name} in docs/kernels.md is out of date; `cargo xtask build-kernels` writes it");
    }
    fs::write(&path, wanted).with_context(|| format!("{} cannot be written", path.display()))
}

/// The text with what stands between the marks replaced.
fn replace(text: &str, name: &str, table: &str) -> Option<String> {
    let begin = text.find(&format!("<!-- {name}:"))?;
    let begin = begin + text[begin..].find('\n')? + 1;
    let end = begin + text[begin..].find(&format!("<!-- end of {name} -->"))?;
    Some(format!("{}{table}{}", &text[..begin], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::replace;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let text = "a\n<!-- t: made by b -->\nold\n<!-- end of t -->\nc\n";
        let wanted = "a\n<!-- t: made by b -->\nnew\n<!-- end of t -->\nc\n";
        assert_eq!(replace(text, "t", "new\n").as_deref(), Some(wanted));
        assert_eq!(replace(wanted, "t", "new\n").as_deref(), Some(wanted));
        assert_eq!(replace(text, "u", "new\n"), None);
        assert_eq!(replace("<!-- t: -->\n", "t", "new\n"), None);
    }
}
