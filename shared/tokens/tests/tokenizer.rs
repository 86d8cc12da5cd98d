//! What training and evaluation rely on: round trips, boundaries, stable bytes.

use std::sync::LazyLock;

use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use wmtp_tokens::{
    BOS, EOS, Error, PAD, Tokenizer, completion_text, encode_pair, encode_prompt, render_prompt,
};

const PROGRAMS: [&str; 4] = [
    "def f(a):\n    return sum(x for x in a if x % 2 == 0)",
    "def f(a):\n    t = 0\n    for x in a:\n        t += x\n    return t",
    "def f(s):\n    return s[::-1].upper()",
    "def f(n):\n    return n * 12 + 30",
];

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let texts: Vec<String> = PROGRAMS
        .iter()
        .map(|program| {
            format!(
                "{}{program}",
                render_prompt("Write f(a) that returns the sum.", "")
            )
        })
        .collect();
    Tokenizer::train(&texts, 330).expect("330 tokens hold all bytes")
});

/// Text with much of what decides boundaries: blanks, newlines, digits, words, non-ASCII, names of specials.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        any::<char>().prop_map(String::from),
        "[ \\t\\n]{1,6}",
        "[a-z_]{1,8}",
        "[0-9]{1,4}",
        Just("<eos>".to_owned()),
        Just("\r\n".to_owned()),
        Just("\u{e9}\u{301}\u{1f600}".to_owned()),
        Just("def f(a):\n    return".to_owned()),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn every_text_survives_the_round_trip(text in text()) {
        prop_assert_eq!(TOKENIZER.decode(&TOKENIZER.encode(&text)), text);
    }

    #[test]
    fn ids_of_a_prompt_are_a_prefix_of_the_whole(instruction in text(), input in text(), response in text()) {
        let prompt = render_prompt(&instruction, &input);
        let sample = encode_pair(&TOKENIZER, &prompt, &response).expect("prompts end in a newline");
        let prompt_ids = encode_prompt(&TOKENIZER, &prompt);
        prop_assert!(sample.ids.starts_with(&prompt_ids));
        prop_assert_eq!(sample.prompt_len, prompt_ids.len());
        prop_assert_eq!(sample.ids.last(), Some(&EOS));
        prop_assert_eq!(completion_text(&TOKENIZER, &prompt_ids, &sample.ids), response);
    }

    #[test]
    fn any_text_that_ends_in_a_newline_ends_at_a_boundary(text in text(), next in text()) {
        let head = TOKENIZER.encode(&format!("{text}\n"));
        let whole = TOKENIZER.encode(&format!("{text}\n{next}"));
        prop_assert!(whole.starts_with(&head));
    }

    #[test]
    fn no_text_encodes_to_a_special_token(text in text()) {
        prop_assert!(TOKENIZER.encode(&text).iter().all(|&id| ![PAD, BOS, EOS].contains(&id)));
    }
}

#[test]
fn digits_are_single_and_indentation_is_one_token() {
    let ids = TOKENIZER.encode("    return 123");
    let texts: Vec<String> = ids.iter().map(|&id| TOKENIZER.token_text(id)).collect();
    assert_eq!(texts, ["    ", "return", " ", "1", "2", "3"]);
}

#[test]
fn a_boundary_inside_a_word_is_refused() {
    let error = encode_pair(&TOKENIZER, "def f(a):\n    retu", "rn a")
        .expect_err("one token spans the cut");
    assert!(matches!(error, Error::PromptNotPrefix { .. }), "{error}");
}

#[test]
fn the_saved_tokenizer_has_stable_bytes_and_reads_back() {
    let folder = std::env::temp_dir().join(format!("wmtp-tokens-{}", std::process::id()));
    let (first, second) = (
        folder.join("a/tokenizer.json"),
        folder.join("b/tokenizer.json"),
    );
    // These four programs give 19 merges in all, so 270 tokens are reached.
    let mut texts = PROGRAMS.to_vec();
    Tokenizer::train(&texts, 270)
        .and_then(|t| t.save(&first))
        .expect("writable");
    texts.reverse();
    Tokenizer::train(&texts, 270)
        .and_then(|t| t.save(&second))
        .expect("writable");
    let (a, b) = (std::fs::read(&first), std::fs::read(&second));
    let loaded = Tokenizer::load(&first).expect("just written");
    std::fs::remove_dir_all(&folder).expect("ours");
    assert_eq!(a.expect("written"), b.expect("written"));
    assert_eq!((loaded.pad(), loaded.bos(), loaded.eos()), (PAD, BOS, EOS));
    assert_eq!(loaded.vocab_size(), 270);
    assert_eq!(loaded.decode(&loaded.encode(PROGRAMS[1])), PROGRAMS[1]);
    assert!(!loaded.encode("a <eos> b").contains(&EOS));
}

#[test]
fn a_vocabulary_below_all_bytes_is_refused() {
    let error = Tokenizer::train(&["a"], 258).expect_err("259 is the least");
    assert!(error.to_string().contains("259"), "{error}");
}
