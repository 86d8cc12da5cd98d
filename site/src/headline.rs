//! What may be said: sentences that claim no more than the statistics allow.

use wmtp_stats::Interval;
use wmtp_stats::leaderboard::{
    Comparison, Leaderboard, LeaderboardRow, SEEDS_FOR_A_CLAIM, Verdict,
};
use wmtp_stats::wording::{in_percent, level_range, percent, signed, signed_range};

use crate::input::HeldOut;
use crate::words::{Words, both};

/// The sentences at the top of the leaderboard.
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
pub fn of_board(board: &Leaderboard, words: &Words) -> Headline {
    Headline {
        finding: finding(board, words),
        uncertainty: uncertainty(board, words),
        answer: answer(board, words),
    }
}

fn finding(board: &Leaderboard, words: &Words) -> String {
    let ranked: Vec<&LeaderboardRow> = board.rows.iter().filter(|row| row.rank.is_some()).collect();
    let Some((leader, estimate)) = ranked.first().and_then(|row| Some((*row, row.estimate?)))
    else {
        return words.say("No version has been scored yet.", &[]);
    };
    let rate = percent(estimate.mean);
    let of_leader = [
        ("version", leader.version_id.as_str()),
        ("rate", rate.as_str()),
    ];
    let say = |sentence: &str, more: &[(&str, &str)]| words.say(sentence, &both(&of_leader, more));
    if estimate.mean <= 0.0 {
        let tasks = tasks(board, words);
        return say(
            "No version solves any of the {tasks}.",
            &[("tasks", &tasks)],
        );
    }
    if leader.is_base() {
        return say(
            "No trained version solves more than the untrained model: {version} leads with {rate} of tasks solved.",
            &[],
        );
    }
    if leader.is_external() {
        return outside_leads(&ranked, &of_leader, words);
    }
    let level: Vec<&str> = ranked[1..]
        .iter()
        .filter(|row| row.rank == Some(1))
        .map(|row| row.version_id.as_str())
        .collect();
    if !level.is_empty() {
        let others = match level.len() {
            0..=5 => words.listed(&level),
            many => words.say("{n} others", &[("n", &many.to_string())]),
        };
        return say(
            "{version} leads with {rate} of tasks solved, level with {others} within the noise.",
            &[("others", &others)],
        );
    }
    let Some(second) = ranked.get(1) else {
        return say("{version} solves {rate} of tasks.", &[]);
    };
    let Some(behind) = &second.against_leader else {
        return say("{version} leads with {rate} of tasks solved.", &[]);
    };
    let gap = gap(behind, words);
    let seeds = leader.seeds.len().min(second.seeds.len());
    if second.is_base() {
        return say(
            "{version} leads with {rate} of tasks solved, ahead of the untrained model by {gap}.",
            &[("gap", &gap)],
        );
    }
    let is_external = second.is_external();
    let second = second.version_id.as_str();
    if is_external {
        return say(
            "{version} leads with {rate} of tasks solved, ahead of {second}, a model from outside, by {gap}.",
            &[("second", second), ("gap", &gap)],
        );
    }
    if seeds == 1 {
        return say(
            "{version} leads with {rate} of tasks solved, ahead of {second}; one seed is too little to claim an improvement.",
            &[("second", second)],
        );
    }
    if seeds < SEEDS_FOR_A_CLAIM {
        return say(
            "{version} leads with {rate} of tasks solved, ahead of {second}; so few seeds are too little to claim an improvement.",
            &[("second", second)],
        );
    }
    say(
        "{version} leads with {rate} of tasks solved, ahead of {second} by {gap}.",
        &[("second", second), ("gap", &gap)],
    )
}

/// A model from outside stands first: what that means for the best version that was trained here.
fn outside_leads(ranked: &[&LeaderboardRow], of_leader: &[(&str, &str)], words: &Words) -> String {
    let say = |sentence: &str, more: &[(&str, &str)]| words.say(sentence, &both(of_leader, more));
    let trained = ranked.iter().find(|row| row.is_trained());
    let found = trained.and_then(|row| Some((row, row.estimate?, row.against_leader.as_ref()?)));
    let Some((best, estimate, behind)) = found else {
        return say(
            "{version}, a model from outside, leads with {rate} of tasks solved.",
            &[],
        );
    };
    let (own, gap) = (percent(estimate.mean), gap(behind, words));
    let sentence = if best.rank == Some(1) {
        "{version}, a model from outside, leads with {rate} of tasks solved; {best}, the best version trained here, solves {own}, \
         level with it within the noise."
    } else {
        "{version}, a model from outside, leads with {rate} of tasks solved; {best}, the best version trained here, solves {own}, \
         {gap} less."
    };
    let best = best.version_id.as_str();
    say(sentence, &[("best", best), ("own", &own), ("gap", &gap)])
}

