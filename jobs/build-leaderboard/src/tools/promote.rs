//! `promote`: a version moves to staging or production through a gate; every question and answer is logged.

use serde_json::json;
use wmtp_artifacts::{Alias, ArtifactId, ExitClass, GateCheck, Kind, Promotion, Promotions, Store};
use wmtp_job_kit::tracking::{self, Server};
use wmtp_job_kit::{JobError, Tool, ToolCx};
use wmtp_stats::leaderboard::{Comparison, Leaderboard, LeaderboardRow, Verdict};

use super::Standing;
use crate::report::best;

/// Command line of the tool.
#[derive(Debug, clap::Args)]
pub struct Promote {
    /// The leaderboard: a name or an id
    #[arg(long, value_name = "NAME_OR_ID")]
    leaderboard: String,
    /// Where the version is to be used
    #[arg(long, value_name = "staging|production")]
    to: Alias,
    /// The version; the best trained one when left out
    #[arg(long, value_name = "VERSION")]
    version: Option<String>,
}

/// What the store says, beside the leaderboard.
struct Known {
    /// What the model's gate was asked before.
    before: Promotions,
    /// Where it let the checkpoint through to last.
    from: Option<Alias>,
    /// What the model's users rely on now.
    production: Option<ArtifactId>,
    /// Whether the checkpoint's files are what they were.
    files: GateCheck,
}

impl Tool for Promote {
    const ABOUT: &'static str = "Moves a version of model NAME to staging or production, if the gate lets it through; the store \
                                 keeps question and answer, and `wmtp-store promotions` lists them.";
    const EXAMPLES: &'static str = "\
build-leaderboard promote --leaderboard micropy-loop --to staging --name micropy
build-leaderboard promote --leaderboard micropy-loop --to production --name micropy";

    fn run(&self, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
        let model = cx.name().map(str::to_owned).ok_or_else(|| {
            JobError::usage("nothing says which model the version is to be of").hint(
                "add --name NAME: the checkpoint is called NAME-staging or NAME-production then",
            )
        })?;
        let board = Standing::load(&self.leaderboard, cx.store()?)?;
        let row = match &self.version {
            Some(id) => board.board.rows.iter().find(|row| row.version_id == *id),
            None => best(&board.board),
        };
        let row = row.ok_or_else(|| {
            JobError::bad_input("the leaderboard has no such trained version")
                .hint("`build-leaderboard winner` prints the best one")
        })?;
        let checkpoint = row.runs.first().and_then(|run| run.checkpoint.as_deref());
        let checkpoint = checkpoint.map(str::parse::<ArtifactId>).transpose()?;
        let handle = cx.store()?;
        let known = known(handle.store(), &model, checkpoint.as_ref());
        let known = handle.block_on(known)?;
        let gate = gate(&board, row, self.to, &known);
        let promotion = Promotion {
            at: cx.now(),
            version_id: row.version_id.clone(),
            checkpoint,
            from: known.from,
            to: self.to,
            granted: gate.iter().all(|check| check.holds),
            gate,
            leaderboard: board.id.parse()?,
        };
        if !cx.is_dry_run() {
            carry_out(&model, &known.before, &promotion, cx)?;
        }
        tell(&promotion, cx)
    }
}

async fn known(
    store: &Store,
    model: &str,
    checkpoint: Option<&ArtifactId>,
) -> Result<Known, wmtp_artifacts::Error> {
    let before = store.promotions(model).await?;
    let production = Alias::Production.name_in_store(model);
    Ok(Known {
        from: checkpoint.and_then(|id| before.stage_of(id)),
        before,
        production: store.name(Kind::Checkpoint, &production).await?,
        files: files(store, checkpoint).await?,
    })
}

/// What people are to rely on is read once more: a checkpoint may have been damaged since it was scored.
async fn files(
    store: &Store,
    checkpoint: Option<&ArtifactId>,
) -> Result<GateCheck, wmtp_artifacts::Error> {
    let check = |holds, found| GateCheck {
        condition: "its files are in this store, each with its SHA-256".to_owned(),
        holds,
        found,
    };
    let Some(id) = checkpoint else {
        return Ok(check(false, "it has no checkpoint".to_owned()));
    };
    let read = async {
        let manifest = store.manifest(id).await?;
        store.verify_bytes(&manifest).await?;
        Ok::<_, wmtp_artifacts::Error>(manifest.content.files.len())
    };
    match read.await {
        Ok(count) => Ok(check(true, format!("{count} read"))),
        Err(error) => match error.exit_class() {
            ExitClass::Integrity | ExitClass::BadInput => Ok(check(false, error.to_string())),
            _ => Err(error),
        },
    }
}

