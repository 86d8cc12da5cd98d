//! Rotary tables of the model room at chosen positions.

use serde::Deserialize;
use wmtp_model::{Params, Rotary};

use super::Run;
use crate::{Error, Values};

#[derive(Deserialize)]
struct Config {
    tables: Vec<Table>,
}

/// One table: size of a head and base.
#[derive(Deserialize)]
struct Table {
    name: String,
    head_dim: usize,
    theta: f64,
}

pub(super) fn run(run: &mut Run) -> Result<(), Error> {
    let config: Config = run.case.config()?;
    let positions = run.case.ids("positions", Rotary::POSITIONS)?;
    for table in &config.tables {
        let params = one_head(table);
        params
            .validate()
            .map_err(|error| run.case.bad(format!("table {}: {error}", table.name)))?;
        let rotary = Rotary::new(&params);
        let half = rotary.half();
        let prepared = rotary.positions();
        for (part, values) in [("cos", rotary.cos(prepared)), ("sin", rotary.sin(prepared))] {
            let row = |position: &u32| &values[*position as usize * half..][..half];
            let data = positions.iter().flat_map(row).copied().collect();
            let values = Values::new(vec![positions.len(), half], data);
            run.record(format!("{part}.{}", table.name), values);
        }
    }
    Ok(())
}

/// The smallest model with such a head.
fn one_head(table: &Table) -> Params {
    Params {
        dim: table.head_dim,
        n_heads: 1,
        n_kv_heads: 1,
        rope_theta: table.theta,
        ..Params::micro_ref(1)
    }
}
