//! Wrong programs from right ones: one small semantic change each.
//!
//! Works on tokens of the Python text, so strings and comments stay as they are. Whether a mutant is wrong is
//! not decided here: a label comes from execution only.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::SliceRandom;

/// At most `limit` different programs that differ from `source` by one edit each, in random order.
pub fn mutants(source: &str, limit: usize, rng: &mut impl Rng) -> Vec<String> {
    let mut all = all_mutants(source);
    all.shuffle(rng);
    all.truncate(limit);
    all
}

/// Every program that one edit makes of `source`, sorted, without repetition.
pub fn all_mutants(source: &str) -> Vec<String> {
    let tokens = tokenize(source);
    let mut edits = Vec::new();
    let locals = local_names(&tokens, source);
    for (index, token) in tokens.iter().enumerate() {
        let text = &source[token.start..token.end];
        let edit = |with: String| Edit {
            start: token.start,
            end: token.end,
            with,
        };
        match token.kind {
            Kind::Operator => edits.extend(
                operator_swaps(text)
                    .iter()
                    .map(|with| edit((*with).to_owned())),
            ),
            Kind::Number => edits.extend(number_changes(text).into_iter().map(edit)),
            Kind::Name => {
                edits.extend(word_swaps(text).iter().map(|with| edit((*with).to_owned())));
                if is_variable_use(&tokens, source, index) && locals.contains(text) {
                    edits.extend(
                        locals
                            .iter()
                            .filter(|&&name| name != text)
                            .map(|&name| edit(name.to_owned())),
                    );
                }
            }
            Kind::Opaque => {}
        }
    }
    edits.extend(dropped_returns(source, &tokens));
    let programs: BTreeSet<String> = edits.iter().map(|edit| edit.apply(source)).collect();
    programs
        .into_iter()
        .filter(|program| program != source)
        .collect()
}

struct Edit {
    start: usize,
    end: usize,
    with: String,
}

impl Edit {
    fn apply(&self, source: &str) -> String {
        format!(
            "{}{}{}",
            &source[..self.start],
            self.with,
            &source[self.end..]
        )
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Name,
    Number,
    Operator,
    /// Strings and comments.
    Opaque,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// Longest first, so that `//=` is not read as `//` and `=`.
const OPERATORS: [&str; 24] = [
    "**=", "//=", ">>=", "<<=", "**", "//", "<=", ">=", "==", "!=", "->", ":=", "+=", "-=", "*=",
    "/=", "%=", "<", ">", "+", "-", "*", "/", "%",
];

fn operator_swaps(operator: &str) -> &'static [&'static str] {
    match operator {
        "<" => &["<=", ">"],
        "<=" => &["<", ">="],
        ">" => &[">=", "<"],
        ">=" => &[">", "<="],
        "==" => &["!=", ">="],
        "!=" => &["=="],
        "+" => &["-", "*"],
        "-" | "*" => &["+"],
        "**" | "/" => &["*"],
        "//" => &["%", "*"],
        "%" => &["//"],
        "+=" => &["-=", "*="],
        "-=" | "*=" => &["+="],
        "//=" => &["-="],
        _ => &[],
    }
}

fn word_swaps(word: &str) -> &'static [&'static str] {
    match word {
        "and" => &["or"],
        "or" => &["and"],
        "True" => &["False"],
        "False" => &["True"],
        "min" => &["max"],
        "max" => &["min"],
        "any" => &["all"],
        "all" => &["any"],
        "sum" => &["len", "max"],
        "len" => &["sum"],
        "sorted" => &["list"],
        "upper" => &["lower"],
        "lower" => &["upper"],
        "keys" => &["values"],
        "values" => &["keys"],
        "append" => &["extend"],
        "if" => &["if not"],
        "not" => &[""],
        "abs" => &["int"],
        "lstrip" => &["rstrip"],
        "rstrip" => &["lstrip"],
        "startswith" => &["endswith"],
        "endswith" => &["startswith"],
        "find" => &["rfind"],
        "union" => &["intersection"],
        "intersection" => &["union"],
        "split" => &["splitlines"],
        _ => &[],
    }
}

