//! The rule by which an action is chosen.

use std::collections::BTreeMap;

use wmtp_recipe::{Allowed, Recipe, Rules, is_compared};
use wmtp_stats::leaderboard::{Leaderboard, LeaderboardRow};
use wmtp_stats::wording::signed_range;

use super::catalogue::{CATALOGUE, Case, Entry, Proposal};
use super::{Action, Change, SHARED, Selected, scalar};
use crate::figures::Figures;

/// A loop at the moment of choosing.
#[derive(Debug, Clone, Copy)]
pub struct Loop<'a> {
    /// The board over all versions so far.
    pub board: &'a Leaderboard,
    /// Figures by version.
    pub figures: &'a BTreeMap<String, Figures>,
    /// Recipes by version.
    pub recipes: &'a BTreeMap<String, Recipe>,
    /// What the user binds it to.
    pub rules: &'a Rules,
    /// Versions that it may make.
    pub max_versions: u32,
}

/// Whether a name is that of a version of a loop: `v001` and so on.
pub fn is_version_id(id: &str) -> bool {
    number(id).is_some()
}

/// The number of a version of a loop: 7 of `v007`.
pub fn number(id: &str) -> Option<u32> {
    let digits = id.strip_prefix('v')?;
    (digits.len() >= 3 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// The version after another: `v002` after `v001`.
pub fn version_after(id: &str) -> Option<String> {
    Some(format!("v{:03}", number(id)? + 1))
}

/// Why a version is a dead end: its paired interval puts it below its parent.
pub fn dead_end(row: &LeaderboardRow) -> Option<String> {
    let against = row.against_parent.as_ref()?;
    let interval = against.difference.interval;
    (interval.high < 0.0).then(|| {
        format!(
            "{} lies below its parent {} ({} points)",
            row.version_id,
            against.other,
            signed_range(&interval)
        )
    })
}

/// Chooses the action after the newest version: the first entry of the catalogue whose pre-condition holds, that the rules
/// allow, and whose recipe no version has had.
pub fn select(after: &str, world: &Loop<'_>) -> Action {
    let mut action = Action {
        after: after.to_owned(),
        from: after.to_owned(),
        next: None,
        entry: "none".to_owned(),
        selected: None,
        selection: String::new(),
        deferred: Vec::new(),
    };
    let (Some(next), true) = (version_after(after), world.case(after).is_some()) else {
        action.selection = format!("{after} is not judged.");
        return action;
    };
    let made = number(after).unwrap_or(0);
    if made >= world.max_versions {
        action.selection = format!("All {} versions of the loop are made.", world.max_versions);
        return action;
    }
    let (live, detour) = world.live_version(after);
    let mut moved = None;
    for entry in &CATALOGUE {
        let from = if entry.mends { after } else { live };
        let Some(case) = world.case(from) else {
            continue;
        };
        let Some(proposal) = entry.propose(&case) else {
            continue;
        };
        match world.weigh(entry, &proposal, &case) {
            Err(reason) => action.deferred.push((entry.name.to_owned(), reason)),
            Ok(_) if action.selected.is_some() => {
                let reason = format!("comes later in the catalogue; {}", proposal.because);
                action.deferred.push((entry.name.to_owned(), reason));
            }
            Ok((recipe, change)) => {
                moved = change;
                from.clone_into(&mut action.from);
                entry.name.clone_into(&mut action.entry);
                action.selected = Some(selected(entry, &proposal, &case, &recipe, &next));
                action.selection = proposal.because;
            }
        }
    }
    action.finish(next, moved, detour);
    action
}

impl Action {
    fn finish(&mut self, next: String, moved: Option<String>, detour: Option<String>) {
        const RULE: &str = "The rule takes the first entry of the catalogue whose pre-condition holds, that the user's rules allow \
                            and whose recipe no version has had.";
        if self.selected.is_none() {
            self.selection = format!("{RULE} None is left.");
            return;
        }
        self.next = Some(next);
        let mut sentences = vec![
            RULE.to_owned(),
            format!("That is {}: {}.", self.entry, self.selection),
        ];
        sentences.extend(
            detour
                .filter(|_| self.from != self.after)
                .map(|why| format!("It starts from {}, because {why}.", self.from)),
        );
        sentences.extend(moved.map(|reason| format!("The rules changed its value: {reason}.")));
        self.selection = sentences.join(" ");
    }
}

impl<'a> Loop<'a> {
    /// A version as the catalogue looks at it.
    fn case(&self, id: &str) -> Option<Case<'a>> {
        let board: &'a Leaderboard = self.board;
        Some(Case {
            board,
            row: board.rows.iter().find(|row| row.version_id == id)?,
            figures: self.figures.get(id)?,
            recipe: self.recipes.get(id)?,
        })
    }

    /// The nearest ancestor that is no dead end, the version itself counted, and why it is not the version.
    fn live_version<'b>(&self, after: &'b str) -> (&'b str, Option<String>)
    where
        'a: 'b,
    {
        let mut live: &'b str = after;
        let mut why = None;
        while let Some(case) = self.case(live)
            && let (Some(reason), Some(parent)) = (dead_end(case.row), case.row.parent.as_deref())
            && self.recipes.contains_key(parent)
        {
            live = parent;
            why = Some(reason);
        }
        (live, why)
    }

    /// The recipe that an entry leads to, and what the rules changed in it; or why it is not taken.
    fn weigh(
        &self,
        entry: &Entry,
        proposal: &Proposal,
        case: &Case<'_>,
    ) -> Result<(Recipe, Option<String>), String> {
        if !is_compared(entry.key) {
            return Err(format!("{}: {SHARED}; {}", entry.key, proposal.because));
        }
        let (value, moved) = match self.rules.allows(entry.key, &proposal.value) {
            Allowed::Yes => (proposal.value.clone(), None),
            Allowed::Changed { value, reason } => (value, Some(reason)),
            Allowed::No(reason) => return Err(format!("dropped: {reason}")),
        };
        let recipe = case
            .recipe
            .with_setting(entry.key, &value)
            .map_err(|error| error.to_string())?;
        let mut had = self.recipes.iter();
        match had.find(|(_, other)| other.is_same_but_for_its_name(&recipe)) {
            Some((id, _)) => {
                let why =
                    moved.map_or_else(String::new, |reason| format!(" after the rules ({reason})"));
                Err(format!("{id} has this recipe{why}"))
            }
            None => Ok((recipe, moved)),
        }
    }
}

fn selected(
    entry: &Entry,
    proposal: &Proposal,
    case: &Case<'_>,
    recipe: &Recipe,
    next: &str,
) -> Selected {
    let value = |recipe: &Recipe| scalar(&recipe.setting(entry.key).unwrap_or_default());
    let from = &case.row.version_id;
    Selected {
        goal: entry.goal.to_owned(),
        change: Change {
            key: entry.key.to_owned(),
            old: value(case.recipe),
            new: value(recipe),
        },
        place: format!("{next}.yaml"),
        expected_impact: proposal.expected_impact.clone(),
        risk: entry.risk.to_owned(),
        verification: format!(
            "evaluate {next} on the same {} tasks with the same protocol: an improvement needs a paired interval over {from} \
             above 0, and one below 0 makes {next} a dead end",
            case.board.num_tasks
        ),
    }
}
