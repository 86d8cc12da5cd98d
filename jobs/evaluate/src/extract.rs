//! From generated text to the program that is executed.

/// Header that a model may start again after its answer.
const NEXT_HEADER: &str = "\n### ";
const FENCE: &str = "```";

/// The program in a generated text: the first fenced block if there is one, else everything up to the next
/// prompt header. Leading blanks stay: they are Python's.
pub(crate) fn program(raw: &str) -> String {
    let body = fenced(raw).unwrap_or(raw);
    let end = body.find(NEXT_HEADER).unwrap_or(body.len());
    let mut program = body[..end].trim_end().to_owned();
    program.push('\n');
    program
}

/// The inside of the first fence; a fence that never closes ends with the text.
fn fenced(raw: &str) -> Option<&str> {
    let (_, after) = raw.split_once(FENCE)?;
    // The rest of the opening line names the language.
    let (_, body) = after.split_once('\n')?;
    Some(body.split_once(FENCE).map_or(body, |(inside, _)| inside))
}

#[cfg(test)]
mod tests {
    use super::program;

    #[test]
    fn plain_text_is_kept_with_its_indentation() {
        assert_eq!(program("    return 1\n\n"), "    return 1\n");
    }

    #[test]
    fn a_fence_is_taken_off() {
        assert_eq!(
            program("Sure:\n```python\ndef f(x):\n    return x\n```\nDone."),
            "def f(x):\n    return x\n"
        );
        assert_eq!(program("```\nx = 1\n"), "x = 1\n");
    }

    #[test]
    fn the_text_ends_where_the_model_starts_a_new_prompt() {
        assert_eq!(program("x = 1\n### Instruction:\nmore"), "x = 1\n");
    }
}
