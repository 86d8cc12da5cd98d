//! micropy: small Python problems, made up by rule, that a micro model can learn from nothing in minutes.
//!
//! A *task* (family and key) says what a function returns; a *problem* is a task in one wording. Splits never share
//! a problem. One in five compositions is held out: it occurs in validation or test only, while its parts occur in
//! training in other combinations. The other tasks occur in evaluation in wordings that training does not have.

mod families;
mod parts;
mod value;

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use wmtp_records::{Problem, Split, Tests};
use wmtp_tokens::render_prompt;

use crate::random::{stable_hash, stream};
use crate::{SourceProblem, mutate};
use families::{Kind, Task};
use value::Value;

/// How much to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Problems of all splits together.
    pub num_problems: usize,
    /// Share of validation, 0…1.
    pub validation_share: f64,
    /// Share of test, 0…1.
    pub test_share: f64,
    /// Right programs per problem, at most; tasks have two to four styles.
    pub solutions_per_problem: usize,
    /// Wrong programs wanted per problem.
    pub incorrect_per_problem: usize,
    /// Determines everything.
    pub seed: u64,
}

/// Assertions per problem.
const NUM_TESTS: usize = 8;

/// Sets of arguments drawn; the one whose results differ most is taken.
const TEST_DRAWS: usize = 20;

/// Draws of a task and wording until its statement is new.
const STATEMENT_DRAWS: usize = 200;

/// Wrong programs offered for each one that is wanted; some pass or do not parse.
const SPARE_MUTANTS: usize = 2;

/// One in this many compositions is held out of training.
const HELD_OUT: u64 = 5;

const FRAMES: [&str; 5] = [
    "Write {f} that returns {r}.",
    "Return {r} from {f}.",
    "Define {f} to give {r}.",
    "Implement {f}: {r}.",
    "Complete {f} so that it returns {r}.",
];

/// Kinds of tasks in evaluation splits, over and over.
const EVALUATION_KINDS: [Kind; 10] = [
    Kind::Fixed,
    Kind::Constant,
    Kind::Composition,
    Kind::Fixed,
    Kind::Constant,
    Kind::Composition,
    Kind::Fixed,
    Kind::Constant,
    Kind::Composition,
    Kind::Fixed,
];

/// Makes the problems with their candidate programs, in the order test, validation, train.
///
/// Expected values of the tests come from a second implementation of each task; that the programs agree with them is
/// for [`crate::label()`] to establish.
pub fn generate(settings: &Settings) -> Vec<SourceProblem> {
    let mut generator = Generator::new(settings);
    let share = |share: f64| (settings.num_problems as f64 * share).round() as usize;
    let (validation, test) = (share(settings.validation_share), share(settings.test_share));
    generator.draw_evaluation(Split::Test, test);
    generator.draw_evaluation(Split::Validation, validation);
    generator.draw_train(settings.num_problems.saturating_sub(validation + test));
    generator.problems
}

/// The split in which a task may occur; `None` for every split.
fn home(task: &Task, seed: u64) -> Option<Split> {
    if task.kind != Kind::Composition {
        return None;
    }
    let hash = stable_hash(seed, &format!("micropy/home/{}/{}", task.family, task.key));
    let draw = hash % (HELD_OUT * 8);
    Some(match draw {
        0..=2 => Split::Validation,
        3..=7 => Split::Test,
        _ => Split::Train,
    })
}

struct Generator<'a> {
    settings: &'a Settings,
    tasks: Vec<Task>,
    tests: BTreeMap<usize, Vec<String>>,
    statements: BTreeSet<String>,
    numbers: BTreeMap<usize, usize>,
    problems: Vec<SourceProblem>,
}

