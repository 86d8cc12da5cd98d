//! One shape and one colour per algorithm, everywhere and for nothing else.

/// How an algorithm is named and drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Class that sets the colour.
    pub class: &'static str,
    /// Name in the legend.
    pub name: &'static str,
    /// What it does, for the legend.
    pub meaning: &'static str,
    /// Outline around (0, 0), about 10 units wide.
    path: &'static str,
    /// Whether the shape is filled.
    filled: bool,
}

const MARKS: [(&str, Mark); 7] = [
    (
        "base",
        Mark {
            class: "a-base",
            name: "untrained",
            meaning: "the model before training",
            path: "M-5 0h10M0 -5v10",
            filled: false,
        },
    ),
    (
        "baseline",
        Mark {
            class: "a-baseline",
            name: "baseline",
            meaning: "every token counts the same",
            path: "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
            filled: false,
        },
    ),
    (
        "verifiable",
        Mark {
            class: "a-verifiable",
            name: "verifiable",
            meaning: "tokens weighted by the advantage that a value model sees in them",
            path: "M0 -6L6 0L0 6L-6 0Z",
            filled: true,
        },
    ),
    (
        "rho1",
        Mark {
            class: "a-rho1",
            name: "rho-1",
            meaning: "tokens weighted by the loss in excess of a tuned reference",
            path: "M-4.5 -4.5h9v9h-9Z",
            filled: true,
        },
    ),
    (
        "random_matched",
        Mark {
            class: "a-control",
            name: "control: random",
            meaning: "weights of the same spread on random tokens",
            path: "M0 -5.5L5.5 4.5H-5.5Z",
            filled: false,
        },
    ),
    (
        "shuffled",
        Mark {
            class: "a-control",
            name: "control: shuffled",
            meaning: "the verifiable weights shuffled within each program",
            path: "M0 5.5L5.5 -4.5H-5.5Z",
            filled: false,
        },
    ),
    (
        "external",
        Mark {
            class: "a-external",
            name: "from outside",
            meaning: "a model that was not trained here, for comparison",
            path: "M-4.5 -4.5L4.5 4.5M-4.5 4.5L4.5 -4.5",
            filled: false,
        },
    ),
];

/// Marks of all algorithms in the order of the legend, with their keys.
pub fn all() -> &'static [(&'static str, Mark)] {
    &MARKS
}

/// The mark of an algorithm key; an unknown one looks like the untrained model.
pub fn of(algo: &str) -> Mark {
    MARKS
        .iter()
        .find(|(key, _)| *key == algo)
        .map_or(MARKS[0].1, |(_, mark)| *mark)
}

impl Mark {
    /// The shape, to stand inside a chart at its own origin.
    pub fn shape(&self) -> String {
        let style = if self.filled { "mark" } else { "mark open" };
        format!(
            "<path class=\"{style} {}\" d=\"{}\"/>",
            self.class, self.path
        )
    }

    /// The shape as a small picture in running text; the name stands beside it.
    pub fn inline(&self) -> String {
        format!(
            "<svg class=\"glyph\" width=\"14\" height=\"14\" viewBox=\"-7 -7 14 14\" aria-hidden=\"true\" focusable=\"false\">{}</svg>",
            self.shape()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_algorithms_share_a_shape() {
        for (index, (key, mark)) in MARKS.iter().enumerate() {
            assert_eq!(of(key), *mark);
            assert!(
                MARKS[index + 1..]
                    .iter()
                    .all(|(_, other)| other.path != mark.path)
            );
        }
        assert_eq!(of("something else").class, "a-base");
    }
}
