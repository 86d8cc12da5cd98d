//! The report: JSON for machines, Markdown for people (`spec/parity.md` 4.6).

use std::fmt::Write;
use std::io::ErrorKind;
use std::path::Path;

use candle_core::{Device, DeviceLocation};
use serde::Serialize;
use wmtp_model::Place;

use crate::compare::Comparison;
use crate::{Case, Error, Mode, Precision, Values};

/// The files of a report.
const FILES: [&str; 2] = ["parity_report.json", "parity_report.md"];

/// Outcome of a stage or of the whole comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Everything expected was compared and passed.
    Pass,
    /// Something differs, is missing, or nothing was compared.
    Fail,
    /// A stage after the first failing one: its result inherits the divergence.
    AfterDivergence,
}

impl Status {
    pub(crate) fn of(passes: bool) -> Self {
        if passes { Self::Pass } else { Self::Fail }
    }
}

/// The key of a stage that is farthest from the golden.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// Golden key.
    pub key: String,
    /// `‖a−b‖ / ‖b‖`.
    pub rel_l2: f64,
    /// `max|a−b| / max|b|`.
    pub scaled_max: f64,
    /// `rel_l2` over the reference's own distance.
    pub noise_ratio: Option<f64>,
}

impl Worst {
    pub(crate) fn of(key: &str, comparison: &Comparison) -> Self {
        Self {
            key: key.to_owned(),
            rel_l2: comparison.rel_l2,
            scaled_max: comparison.scaled_max,
            noise_ratio: comparison.noise_ratio,
        }
    }
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageReport {
    /// Stage name.
    pub name: &'static str,
    /// Outcome.
    pub status: Status,
    /// Keys the golden expects.
    pub keys: usize,
    /// Keys that were compared.
    pub compared: usize,
    /// Keys that failed.
    pub mismatched: usize,
    /// Elements outside the gate, plus missing and unexpected keys and wrong shapes.
    pub mismatch_count: usize,
    /// The key farthest from the golden.
    pub worst: Option<Worst>,
    /// The largest noise ratio of all keys; often not that of the farthest one.
    pub noise_ratio: Option<f64>,
    /// Outcome on the golden's own inputs, for the first diverging stage and the one after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub isolated: Option<Status>,
}

impl StageReport {
    pub(crate) fn new(name: &'static str, keys: usize) -> Self {
        Self {
            name,
            status: Status::Fail,
            keys,
            compared: 0,
            mismatched: 0,
            mismatch_count: 0,
            worst: None,
            noise_ratio: None,
            isolated: None,
        }
    }

    pub(crate) fn consider(&mut self, candidate: Worst) {
        if let Some(ratio) = candidate.noise_ratio {
            self.noise_ratio = Some(self.noise_ratio.map_or(ratio, |worst| worst.max(ratio)));
        }
        let farther = self.worst.as_ref().is_none_or(|worst| {
            // NaN counts as farthest.
            candidate.rel_l2.is_nan() || candidate.rel_l2 > worst.rel_l2
        });
        if farther {
            self.worst = Some(candidate);
        }
    }
}

/// An element near the first divergence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Element {
    /// Position in every dimension.
    pub index: Vec<usize>,
    /// Golden value.
    pub expected: f64,
    /// Our value.
    pub actual: f64,
}

/// The first thing that differs: where, what, by how much.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Stage name.
    pub stage: &'static str,
    /// Golden file.
    pub file: &'static str,
    /// Golden key; absent when a whole stage compared nothing.
    pub key: Option<String>,
    /// `missing` (and why the subject ended early), `unexpected`, a shape, a type, or `values`.
    pub reason: String,
    /// First element outside the gate.
    pub index: Option<Vec<usize>>,
    /// Golden value there.
    pub expected: Option<f64>,
    /// Our value there.
    pub actual: Option<f64>,
    /// The distance that failed.
    pub metric: Option<&'static str>,
    /// Its value.
    pub value: Option<f64>,
    /// Its bound.
    pub tolerance: Option<f64>,
    /// Whether the stage passes on the golden's own inputs: then it only inherits what is wrong.
    pub isolated: Option<Status>,
    /// Up to five elements around the first one outside the gate.
    pub around: Vec<Element>,
}

impl Divergence {
    pub(crate) fn of_stage(stage: &'static str, file: &'static str, reason: &str) -> Self {
        Self {
            stage,
            file,
            key: None,
            reason: reason.to_owned(),
            index: None,
            expected: None,
            actual: None,
            metric: None,
            value: None,
            tolerance: None,
            isolated: None,
            around: Vec::new(),
        }
    }

    pub(crate) fn of_key(
        stage: &'static str,
        file: &'static str,
        key: &str,
        reason: String,
    ) -> Self {
        Self {
            key: Some(key.to_owned()),
            reason,
            ..Self::of_stage(stage, file, "")
        }
    }

