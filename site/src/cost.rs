//! What a version took: time, tokens, repeats, storage.

use std::collections::BTreeMap;

use wmtp_stats::leaderboard::Verdict;

use crate::input::{RunInfo, SiteInput, VersionInput};

/// Costs of one version, all seeds together; none where nothing is known.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cost {
    /// Seconds of machine time of its trainings.
    pub train_secs: Option<f64>,
    /// Seconds of machine time of its evaluations.
    pub evaluate_secs: Option<f64>,
    /// Seconds of GPU time of its trainings; 0 where no GPU computed them.
    pub train_gpu_secs: f64,
    /// What its trainings and evaluations cost, as far as a price was stated.
    pub money: Money,
    /// Attempts that ended without the result.
    pub lost_attempts: usize,
    /// Target tokens that its trainings went over.
    pub trained_tokens: Option<u64>,
    /// Tokens that its evaluations generated; 0 where that is not known.
    pub generated_tokens: u64,
    /// CPU seconds of running its programs.
    pub program_secs: f64,
    /// Bytes of its checkpoints.
    pub stored_bytes: Option<u64>,
}

impl Cost {
    /// Adds up what the input knows of a version.
    pub fn of(input: &SiteInput, version: &VersionInput) -> Self {
        let runs = input.runs.as_deref().unwrap_or_default();
        let made = |artifact: &str| {
            runs.iter()
                .find(|run| run.outputs.values().any(|id| id == artifact))
        };
        let trainings: Vec<&RunInfo> = sources(version)
            .filter_map(|source| made(source.checkpoint.as_ref()?))
            .collect();
        let evaluations: Vec<&RunInfo> = sources(version)
            .filter_map(|source| made(&source.scores))
            .collect();
        let secs = |runs: &[&RunInfo]| -> Option<f64> {
            (!runs.is_empty()).then(|| runs.iter().map(|run| run.secs()).sum())
        };
        let is_trained = version.row.is_trained();
        Self {
            train_secs: secs(&trainings).filter(|_| is_trained),
            evaluate_secs: secs(&evaluations),
            // An empty sum is -0.
            train_gpu_secs: trainings.iter().map(|run| run.gpu_secs()).sum::<f64>() + 0.0,
            money: trainings
                .iter()
                .chain(&evaluations)
                .map(|run| run.money())
                .fold(Money::default(), Money::and),
            lost_attempts: trainings
                .iter()
                .chain(&evaluations)
                .map(|run| run.num_lost_attempts())
                .sum(),
            trained_tokens: trained_tokens(version),
            generated_tokens: version.runs.iter().map(|run| run.num_tokens).sum(),
            program_secs: version
                .runs
                .iter()
                .flat_map(|run| &run.outcomes)
                .map(|one| one.cpu_secs)
                .sum(),
            stored_bytes: sources(version)
                .filter_map(|source| input.stored_bytes.get(source.checkpoint.as_ref()?).copied())
                .reduce(|a, b| a + b)
                .filter(|_| is_trained),
        }
    }

    /// Tokens that its evaluations generated, where that is known.
    pub fn generated(&self) -> Option<String> {
        (self.generated_tokens > 0).then(|| grouped(self.generated_tokens))
    }

    /// Whether a GPU computed its trainings.
    pub fn is_on_gpu(&self) -> bool {
        self.train_gpu_secs > 0.0
    }

    /// Hours of machine time of training and evaluation.
    pub fn hours(&self) -> Option<f64> {
        let secs = self.train_secs.unwrap_or(0.0) + self.evaluate_secs.unwrap_or(0.0);
        (self.train_secs.is_some() || self.evaluate_secs.is_some()).then_some(secs / 3600.0)
    }
}

/// Sums of money by currency.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Money(BTreeMap<String, f64>);

impl Money {
    /// Both sums.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for (currency, amount) in other.0 {
            *self.0.entry(currency).or_default() += amount;
        }
        self
    }

    /// `7.00 KRW + 1.50 USD`; none where no price was stated.
    pub fn words(&self) -> Option<String> {
        let sums = self.0.iter();
        let words: Vec<String> = sums
            .map(|(currency, amount)| {
                // A cent is the least that a price is told in; a small run costs less.
                let digits = if *amount >= 0.01 { 2 } else { 4 };
                format!("{amount:.digits$} {currency}")
            })
            .collect();
        (!words.is_empty()).then(|| words.join(" + "))
    }
}

