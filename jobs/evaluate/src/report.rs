//! What one evaluation found out, and the files that say it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use wmtp_decoding::Tally;
use wmtp_job_kit::{JobError, Kind, Output, Run};
use wmtp_recipe::Evaluation;
use wmtp_records::{
    AuditOutcome, EvalScore, GradedSample, Latency, Problem, ProblemCount, ScoreSummary, TestTouch,
    jsonl, score_files,
};

use crate::heads::HeadScore;
use crate::matches::Matches;
use crate::score::Beside;
use crate::{latency, score};

/// Who was judged, as the scores say it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// `v001` and so on, `base`, or the name of a model from outside.
    pub(crate) version_id: String,
    /// Algorithm key of the recipe, or what stands in its place.
    pub(crate) algo: String,
    /// Version that it was derived from.
    pub(crate) parent: Option<String>,
    /// The one change against the parent.
    pub(crate) change: Option<String>,
    /// Training seed.
    pub(crate) seed: Option<u64>,
    /// Data set name.
    pub(crate) dataset: String,
    /// Digest of what versions of one leaderboard share.
    pub(crate) shared_digest: String,
    /// Its artifact.
    pub(crate) checkpoint: Option<String>,
}

/// Who was judged, on what and how.
pub(crate) struct Case<'a> {
    pub(crate) who: &'a Identity,
    pub(crate) evaluation: &'a Evaluation,
    pub(crate) protocol: BTreeMap<String, String>,
    /// Id of the data set.
    pub(crate) data: &'a str,
    /// Id of the reference.
    pub(crate) reference: Option<&'a str>,
    /// Id of the data that it was trained on, where that is known.
    pub(crate) trained_on: Option<&'a str>,
}

/// Everything that one run found out.
pub(crate) struct Report {
    pub(crate) problems: Vec<Problem>,
    pub(crate) samples: Vec<GradedSample>,
    pub(crate) counts: Vec<ProblemCount>,
    pub(crate) tally: Tally,
    pub(crate) heads: Vec<HeadScore>,
    pub(crate) matches: Option<Matches>,
    /// Of what was generated here.
    pub(crate) latency: Option<Latency>,
    /// Half of the samples took no longer.
    pub(crate) latency_ms: Option<f64>,
    pub(crate) sandbox: BTreeMap<String, String>,
    pub(crate) touch: Option<TestTouch>,
}

impl Report {
    /// Writes every file of a scores artifact but what the run took.
    pub(crate) fn write(&self, dir: &Path, case: &Case<'_>, run: &Run) -> Result<(), JobError> {
        let beside = Beside {
            heads: &self.heads,
            matches: self.matches,
            knows_training: case.trained_on.is_some(),
            touch: self.touch.as_ref(),
        };
        let metrics = score::metrics(&self.counts, &self.samples, &beside, &case.evaluation.ks);
        let score = EvalScore {
            dataset_id: format!("{}-{}", case.who.dataset, case.evaluation.split),
            created_at: run.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            num_samples: (self.samples.len() - score::num_ungraded(&self.samples)) as u64,
            metrics,
            latency_ms: self.latency_ms,
        };
        jsonl::write_json(&dir.join(score_files::EVAL_SCORE), &score)?;
        jsonl::write_json(&dir.join(score_files::SUMMARY), &self.summary(case))?;
        if let Some(latency) = &self.latency {
            jsonl::write_json(&dir.join(score_files::LATENCY), latency)?;
        }
        jsonl::write(&dir.join(score_files::SAMPLES), &self.samples)?;
        jsonl::write(&dir.join(score_files::PROBLEMS), &self.counts)?;
        let shown = case.evaluation.infer_samples;
        self.write_shown(
            &dir.join(score_files::INFER_SAMPLES),
            shown,
            run.recipe().seed,
        )
    }

    fn summary(&self, case: &Case<'_>) -> ScoreSummary {
        let who = case.who.clone();
        ScoreSummary {
            version_id: who.version_id,
            algo: who.algo,
            parent: who.parent,
            change: who.change,
            seed: who.seed,
            dataset: who.dataset,
            split: case.evaluation.split,
            shared_digest: who.shared_digest,
            checkpoint: who.checkpoint,
            data: case.data.to_owned(),
            protocol: case.protocol.clone(),
            heads: self.heads.iter().map(|head| head.loss.clone()).collect(),
            error_shares: score::error_shares(&self.samples),
            pass_at_1_spread: score::spread(&self.counts),
            audits: score::audits(&self.samples),
            doubtful: score::doubtful(&self.samples),
            sandbox: self.sandbox.clone(),
            reference_loss: case
                .reference
                .and_then(|id| score::reference_loss(&self.heads, id)),
            trained_on: case.trained_on.map(str::to_owned),
            contaminated: score::contaminated(&self.counts),
            test_touch: self.touch.clone(),
        }
    }

