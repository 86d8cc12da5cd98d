//! What follows from the input and several pages need: order, tasks, pairs.

use std::collections::{BTreeMap, BTreeSet};

use wmtp_stats::leaderboard::{Comparison, LeaderboardRow};

use crate::input::{SiteInput, VersionInput};

/// Versions, tasks and comparisons of a site, found once for all pages.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Versions in the order in which they came to be.
    pub lineage: Vec<&'a VersionInput>,
    /// Place of a version in [`Facts::lineage`].
    places: BTreeMap<&'a str, usize>,
    /// Tasks from easy to hard over all versions.
    pub tasks: Vec<Task<'a>>,
    task_places: BTreeMap<&'a str, usize>,
    /// Pairs that have a page, by its path.
    pub pairs: Vec<Pair<'a>>,
    /// What follows from it for groups of versions that changed one setting.
    pub settings: BTreeMap<&'a str, BTreeMap<String, String>>,
}

/// One task over all versions.
#[derive(Debug)]
pub struct Task<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its page, relative to the root of a language.
    pub path: String,
    /// Share of tries that passed, in the order of [`Facts::lineage`]; none where a version did not try it.
    pub rates: Vec<Option<f64>>,
}

impl Task<'_> {
    /// Mean over the versions that tried.
    pub fn mean(&self) -> f64 {
        let tried: Vec<f64> = self.rates.iter().flatten().copied().collect();
        tried.iter().sum::<f64>() / tried.len().max(1) as f64
    }
}

/// Two versions with a page of their own.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The later version.
    pub this: &'a VersionInput,
    /// The one that it is held against.
    pub other: &'a VersionInput,
    /// The difference, this minus other.
    pub comparison: &'a Comparison,
    /// Why they are compared.
    pub roles: BTreeSet<Role>,
    /// The page, relative to the root of a language.
    pub path: String,
}

/// Why two versions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The other is the parent.
    Parent,
    /// The other leads the table.
    Leader,
    /// Each is the best of its algorithm.
    Best,
}

impl Role {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Parent => "parent and child",
            Self::Leader => "against the leader",
            Self::Best => "best of each algorithm",
        }
    }
}

impl<'a> Facts<'a> {
    /// Finds them.
    pub fn of(input: &'a SiteInput) -> Self {
        let lineage = lineage(input);
        let places = lineage
            .iter()
            .enumerate()
            .map(|(place, version)| (version.row.version_id.as_str(), place))
            .collect();
        let tasks = tasks(&lineage);
        let task_places = tasks
            .iter()
            .enumerate()
            .map(|(place, task)| (task.id, place))
            .collect();
        let settings = lineage
            .iter()
            .filter_map(|version| {
                let recipe = version.runs.first()?.training.recipe.as_ref()?;
                Some((
                    version.row.version_id.as_str(),
                    crate::recipe::leaves(recipe),
                ))
            })
            .collect();
        let mut facts = Self {
            lineage,
            places,
            tasks,
            task_places,
            pairs: Vec::new(),
            settings,
        };
        facts.pairs = pairs(input, &facts);
        facts
    }

    /// Where a version stands in the order of their coming.
    pub fn place(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }

    /// A version by its id.
    pub fn version(&self, id: &str) -> Option<&'a VersionInput> {
        self.place(id).map(|place| self.lineage[place])
    }

    /// A task by its id.
    pub fn task(&self, id: &str) -> Option<&Task<'a>> {
        self.task_places.get(id).map(|place| &self.tasks[*place])
    }

    /// The page of two versions, in whichever order.
    pub fn pair(&self, a: &str, b: &str) -> Option<&Pair<'a>> {
        let is = |pair: &&Pair<'_>| {
            let (this, other) = (
                pair.this.row.version_id.as_str(),
                pair.other.row.version_id.as_str(),
            );
            (this, other) == (a, b) || (this, other) == (b, a)
        };
        let (first, last) = match (self.place(a), self.place(b)) {
            (Some(x), Some(y)) if x > y => (b, a),
            _ => (a, b),
        };
        let path = pair_path(first, last);
        let near = self
            .pairs
            .binary_search_by(|pair| pair.path.as_str().cmp(&path))
            .ok();
        near.map(|index| &self.pairs[index])
            .filter(is)
            .or_else(|| self.pairs.iter().find(is))
    }

    /// Pass rate of a version per task, in the order of [`Facts::tasks`]; 0 where it did not try.
    pub fn rates(&self, version: &VersionInput) -> Vec<f64> {
        let Some(place) = self.place(&version.row.version_id) else {
            return Vec::new();
        };
        self.tasks
            .iter()
            .map(|task| task.rates[place].unwrap_or(0.0))
            .collect()
    }
}

/// The untrained model, then by name, models from outside last.
fn lineage(input: &SiteInput) -> Vec<&VersionInput> {
    let mut versions: Vec<&VersionInput> = input.versions.iter().collect();
    versions.sort_by(|a, b| order(&a.row).cmp(&order(&b.row)));
    versions
}

/// Key of the order in which versions came to be.
pub fn order(row: &LeaderboardRow) -> (u8, &str) {
    let group = match row.algo.as_str() {
        "base" => 0,
        "external" => 2,
        _ => 1,
    };
    (group, &row.version_id)
}

