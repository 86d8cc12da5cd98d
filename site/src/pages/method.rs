//! The method page: can the numbers be trusted?

use minijinja::context;
use minijinja::value::Value;
use wmtp_stats::DRAWS;
use wmtp_stats::leaderboard::SEEDS_FOR_A_CLAIM;

use super::moment;
use crate::input::SiteInput;

pub(super) fn context(input: &SiteInput) -> Value {
    let board = &input.board;
    let pairs = |map: &std::collections::BTreeMap<String, String>| -> Vec<Value> {
        map.iter()
            .map(|(key, value)| context! { key => key.replace('_', " "), value => value.as_str() })
            .collect()
    };
    let points = |share: f64| format!("{:.1}", share * 100.0);
    context! {
        root => "",
        title => "How these numbers were made",
        dataset => board.dataset_id.as_str(),
        moment => moment(&board.created_at),
        num_tasks => board.num_tasks,
        split => board.split.as_str(),
        data => board.data.as_str(),
        leaderboard => input.leaderboard_id.as_str(),
        primary => board.primary_metric.as_str(),
        protocol => pairs(&board.protocol),
        sandbox => pairs(&board.sandbox),
        draws => DRAWS,
        claim_seeds => SEEDS_FOR_A_CLAIM,
        significant => board.resolution.map(|r| points(r.significant)),
        reliable => board.resolution.map(|r| points(r.reliable)),
        warnings => board.warnings.clone(),
    }
}
