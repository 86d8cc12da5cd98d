//! Whether a program printed what was expected, by several rules.

use wmtp_records::CaseCounts;

/// Numbers closer than this are equal by DeepMind's rule.
const NUMBER_TOLERANCE: f64 = 1e-5;

/// Counts one test: `found` is what the program printed, `None` when it did not end well.
pub(crate) fn count(counts: &mut CaseCounts, expected: &str, found: Option<&str>) {
    let holds =
        |rule: fn(&str, &str) -> bool| u32::from(found.is_some_and(|found| rule(expected, found)));
    counts.total += 1;
    counts.deepmind += holds(deepmind);
    counts.tokens += holds(tokens);
    counts.lines += holds(lines);
    counts.trimmed += holds(trimmed);
    counts.exact += holds(|expected, found| expected == found);
}

/// The rule of DeepMind's code_contests: split at blanks, lower case, and pairwise the same text or numbers within 1e-5.
/// Every pair of numbers goes through double precision, so huge integers can match wrongly, as they do there.
pub(crate) fn deepmind(expected: &str, found: &str) -> bool {
    let (expected, found) = (expected.to_ascii_lowercase(), found.to_ascii_lowercase());
    same_pairs(&expected, &found, |a, b| a == b || close(a, b))
}

fn close(a: &str, b: &str) -> bool {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() < NUMBER_TOLERANCE,
        _ => false,
    }
}

fn tokens(expected: &str, found: &str) -> bool {
    same_pairs(expected, found, |a, b| a == b)
}

fn same_pairs(expected: &str, found: &str, same: impl Fn(&str, &str) -> bool) -> bool {
    let (mut expected, mut found) = (
        expected.split_ascii_whitespace(),
        found.split_ascii_whitespace(),
    );
    loop {
        match (expected.next(), found.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if same(a, b) => {}
            _ => return false,
        }
    }
}

/// Equal but for blanks at the ends of lines, and of the whole.
fn lines(expected: &str, found: &str) -> bool {
    let ends = |text: &str| -> Vec<String> {
        text.trim_end()
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect()
    };
    ends(expected) == ends(found)
}

fn trimmed(expected: &str, found: &str) -> bool {
    expected.trim() == found.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of deepmind, tokens, lines, trimmed, exact hold.
    fn rules(expected: &str, found: &str) -> [u32; 5] {
        let mut counts = CaseCounts::default();
        count(&mut counts, expected, Some(found));
        [
            counts.deepmind,
            counts.tokens,
            counts.lines,
            counts.trimmed,
            counts.exact,
        ]
    }

    #[test]
    fn each_rule_is_stricter_than_the_one_before() {
        assert_eq!(rules("1 2\n3\n", "1 2\n3\n"), [1, 1, 1, 1, 1]);
        assert_eq!(rules("1 2\n3\n", "1 2\n3"), [1, 1, 1, 1, 0]);
        assert_eq!(rules("1 2\n3\n", "1 2 \n3\n"), [1, 1, 1, 0, 0]);
        assert_eq!(rules("1 2\n3\n", "1\n2 3\n"), [1, 1, 0, 0, 0]);
        assert_eq!(rules("YES\n0.5\n", "Yes\n0.500001\n"), [1, 0, 0, 0, 0]);
        assert_eq!(rules("12\n", "1 2\n"), [0; 5]);
        assert_eq!(rules("1\n", ""), [0; 5]);
        assert_eq!(rules("", "\n"), [1, 1, 1, 1, 0]);
    }

    #[test]
    fn numbers_are_compared_as_deepmind_does() {
        assert!(deepmind("1", "1.000009") && !deepmind("1", "1.00002"));
        assert!(deepmind("1", "1e0") && deepmind("-0", "0"));
        assert!(
            deepmind("123456789012345678901", "123456789012345678902"),
            "through double"
        );
        assert!(!deepmind("1", "x") && !deepmind("x", "y"));
    }

    #[test]
    fn a_program_that_did_not_end_well_passes_by_no_rule() {
        let mut counts = CaseCounts::default();
        count(&mut counts, "", None);
        assert_eq!((counts.total, counts.deepmind, counts.exact), (1, 0, 0));
    }
}