fn tasks<'a>(lineage: &[&'a VersionInput]) -> Vec<Task<'a>> {
    let mut rates: BTreeMap<&'a str, Vec<Option<f64>>> = BTreeMap::new();
    for (place, version) in lineage.iter().enumerate() {
        for (task, rate) in task_rates(version) {
            rates
                .entry(task)
                .or_insert_with(|| vec![None; lineage.len()])[place] = Some(rate);
        }
    }
    let mut taken = BTreeSet::new();
    let mut tasks: Vec<Task<'a>> = rates
        .into_iter()
        .map(|(id, rates)| Task {
            id,
            path: task_path(id, &mut taken),
            rates,
        })
        .collect();
    tasks.sort_by(|a, b| b.mean().total_cmp(&a.mean()).then_with(|| a.id.cmp(b.id)));
    tasks
}

/// Mean pass rate per task over seeds.
fn task_rates(version: &VersionInput) -> BTreeMap<&str, f64> {
    let mut rates = BTreeMap::new();
    let seeds = version.runs.len().max(1) as f64;
    for task in version.runs.iter().flat_map(|run| &run.problems) {
        let rate = f64::from(task.num_passed) / f64::from(task.num_samples.max(1));
        *rates.entry(task.problem_id.as_str()).or_insert(0.0) += rate / seeds;
    }
    rates
}

/// `t/mbpp/0137.html`: parts of the id in lower case, and nothing that a path could mean besides.
fn task_path(id: &str, taken: &mut BTreeSet<String>) -> String {
    let parts: Vec<String> = id
        .split('/')
        .map(slug)
        .filter(|part| !part.is_empty())
        .collect();
    let stem = if parts.is_empty() {
        "t/task".to_owned()
    } else {
        format!("t/{}", parts.join("/"))
    };
    let mut path = format!("{stem}.html");
    let mut number = 2;
    while taken.contains(&path) || path == "t/index.html" {
        path = format!("{stem}-{number}.html");
        number += 1;
    }
    taken.insert(path.clone());
    path
}

/// Letters, digits and dashes of a name, for a path; at most 60.
pub fn slug(name: &str) -> String {
    let mut slug = String::new();
    for character in name.chars().flat_map(char::to_lowercase) {
        match character {
            'a'..='z' | '0'..='9' | '_' => slug.push(character),
            _ if !slug.ends_with('-') && !slug.is_empty() => slug.push('-'),
            _ => {}
        }
        if slug.len() == 60 {
            break;
        }
    }
    slug.trim_end_matches('-').to_owned()
}

fn pair_path(first: &str, last: &str) -> String {
    format!("compare/{first}-{last}.html")
}

/// Parent and child, each and the leader, the best of each algorithm: pages grow with the number of versions.
fn pairs<'a>(input: &'a SiteInput, facts: &Facts<'a>) -> Vec<Pair<'a>> {
    let of_rows = input.versions.iter().flat_map(|version| {
        let parent = version
            .row
            .against_parent
            .iter()
            .map(move |c| (version, c, Role::Parent));
        parent.chain(
            version
                .row
                .against_leader
                .iter()
                .map(move |c| (version, c, Role::Leader)),
        )
    });
    let bests = input
        .board
        .algorithm_bests
        .iter()
        .filter_map(|best| Some((input.version(&best.this)?, &best.comparison, Role::Best)));
    let mut found: BTreeMap<(usize, usize), Pair<'a>> = BTreeMap::new();
    let mut taken = BTreeSet::new();
    for (this, comparison, role) in of_rows.chain(bests) {
        let (Some(a), Some(b)) = (
            facts.place(&this.row.version_id),
            facts.place(&comparison.other),
        ) else {
            continue;
        };
        let (first, last) = (a.min(b), a.max(b));
        let pair = found.entry((first, last)).or_insert_with(|| {
            let path = pair_path(
                &facts.lineage[first].row.version_id,
                &facts.lineage[last].row.version_id,
            );
            // Ids may hold dashes, so that two pairs can come to one name.
            let path = if taken.insert(path.clone()) {
                path
            } else {
                format!("{}-{first}-{last}.html", path.trim_end_matches(".html"))
            };
            Pair {
                this,
                other: facts.lineage[b],
                comparison,
                roles: BTreeSet::new(),
                path,
            }
        });
        pair.roles.insert(role);
    }
    let mut pairs: Vec<Pair<'a>> = found.into_values().collect();
    pairs.sort_by(|a, b| a.path.cmp(&b.path));
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_becomes_a_path_that_stays_inside() {
        let mut taken = BTreeSet::new();
        let mut path = |id: &str| task_path(id, &mut taken);
        assert_eq!(path("mbpp/0137"), "t/mbpp/0137.html");
        assert_eq!(path("MBPP/0137"), "t/mbpp/0137-2.html");
        assert_eq!(path("../../etc/passwd"), "t/etc/passwd.html");
        assert_eq!(path("..//\u{202e}"), "t/task.html");
        assert_eq!(path("index"), "t/index-2.html");
        assert_eq!(path("a b<c>"), "t/a-b-c.html");
        assert_eq!(path(&"x".repeat(500)).len(), "t/.html".len() + 60);
    }
}