/// The record comes before the name: a name that nothing explains would be worse than a record without its name.
fn carry_out(
    model: &str,
    before: &Promotions,
    promotion: &Promotion,
    cx: &ToolCx<'_>,
) -> Result<(), JobError> {
    let handle = cx.store()?;
    let store = handle.store();
    handle.block_on(store.record_promotion(model, before, promotion))?;
    let Some(id) = promotion.checkpoint.as_ref().filter(|_| promotion.granted) else {
        return Ok(());
    };
    let name = promotion.to.name_in_store(model);
    handle.block_on(store.set_name(id.kind(), &name, id))?;
    register(model, promotion.to, id, cx)
}

/// A tracking server is told what the store knows; that it cannot be is no reason to refuse.
fn register(
    model: &str,
    alias: Alias,
    checkpoint: &ArtifactId,
    cx: &ToolCx<'_>,
) -> Result<(), JobError> {
    let handle = cx.store()?;
    let told = Server::from_environment().and_then(|server| {
        let Some(server) = server else {
            return Ok(None);
        };
        let promoted = tracking::promote(&server, handle.store(), model, alias, checkpoint);
        handle.block_on(promoted).map(Some)
    });
    match told {
        Ok(None) => {}
        Ok(Some(version)) => cx.log(format!(
            "{} of model {model} is version {version} on the tracking server",
            alias.as_str()
        )),
        Err(error) => cx.warning(format!(
            "the tracking server has no {} of model {model}: {error}; `wmtp-store mlflow replay` gives it",
            alias.as_str()
        )),
    }
    Ok(())
}

fn tell(promotion: &Promotion, cx: &mut ToolCx<'_>) -> Result<(), JobError> {
    for check in &promotion.gate {
        let mark = if check.holds {
            "holds"
        } else {
            "does not hold"
        };
        cx.print(format!("{}: {mark}: {}", check.condition, check.found));
    }
    cx.json_result(json!(promotion));
    let (version, to) = (&promotion.version_id, promotion.to);
    if promotion.granted {
        let is = if cx.is_dry_run() {
            "may go to"
        } else {
            "is in"
        };
        cx.print(format!("{version} {is} {to} now"));
        return Ok(());
    }
    let missing: Vec<&str> = promotion
        .gate
        .iter()
        .filter(|check| !check.holds)
        .map(|check| check.condition.as_str())
        .collect();
    let error = format!("{version} does not go to {to}: {}", missing.join("; "));
    Err(JobError::refused(error)
        .hint("`wmtp-store promotions` says what was found for each condition"))
}

/// The conditions of a stage with what was found.
fn gate(board: &Standing, row: &LeaderboardRow, to: Alias, known: &Known) -> Vec<GateCheck> {
    let check = |condition: &str, holds: bool, found: String| GateCheck {
        condition: condition.to_owned(),
        holds,
        found,
    };
    let level = row.estimate.map_or_else(
        || "no primary metric".to_owned(),
        |estimate| format!("{:.4}", estimate.mean),
    );
    let rows = &board.board.rows;
    let base = rows
        .iter()
        .find(|row| row.is_base())
        .and_then(|row| row.estimate);
    let over_base = match (row.estimate, base) {
        (Some(own), Some(base)) => check(
            "it solves more than the untrained model",
            own.interval.low > base.interval.high,
            format!(
                "{:.4} and more against {:.4} and less",
                own.interval.low, base.interval.high
            ),
        ),
        _ => check(
            "it solves more than the untrained model",
            false,
            "not both are scored".to_owned(),
        ),
    };
    let mut gate = vec![
        check(
            "it is trained and ranked",
            row.rank.is_some() && row.is_trained(),
            level,
        ),
        over_base,
        known.files.clone(),
    ];
    if to == Alias::Production {
        // One that went on to production already is asked for again where a kill came before its name.
        let stage = known.from.map_or("nowhere", Alias::as_str).to_owned();
        gate.push(check("it is in staging", known.from.is_some(), stage));
        let rank = row
            .rank
            .map_or_else(|| "none".to_owned(), |rank| rank.to_string());
        let trained = rows.iter().filter(|other| other.is_trained());
        let first = trained.filter_map(|other| other.rank).min();
        gate.push(check(
            "it shares the first rank of the versions trained here",
            row.rank.is_some() && row.rank == first,
            rank,
        ));
        gate.push(no_loss(&board.board, row, known.production.as_ref()));
        gate.push(claim(row));
        gate.push(held_out(board, row));
    }
    gate
}

