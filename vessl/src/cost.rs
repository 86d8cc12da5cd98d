//! What a chain is expected to cost, from prices of a day and expected hours.

use std::collections::BTreeSet;

use jiff::civil::Date;

use crate::experiment::Budget;
use crate::profile::{Prices, Profile};
use crate::render::Planned;

/// Days after which prices are called old.
const OLD_AFTER_DAYS: i32 = 90;

/// Sums of decimal fractions are off by less than this: a budget of just what is expected is kept.
const ROUNDING: f64 = 1e-9;

/// Sums over a chain.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Cost {
    /// Price of all runs whose price and hours are known.
    pub(crate) total: f64,
    /// Hours of GPUs.
    pub(crate) gpu_hours: f64,
    /// Presets that the price file does not have.
    pub(crate) without_price: BTreeSet<String>,
    /// Jobs, `evaluate-external` or `evaluate-infer`, without expected hours.
    pub(crate) without_hours: BTreeSet<&'static str>,
}

/// Price of one run, where price and hours are known.
pub(crate) fn of_run(planned: &Planned, prices: &Prices) -> Option<f64> {
    let price = prices.per_hour.get(&planned.spec.resources.preset)?;
    Some(price * planned.step.hours?)
}

/// Adds up a chain, each step with the hours that are expected of it as often as it runs.
pub(crate) fn of_chain(
    chain: &[Planned],
    profile: &Profile,
    prices: Option<&Prices>,
    runs: impl Fn(&Planned) -> usize,
) -> Cost {
    let mut cost = Cost::default();
    for planned in chain {
        let preset = &planned.spec.resources.preset;
        if !prices.is_some_and(|prices| prices.per_hour.contains_key(preset)) {
            cost.without_price.insert(preset.clone());
        }
        let gpus = profile.preset(planned.step.task).1.gpus;
        let runs = runs(planned) as f64;
        match planned.step.hours {
            Some(hours) => cost.gpu_hours += runs * hours * f64::from(gpus),
            None => {
                cost.without_hours.insert(planned.step.task);
            }
        }
        let price = prices.and_then(|prices| of_run(planned, prices));
        cost.total += runs * price.unwrap_or(0.0);
    }
    cost
}

/// Why a chain is not within its budget, or cannot be known to be.
pub(crate) fn over(budget: &Budget, cost: &Cost, prices: Option<&Prices>) -> Option<String> {
    if budget.gpu_hours.is_none() && budget.cost.is_none() {
        return None;
    }
    if !cost.without_hours.is_empty() {
        let jobs: Vec<&str> = cost.without_hours.iter().copied().collect();
        return Some(format!("no hours are expected of {}", jobs.join(", ")));
    }
    if let Some(most) = budget
        .gpu_hours
        .filter(|most| cost.gpu_hours > *most + ROUNDING)
    {
        let hours = cost.gpu_hours;
        return Some(format!(
            "{hours:.2} hours of GPUs are expected, and its budget is {most:.2}"
        ));
    }
    let most = budget.cost.as_ref()?;
    let Some(prices) = prices.filter(|prices| prices.currency == most.currency) else {
        return Some(format!("no prices in {} are given", most.currency));
    };
    if !cost.without_price.is_empty() {
        let presets: Vec<&str> = cost.without_price.iter().map(String::as_str).collect();
        return Some(format!("no price of {} is known", presets.join(", ")));
    }
    (cost.total > most.amount + ROUNDING).then(|| {
        format!(
            "{:.2} {} are expected, and its budget is {:.2}",
            cost.total, prices.currency, most.amount
        )
    })
}

/// The lines below the table of a plan.
pub(crate) fn told(cost: &Cost, prices: &Prices, today: Date) -> Vec<String> {
    let mut lines = vec![
        format!("hours of GPUs  {:.2}", cost.gpu_hours),
        format!("cost           {:.2} {}", cost.total, prices.currency),
    ];
    if !cost.without_price.is_empty() {
        let presets: Vec<&str> = cost.without_price.iter().map(String::as_str).collect();
        lines.push(format!(
            "               without what runs on {}: no price is known",
            presets.join(", ")
        ));
    }
    if !cost.without_hours.is_empty() {
        let jobs: Vec<&str> = cost.without_hours.iter().copied().collect();
        lines.push(format!(
            "               without {}: no hours are expected",
            jobs.join(", ")
        ));
    }
    let days = (today - prices.as_of).get_days();
    let age = if days > OLD_AFTER_DAYS {
        format!(", {days} days old: look them up again")
    } else {
        String::new()
    };
    lines.push(format!(
        "prices         of {} ({}){age}",
        prices.as_of, prices.source
    ));
    lines
}
