//! What a text alone gives away: words that forgeries of a verdict use and solutions seldom do.

use std::collections::BTreeSet;

const WORDS: [&str; 17] = [
    "__builtins__",
    "__class__",
    "__eq__",
    "__globals__",
    "__subclasses__",
    "_exit",
    "_getframe",
    "builtins",
    "ctypes",
    "currentframe",
    "excepthook",
    "f_back",
    "f_locals",
    "get_objects",
    "get_referrers",
    "settrace",
    "tb_frame",
];

/// Those of the words that a candidate holds, in alphabetical order. A hint where to look, never a verdict.
pub(crate) fn flags(candidate: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = candidate.split(|c: char| !is_word(c)).collect();
    let found = WORDS.iter().filter(|word| words.contains(*word));
    found.map(|&word| word.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_words_are_flagged_and_parts_are_not() {
        assert_eq!(
            flags(
                "import sys\nsys._getframe(1).f_back\nclass A:\n    def __eq__(a, b): return True"
            ),
            ["__eq__", "_getframe", "f_back"]
        );
        assert!(flags("def exit_code(my__eq__): return my__eq__").is_empty());
        assert!(WORDS.is_sorted());
    }
}