/// What is relied on now gives way to nothing that scores less on the same tasks.
fn no_loss(
    board: &Leaderboard,
    row: &LeaderboardRow,
    production: Option<&ArtifactId>,
) -> GateCheck {
    let check = |holds, found| GateCheck {
        condition: "it scores no less than what is in production".to_owned(),
        holds,
        found,
    };
    let Some(production) = production else {
        return check(true, "nothing is in production".to_owned());
    };
    let text = production.to_string();
    let is_it = |row: &&LeaderboardRow| {
        let mut runs = row.runs.iter();
        runs.any(|run| run.checkpoint.as_ref() == Some(&text))
    };
    let Some(present) = board.rows.iter().find(is_it) else {
        let found = format!("{production} is there, and this leaderboard does not score it");
        return check(false, found);
    };
    let (Some(own), Some(theirs)) = (row.estimate, present.estimate) else {
        return check(false, "not both are scored".to_owned());
    };
    let holds = if board.higher_is_better {
        own.mean >= theirs.mean
    } else {
        own.mean <= theirs.mean
    };
    let version = &present.version_id;
    check(
        holds,
        format!("{:.4} against {:.4} of {version}", own.mean, theirs.mean),
    )
}

/// A weighted version must be better than its baseline by the rule for claims; a baseline has nothing to claim.
fn claim(row: &LeaderboardRow) -> GateCheck {
    let condition = "it is a baseline, or better than its own by the rule for claims".to_owned();
    let found = |against: &Comparison| format!("{}; {}", against.words(), against.reason);
    match &row.against_baseline {
        _ if row.algo == "baseline" => GateCheck {
            condition,
            holds: true,
            found: "a baseline".to_owned(),
        },
        Some(against) => GateCheck {
            condition,
            holds: against.verdict == Verdict::Better,
            found: found(against),
        },
        None => GateCheck {
            condition,
            holds: false,
            found: "there is no baseline".to_owned(),
        },
    }
}

