//! TD errors, advantages and token weights of plain vectors.

use serde::Deserialize;
use wmtp_weighting::{WeightSettings, Whitening, gae, project, td_errors, token_weights};

use super::Run;
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    responses: Vec<Response>,
    vectors: Vec<Vector>,
    projections: Vec<Projection>,
}

/// Values of one response become advantages.
#[derive(Deserialize)]
struct Response {
    name: String,
    reward: f64,
    gamma: f64,
    lam: f64,
}

/// Scores become weights.
#[derive(Deserialize)]
struct Vector {
    name: String,
    #[serde(flatten)]
    settings: WeightSettings,
}

/// Raw weights become weights of mean 1 within bounds.
#[derive(Deserialize)]
struct Projection {
    name: String,
    eps: f64,
    w_max: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let config: Config = run.case.config()?;
    for response in &config.responses {
        record_response(run, response)?;
    }
    for vector in &config.vectors {
        record_vector(run, vector)?;
    }
    for Projection { name, eps, w_max } in &config.projections {
        let mut weights = run.case.input(&format!("raw.{name}"))?.data.clone();
        project(&mut weights, *eps, *w_max);
        run.record(format!("weight.projected.{name}"), Values::vector(weights));
    }
    Ok(())
}

fn record_response(run: &mut Run, response: &Response) -> Result<(), Error> {
    let name = &response.name;
    let values = run.case.input(&format!("values.{name}"))?;
    let deltas = td_errors(&values.data, response.reward, response.gamma);
    let key = format!("td.delta.{name}");
    run.record(key.clone(), Values::vector(deltas));
    let deltas = &run.upstream(&key).data;
    let advantages = gae(deltas, response.gamma, response.lam);
    run.record(format!("td.advantage.{name}"), Values::vector(advantages));
    Ok(())
}

fn record_vector(run: &mut Run, vector: &Vector) -> Result<(), Error> {
    let (name, settings) = (&vector.name, &vector.settings);
    let scores = &run.case.input(&format!("scores.{name}"))?.data;
    let whitening = Whitening::of(scores);
    let made = token_weights(scores, &whitening, settings)?;
    run.record(
        format!("weight.count.{name}"),
        Values::vector(vec![made.stats.count as f64]),
    );
    if scores.is_empty() {
        return Ok(());
    }
    let open = WeightSettings {
        eps: 1e-300,
        w_max: 1e300,
        blend: 1.0,
        ..*settings
    };
    let whitened = scores.iter().map(|score| whitening.apply(*score)).collect();
    let raw = token_weights(scores, &whitening, &open)?.weights;
    run.record(format!("weight.z.{name}"), Values::vector(whitened));
    run.record(format!("weight.raw.{name}"), Values::vector(raw));
    run.record(format!("weight.final.{name}"), Values::vector(made.weights));
    Ok(())
}