impl<'a> Generator<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            tasks: families::all_tasks(),
            tests: BTreeMap::new(),
            statements: BTreeSet::new(),
            numbers: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Indices of the tasks that may occur in a split, by family.
    fn families(&self, split: Split, kind: Option<Kind>) -> Vec<Vec<usize>> {
        let mut families: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, task) in self.tasks.iter().enumerate() {
            let here = home(task, self.settings.seed).is_none_or(|home| home == split);
            if here && kind.is_none_or(|kind| kind == task.kind) {
                families.entry(task.family).or_default().push(index);
            }
        }
        families.into_values().collect()
    }

    /// Evaluation goes through the kinds and, within a kind, through the families in turn.
    fn draw_evaluation(&mut self, split: Split, num_problems: usize) {
        let mut rng = stream(self.settings.seed, &format!("micropy/{split}"));
        let mut turns: BTreeMap<Kind, (usize, Vec<Vec<usize>>)> = BTreeMap::new();
        for kind in [Kind::Fixed, Kind::Constant, Kind::Composition] {
            let mut families = self.families(split, Some(kind));
            families.shuffle(&mut rng);
            turns.insert(kind, (0, families));
        }
        for kind in EVALUATION_KINDS.iter().cycle().take(num_problems) {
            for _ in 0..STATEMENT_DRAWS {
                let Some((turn, families)) = turns
                    .get_mut(kind)
                    .filter(|(_, families)| !families.is_empty())
                else {
                    break;
                };
                let task = families[*turn % families.len()].choose(&mut rng).copied();
                *turn += 1;
                if task.is_some_and(|task| self.add(task, split, &mut rng)) {
                    break;
                }
            }
        }
    }

    fn draw_train(&mut self, num_problems: usize) {
        let mut rng = stream(self.settings.seed, "micropy/train");
        let families = self.families(Split::Train, None);
        for _ in 0..num_problems {
            for _ in 0..STATEMENT_DRAWS {
                let task = families
                    .choose(&mut rng)
                    .and_then(|tasks| tasks.choose(&mut rng).copied());
                if task.is_some_and(|task| self.add(task, Split::Train, &mut rng)) {
                    break;
                }
            }
        }
    }

    /// Adds a problem of the task in a random wording; false when its statement is taken.
    fn add(&mut self, index: usize, split: Split, rng: &mut ChaCha8Rng) -> bool {
        let task = &self.tasks[index];
        let statement = statement(task, rng);
        if !self.statements.insert(statement.clone()) {
            return false;
        }
        let number = self.numbers.entry(index).or_default();
        *number += 1;
        let problem_id = format!("micropy-{}-{}-{number}", task.family, task.key);
        let seed = self.settings.seed;
        let asserts = self
            .tests
            .entry(index)
            .or_insert_with(|| tests(task, seed))
            .clone();
        let solutions: Vec<String> = programs(task)
            .into_iter()
            .take(self.settings.solutions_per_problem.max(1))
            .collect();
        let mutants = mutant_pool(
            task,
            seed,
            rng,
            self.settings.incorrect_per_problem * SPARE_MUTANTS,
        );
        self.problems.push(SourceProblem {
            problem: Problem {
                problem_id,
                prompt: render_prompt(&statement, ""),
                instruction: statement,
                input: String::new(),
                tests: Tests::Asserts {
                    setup: String::new(),
                    asserts,
                },
                reference: solutions.first().cloned(),
                family: task.family.to_owned(),
                difficulty: task.kind as u32,
            },
            split,
            original_split: None,
            solutions,
            mutants,
        });
        true
    }
}

fn statement(task: &Task, rng: &mut impl Rng) -> String {
    let phrase = task.phrases.choose(rng).map_or("", String::as_str);
    let frame = FRAMES.choose(rng).copied().unwrap_or(FRAMES[0]);
    frame
        .replace("{f}", &format!("f({})", task.parameters))
        .replace("{r}", phrase)
}

/// Every style of the task, the shortest first; a plain `return` is also had by way of a variable.
fn programs(task: &Task) -> Vec<String> {
    let mut bodies = task.bodies.clone();
    if let Some(expression) = bodies[0].strip_prefix("return ") {
        let by_variable = format!("r = {expression}\nreturn r");
        if !bodies.contains(&by_variable) {
            bodies.push(by_variable);
        }
    }
    bodies
        .iter()
        .map(|body| {
            let lines: Vec<String> = body.lines().map(|line| format!("    {line}")).collect();
            format!("def f({}):\n{}", task.parameters, lines.join("\n"))
        })
        .collect()
}