    /// The artifact that a folder of these files is.
    pub(crate) fn output(&self, role: &str, dir: PathBuf, case: &Case<'_>) -> Output {
        let output = Output::new(role, Kind::Scores, dir)
            .attribute("version_id", &case.who.version_id)
            .attribute("algo", &case.who.algo)
            .attribute("split", case.evaluation.split)
            .attribute("dataset", &case.who.dataset);
        match &self.touch {
            Some(touch) => output.attribute("test_touch", touch.number),
            None => output,
        }
    }

    /// `0001/{input.txt, output.txt, gt.txt, meta.json}`: a few problems as a person reads them.
    fn write_shown(&self, folder: &Path, most: usize, seed: u64) -> Result<(), JobError> {
        for (number, problem) in score::shown(&self.problems, most, seed)
            .into_iter()
            .enumerate()
        {
            let Some(sample) = self.samples.iter().find(|sample| {
                sample.completion.problem_id == problem.problem_id
                    && sample.completion.sample == Some(0)
            }) else {
                continue;
            };
            let dir = folder.join(format!("{:04}", number + 1));
            std::fs::create_dir_all(&dir)?;
            std::fs::write(dir.join("input.txt"), &problem.prompt)?;
            std::fs::write(dir.join("output.txt"), &sample.completion.program)?;
            std::fs::write(
                dir.join("gt.txt"),
                problem.reference.as_deref().unwrap_or_default(),
            )?;
            let meta = json!({
                "problem_id": problem.problem_id,
                "family": problem.family,
                "sample": sample.completion.sample,
                "passed": sample.verdict.passed,
                "class": sample.verdict.class,
                "message": sample.verdict.message,
                "num_tokens": sample.completion.num_tokens,
                "contamination": sample.contamination,
            });
            jsonl::write_json(&dir.join("meta.json"), &meta)?;
        }
        Ok(())
    }

    /// Tells what people should know.
    pub(crate) fn tell(&self, run: &Run) {
        if let Some(latency) = &self.latency {
            latency::tell(latency, run);
        }
        let proposals: BTreeMap<_, _> = score::proposals(&self.tally).into_iter().collect();
        if !proposals.is_empty() {
            run.event("proposals", &json!(proposals));
        }
        let ungraded = score::num_ungraded(&self.samples);
        if ungraded > 0 {
            run.warning(format!(
                "{ungraded} samples could not be graded and count for nothing"
            ));
        }
        let audits = score::audits(&self.samples);
        if let Some(refuted) = audits.get(&AuditOutcome::Refuted) {
            run.warning(format!(
                "{refuted} samples pass beside their tests and not from a process of their own; summary.json lists them"
            ));
        }
    }
}

/// The protocol as it stands beside every number.
pub(crate) fn protocol(evaluation: &Evaluation, num_problems: usize) -> BTreeMap<String, String> {
    // Left out where they decide nothing, so that scores made before there was a choice compare with those made since.
    let top_k = evaluation.top_k.map(|most| ("top_k", most.to_string()));
    let beams = (evaluation.beams > 1).then(|| {
        let penalty = evaluation.length_penalty.to_string();
        [
            ("beams", evaluation.beams.to_string()),
            ("length_penalty", penalty),
        ]
    });
    [
        ("temperature", evaluation.temperature.to_string()),
        ("top_p", evaluation.top_p.to_string()),
        ("num_samples", evaluation.num_samples.to_string()),
        ("num_problems", num_problems.to_string()),
        ("max_new_tokens", evaluation.max_new_tokens.to_string()),
        ("prompt_style", "template".to_owned()),
        ("stops", "end token, next header, closing fence".to_owned()),
        ("cpu_secs", evaluation.cpu_secs.to_string()),
        ("wall_secs", evaluation.wall_secs.to_string()),
        ("memory_mib", evaluation.memory_mib.to_string()),
    ]
    .into_iter()
    .chain(top_k)
    .chain(beams.into_iter().flatten())
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}