impl<'a> FromIterator<&'a wmtp_records::Cost> for Money {
    fn from_iter<T: IntoIterator<Item = &'a wmtp_records::Cost>>(costs: T) -> Self {
        let one = |cost: &wmtp_records::Cost| Self([(cost.currency.clone(), cost.amount)].into());
        costs.into_iter().map(one).fold(Self::default(), Self::and)
    }
}

/// What all that the site knows of took.
#[derive(Debug, Clone, PartialEq)]
pub struct Totals {
    /// Hours of machine time of all jobs.
    pub hours: f64,
    /// Hours of GPU time: of each run on GPUs, its time times its ranks.
    pub gpu_hours: f64,
    /// What was paid, as far as a price was stated.
    pub money: Money,
    /// Runs that stated one.
    pub num_priced: usize,
    /// Target tokens that trainings went over.
    pub trained_tokens: u64,
    /// Tokens that evaluations generated.
    pub generated_tokens: u64,
}

impl Totals {
    /// Adds up jobs and versions.
    pub fn of<'a>(runs: &[RunInfo], versions: impl Iterator<Item = &'a Cost> + Clone) -> Self {
        let priced = runs.iter().map(RunInfo::money);
        let priced: Vec<Money> = priced.filter(|money| !money.0.is_empty()).collect();
        Self {
            hours: runs.iter().map(|run| run.secs() / 3600.0).sum(),
            gpu_hours: runs.iter().map(|run| run.gpu_secs() / 3600.0).sum(),
            num_priced: priced.len(),
            money: priced.into_iter().fold(Money::default(), Money::and),
            trained_tokens: versions.clone().filter_map(|one| one.trained_tokens).sum(),
            generated_tokens: versions.map(|one| one.generated_tokens).sum(),
        }
    }
}

fn sources(version: &VersionInput) -> impl Iterator<Item = &wmtp_stats::leaderboard::RunSource> {
    version.row.runs.iter()
}

/// Targets of one pass times the passes that were made, over all seeds.
fn trained_tokens(version: &VersionInput) -> Option<u64> {
    let of_run = |training: &crate::input::Training| {
        let summary = training.summary.as_ref()?;
        let epochs = training.recipe.as_ref()?["optim"]["epochs"].as_f64()?;
        let share = summary.last_step as f64 / summary.steps.max(1) as f64;
        Some((summary.train_targets as f64 * epochs * share.min(1.0)).round() as u64)
    };
    version
        .runs
        .iter()
        .filter_map(|run| of_run(&run.training))
        .reduce(|a, b| a + b)
}

/// Points that a version gained on its parent, where the gain may be claimed.
pub fn points_gained(version: &VersionInput) -> Option<f64> {
    let parent = version.row.against_parent.as_ref()?;
    (parent.verdict == Verdict::Better).then_some(parent.difference.difference * 100.0)
}

/// Hours as a reader says them: `4.2 h`, `13 min`, `48 s`.
pub fn duration(hours: f64) -> String {
    // An empty sum is -0, which would be printed so; with 0 added it is 0.
    let secs = (hours + 0.0) * 3600.0;
    if secs >= 3600.0 {
        format!("{hours:.1} h")
    } else if secs >= 100.0 {
        format!("{:.0} min", secs / 60.0)
    } else {
        format!("{secs:.0} s")
    }
}

/// Bytes in the unit that leaves few digits.
pub fn bytes(size: u64) -> String {
    let units = ["bytes", "KB", "MB", "GB", "TB"];
    let mut value = size as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_numbers_are_short() {
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(12_345), "12.3 KB");
        assert_eq!(bytes(27_000_000_000), "27.0 GB");
        assert_eq!(duration(2.25), "2.2 h");
        assert_eq!(duration(0.25), "15 min");
        assert_eq!(duration(0.01), "36 s");
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