/// Wrong programs for one problem, from a pool that all problems of the task share: a program that several
/// problems have is executed once.
fn mutant_pool(task: &Task, seed: u64, rng: &mut impl Rng, wanted: usize) -> Vec<String> {
    let mut pool_rng = stream(
        seed,
        &format!("micropy/mutants/{}/{}", task.family, task.key),
    );
    let styles = programs(task);
    let mut pool: Vec<String> = Vec::new();
    for style in &styles {
        let share = (2 * wanted).div_ceil(styles.len());
        for mutant in mutate::mutants(style, share, &mut pool_rng) {
            if !pool.contains(&mutant) && !styles.contains(&mutant) {
                pool.push(mutant);
            }
        }
    }
    pool.shuffle(rng);
    pool.truncate(wanted);
    pool
}

/// Assertions whose arguments and results differ, so that wrong programs show.
fn tests(task: &Task, seed: u64) -> Vec<String> {
    let mut rng = stream(seed, &format!("micropy/tests/{}/{}", task.family, task.key));
    let mut best = (0, Vec::new());
    for _ in 0..TEST_DRAWS {
        let calls: Vec<(String, String)> = (0..NUM_TESTS)
            .map(|index| call(task, index, &mut rng))
            .collect();
        let arguments: BTreeSet<&String> = calls.iter().map(|(arguments, _)| arguments).collect();
        let results: BTreeSet<&String> = calls.iter().map(|(_, result)| result).collect();
        let score = arguments.len() + results.len() + NUM_TESTS - commonest(&calls);
        if score > best.0 {
            best = (score, calls);
        }
    }
    let distinct: BTreeSet<(String, String)> = best.1.into_iter().collect();
    distinct
        .into_iter()
        .map(|(arguments, result)| format!("assert f({arguments}) == {result}"))
        .collect()
}

/// How often the most frequent result occurs.
fn commonest(calls: &[(String, String)]) -> usize {
    let times = |result: &String| calls.iter().filter(|(_, other)| other == result).count();
    calls
        .iter()
        .map(|(_, result)| times(result))
        .max()
        .unwrap_or(0)
}

