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
    let positions = run.case.input("positions")?.ids();
    for table in &config.tables {
        let rotary = Rotary::new(&one_head(table));
        let half = rotary.half();
        let prepared = rotary.positions();
        if let Some(far) = positions.iter().find(|p| **p as usize >= prepared) {
            return Err(run
                .case
                .bad(format!("position {far} of {prepared} prepared ones")));
        }
        for (part, values) in [("cos", rotary.cos(prepared)), ("sin", rotary.sin(prepared))] {
            let row = |position: &u32| &values[*position as usize * half..][..half];
            let data = positions.iter().flat_map(row).copied().collect();
            let shape = vec![positions.len(), half];
            run.record(format!("{part}.{}", table.name), Values { shape, data });
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
