//! The strict audit: what passes beside its tests by a trick does not pass from a process of its own; what is honest does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::num::NonZeroUsize;

use wmtp_grading::{Grader, GraderConfig, Limits, Program};
use wmtp_records::{Audit, AuditOutcome, Tests};

fn start(limits: Limits) -> Grader {
    Grader::start(GraderConfig {
        workers: NonZeroUsize::MIN,
        limits,
        audit: true,
        ..GraderConfig::default()
    })
    .unwrap()
}

fn limits() -> Limits {
    Limits {
        // A loaded machine takes seconds for what takes milliseconds.
        cpu_secs: 5,
        wall_secs: 60,
        ..Limits::default()
    }
}

/// What the audit says of a candidate; it must pass beside its tests.
fn audit(grader: &Grader, candidate: &str, asserts: &[&str]) -> Audit {
    let tests = Tests::Asserts {
        setup: String::new(),
        asserts: asserts.iter().map(ToString::to_string).collect(),
    };
    let verdict = grader.grade(&Program::from_tests(candidate, &tests));
    assert!(verdict.passed, "{candidate}: {verdict:?}");
    verdict.audit.unwrap()
}

#[test]
fn forged_passes_are_refuted() {
    let grader = start(limits());
    let finds_the_answer = "\
import re, sys
def f(x):
    frame = sys._getframe(1)
    while frame:
        for value in list(frame.f_globals.values()) + list(frame.f_locals.values()):
            found = type(value) is str and re.search(r'assert f.3. == (\\d+)', value)
            if found:
                return int(found[1])
        frame = frame.f_back
";
    let finds_it_in_the_cache = "\
import linecache, re
def f(x):
    text = ''.join(linecache.getlines('program.py'))
    return int(re.search(r'assert f.3. == (\\d+)', text)[1])
";
    let writes_the_token = "\
import sys, os
def f(x):
    frame = sys._getframe(1)
    while frame:
        token = frame.f_locals.get('token')
        if token:
            os.write(199, token + b' passed\\n')
            os._exit(0)
        frame = frame.f_back
";
    let replaces_the_comparison = "\
import builtins
def f(x): return 0
def abs(x): return 0
";
    for (candidate, assertion) in [
        (finds_the_answer, "assert f(3) == 12345"),
        (finds_it_in_the_cache, "assert f(3) == 12345"),
        (writes_the_token, "assert f(3) == 12345"),
        (replaces_the_comparison, "assert abs(f(3) - 5) < 1e-6"),
        (
            "class int(int):\n    def __eq__(a, b): return True\ndef f(x): return int(1)",
            "assert f(3) == 12345",
        ),
        (
            "class Text(str):\n    __eq__ = lambda a, b: True\n    __hash__ = str.__hash__\ndef f(x): return Text()",
            "assert f(3) == 'abc'",
        ),
        (
            "class List(list):\n    def __eq__(a, b): return True\ndef f(x): return List()",
            "assert f(3) == [1, 2]",
        ),
    ] {
        let audit = audit(&grader, candidate, &[assertion]);
        assert_eq!(
            audit.outcome,
            AuditOutcome::Refuted,
            "{candidate}: {audit:?}"
        );
        assert!(!audit.message.is_empty());
    }
}

#[test]
fn an_object_equal_to_everything_cannot_cross() {
    let grader = start(limits());
    let candidate = "\
class Any:
    def __eq__(a, b): return True
    __ne__ = __lt__ = __contains__ = __eq__
    def __call__(a, *b): return a
    __getattr__ = __getitem__ = __add__ = __call__
    def __len__(a): return 2
    def __hash__(a): return hash(5)
    def __iter__(a): return iter([5])
    def __str__(a): return '5'
def f(x): return Any()
";
    for assertion in [
        "f(3) == 5",
        "5 == f(3)",
        "f(3) != 6",
        "f(3) < 5",
        "5 in f(3)",
        "f(3) in [5]",
        "f(3) in {5}",
        "len(f(3)) == 2",
        "list(f(3)) == [5]",
        "str(f(3)) == '5'",
        "f'{f(3)}' == '5'",
        "f(3)[0] == 5",
        "f(3).x == 5",
        "f(3)() == 5",
        "f(3) + 1 == 5",
        "f(f(3)) == 5",
    ] {
        let audit = audit(&grader, candidate, &[&format!("assert {assertion}")]);
        assert_eq!(
            audit.outcome,
            AuditOutcome::NotByValue,
            "{assertion}: {audit:?}"
        );
        assert!(
            audit.message.contains("Any") || assertion.contains("f(f("),
            "{audit:?}"
        );
        assert_eq!(audit.flags, ["__eq__"]);
    }
}

#[test]
fn whether_a_result_that_cannot_cross_is_true_is_told() {
    let grader = start(limits());
    let candidate = "import re\ndef f(text): return re.match('a+', text)";
    let audit = audit(&grader, candidate, &["assert f('aa')", "assert not f('b')"]);
    assert_eq!(audit.outcome, AuditOutcome::Confirmed, "{audit:?}");
}