/// Arguments and result of one call, as Python writes them.
fn call(task: &Task, index: usize, rng: &mut impl Rng) -> (String, String) {
    let mut arguments: Vec<Value> = Vec::new();
    for input in &task.inputs {
        let argument = input.draw(index, &arguments, rng);
        arguments.push(argument);
    }
    let literals: Vec<String> = arguments.iter().map(Value::literal).collect();
    (literals.join(", "), (task.evaluate)(&arguments).literal())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            num_problems: 600,
            validation_share: 0.1,
            test_share: 0.15,
            solutions_per_problem: 4,
            incorrect_per_problem: 3,
            seed: 42,
        }
    }

    fn task_of(problem: &SourceProblem) -> &str {
        let id = &problem.problem.problem_id;
        id.rsplit_once('-').map_or(id, |(task, _)| task)
    }

    #[test]
    fn families_and_tasks_are_many_and_keys_unique() {
        let tasks = families::all_tasks();
        let families: BTreeSet<&str> = tasks.iter().map(|task| task.family).collect();
        let keys: BTreeSet<(&str, &str)> = tasks
            .iter()
            .map(|task| (task.family, task.key.as_str()))
            .collect();
        assert!(families.len() >= 15, "{families:?}");
        assert_eq!(keys.len(), tasks.len());
        for task in &tasks {
            assert!(
                task.phrases.len() * FRAMES.len() >= 5,
                "{} {}",
                task.family,
                task.key
            );
            assert!(programs(task).len() >= 2, "{} {}", task.family, task.key);
        }
    }

    #[test]
    fn splits_have_the_wanted_sizes_and_share_no_statement() {
        let problems = generate(&settings());
        let count = |split| {
            problems
                .iter()
                .filter(|problem| problem.split == split)
                .count()
        };
        assert_eq!(Split::ALL.map(count), [450, 60, 90]);
        let ids: BTreeSet<&str> = problems
            .iter()
            .map(|p| p.problem.problem_id.as_str())
            .collect();
        let statements: BTreeSet<&str> = problems
            .iter()
            .map(|p| p.problem.instruction.as_str())
            .collect();
        assert_eq!((ids.len(), statements.len()), (600, 600));
    }

    #[test]
    fn held_out_compositions_are_absent_from_training() {
        let problems = generate(&Settings {
            num_problems: 3000,
            ..settings()
        });
        let in_split = |split| -> BTreeSet<&str> {
            let varied = problems
                .iter()
                .filter(|p| p.split == split && p.problem.difficulty == 3);
            varied.map(task_of).collect()
        };
        let [train, validation, test] = Split::ALL.map(in_split);
        assert!(
            train.is_disjoint(&validation)
                && train.is_disjoint(&test)
                && validation.is_disjoint(&test)
        );
        let compositions = problems
            .iter()
            .filter(|p| p.split == Split::Test && p.problem.difficulty == 3);
        assert!(compositions.count() > 20);
    }

    #[test]
    fn every_kind_is_evaluated_over_many_families() {
        let problems = generate(&settings());
        for split in [Split::Validation, Split::Test] {
            let here: Vec<&Problem> = problems
                .iter()
                .filter(|p| p.split == split)
                .map(|p| &p.problem)
                .collect();
            let families: BTreeSet<&str> = here.iter().map(|p| p.family.as_str()).collect();
            assert!(families.len() >= 20, "{split}: {families:?}");
            for difficulty in 1..=3 {
                assert!(
                    here.iter().filter(|p| p.difficulty == difficulty).count() * 5 > here.len()
                );
            }
        }
    }

    #[test]
    fn statements_are_short_and_tests_tell_programs_apart() {
        for task in families::all_tasks() {
            let mut rng = stream(1, &task.key);
            let words = statement(&task, &mut rng).split_whitespace().count();
            assert!(words <= 22, "{} {}: {words} words", task.family, task.key);
            let tests = tests(&task, 42);
            assert!(
                (4..=NUM_TESTS).contains(&tests.len()),
                "{} {}: {tests:?}",
                task.family,
                task.key
            );
            let results: BTreeSet<&str> = tests
                .iter()
                .filter_map(|t| t.split_once(" == ").map(|(_, r)| r))
                .collect();
            assert!(
                results.len() >= 2,
                "{} {}: {tests:?}",
                task.family,
                task.key
            );
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_problems() {
        let small = Settings {
            num_problems: 80,
            ..settings()
        };
        assert_eq!(generate(&small), generate(&small));
        assert_ne!(
            generate(&small),
            generate(&Settings {
                seed: 43,
                ..small.clone()
            })
        );
    }

    /// Recorded from this generator; a change here changes every artifact downstream.
    #[test]
    fn the_generator_has_not_moved() {
        let problems = generate(&Settings {
            num_problems: 80,
            validation_share: 0.04,
            test_share: 0.06,
            ..settings()
        });
        let mut text = String::new();
        for problem in crate::separate(problems).0 {
            let Tests::Asserts { asserts, .. } = &problem.problem.tests else {
                panic!("micropy judges by assertions");
            };
            let head = [&problem.problem.problem_id, &problem.problem.instruction];
            let parts = head
                .into_iter()
                .chain(asserts)
                .chain(&problem.solutions)
                .chain(&problem.mutants);
            for part in parts {
                text.push_str(part);
                text.push('\n');
            }
        }
        assert_eq!(
            format!("{:016x}", stable_hash(0, &text)),
            "08ef614b58572a34"
        );
    }
}
