//! Text of recipes, data sets and programs in Markdown: shown, never meant.

/// One line, no markup.
pub(crate) fn inert(text: &str) -> String {
    let mut inert = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\\' | '`' | '*' | '[' | ']' | '<' | '>' | '|' | '#' | '!' | '&' => {
                inert.push('\\');
                inert.push(character);
            }
            '\n' | '\r' | '\t' => inert.push(' '),
            character if character.is_control() => inert.push('\u{fffd}'),
            _ => inert.push(character),
        }
    }
    inert
}

/// A list, one item a line.
pub(crate) fn list(items: &[String]) -> String {
    let mut list = String::new();
    for item in items {
        list.push_str("- ");
        list.push_str(item);
        list.push('\n');
    }
    list
}

/// Lines shown of a program.
const SHOWN_LINES: usize = 14;

/// A program as a block: the first lines, control characters made visible, in a fence longer than any of its own.
pub(crate) fn code_block(program: &str) -> String {
    let visible: String = program
        .chars()
        .map(|character| match character {
            '\n' | '\t' => character,
            character if character.is_control() => '\u{fffd}',
            _ => character,
        })
        .collect();
    let mut lines: Vec<&str> = visible.trim_end().lines().take(SHOWN_LINES + 1).collect();
    if lines.len() > SHOWN_LINES {
        lines[SHOWN_LINES] = "# \u{2026}";
    }
    let longest = lines
        .iter()
        .map(|line| {
            let runs = line.split(|character| character != '`');
            runs.map(str::len).max().unwrap_or(0)
        })
        .max()
        .unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}python\n{}\n{fence}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_cannot_leave_its_block() {
        assert_eq!(
            code_block("x = '````'\n"),
            "`````python\nx = '````'\n`````\n"
        );
        assert_eq!(code_block("a\u{1b}[1m"), "```python\na\u{fffd}[1m\n```\n");
        let long = "pass\n".repeat(40);
        assert_eq!(code_block(&long).lines().count(), SHOWN_LINES + 3);
    }

    #[test]
    fn markup_becomes_text() {
        assert_eq!(
            inert("<b> | `x`\n# y\u{7}"),
            "\\<b\\> \\| \\`x\\` \\# y\u{fffd}"
        );
    }
}