/// The held-out score must not fall out of the interval of the one that chose the version.
fn held_out(board: &Standing, row: &LeaderboardRow) -> GateCheck {
    let condition = "its held-out interval meets the one that chose it".to_owned();
    match &board.held_out {
        Some(score) if score.version_id == row.version_id => {
            let (held_out, validation) = (score.estimate.interval, score.validation.interval);
            GateCheck {
                condition,
                holds: held_out.high >= validation.low,
                found: format!(
                    "{:.4} to {:.4} against {:.4} to {:.4}",
                    held_out.low, held_out.high, validation.low, validation.high
                ),
            }
        }
        _ => GateCheck {
            condition,
            holds: false,
            found: "it was not asked".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use wmtp_records::Split;
    use wmtp_stats::leaderboard::HeldOut;
    use wmtp_stats::{Estimate, Interval};

    use super::*;
    use crate::source::ScoredRun;
    use crate::table::build;
    use crate::table::tests::{run, tasks};

    fn runs() -> Vec<ScoredRun> {
        let mut runs = vec![run("base", "base", None, None, &tasks(0))];
        for seed in 1..=3 {
            runs.push(run("v001", "baseline", None, Some(seed), &tasks(8)));
            let of = |id, algo, level| run(id, algo, Some("v001"), Some(seed), &tasks(level));
            runs.push(of("v002", "verifiable", 12));
            runs.push(of("v003", "rho1", 4));
            runs.push(of("v004", "random_matched", 7));
            runs.push(of("v005", "shuffled", 8));
        }
        runs
    }

    fn board() -> Standing {
        Standing {
            board: build(&runs()).unwrap(),
            figures: BTreeMap::new(),
            held_out: None,
            id: "leaderboard-1".to_owned(),
        }
    }

    fn known(from: Option<Alias>) -> Known {
        Known {
            before: Promotions::default(),
            from,
            production: None,
            files: GateCheck {
                condition: "its files".to_owned(),
                holds: true,
                found: "1 read".to_owned(),
            },
        }
    }

    fn missing(board: &Standing, version: &str, to: Alias, from: Option<Alias>) -> Vec<String> {
        missing_in(board, version, to, &known(from))
    }

    fn missing_in(board: &Standing, version: &str, to: Alias, known: &Known) -> Vec<String> {
        let mut rows = board.board.rows.iter();
        let row = rows.find(|row| row.version_id == version).unwrap();
        gate(board, row, to, known)
            .into_iter()
            .filter(|check| !check.holds)
            .map(|check| check.condition)
            .collect()
    }

    fn estimate(low: f64, high: f64) -> Estimate {
        Estimate {
            mean: f64::midpoint(low, high),
            interval: Interval { low, high },
        }
    }

    /// The winner's score on tasks that chose nothing, with this interval.
    fn scored_once(low: f64, high: f64) -> HeldOut {
        HeldOut {
            version_id: "v002".to_owned(),
            dataset_id: "micropy-test".to_owned(),
            split: Split::Test,
            num_tasks: 60,
            seeds: vec![1, 2, 3],
            primary_metric: "pass_at_1".to_owned(),
            estimate: estimate(low, high),
            validation: estimate(0.6, 0.8),
            scores: Vec::new(),
        }
    }

    #[test]
    fn a_model_from_outside_is_never_promoted_and_keeps_no_version_from_it() {
        let mut board = board();
        board.held_out = Some(scored_once(0.6, 0.8));
        let outside = run("big-model", "external", None, None, &tasks(16));
        board.board = build(&[runs(), vec![outside]].concat()).unwrap();
        assert_eq!(board.board.rows[0].version_id, "big-model");
        assert_eq!(board.board.rows[1].rank, Some(2));
        assert_eq!(best(&board.board).unwrap().version_id, "v002");
        let staged = Some(Alias::Staging);
        assert!(missing(&board, "v002", Alias::Production, staged).is_empty());
        let outside = missing(&board, "big-model", Alias::Staging, None);
        assert_eq!(outside, ["it is trained and ranked"]);
    }

    #[test]
    fn production_asks_for_staging_rank_claim_and_held_out_score() {
        let mut board = board();
        assert!(missing(&board, "v002", Alias::Staging, None).is_empty());
        assert_eq!(missing(&board, "base", Alias::Staging, None).len(), 2);
        let staged = Some(Alias::Staging);
        let held_out = "its held-out interval meets the one that chose it";
        assert_eq!(
            missing(&board, "v002", Alias::Production, staged),
            [held_out]
        );
        board.held_out = Some(scored_once(0.5, 0.7));
        assert!(missing(&board, "v002", Alias::Production, staged).is_empty());
        assert_eq!(
            missing(&board, "v002", Alias::Production, None),
            ["it is in staging"]
        );
        let worse = missing(&board, "v003", Alias::Production, staged);
        let claim = "it is a baseline, or better than its own by the rule for claims";
        assert_eq!(
            worse,
            [
                "it shares the first rank of the versions trained here",
                claim,
                held_out
            ]
        );
        let fallen = board.held_out.as_mut().unwrap();
        fallen.estimate = estimate(0.1, 0.3);
        assert_eq!(
            missing(&board, "v002", Alias::Production, staged),
            [held_out]
        );
    }

    #[test]
    fn what_is_in_production_gives_way_to_nothing_that_scores_less() {
        let mut board = board();
        board.held_out = Some(scored_once(0.5, 0.7));
        let id = |digit: &str| -> ArtifactId {
            format!("checkpoint-{}", digit.repeat(40)).parse().unwrap()
        };
        let ids = ["a", "b"].map(id);
        let mut put = |version: &str, id: &ArtifactId| {
            let mut rows = board.board.rows.iter_mut();
            let row = rows.find(|row| row.version_id == version).unwrap();
            row.runs[1].checkpoint = Some(id.to_string());
        };
        put("v002", &ids[0]);
        put("v003", &ids[1]);
        let condition = "it scores no less than what is in production";
        let mut known = known(Some(Alias::Staging));
        let mut over = |board: &Standing, production: &ArtifactId| {
            known.production = Some(production.clone());
            missing_in(board, "v002", Alias::Production, &known)
        };
        assert!(over(&board, &ids[0]).is_empty(), "another seed of its own");
        assert!(over(&board, &ids[1]).is_empty(), "what scores less");
        assert_eq!(over(&board, &id("c")), [condition]);
        let mut rows = board.board.rows.iter_mut();
        let better = rows.find(|row| row.version_id == "v003").unwrap();
        better.estimate = Some(estimate(0.9, 1.0));
        assert_eq!(over(&board, &ids[1]), [condition]);
        board.board.higher_is_better = false;
        assert!(over(&board, &ids[1]).is_empty());
    }

    #[test]
    fn a_version_whose_files_are_not_whole_goes_nowhere() {
        let board = board();
        let mut known = known(None);
        known.files.holds = false;
        let missing = missing_in(&board, "v002", Alias::Staging, &known);
        assert_eq!(missing, ["its files"]);
    }
}
