//! Two programs side by side, line by line, changed words stronger than changed lines.

use crate::text::{escape, visible};

/// Programs longer than this are shown without comparison: the table of the comparison grows with the square.
const MAX_LINES: usize = 600;

/// What became of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Same,
    Removed,
    Added,
}

/// One line of the two columns: a line of each side, or a gap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair<'a> {
    left: Option<&'a str>,
    right: Option<&'a str>,
    same: bool,
}

/// The columns of a comparison as HTML: `left` and `right` for two `pre` elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sides {
    /// Lines of the first text.
    pub left: String,
    /// Lines of the second text.
    pub right: String,
}

/// Compares two texts; both become inert.
pub fn sides(left: &str, right: &str) -> Sides {
    let (left, right) = (visible(left.trim_end()), visible(right.trim_end()));
    let pairs = aligned(&left, &right);
    let mut sides = Sides {
        left: String::new(),
        right: String::new(),
    };
    for pair in &pairs {
        let (old, new) = match (pair.left, pair.right) {
            (Some(old), Some(new)) if !pair.same => {
                let (old, new) = words(old, new);
                (old.into(), new.into())
            }
            (old, new) => (
                old.map(escape).unwrap_or_default(),
                new.map(escape).unwrap_or_default(),
            ),
        };
        sides
            .left
            .push_str(&line(pair.left.is_some(), pair.same, "del", &old));
        sides
            .right
            .push_str(&line(pair.right.is_some(), pair.same, "ins", &new));
    }
    sides
}

/// A text alone, in the markup of a side.
pub fn plain(text: &str) -> String {
    visible(text.trim_end())
        .lines()
        .map(|text| line(true, true, "", &escape(text)))
        .collect()
}

fn line(exists: bool, same: bool, changed: &str, html: &str) -> String {
    let class = match (exists, same) {
        (false, _) => " gap",
        (true, true) => "",
        (true, false) if changed == "del" => " del",
        (true, false) => " ins",
    };
    format!("<span class=\"ln{class}\">{html}\n</span>")
}

/// Lines of both texts in step: removed and added lines of one place stand beside each other.
fn aligned<'a>(left: &'a str, right: &'a str) -> Vec<Pair<'a>> {
    let (left, right): (Vec<&str>, Vec<&str>) = (left.lines().collect(), right.lines().collect());
    let mut pairs = Vec::new();
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for (change, text) in changes(&left, &right) {
        match change {
            Change::Removed => removed.push(text),
            Change::Added => added.push(text),
            Change::Same => {
                settle(&mut pairs, &mut removed, &mut added);
                pairs.push(Pair {
                    left: Some(text),
                    right: Some(text),
                    same: true,
                });
            }
        }
    }
    settle(&mut pairs, &mut removed, &mut added);
    pairs
}

fn settle<'a>(pairs: &mut Vec<Pair<'a>>, removed: &mut Vec<&'a str>, added: &mut Vec<&'a str>) {
    for index in 0..removed.len().max(added.len()) {
        pairs.push(Pair {
            left: removed.get(index).copied(),
            right: added.get(index).copied(),
            same: false,
        });
    }
    removed.clear();
    added.clear();
}

/// Changed words of two lines, marked.
fn words(left: &str, right: &str) -> (String, String) {
    let (old, new) = (pieces(left), pieces(right));
    let (mut left, mut right) = (String::new(), String::new());
    for (change, text) in changes(&old, &new) {
        let text = escape(text);
        match change {
            Change::Same => {
                left.push_str(&text);
                right.push_str(&text);
            }
            Change::Removed => left.extend(["<del>", &text, "</del>"]),
            Change::Added => right.extend(["<ins>", &text, "</ins>"]),
        }
    }
    (
        left.replace("</del><del>", ""),
        right.replace("</ins><ins>", ""),
    )
}

/// Words, runs of blanks and single signs.
fn pieces(line: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        _ if c.is_alphanumeric() || c == '_' => 0,
        _ if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut previous = None;
    for (index, character) in line.char_indices() {
        let here = kind(character);
        if previous.is_some_and(|before| before != here || here == 2) {
            pieces.push(&line[start..index]);
            start = index;
        }
        previous = Some(here);
    }
    if start < line.len() {
        pieces.push(&line[start..]);
    }
    pieces
}

/// Longest common subsequence as a list of changes.
fn changes<'a>(left: &[&'a str], right: &[&'a str]) -> Vec<(Change, &'a str)> {
    if left.len() > MAX_LINES || right.len() > MAX_LINES {
        let removed = left.iter().map(|text| (Change::Removed, *text));
        return removed
            .chain(right.iter().map(|text| (Change::Added, *text)))
            .collect();
    }
    let width = right.len() + 1;
    let mut common = vec![0u32; (left.len() + 1) * width];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            common[i * width + j] = if left[i] == right[j] {
                common[(i + 1) * width + j + 1] + 1
            } else {
                common[(i + 1) * width + j].max(common[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut list = Vec::new();
    while i < left.len() || j < right.len() {
        if i < left.len() && j < right.len() && left[i] == right[j] {
            list.push((Change::Same, left[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == right.len()
            || (i < left.len() && common[(i + 1) * width + j] >= common[i * width + j + 1])
        {
            list.push((Change::Removed, left[i]));
            i += 1;
        } else {
            list.push((Change::Added, right[j]));
            j += 1;
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_words_are_marked_inside_changed_lines() {
        let sides = sides(
            "def f(a):\n    return a + 1\n",
            "def f(a):\n    return a - 1\n",
        );
        assert_eq!(
            sides.left,
            "<span class=\"ln\">def f(a):\n</span><span class=\"ln del\">    return a <del>+</del> 1\n</span>"
        );
        assert_eq!(
            sides.right,
            "<span class=\"ln\">def f(a):\n</span><span class=\"ln ins\">    return a <ins>-</ins> 1\n</span>"
        );
    }

    #[test]
    fn a_line_without_a_partner_faces_a_gap() {
        let sides = sides("a\nb\nc", "a\nc");
        assert_eq!(sides.left.matches("ln del").count(), 1);
        assert_eq!(sides.right.matches("ln gap").count(), 1);
        assert_eq!(
            sides.left.matches("class=\"ln").count(),
            sides.right.matches("class=\"ln").count()
        );
    }

    #[test]
    fn hostile_programs_are_text() {
        let sides = sides("", "</pre><script>alert(1)</script>\u{202e}");
        assert!(!sides.right.contains("<script"), "{}", sides.right);
        assert!(sides.right.contains("U+202E"), "{}", sides.right);
    }

    #[test]
    fn pieces_put_a_line_back_together() {
        let line = "  return  x[i]==\"ä b\"";
        assert_eq!(pieces(line).concat(), line);
    }
}