fn tasks(board: &Leaderboard, words: &Words) -> String {
    words.count(board.num_tasks, "{n} task", "{n} tasks")
}

fn gap(behind: &Comparison, words: &Words) -> String {
    let size = signed(behind.difference.difference.abs());
    words.say("{n} points", &[("n", size.trim_start_matches('+'))])
}

fn uncertainty(board: &Leaderboard, words: &Words) -> String {
    let mut sentences = Vec::new();
    let leader = board
        .rows
        .first()
        .and_then(|row| Some((row, row.estimate?)));
    if let Some((leader, estimate)) = leader {
        let tasks = tasks(board, words);
        let low = format!("{:.1}", estimate.interval.low * 100.0);
        let high = format!("{:.1}", estimate.interval.high * 100.0);
        let values = [
            ("tasks", tasks.as_str()),
            ("version", leader.version_id.as_str()),
            ("low", low.as_str()),
            ("high", high.as_str()),
        ];
        sentences.push(if leader.seeds.is_empty() {
            words.say("Over {tasks}, {version} stands between {low} and {high}% (95% interval).", &values)
        } else {
            let seeds = words.count(leader.seeds.len(), "{n} seed", "{n} seeds");
            words.say(
                "Over {tasks} and {seeds}, {version} stands between {low} and {high}% (95% interval).",
                &both(&values, &[("seeds", &seeds)]),
            )
        });
    }
    if let Some(resolution) = board
        .resolution
        .filter(|resolution| resolution.significant > 0.0)
    {
        let gap = format!("{:.1}", resolution.significant * 100.0);
        sentences.push(words.say(
            "A gap between two versions must be about {gap} points to be called significant here.",
            &[("gap", &gap)],
        ));
    }
    sentences.join(" ")
}

/// Does weighting help? Only the verdicts of the leaderboard speak.
fn answer(board: &Leaderboard, words: &Words) -> String {
    told(board, words, "; ", measured)
}

/// [`Headline::answer`] with nothing but the names of the versions.
pub fn answer_in_short(board: &Leaderboard, words: &Words) -> String {
    told(board, words, ", ", |row, _, _| row.version_id.clone())
}

fn told(
    board: &Leaderboard,
    words: &Words,
    between: &str,
    tell: impl Fn(&LeaderboardRow, &Comparison, &Words) -> String,
) -> String {
    let weighted: Vec<(&LeaderboardRow, &Comparison)> = board
        .rows
        .iter()
        .filter(|row| row.is_weighted())
        .filter_map(|row| Some((row, row.against_baseline.as_ref()?)))
        .collect();
    if weighted.is_empty() {
        return words.say(
            "No weighted version stands beside its baseline yet, so the question of weighting is open.",
            &[],
        );
    }
    let of = |wanted: fn(&Comparison) -> bool| {
        weighted
            .iter()
            .filter(|(_, comparison)| wanted(comparison))
            .map(|(row, comparison)| tell(row, comparison, words))
            .collect::<Vec<String>>()
    };
    let told = [
        (
            of(|c| c.verdict == Verdict::Better),
            "Weighting tokens helps here: {list}.",
        ),
        (
            of(|c| c.verdict == Verdict::Worse),
            "Weighting tokens hurts here: {list}.",
        ),
        (
            of(|c| c.verdict == Verdict::NoDifference && !c.lacks_seeds()),
            "No difference detected between weighted and unweighted training: {list}.",
        ),
        (
            of(Comparison::lacks_seeds),
            "Too few seeds to tell weighted from unweighted training: {list}.",
        ),
    ];
    let sentences: Vec<String> = told
        .into_iter()
        .filter(|(versions, _)| !versions.is_empty())
        .map(|(versions, sentence)| {
            words.say(sentence, &[("list", &few(versions, between, words))])
        })
        .collect();
    sentences.join(" ")
}

/// Versions that a sentence can hold; the table has the rest.
const IN_ONE_SENTENCE: usize = 4;

fn few(mut versions: Vec<String>, between: &str, words: &Words) -> String {
    let more = versions.len().saturating_sub(IN_ONE_SENTENCE);
    versions.truncate(IN_ONE_SENTENCE);
    if more > 0 {
        versions.push(words.say("and {n} more in the table", &[("n", &more.to_string())]));
    }
    versions.join(between)
}

