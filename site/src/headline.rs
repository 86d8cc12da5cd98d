//! What may be said: sentences that claim no more than the statistics allow.

use wmtp_stats::leaderboard::{
    Comparison, Leaderboard, LeaderboardRow, SEEDS_FOR_A_CLAIM, Verdict,
};
use wmtp_stats::wording::{count, level_range, percent, points, signed_range};

/// The three sentences at the top of the leaderboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Headline {
    /// The finding.
    pub finding: String,
    /// How sure it is.
    pub uncertainty: String,
    /// The answer to the research question.
    pub answer: String,
}

/// Sentences for a leaderboard.
pub fn of_board(board: &Leaderboard) -> Headline {
    Headline {
        finding: finding(board),
        uncertainty: uncertainty(board),
        answer: answer(board),
    }
}

fn finding(board: &Leaderboard) -> String {
    let ranked: Vec<&LeaderboardRow> = board.rows.iter().filter(|row| row.rank.is_some()).collect();
    let Some((leader, estimate)) = ranked.first().and_then(|row| Some((*row, row.estimate?)))
    else {
        return "No version has been scored yet.".to_owned();
    };
    if estimate.mean <= 0.0 {
        return format!(
            "No version solves any of the {}.",
            count(board.num_tasks, "task")
        );
    }
    let lead = format!(
        "{} leads with {} of tasks solved",
        leader.version_id,
        percent(estimate.mean)
    );
    if leader.is_base() {
        return format!("No trained version solves more than the untrained model: {lead}.");
    }
    let level: Vec<&str> = ranked[1..]
        .iter()
        .filter(|row| row.rank == Some(1))
        .map(|row| row.version_id.as_str())
        .collect();
    if !level.is_empty() {
        return format!("{lead}, level with {} within the noise.", listed(&level));
    }
    let Some(second) = ranked.get(1) else {
        return format!(
            "{} solves {} of tasks.",
            leader.version_id,
            percent(estimate.mean)
        );
    };
    let Some(behind) = &second.against_leader else {
        return format!("{lead}.");
    };
    let seeds = leader.seeds.len().min(second.seeds.len());
    if second.is_base() {
        return format!("{lead}, ahead of the untrained model by {}.", gap(behind));
    }
    if seeds < SEEDS_FOR_A_CLAIM {
        let rest = if seeds == 1 {
            "one seed is"
        } else {
            "so few seeds are"
        };
        return format!(
            "{lead}, ahead of {}; {rest} too little to claim an improvement.",
            second.version_id
        );
    }
    format!("{lead}, ahead of {} by {}.", second.version_id, gap(behind))
}

fn gap(behind: &Comparison) -> String {
    points(behind.difference.difference.abs())
        .trim_start_matches('+')
        .to_owned()
}

fn uncertainty(board: &Leaderboard) -> String {
    let mut sentences = Vec::new();
    let leader = board
        .rows
        .first()
        .and_then(|row| Some((row, row.estimate?)));
    if let Some((leader, estimate)) = leader {
        let seeds = if leader.seeds.is_empty() {
            String::new()
        } else {
            format!(" and {}", count(leader.seeds.len(), "seed"))
        };
        sentences.push(format!(
            "Over {}{seeds}, {} stands between {} (95% interval).",
            count(board.num_tasks, "task"),
            leader.version_id,
            level_range(&estimate.interval).replace(" to ", " and ") + "%",
        ));
    }
    if let Some(resolution) = board
        .resolution
        .filter(|resolution| resolution.significant > 0.0)
    {
        sentences.push(format!(
            "A gap between two versions must be about {} points to be called significant here.",
            points(resolution.significant)
                .trim_start_matches('+')
                .trim_end_matches(" points"),
        ));
    }
    sentences.join(" ")
}

/// Does weighting help? Only the verdicts of the leaderboard speak.
fn answer(board: &Leaderboard) -> String {
    let weighted: Vec<(&LeaderboardRow, &Comparison)> = board
        .rows
        .iter()
        .filter(|row| row.is_weighted())
        .filter_map(|row| Some((row, row.against_baseline.as_ref()?)))
        .collect();
    if weighted.is_empty() {
        return "No weighted version stands beside its baseline yet, so the question of weighting is open.".to_owned();
    }
    let of = |wanted: Verdict| {
        weighted
            .iter()
            .filter(|(_, comparison)| comparison.verdict == wanted)
            .map(|(row, comparison)| measured(row, comparison))
            .collect::<Vec<String>>()
    };
    let (better, worse, level) = (
        of(Verdict::Better),
        of(Verdict::Worse),
        of(Verdict::NoDifference),
    );
    let mut sentences = Vec::new();
    if !better.is_empty() {
        sentences.push(format!(
            "Weighting tokens helps here: {}.",
            better.join("; ")
        ));
    }
    if !worse.is_empty() {
        sentences.push(format!(
            "Weighting tokens hurts here: {}.",
            worse.join("; ")
        ));
    }
    if !level.is_empty() {
        sentences.push(format!(
            "No difference detected between weighted and unweighted training: {}.",
            level.join("; ")
        ));
    }
    sentences.join(" ")
}

fn measured(row: &LeaderboardRow, comparison: &Comparison) -> String {
    format!(
        "{} {} against {} ({}{})",
        row.version_id,
        points(comparison.difference.difference),
        comparison.other,
        signed_range(&comparison.difference.interval),
        caveat(comparison)
    )
}

/// Why nothing is claimed although the interval excludes 0, which a reader of the numbers would ask.
fn caveat(comparison: &Comparison) -> String {
    if comparison.verdict == Verdict::NoDifference && comparison.difference.is_significant() {
        format!("; {}", comparison.reason)
    } else {
        String::new()
    }
}

/// The first line of a version's page.
pub fn of_version(board: &Leaderboard, row: &LeaderboardRow) -> String {
    let Some(estimate) = row.estimate else {
        return format!(
            "{} has no {} and is not ranked.",
            row.version_id, board.primary_metric
        );
    };
    let solves = format!(
        "{} solves {} of tasks",
        row.version_id,
        percent(estimate.mean)
    );
    match &row.against_parent {
        _ if row.is_base() => format!("{solves} before any training."),
        Some(comparison) => format!(
            "{solves}, {} against {}: {}.",
            points(comparison.difference.difference),
            comparison.other,
            comparison.verdict.words()
        ),
        None => format!("{solves}."),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn listed(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}