    pub(crate) fn of_values(
        stage: &'static str,
        file: &'static str,
        key: &str,
        comparison: &Comparison,
        expected: &Values,
        actual: &Values,
    ) -> Self {
        let element = |i: usize| Element {
            index: expected.index(i),
            expected: expected.data[i],
            actual: actual.data[i],
        };
        // A tensor can fail as a whole while each element passes: then the farthest one is shown.
        let place = comparison
            .first_mismatch
            .unwrap_or_else(|| farthest(expected, actual));
        let start = place
            .saturating_sub(2)
            .min(expected.data.len().saturating_sub(5));
        let around = (start..expected.data.len().min(start + 5))
            .map(element)
            .collect();
        let (metric, value, bound) = comparison.failed.unwrap_or(("elements", 0.0, 0.0));
        Self {
            index: Some(expected.index(place)),
            expected: Some(expected.data[place]),
            actual: Some(actual.data[place]),
            metric: Some(metric),
            value: Some(value),
            tolerance: Some(bound),
            around,
            ..Self::of_key(stage, file, key, "values".to_owned())
        }
    }
}

fn farthest(expected: &Values, actual: &Values) -> usize {
    let distance = |i: usize| (expected.data[i] - actual.data[i]).abs();
    (0..expected.data.len()).fold(0, |best, i| {
        if distance(i) > distance(best) {
            i
        } else {
            best
        }
    })
}

/// The command that gives this report again.
fn rerun(case: &Case, precision: Precision, mode: Mode, device: DeviceLocation) -> String {
    let name = case.folder.file_name().map_or_else(
        || case.name.clone(),
        |name| name.to_string_lossy().into_owned(),
    );
    let mut command = format!("make parity CASE={name} DTYPE={}", precision.name());
    if let Some(parent) = case.folder.parent()
        && !parent.ends_with("tests/parity/goldens")
        && parent != Path::new("")
    {
        let _ = write!(command, " GOLDENS={}", parent.display());
    }
    if mode == Mode::Isolated {
        command.push_str(" MODE=isolated");
    }
    if let DeviceLocation::Cuda { gpu_id } = device {
        let _ = write!(command, " DEVICE={}", Place::Cuda(gpu_id));
    }
    command
}

fn write_error(path: &Path, source: std::io::Error) -> Error {
    Error::Write {
        path: path.display().to_string(),
        source,
    }
}

/// What was compared with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// Crate under test.
    #[serde(rename = "crate")]
    pub name: &'static str,
    /// Its commit, where the caller knows it.
    pub commit: Option<String>,
    /// Element type.
    pub dtype: &'static str,
    /// Device.
    pub device: &'static str,
}

/// The whole comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Layout of this file.
    pub schema: &'static str,
    /// Outcome.
    pub status: Status,
    /// Case name.
    pub case: String,
    /// SHA-256 of the golden file.
    pub golden_sha256: String,
    /// What was compared.
    pub subject: Subject,
    /// What each stage was given.
    pub mode: Mode,
    /// The first divergence, if any.
    pub first_divergence: Option<Divergence>,
    /// Sum over stages.
    pub mismatch_count: usize,
    /// Keys whose values were compared: those of all stages behind the contract.
    pub compared_count: usize,
    /// Stages in order.
    pub stages: Vec<StageReport>,
    /// Golden keys that no stage of this program reads: each is a mismatch of the contract.
    pub not_compared: Vec<String>,
    /// Why the subject ended before it had found everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// How to run this again.
    pub rerun: String,
}

impl Report {
    pub(crate) fn new(case: &Case, precision: Precision, mode: Mode, device: &Device) -> Self {
        Self {
            schema: "wmtp.parity-report/1",
            status: Status::Pass,
            case: case.name.clone(),
            golden_sha256: case.golden_sha256.clone(),
            subject: Subject {
                name: case.kind.crate_name(),
                commit: None,
                dtype: precision.name(),
                device: if device.is_cuda() { "cuda" } else { "cpu" },
            },
            mode,
            first_divergence: None,
            mismatch_count: 0,
            compared_count: 0,
            stages: Vec::new(),
            not_compared: Vec::new(),
            stopped: None,
            rerun: rerun(case, precision, mode, device.location()),
        }
    }

    /// Takes over from an isolated run how the first diverging stage and its successor did there.
    pub(crate) fn adopt_isolated(&mut self, isolated: &Self) {
        let Some(first) = &mut self.first_divergence else {
            return;
        };
        let Some(place) = self.stages.iter().position(|s| s.name == first.stage) else {
            return;
        };
        // A run that ended early says nothing of what it did not reach.
        let reached =
            |stage: &&StageReport| isolated.stopped.is_none() || stage.compared == stage.keys;
        let status = |place: usize| {
            let stage = isolated.stages.get(place).filter(reached);
            stage.map(|stage| stage.status)
        };
        first.isolated = status(place);
        for (offset, stage) in self.stages[place..].iter_mut().take(2).enumerate() {
            stage.isolated = status(place + offset);
        }
    }

    /// Adds a stage that compared values.
    pub(crate) fn add(&mut self, stage: StageReport) {
        self.compared_count += stage.compared;
        self.add_contract(stage);
    }

    /// Adds a stage that compared something else.
    pub(crate) fn add_contract(&mut self, stage: StageReport) {
        self.mismatch_count += stage.mismatch_count;
        if stage.status != Status::Pass {
            self.status = Status::Fail;
        }
        self.stages.push(stage);
    }