fn measured(row: &LeaderboardRow, comparison: &Comparison, words: &Words) -> String {
    let points = points(comparison, words);
    let measured = words.say(
        "{version} {points} against {other}",
        &[
            ("version", &row.version_id),
            ("points", &points),
            ("other", &comparison.other),
        ],
    );
    format!(
        "{measured} ({}{})",
        range(comparison, words),
        caveat(comparison, words)
    )
}

/// `+2.4 points`.
pub fn points(comparison: &Comparison, words: &Words) -> String {
    words.say(
        "{n} points",
        &[("n", &signed(comparison.difference.difference))],
    )
}

/// `−0.5 to +5.3`.
pub fn range(comparison: &Comparison, words: &Words) -> String {
    let interval = &comparison.difference.interval;
    if words.language() == crate::words::Language::English {
        return signed_range(interval);
    }
    between(&signed(interval.low), &signed(interval.high), words)
}

/// An interval of shares in per cent: `37.6 to 46.2`.
pub fn levels(interval: &Interval, words: &Words) -> String {
    if words.language() == crate::words::Language::English {
        return level_range(interval);
    }
    between(&in_percent(interval.low), &in_percent(interval.high), words)
}

fn between(low: &str, high: &str, words: &Words) -> String {
    words.say("{low} to {high}", &[("low", low), ("high", high)])
}

/// Why nothing is claimed although the interval excludes 0, which a reader of the numbers would ask.
fn caveat(comparison: &Comparison, words: &Words) -> String {
    if comparison.is_held_back() {
        format!("; {}", reason(comparison, words))
    } else {
        String::new()
    }
}

/// Why no more may be said. The reasons that every leaderboard has are translated; others stay as they were written.
pub fn reason(comparison: &Comparison, words: &Words) -> String {
    match comparison.reason.as_str() {
        known @ ("the interval includes 0" | "the interval excludes 0") => words.say(known, &[]),
        other => crate::text::visible(other),
    }
}

/// The first line of a version's page.
pub fn of_version(board: &Leaderboard, row: &LeaderboardRow, words: &Words) -> String {
    let Some(estimate) = row.estimate else {
        return words.say(
            "{version} has no {metric} and is not ranked.",
            &[
                ("version", &row.version_id),
                ("metric", &board.primary_metric),
            ],
        );
    };
    let rate = percent(estimate.mean);
    let values = [
        ("version", row.version_id.as_str()),
        ("rate", rate.as_str()),
    ];
    match &row.against_parent {
        _ if row.is_base() => words.say(
            "{version} solves {rate} of tasks before any training.",
            &values,
        ),
        Some(comparison) => words.say(
            "{version} solves {rate} of tasks, {points} against {other}: {verdict}.",
            &both(
                &values,
                &[
                    ("points", &points(comparison, words)),
                    ("other", &comparison.other),
                    ("verdict", &words.say(comparison.words(), &[])),
                ],
            ),
        ),
        None => words.say("{version} solves {rate} of tasks.", &values),
    }
}

/// The first line of a page about two versions. The verdict is the leaderboard's own.
pub fn of_pair(this: &LeaderboardRow, comparison: &Comparison, words: &Words) -> String {
    let values = [
        ("this", this.version_id.as_str()),
        ("other", comparison.other.as_str()),
    ];
    let size = signed(comparison.difference.difference.abs());
    let gap = words.say("{n} points", &[("n", size.trim_start_matches('+'))]);
    let say = |sentence: &str| words.say(sentence, &both(&values, &[("gap", &gap)]));
    match comparison.verdict {
        Verdict::Better => say("{this} solves {gap} more than {other}, and the claim holds."),
        Verdict::Worse => say("{this} solves {gap} less than {other}, and the claim holds."),
        Verdict::NoDifference if comparison.is_held_back() => {
            say("{this} and {other} lie {gap} apart, but no difference may be claimed.")
        }
        Verdict::NoDifference => say("No difference detected between {this} and {other}."),
    }
}

/// What the winner scored on tasks that chose nothing.
pub fn held_out(held_out: &HeldOut, words: &Words) -> String {
    words.say(
        "Scored once on {n} held-out tasks that chose nothing, {version} solves {rate} ({range}).",
        &[
            ("n", &held_out.num_tasks.to_string()),
            ("version", &held_out.version_id),
            ("rate", &percent(held_out.estimate.mean)),
            ("range", &levels(&held_out.estimate.interval, words)),
        ],
    )
}