fn number_changes(number: &str) -> Vec<String> {
    match number.parse::<u64>() {
        Ok(0) => vec!["1".to_owned()],
        Ok(value) => vec![
            (value - 1).to_string(),
            (value.saturating_add(1)).to_string(),
        ],
        Err(_) => Vec::new(),
    }
}

fn tokenize(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (kind, end) = next_token(source, at);
        if let Some(kind) = kind {
            tokens.push(Token {
                kind,
                start: at,
                end,
            });
        }
        at = end;
    }
    tokens
}

/// The token at a byte position, or `None` and the position after a character that does not matter.
fn next_token(source: &str, at: usize) -> (Option<Kind>, usize) {
    let rest = &source[at..];
    let Some(first) = rest.chars().next() else {
        return (None, source.len());
    };
    if first == '#' {
        return (
            Some(Kind::Opaque),
            at + rest.find('\n').unwrap_or(rest.len()),
        );
    }
    if let Some(length) = string_length(rest) {
        return (Some(Kind::Opaque), at + length);
    }
    if first.is_alphabetic() || first == '_' {
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        return (Some(Kind::Name), at + length.unwrap_or(rest.len()));
    }
    if first.is_ascii_digit() {
        let length = rest.find(|c: char| !c.is_alphanumeric() && c != '.' && c != '_');
        return (Some(Kind::Number), at + length.unwrap_or(rest.len()));
    }
    if let Some(operator) = OPERATORS
        .iter()
        .find(|operator| rest.starts_with(**operator))
    {
        return (Some(Kind::Operator), at + operator.len());
    }
    (None, at + first.len_utf8())
}

/// Byte length of the string literal that `rest` begins with, prefix included; to the end when unclosed.
fn string_length(rest: &str) -> Option<usize> {
    let prefix = rest
        .find(|c: char| !"rRbBfFuU".contains(c))
        .filter(|&length| length <= 2)?;
    let body = &rest[prefix..];
    let quote = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| body.starts_with(quote))?;
    let bytes = body.as_bytes();
    let mut at = quote.len();
    while at < bytes.len() {
        if bytes[at] == b'\\' {
            at += 2;
        } else if bytes[at..].starts_with(quote.as_bytes()) {
            return Some(prefix + at + quote.len());
        } else {
            at += 1;
        }
    }
    Some(rest.len())
}

/// Parameters, loop variables and assigned names.
fn local_names<'a>(tokens: &[Token], source: &'a str) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    let mut in_parameters = false;
    for (index, token) in tokens.iter().enumerate() {
        let text = &source[token.start..token.end];
        let before = index
            .checked_sub(1)
            .map(|i| &source[tokens[i].start..tokens[i].end]);
        let after = source[token.end..].trim_start_matches(' ');
        if text == "def" {
            in_parameters = true;
        } else if token.kind == Kind::Name && !is_keyword(text) {
            let assigned = after.starts_with('=') && !after.starts_with("==");
            let parameter = in_parameters && before != Some("def");
            if parameter || assigned || before == Some("for") {
                names.insert(text);
            }
        }
        if in_parameters && after.starts_with("):") {
            in_parameters = false;
        }
    }
    names
}

/// Whether a name is read as a variable here: not defined, not called, not an attribute, not a keyword argument.
fn is_variable_use(tokens: &[Token], source: &str, index: usize) -> bool {
    let token = tokens[index];
    let before = source[..token.start].trim_end_matches(' ');
    let after = source[token.end..].trim_start_matches(' ');
    let binds = ["def", "for", "import", "class", "global", "lambda"];
    let bound =
        index > 0 && binds.contains(&&source[tokens[index - 1].start..tokens[index - 1].end]);
    let line = &source[source[..token.start].rfind('\n').map_or(0, |at| at + 1)..token.start];
    let in_signature = line.trim_start().starts_with("def ");
    let assigned = after.starts_with('=') && !after.starts_with("==");
    !bound && !in_signature && !assigned && !after.starts_with('(') && !before.ends_with('.')
}

