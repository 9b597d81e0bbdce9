//! What a user may paste into a shell.

use std::path::Path;

/// The command that goes on with the run in `folder`.
#[must_use]
pub fn resume_command(folder: &Path) -> String {
    format!("yolo train --resume {}", shell_word(&folder.display().to_string()))
}

/// `text` as one word of a shell: in quotes where it holds anything that a shell might take for something else.
fn shell_word(text: &str) -> String {
    let plain =
        |c: char| c.is_alphanumeric() || "_@%+=:,./-".contains(c) || (cfg!(windows) && c == std::path::MAIN_SEPARATOR);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_cut_or_change_them() {
        for plain in ["runs/train/exp2", "/a_b/c-d.e", "läufe/exp"] {
            assert_eq!(shell_word(plain), plain);
        }
        for (text, word) in [("my rüns/exp", "'my rüns/exp'"), ("", "''"), ("it's", r"'it'\''s'"), ("a$b", "'a$b'")] {
            assert_eq!(shell_word(text), word);
        }
        assert_eq!(resume_command(Path::new("my rüns/exp")), "yolo train --resume 'my rüns/exp'");
    }
}
