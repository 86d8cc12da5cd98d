//! Scores of all versions become one table, analyses and a report folder.
//!
//! The way of the data: score artifacts are read ([`source`]), pooled by version and compared ([`table`]), and
//! written as tables ([`frame`]) and prose ([`analysis`]). The report folder ([`report`]) is a copy for people.

pub mod analysis;
pub mod frame;
pub mod report;
pub mod source;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use wmtp_artifacts::{ArtifactId, Kind};
use wmtp_job_kit::{Job, JobError, Output, Plan, PlanCx, Run, ToolCx};
use wmtp_records::jsonl;
use wmtp_stats::leaderboard::{Leaderboard, files};

use crate::source::ScoredRun;

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
    /// Folder for the report: DIR/YYYY-MM-DD_HH-MM with tables, analyses and the best version's files
    #[arg(long, value_name = "DIR")]
    report_dir: Option<PathBuf>,
}

/// Roles of the inputs, in the order of their ids.
#[derive(Debug)]
pub struct Work {
    inputs: Vec<(String, ArtifactId)>,
}

impl Job for BuildLeaderboard {
    type Work = Work;
    const NAME: &'static str = "build-leaderboard";
    const ABOUT: &'static str = "Pools the seeds of every version, compares versions over the same tasks and writes the leaderboard.";
    const EXAMPLES: &'static str = "\
build-leaderboard --store s3://wmtp/demo --scores base,v001-s42,v002-s42 --name micropy
build-leaderboard --store s3://wmtp/demo --scores base --scores v001-s42 --report-dir report --name micropy";
    const VERSION: u32 = 2;

    fn plan(&self, cx: &mut PlanCx<'_>) -> Result<Plan<Work>, JobError> {
        let mut ids = BTreeSet::new();
        for reference in &self.scores {
            ids.insert(cx.store()?.resolve(Kind::Scores, reference)?);
        }
        let mut inputs = Vec::new();
        for (index, id) in ids.into_iter().enumerate() {
            let role = format!("scores-{index:03}");
            cx.input(&role, Kind::Scores, &id.to_string())?;
            inputs.push((role, id));
        }
        Ok(Plan::new(Work { inputs }).output("leaderboard", Kind::Leaderboard))
    }

    fn run(work: &Work, run: &mut Run) -> Result<Vec<Output>, JobError> {
        let progress = run.progress("reading scores", "score", work.inputs.len() as u64);
        let mut scored = Vec::new();
        for (role, id) in &work.inputs {
            scored.push(ScoredRun::load(&run.input(role)?, &id.to_string())?);
            progress.inc(1);
        }
        progress.finish();
        let board = table::build(&scored)?;
        for warning in &board.warnings {
            run.warning(warning.clone());
        }
        let dir = run.output_dir("leaderboard")?;
        write_artifact(&dir, &board)?;
        let output = Output::new("leaderboard", Kind::Leaderboard, dir)
            .attribute("dataset", &board.dataset_id)
            .attribute("versions", board.rows.len().to_string());
        Ok(vec![output])
    }

    fn deliver(
        &self,
        outputs: &BTreeMap<String, ArtifactId>,
        cx: &mut ToolCx<'_>,
    ) -> Result<(), JobError> {
        let (Some(report_dir), Some(id)) = (&self.report_dir, outputs.get("leaderboard")) else {
            return Ok(());
        };
        let leaderboard_dir = cx.store()?.fetch(id)?;
        let board: Leaderboard = jsonl::read_json(&leaderboard_dir.join(files::JSON))?;
        let best_scores = match report::best_scores_id(&board) {
            None => None,
            Some(scores) => {
                let id = cx.store()?.resolve(Kind::Scores, scores)?;
                Some(cx.store()?.fetch(&id)?)
            }
        };
        let written = report::write(report_dir, &board, &leaderboard_dir, best_scores.as_deref())?;
        cx.print(format!("report {}", written.display()));
        Ok(())
    }
}

/// Writes every file of a leaderboard artifact.
///
/// # Errors
/// Internal or no-room errors of the file system; a table that polars refuses is internal.
pub fn write_artifact(dir: &Path, board: &Leaderboard) -> Result<(), JobError> {
    let csv = frame::csv(board).map_err(JobError::internal)?;
    std::fs::write(dir.join(files::CSV), csv)?;
    jsonl::write_json(&dir.join(files::JSON), board)?;
    let parquet = frame::parquet(board).map_err(JobError::internal)?;
    std::fs::write(dir.join(files::PARQUET), parquet)?;
    for row in &board.rows {
        std::fs::create_dir_all(dir.join(files::version_dir(&row.version_id)))?;
        let text = analysis::render(board, row);
        std::fs::write(dir.join(files::analysis(&row.version_id)), text)?;
    }
    Ok(())
}
