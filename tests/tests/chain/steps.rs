//! The chain at the smallest size that is still true: every job, two versions, a few programs.

use crate::place::Place;

/// A recipe of seconds: few problems, few steps, short programs.
pub(crate) const TINY: &str = include_str!("../../tiny.yaml");

/// The one change of v002 against v001.
pub(crate) const VERIFIABLE: [&str; 4] = [
    "--set=version.id=v002",
    "--set=version.parent=v001",
    "--set=version.change=token weights from advantages",
    "--set=experiment.algo=verifiable",
];

/// One call of a job.
pub(crate) struct Step {
    pub(crate) job: &'static str,
    pub(crate) arguments: Vec<&'static str>,
}

fn step(job: &'static str, arguments: &[&'static str]) -> Step {
    Step {
        job,
        arguments: [arguments, &["--recipe", "tiny.yaml"]].concat(),
    }
}

/// Data set and base models.
pub(crate) fn beginning() -> Vec<Step> {
    vec![
        step("prepare-data", &["--name", "d"]),
        step(
            "sync-storage",
            &[
                "create",
                "--model",
                "micro-mtp",
                "--data",
                "d",
                "--name",
                "base",
            ],
        ),
        step(
            "sync-storage",
            &[
                "create",
                "--model",
                "micro-ref",
                "--data",
                "d",
                "--name",
                "ref",
            ],
        ),
    ]
}

/// Both objectives of stage 1, and stage 2 of all algorithms that differ in their inputs.
pub(crate) fn training() -> Vec<Step> {
    let stage1 = |objective, base| {
        step(
            "train-stage1",
            &[
                "--objective",
                objective,
                "--data",
                "d",
                "--base",
                base,
                "--name",
                "v",
            ],
        )
    };
    let verifiable = [
        &VERIFIABLE[..],
        &[
            "--data",
            "d",
            "--base",
            "base",
            "--advantages",
            "v",
            "--name",
            "v002",
        ],
    ]
    .concat();
    let rho1 = [
        "--set=version.id=v003",
        "--set=version.parent=v001",
        "--set=version.change=token weights from excess loss",
        "--set=experiment.algo=rho1",
        "--data",
        "d",
        "--base",
        "base",
        "--reference-ce",
        "v",
        "--name",
        "v003",
    ];
    vec![
        stage1("value", "base"),
        stage1("reference", "ref"),
        step(
            "train-stage2",
            &["--data", "d", "--base", "base", "--name", "v001"],
        ),
        step("train-stage2", &verifiable),
        step("train-stage2", &rho1),
    ]
}

/// Evaluation of every model, and the table of them all.
pub(crate) fn judging() -> Vec<Step> {
    let checkpoint = |name| {
        step(
            "evaluate",
            &["--data", "d", "--checkpoint", name, "--name", name],
        )
    };
    vec![
        step(
            "evaluate",
            &["--data", "d", "--base", "base", "--name", "untrained"],
        ),
        checkpoint("v001"),
        checkpoint("v002"),
        checkpoint("v003"),
        step(
            "build-leaderboard",
            &[
                "--scores",
                "untrained,v001,v002,v003",
                "--report-dir",
                "report",
                "--name",
                "b",
            ],
        ),
    ]
}

/// Every step up to the checkpoints, whose ids depend on nothing but the recipe.
pub(crate) fn reproducible() -> Vec<Step> {
    beginning().into_iter().chain(training()).collect()
}

/// Every step from nothing to the leaderboard.
pub(crate) fn all() -> Vec<Step> {
    reproducible().into_iter().chain(judging()).collect()
}

impl Place {
    /// Runs steps that must all succeed.
    #[track_caller]
    pub(crate) fn chain(&self, prefix: &str, steps: Vec<Step>) {
        for Step { job, arguments } in steps {
            self.run(prefix, job, &arguments).expect(0);
        }
    }

    /// The leaderboard of a prefix, without the columns that hold times.
    pub(crate) fn leaderboard(&self, prefix: &str) -> Vec<Vec<String>> {
        let folder = self.path(&format!("{prefix}-board"));
        let to = folder.to_str().expect("temporary folders have plain names");
        self.run(
            prefix,
            "sync-storage",
            &["pull", "b", "--kind", "leaderboard", "--to", to],
        )
        .expect(0);
        let text =
            std::fs::read_to_string(folder.join("leaderboard.csv")).expect("the leaderboard");
        let mut rows = text
            .lines()
            .map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let header = rows.next().expect("a header");
        let timeless: Vec<usize> = (0..header.len())
            .filter(|&column| !["created_at", "latency_ms"].contains(&header[column].as_str()))
            .collect();
        std::iter::once(header.clone())
            .chain(rows)
            .map(|row| timeless.iter().map(|&column| row[column].clone()).collect())
            .collect()
    }

    /// Panics unless every reproducible step has the same output ids under both prefixes.
    #[track_caller]
    pub(crate) fn agree(&self, one: &str, other: &str) {
        for step in reproducible() {
            let ids = |prefix| self.outputs(prefix, &step)["outputs"].clone();
            assert_eq!(ids(one), ids(other), "{} {:?}", step.job, step.arguments);
        }
    }

    /// The object that a step prints last under `--json`.
    pub(crate) fn outputs(&self, prefix: &str, step: &Step) -> serde_json::Value {
        let arguments: Vec<&str> = step.arguments.iter().copied().chain(["--json"]).collect();
        self.run(prefix, step.job, &arguments).expect(0).result()
    }
}