fn is_keyword(word: &str) -> bool {
    matches!(
        word,
        "and"
            | "as"
            | "assert"
            | "break"
            | "class"
            | "continue"
            | "def"
            | "del"
            | "elif"
            | "else"
            | "except"
            | "False"
            | "finally"
            | "for"
            | "from"
            | "global"
            | "if"
            | "import"
            | "in"
            | "is"
            | "lambda"
            | "None"
            | "not"
            | "or"
            | "pass"
            | "raise"
            | "return"
            | "True"
            | "try"
            | "while"
            | "with"
            | "yield"
    )
}

/// Each `return` that stands deeper than a function's first level, replaced by `pass`: a missing branch.
fn dropped_returns(source: &str, tokens: &[Token]) -> Vec<Edit> {
    tokens
        .iter()
        .filter(|token| token.kind == Kind::Name && &source[token.start..token.end] == "return")
        .filter_map(|token| {
            let line_start = source[..token.start].rfind('\n').map_or(0, |at| at + 1);
            let line_end = source[token.start..]
                .find('\n')
                .map_or(source.len(), |at| token.start + at);
            let indent = &source[line_start..token.start];
            let nested =
                indent.trim().is_empty() && (indent.len() > 4 || indent.matches('\t').count() > 1);
            nested.then(|| Edit {
                start: token.start,
                end: line_end,
                with: "pass".to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn assert_has(source: &str, expected: &str) {
        let mutants = all_mutants(source);
        assert!(
            mutants.iter().any(|mutant| mutant == expected),
            "{expected:?} not in {mutants:#?}"
        );
    }

    #[test]
    fn operators_bounds_and_words_are_swapped() {
        let source = "def f(a):\n    return sum(x for x in a if x > 3)";
        assert_has(source, "def f(a):\n    return sum(x for x in a if x >= 3)");
        assert_has(source, "def f(a):\n    return sum(x for x in a if x > 4)");
        assert_has(source, "def f(a):\n    return len(x for x in a if x > 3)");
        assert_has(
            source,
            "def f(a):\n    return sum(x for x in a if not x > 3)",
        );
        assert_has(
            "def f(a, b):\n    return a and b",
            "def f(a, b):\n    return a or b",
        );
        assert_has(
            "def f(a):\n    return min(a)",
            "def f(a):\n    return max(a)",
        );
        assert_has(
            "def f(n):\n    n //= 10\n    return n",
            "def f(n):\n    n -= 10\n    return n",
        );
    }

    #[test]
    fn wrong_variables_and_missing_branches_occur() {
        let source = "def f(a, b):\n    if a > b:\n        return a\n    return b";
        assert_has(
            source,
            "def f(a, b):\n    if a > b:\n        return b\n    return b",
        );
        assert_has(
            source,
            "def f(a, b):\n    if a > b:\n        pass\n    return b",
        );
        let mutants = all_mutants(source);
        assert!(
            mutants
                .iter()
                .all(|mutant| mutant.starts_with("def f(a, b):\n")),
            "{mutants:#?}"
        );
        assert!(
            mutants
                .iter()
                .all(|mutant| mutant.ends_with("return a") || mutant.ends_with("return b"))
        );
    }

    #[test]
    fn strings_and_comments_stay() {
        let source =
            "def f(s):\n    # 1 < 2 and True\n    return '3 < 4' + r\"\\\" + 5\" + '''6\n7'''";
        for mutant in all_mutants(source) {
            for kept in ["# 1 < 2 and True", "'3 < 4'", "r\"\\\" + 5\"", "'''6\n7'''"] {
                assert!(mutant.contains(kept), "{mutant}");
            }
        }
    }

    #[test]
    fn attributes_calls_and_keyword_arguments_are_no_variables() {
        let source = "def f(a, key):\n    return a.key(a, key=a)";
        let mutants = all_mutants(source);
        assert!(
            mutants
                .iter()
                .all(|mutant| mutant.contains(".key(") && mutant.contains("key=")),
            "{mutants:#?}"
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_choice() {
        let source = "def f(a):\n    t = 0\n    for x in a:\n        t += x * 2\n    return t";
        let choose = || mutants(source, 3, &mut ChaCha8Rng::seed_from_u64(5));
        assert_eq!(choose(), choose());
        assert_eq!(choose().len(), 3);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(source in "[ -~\\n\u{e9}\u{4e00}]{0,80}") {
            for mutant in all_mutants(&source) {
                prop_assert!(mutant != source);
            }
        }
    }
}