    /// Process exit code: 0 pass, 1 divergence, 4 nothing compared.
    pub fn exit_code(&self) -> u8 {
        match self.status {
            _ if self.compared_count == 0 => 4,
            Status::Pass => 0,
            _ => 1,
        }
    }

    /// Writes `parity_report.json` and `parity_report.md` into a folder, which is made if need be.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        std::fs::create_dir_all(folder).map_err(|source| write_error(folder, source))?;
        let json =
            serde_json::to_string_pretty(self).expect("a report has only names and numbers") + "\n";
        for (name, text) in FILES.into_iter().zip([json, self.markdown()]) {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|source| write_error(&path, source))?;
        }
        Ok(())
    }

    /// Removes what [`Self::write`] wrote into a folder before, so that a run that fails leaves no word of an older one.
    pub fn remove(folder: &Path) -> Result<(), Error> {
        for path in FILES.map(|name| folder.join(name)) {
            if let Err(e) = std::fs::remove_file(&path)
                && e.kind() != ErrorKind::NotFound
            {
                return Err(write_error(&path, e));
            }
        }
        Ok(())
    }

    /// One line per stage and, on failure, the elements around the first divergence.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        self.write_markdown(&mut text)
            .expect("writing to a string succeeds");
        text
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let verdict = if self.status == Status::Pass {
            "pass"
        } else {
            "FAIL"
        };
        writeln!(
            out,
            "# Parity {}, {}, {}: {verdict}\n",
            self.case,
            self.subject.dtype,
            self.mode.name()
        )?;
        writeln!(
            out,
            "{} keys compared, {} mismatches.\n",
            self.compared_count, self.mismatch_count
        )?;
        writeln!(
            out,
            "| stage | status | compared | mismatches | worst key | rel_l2 | worst noise ratio |"
        )?;
        writeln!(out, "|---|---|---|---|---|---|---|")?;
        for stage in &self.stages {
            let status = match stage.status {
                Status::Pass => "pass",
                Status::Fail => "FAIL",
                Status::AfterDivergence => "after divergence",
            };
            let (key, rel_l2) = match &stage.worst {
                Some(worst) => (worst.key.as_str(), format!("{:.1e}", worst.rel_l2)),
                None => ("-", "-".to_owned()),
            };
            let noise = stage
                .noise_ratio
                .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let (name, compared, keys, mismatches) =
                (stage.name, stage.compared, stage.keys, stage.mismatch_count);
            writeln!(
                out,
                "| {name} | {status} | {compared}/{keys} | {mismatches} | {key} | {rel_l2} | {noise} |"
            )?;
        }
        if let Some(divergence) = &self.first_divergence {
            divergence.write_markdown(out)?;
        }
        if !self.not_compared.is_empty() {
            writeln!(
                out,
                "\nNot compared by this program: {} golden keys.",
                self.not_compared.len()
            )?;
        }
        if let Some(reason) = &self.stopped {
            writeln!(out, "\nThe subject ended early: {reason}.")?;
        }
        writeln!(out, "\nAgain: `{}`", self.rerun)
    }
}

impl Divergence {
    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let key = self.key.as_deref().unwrap_or("(no key)");
        writeln!(
            out,
            "\n## First divergence\n\nStage {}, {}, {key}: {}.",
            self.stage, self.file, self.reason
        )?;
        if let (Some(metric), Some(value), Some(tolerance)) =
            (self.metric, self.value, self.tolerance)
        {
            writeln!(
                out,
                "{metric} is {value:.3e}, the bound is {tolerance:.1e}.\n"
            )?;
        }
        match self.isolated {
            Some(Status::Pass) => {
                writeln!(
                    out,
                    "On the golden's own inputs this stage passes: it inherits.\n"
                )?;
            }
            Some(_) => writeln!(out, "On the golden's own inputs this stage fails too.\n")?,
            None => {}
        }
        if !self.around.is_empty() {
            writeln!(
                out,
                "| index | expected | actual | difference |\n|---|---|---|---|"
            )?;
        }
        for element in &self.around {
            let Element {
                index,
                expected,
                actual,
            } = element;
            writeln!(
                out,
                "| {index:?} | {expected:.9e} | {actual:.9e} | {:.2e} |",
                actual - expected
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_what_is_not_the_default() {
        let case = Case::load(Path::new("goldens/passk")).expect("the committed golden is whole");
        let again = |mode, device| rerun(&case, Precision::F32, mode, device);
        let plain = "make parity CASE=passk DTYPE=f32 GOLDENS=goldens";
        assert_eq!(again(Mode::Chained, DeviceLocation::Cpu), plain);
        let first = DeviceLocation::Cuda { gpu_id: 0 };
        let expected = format!("{plain} MODE=isolated DEVICE=cuda");
        assert_eq!(again(Mode::Isolated, first), expected);
        let third = DeviceLocation::Cuda { gpu_id: 2 };
        let expected = format!("{plain} DEVICE=cuda:2");
        assert_eq!(again(Mode::Chained, third), expected);
    }
}
