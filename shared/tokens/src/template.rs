//! The prompt template: four headers, then the response.

/// Two short bullets: every prompt carries them, so every word here costs each sequence a token.
const EVALUATION_NOTES: &str = "- Python source only.\n- Hidden tests: keep the limits.";

/// The prompt for a problem: everything before the response, ending in a newline.
///
/// Headers in order: Instruction, Input (left out when `input` is empty), Evaluation Notes, Response; each is
/// followed by its text on the next line, and a blank line separates blocks (specification 2.6).
///
/// ```
/// let prompt = wmtp_tokens::render_prompt("Write f(n) that returns n plus 1.", "");
/// assert!(prompt.starts_with("### Instruction:\nWrite f(n) that returns n plus 1.\n\n### Evaluation Notes:\n"));
/// assert!(prompt.ends_with("\n\n### Response:\n"));
/// ```
pub fn render_prompt(instruction: &str, input: &str) -> String {
    let mut prompt = format!("### Instruction:\n{}\n\n", instruction.trim());
    let input = input.trim();
    if !input.is_empty() {
        prompt.push_str("### Input:\n");
        prompt.push_str(input);
        prompt.push_str("\n\n");
    }
    prompt.push_str("### Evaluation Notes:\n");
    prompt.push_str(EVALUATION_NOTES);
    prompt.push_str("\n\n### Response:\n");
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_block_is_there_only_when_there_is_input() {
        let with = render_prompt("a", "f(1) == 2");
        assert!(with.contains("### Input:\nf(1) == 2\n\n### Evaluation Notes:\n"));
        assert!(!render_prompt("a", " \n").contains("### Input:"));
    }

    #[test]
    fn headers_keep_their_order() {
        let prompt = render_prompt("a", "b");
        let at = |header: &str| prompt.find(header).expect("every header is present");
        assert!(at("### Instruction:") < at("### Input:"));
        assert!(at("### Input:") < at("### Evaluation Notes:"));
        assert!(at("### Evaluation Notes:") < at("### Response:"));
    }
}
