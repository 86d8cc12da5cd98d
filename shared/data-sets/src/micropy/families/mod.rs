//! The families of tasks. A task says what is to be returned, in several ways; how Python does it, in several
//! styles; and computes it itself, which gives the expected values of its tests.

mod compositions;
mod dicts;
mod lists;
mod numbers;
mod texts;

use super::value::{Input, Value};

/// What about a task can be new in evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Nothing to vary: only its wording can be new.
    Fixed = 1,
    /// One constant or letter: its wording can be new around it.
    Constant = 2,
    /// Two parts: their combination can be new.
    Composition = 3,
}

type Evaluate = Box<dyn Fn(&[Value]) -> Value + Send + Sync>;

/// One thing that a program may be asked to do.
pub(super) struct Task {
    pub(super) family: &'static str,
    /// Unique within the family.
    pub(super) key: String,
    pub(super) kind: Kind,
    /// Parameters, as in `def f(a, b)`.
    pub(super) parameters: &'static str,
    /// What is returned, as a noun phrase, in several wordings.
    pub(super) phrases: Vec<String>,
    /// Function bodies without indentation, the shortest first.
    pub(super) bodies: Vec<String>,
    pub(super) inputs: Vec<Input>,
    pub(super) evaluate: Evaluate,
}

/// Every task, in a fixed order.
pub(super) fn all_tasks() -> Vec<Task> {
    let rooms: [fn() -> Vec<Task>; 5] = [
        numbers::tasks,
        lists::tasks,
        compositions::tasks,
        texts::tasks,
        dicts::tasks,
    ];
    rooms.iter().flat_map(|tasks| tasks()).collect()
}

struct Builder(Task);

/// A fixed task; the builder's methods add to it.
fn task(family: &'static str, key: impl Into<String>, parameters: &'static str) -> Builder {
    Builder(Task {
        family,
        key: key.into(),
        kind: Kind::Fixed,
        parameters,
        phrases: Vec::new(),
        bodies: Vec::new(),
        inputs: Vec::new(),
        evaluate: Box::new(|_| Value::Bool(false)),
    })
}

impl Builder {
    fn kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }

    fn constant_if(self, constant: bool) -> Self {
        self.kind(if constant {
            Kind::Constant
        } else {
            Kind::Fixed
        })
    }

    fn say(mut self, phrases: &[&str]) -> Self {
        self.0
            .phrases
            .extend(phrases.iter().map(ToString::to_string));
        self
    }

    /// Templates with `{0}` and `{1}`, filled with every combination of the fillings.
    fn say_with(mut self, templates: &[&str], first: &[String], second: &[String]) -> Self {
        for template in templates {
            for one in first {
                for two in second {
                    let phrase = template.replace("{0}", one).replace("{1}", two);
                    if !self.0.phrases.contains(&phrase) {
                        self.0.phrases.push(phrase);
                    }
                }
            }
        }
        self
    }

    fn returns(self, expression: impl AsRef<str>) -> Self {
        self.body(format!("return {}", expression.as_ref()))
    }

    fn body(mut self, body: impl Into<String>) -> Self {
        self.0.bodies.push(body.into());
        self
    }

    fn input(mut self, input: Input) -> Self {
        self.0.inputs.push(input);
        self
    }

    fn value(mut self, evaluate: impl Fn(&[Value]) -> Value + Send + Sync + 'static) -> Task {
        self.0.evaluate = Box::new(evaluate);
        self.0
    }
}

fn none() -> Vec<String> {
    vec![String::new()]
}

fn ints(points: Vec<i64>) -> Input {
    Input::Ints { min_len: 0, points }
}

fn some_ints(points: Vec<i64>) -> Input {
    Input::Ints { min_len: 1, points }
}

fn int(points: Vec<i64>) -> Input {
    Input::Int {
        low: -9,
        high: 20,
        points,
    }
}

fn count(high: i64) -> Input {
    Input::Int {
        low: 1,
        high,
        points: Vec::new(),
    }
}

fn text() -> Input {
    text_with("")
}

/// Texts in which the given letters are frequent.
fn text_with(frequent: &str) -> Input {
    Input::Text {
        min_len: 0,
        letters: format!("aeiostnrl{}", frequent.repeat(4)),
    }
}

/// Styles of collecting `value` for every `x` of `a` on a condition.
fn collect_bodies(builder: Builder, condition: &str, value: &str) -> Builder {
    builder
        .returns(format!("[{value} for x in a if {condition}]"))
        .body(format!(
            "r = []\nfor x in a:\n    if {condition}:\n        r.append({value})\nreturn r"
        ))
}