#[test]
fn a_candidate_that_answers_without_being_asked_is_refuted() {
    let grader = start(limits());
    // Beside its tests it is honest; alone, where descriptor 198 leads to the tests, it sends answers of its own.
    let candidate = "\
def f(x):
    import os, struct, json
    try:
        for _ in range(3):
            text = SOURCE.encode()
            os.write(198, struct.pack('<I', len(text)) + text)
    except OSError:
        pass
    return x
";
    for text in [
        "null",
        "[\"value\"]",
        "[\"value\", [\"type\", \"print\"]]",
        "[\"value\", [\"nothing\", 1]]",
        "[\"raised\", \"SystemExit\", \"\"]",
        "[\"raised\", \"open\", \"\"]",
        "{",
        "[[[[",
    ] {
        let candidate = candidate.replace("SOURCE", &format!("{text:?}"));
        let audit = audit(&grader, &candidate, &["assert f(3) == 3"]);
        assert_eq!(audit.outcome, AuditOutcome::Refuted, "{text}: {audit:?}");
    }
}

#[test]
fn honest_values_of_every_plain_type_cross_unchanged() {
    let grader = start(limits());
    let candidate = "\
import math, collections, datetime, decimal, fractions, array
limit = 7
def same(*x, **named): return x[0] if x else named
def sum(x): return x
def fails(x): raise KeyError('no', x)
def squares(n): return (i * i for i in range(n))
class Point(collections.namedtuple('Point', 'x y')): pass
def point(): return Point(1, 2)
";
    let values = [
        "None",
        "True",
        "-0.0",
        "1e308",
        "10 ** 5000",
        "-(1 << 63)",
        "'a\\0\\ud800\\n'",
        "b'\\xff'",
        "bytearray(b'x')",
        "1 + 2j",
        "[1, [2.5, (3, {4})], {'a': {1: None}}]",
        "frozenset({(1, 2)})",
        "range(3, 1 << 70, 2)",
        "collections.Counter('abca')",
        "collections.OrderedDict([(2, 1), (1, 2)])",
        "collections.deque([1, 2], 3)",
        "array.array('d', [1.5])",
        "decimal.Decimal('1.10')",
        "fractions.Fraction(1, 3)",
        "datetime.datetime(2026, 1, 2, 3, 4, 5, 6)",
        "datetime.date(2026, 1, 2)",
        "datetime.time(3, 4)",
        "datetime.timedelta(1, 2, 3)",
        "{1: 2}.keys()",
        "{1: 2}.items()",
        "int",
    ];
    let mut asserts: Vec<String> = values
        .iter()
        .map(|value| {
            format!("assert same({value}) == {value} and type(same({value})) is type({value})")
        })
        .collect();
    asserts.extend(
        [
            "assert same(float('nan')) != same(float('nan'))",
            "assert math.copysign(1, same(-0.0)) == -1",
            "assert repr(same(decimal.Decimal('1.10'))) == \"Decimal('1.10')\"",
            "assert list(same({1: 2}.values())) == [2]",
            "assert same(collections.deque([1], 3)).maxlen == 3",
            "assert same(a=1, b=[2]) == {'a': 1, 'b': [2]}",
            "assert list(squares(4)) == [0, 1, 4, 9]",
            "assert list(same(map(str, [1, 2]))) == ['1', '2']",
            "assert point() == (1, 2)",
            "assert limit == 7",
            "try: fails(3)\nexcept KeyError as error: assert 'no' in str(error)\nelse: assert False",
        ]
        .map(str::to_owned),
    );
    let asserts: Vec<&str> = asserts.iter().map(String::as_str).collect();
    let audit = audit(&grader, candidate, &asserts);
    assert_eq!(audit.outcome, AuditOutcome::Confirmed, "{audit:?}");
    assert_eq!(audit.message, "");
}

#[test]
fn a_function_named_like_a_built_in_one_is_the_candidates_where_nothing_else_is() {
    let grader = start(limits());
    let audit = audit(
        &grader,
        "def sum(a, b): return a * b",
        &["assert sum(3, 4) == 12"],
    );
    assert_eq!(audit.outcome, AuditOutcome::Confirmed, "{audit:?}");
}

/// What a function does to its arguments stays in its process; tests that look at them refute an honest candidate.
#[test]
fn a_change_of_an_argument_does_not_come_back() {
    let grader = start(limits());
    let audit = audit(
        &grader,
        "def f(x): x.append(4)",
        &["x = [1]\nf(x)\nassert x == [1, 4]"],
    );
    assert_eq!(audit.outcome, AuditOutcome::Refuted, "{audit:?}");
}

#[test]
fn what_ends_with_its_process_says_why() {
    let grader = start(Limits {
        cpu_secs: 1,
        ..limits()
    });
    // Beside its tests descriptor 198 is closed.
    for (trap, expected) in [
        ("while True: pass", "used up its 2 s of CPU time"),
        ("os._exit(0)", "ended before its tests did"),
        (
            "x = []\n        while True: x.append(bytes(1 << 26))",
            "MemoryError",
        ),
        ("import ctypes; ctypes.string_at(0)", "segmentation fault"),
    ] {
        let candidate = format!(
            "import os\ndef f(x):\n    try: os.fstat(198)\n    except OSError: return x\n    else:\n        {trap}"
        );
        let audit = audit(&grader, &candidate, &["assert f(3) == 3"]);
        assert_eq!(audit.outcome, AuditOutcome::Refuted, "{trap}: {audit:?}");
        assert!(audit.message.contains(expected), "{trap}: {audit:?}");
    }
}

#[test]
fn only_what_passed_and_can_be_told_apart_is_audited() {
    let grader = start(limits());
    let failed = Program::from_tests(
        "def f(): return 1",
        &Tests::Asserts {
            setup: String::new(),
            asserts: vec!["assert f() == 2".into()],
        },
    );
    assert_eq!(grader.grade(&failed).audit, None);
    assert_eq!(grader.grade(&"assert True".to_owned().into()).audit, None);
}
