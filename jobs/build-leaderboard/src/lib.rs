//! Scores of all versions become one table, analyses and a report folder; and the way from one version to the next.
//!
//! The way of the data: score artifacts are read ([`source`]), pooled by version and compared ([`table`]), explained in
//! figures ([`figures`], with what the store knows of training, [`training`]), and written as tables ([`frame`]) and prose
//! ([`analysis`]). The report folder ([`report`]) is a copy for people.
//!
//! The tools of a version loop read what the job wrote: `audit-baseline` before the first version, then after each one
//! `select-action` ([`actions`]) and `next-version`, at the end `promote`.

pub mod actions;
pub mod analysis;
mod card;
pub mod figures;
mod final_analysis;
pub mod frame;
mod history;
mod loop_folder;
pub mod report;
pub mod source;
pub mod table;
mod text;
mod tools;
pub mod training;
mod version_folder;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use wmtp_artifacts::{ArtifactId, Digest, Kind};
use wmtp_job_kit::{Job, JobError, Output, Plan, PlanCx, Run, ToolCx};
use wmtp_records::jsonl;
use wmtp_stats::leaderboard::{Leaderboard, files};

use crate::loop_folder::LoopFolder;
use crate::report::Report;
use crate::source::ScoredRun;
use crate::training::TrainingFacts;

pub use tools::{AuditBaseline, NextVersion, Promote, RetryReport, SelectAction, Winner};

/// Command line of the job.
#[derive(Debug, clap::Args)]
pub struct BuildLeaderboard {
    /// Scores to rank: names or ids, separated by commas; may be repeated
    #[arg(
        long,
        required = true,
        value_delimiter = ',',
        value_name = "NAME_OR_ID"
    )]
    scores: Vec<String>,
    /// Scores of one version on the test split, for the report alone: names or ids
    #[arg(long, value_delimiter = ',', value_name = "NAME_OR_ID")]
    held_out: Vec<String>,
    /// Folder of a version loop: its actions and reports go with the leaderboard, the versions' files into it
    #[arg(long = "loop", value_name = "DIR")]
    loop_dir: Option<PathBuf>,
    /// Folder for the report: DIR/YYYY-MM-DD_HH-MM with tables, analyses and the best version's files
    #[arg(long, value_name = "DIR")]
    report_dir: Option<PathBuf>,
}

/// What the plan hands to the run.
#[derive(Debug)]
pub struct Work {
    /// Roles of the inputs with their ids.
    inputs: Vec<(String, ArtifactId)>,
    held_out: Vec<(String, ArtifactId)>,
    /// Files of the loop by their path in the artifact.
    notes: BTreeMap<String, String>,
    /// Metrics that the user wants to see; all where there are none.
    metrics: Vec<String>,
}

/// Inputs by role, and the versions that they are scores of.
type Registered = (Vec<(String, ArtifactId)>, BTreeSet<String>);

/// Registers scores under numbered roles, in the order of their ids.
fn register(
    cx: &mut PlanCx<'_>,
    what: &str,
    references: &[String],
) -> Result<Registered, JobError> {
    let mut ids = BTreeSet::new();
    for reference in references {
        ids.insert(cx.store()?.resolve(Kind::Scores, reference)?);
    }
    let (mut inputs, mut versions) = (Vec::new(), BTreeSet::new());
    for (index, id) in ids.into_iter().enumerate() {
        let role = format!("{what}-{index:03}");
        let manifest = cx.input(&role, Kind::Scores, &id.to_string())?;
        versions.extend(manifest.attribute("version_id").map(str::to_owned));
        inputs.push((role, id));
    }
    Ok((inputs, versions))
}

impl Job for BuildLeaderboard {
    type Work = Work;
    const NAME: &'static str = "build-leaderboard";
    const ABOUT: &'static str = "Pools the seeds of every version, compares versions over the same tasks and writes the leaderboard.";
    const EXAMPLES: &'static str = "\
build-leaderboard --store s3://wmtp/demo --scores base,v001-s42,v002-s42 --name micropy
build-leaderboard --store s3://wmtp/demo --scores base --scores v001-s42 --report-dir report --name micropy
build-leaderboard select-action --store s3://wmtp/demo --leaderboard micropy --loop .wmtp/micropy-loop";
    const VERSION: u32 = 5;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let (inputs, versions) = register(cx, "scores", &self.scores)?;
        let (held_out, _) = register(cx, "held-out", &self.held_out)?;
        let (notes, metrics) = match &self.loop_dir {
            Some(dir) => {
                let folder = LoopFolder::open(dir);
                (folder.notes(&versions)?, folder.rules()?.metrics)
            }
            None => (BTreeMap::new(), Vec::new()),
        };
        let mut plan = Plan::new(Work {
            inputs,
            held_out,
            notes,
            metrics,
        })
        .output("leaderboard", Kind::Leaderboard);
        let work = &plan.work;
        // What is read beside the inputs decides bytes of the output.
        if !work.notes.is_empty() || !work.metrics.is_empty() {
            let read = serde_json::json!([work.notes, work.metrics]).to_string();
            plan = plan.option("loop", Digest::of(read.as_bytes()).to_string());
        }
        Ok(plan)
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let report = work.report(run)?;
        for warning in &report.board.warnings {
            run.warning(warning.clone());
        }
        let dir = run.output_dir("leaderboard")?;
        report.write(&dir)?;
        let output = Output::new("leaderboard", Kind::Leaderboard, dir)
            .attribute("dataset", &report.board.dataset_id)
            .attribute("versions", report.board.rows.len().to_string());
        Ok(vec![output])
    }

    fn deliver(
        &self,
        outputs: &BTreeMap<String, ArtifactId>,
        cx: &mut ToolCx<'_>,
    ) -> Result<(), JobError> {
        let Some(id) = outputs.get("leaderboard") else {
            return Ok(());
        };
        if self.report_dir.is_none() && self.loop_dir.is_none() {
            return Ok(());
        }
        let leaderboard_dir = cx.store()?.fetch(id)?;
        let board: Leaderboard = jsonl::read_json(&leaderboard_dir.join(files::JSON))?;
        if let Some(dir) = &self.loop_dir {
            LoopFolder::open(dir).lay_out(&board, &leaderboard_dir, cx.store()?)?;
        }
        if let Some(dir) = &self.report_dir {
            let written = report::deliver(dir, &board, &leaderboard_dir, cx.store()?)?;
            cx.print(format!("report {}", written.display()));
        }
        Ok(())
    }
}

impl Work {
    /// Reads the inputs and finds everything out.
    fn report(&self, run: &Run) -> Result<Report, JobError> {
        let scored = load(run, &self.inputs)?;
        let judged = table::judge(&scored)?;
        let mut training = BTreeMap::new();
        for row in &judged.board.rows {
            let facts = TrainingFacts::load(row, run.store())?;
            training.insert(row.version_id.clone(), facts);
        }
        let held_out = load(run, &self.held_out)?;
        Report::new(judged, training, &held_out, self)
    }
}

fn load(run: &Run, inputs: &[(String, ArtifactId)]) -> Result<Vec<ScoredRun>, JobError> {
    let progress = run.progress("reading scores", "score", inputs.len() as u64);
    let mut scored = Vec::new();
    for (role, id) in inputs {
        scored.push(ScoredRun::load(&run.input(role)?, &id.to_string())?);
        progress.inc(1);
    }
    progress.finish();
    Ok(scored)
}
