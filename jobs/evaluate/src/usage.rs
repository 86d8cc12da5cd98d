//! What a run takes: time, and with it energy and cost, each from a source that is named.
//!
//! Energy is read from the processor's own counters where the system shows them (RAPL); else it is stated power times
//! time. What is neither measured nor stated is left out, and the record says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use wmtp_job_kit::Run;
use wmtp_records::{Cost, Energy, Usage};

/// Where Linux shows the counters.
const COUNTERS: &str = "/sys/class/powercap";
/// Counters begin anew after minutes at full power (262 kJ on many processors); they are read well before.
const EVERY: Duration = Duration::from_secs(30);

/// What the machine costs and draws, as its user states it.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Rates {
    /// Price of an hour of this machine with its currency, such as "1.55 USD": usage.json then has the cost
    #[arg(
        long,
        value_name = "PRICE",
        env = "WMTP_HOUR_PRICE",
        requires = "hour_price_source"
    )]
    hour_price: Option<Price>,
    /// Who asks that price, and when it was looked up
    #[arg(
        long,
        value_name = "TEXT",
        env = "WMTP_HOUR_PRICE_SOURCE",
        requires = "hour_price"
    )]
    hour_price_source: Option<String>,
    /// Power of this machine at work in watts, used where the processor's energy counters (RAPL) cannot be read
    #[arg(long, value_name = "WATTS", env = "WMTP_WATTS", requires = "watts_source", value_parser = watts)]
    watts: Option<f64>,
    /// Where that power comes from, such as a meter or the maker's sheet
    #[arg(
        long,
        value_name = "TEXT",
        env = "WMTP_WATTS_SOURCE",
        requires = "watts"
    )]
    watts_source: Option<String>,
}

/// An amount of money.
#[derive(Debug, Clone, PartialEq)]
struct Price {
    amount: f64,
    currency: String,
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("found {text:?}, expected a price and its currency, such as \"1.55 USD\"");
        let (amount, currency) = text.trim().split_once(' ').ok_or_else(wrong)?;
        let is_code = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
        match amount.parse::<f64>() {
            Ok(amount) if is_code && amount.is_finite() && amount >= 0.0 => Ok(Self {
                amount,
                currency: currency.to_owned(),
            }),
            _ => Err(wrong()),
        }
    }
}

fn watts(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(watts) if watts.is_finite() && watts > 0.0 => Ok(watts),
        _ => Err(format!("found {text:?}, expected watts above 0")),
    }
}

impl Rates {
    fn usage(&self, wall: Duration, measured: Result<Energy, String>) -> Usage {
        let mut left_out = Vec::new();
        let wall_secs = wall.as_secs_f64();
        let energy = measured.or_else(|reason| self.stated_energy(wall_secs).ok_or(reason));
        let cost = self.cost(wall_secs);
        if let Err(reason) = &energy {
            left_out.push(format!("energy: {reason}, and no --watts were stated"));
        }
        if cost.is_none() {
            left_out.push("cost: no --hour-price was stated".to_owned());
        }
        Usage {
            wall_secs,
            energy: energy.ok(),
            cost,
            left_out,
        }
    }

    fn stated_energy(&self, wall_secs: f64) -> Option<Energy> {
        let (watts, source) = (self.watts?, self.watts_source.as_ref()?);
        Some(Energy {
            joules: watts * wall_secs,
            is_measured: false,
            source: format!("{watts} W stated: {source}"),
        })
    }

    fn cost(&self, wall_secs: f64) -> Option<Cost> {
        let (price, source) = (self.hour_price.as_ref()?, self.hour_price_source.as_ref()?);
        let Price { amount, currency } = price;
        Some(Cost {
            amount: amount * wall_secs / 3600.0,
            currency: currency.clone(),
            source: format!("{amount} {currency} an hour: {source}"),
        })
    }
}

/// Reads energy counters from its start until it is asked for what they say.
pub(crate) struct Meter {
    stop: Sender<()>,
    reader: JoinHandle<Result<Energy, String>>,
}

impl Meter {
    /// Begins.
    pub(crate) fn start() -> Self {
        Self::reading(PathBuf::from(COUNTERS), EVERY)
    }

    fn reading(folder: PathBuf, every: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut counters = Counter::all(&folder)?;
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                counters.iter_mut().try_for_each(Counter::read)?;
            }
            counters.iter_mut().try_for_each(Counter::read)?;
            let names: Vec<&str> = counters.iter().map(|one| one.name.as_str()).collect();
            Ok(Energy {
                joules: counters.iter().map(|one| one.sum_uj as f64 / 1e6).sum(),
                is_measured: true,
                source: format!("RAPL: {}", names.join(", ")),
            })
        });
        Self { stop, reader }
    }

    fn end(self) -> Result<Energy, String> {
        drop(self.stop);
        let read = self.reader.join();
        read.unwrap_or_else(|_| Err("the reader of the energy counters failed".to_owned()))
    }

    /// What the run took, and tells it.
    pub(crate) fn usage(self, rates: &Rates, run: &Run) -> Usage {
        let usage = rates.usage(run.elapsed(), self.end());
        run.event("usage", &json!(usage));
        run.log(told(&usage));
        usage
    }
}

fn told(usage: &Usage) -> String {
    let energy = usage.energy.as_ref().map(|energy| {
        let how = if energy.is_measured {
            "measured"
        } else {
            "stated"
        };
        format!("{:.0} J {how} ({})", energy.joules, energy.source)
    });
    let cost = usage
        .cost
        .as_ref()
        .map(|cost| format!("{:.4} {} ({})", cost.amount, cost.currency, cost.source));
    let left_out = usage
        .left_out
        .iter()
        .map(|what| format!("not stated: {what}"));
    let told: Vec<String> = energy.into_iter().chain(cost).chain(left_out).collect();
    told.join("; ")
}

/// One counter of microjoules.
struct Counter {
    name: String,
    path: PathBuf,
    /// Above which it begins anew.
    range_uj: u64,
    last_uj: u64,
    sum_uj: u64,
}

impl Counter {
    /// The counters of whole processors and of memory beside them; the others are parts of these.
    fn all(folder: &Path) -> Result<Vec<Self>, String> {
        let entries = fs::read_dir(folder).map_err(|error| {
            format!(
                "the system shows no counters at {}: {error}",
                folder.display()
            )
        })?;
        let mut zones: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        zones.sort();
        let mut counters = Vec::new();
        for zone in zones {
            let name = text(&zone.join("name")).unwrap_or_default();
            if name.starts_with("package-") || name == "dram" {
                counters.push(Self::open(name, &zone)?);
            }
        }
        if counters.is_empty() {
            return Err(format!("{} holds no processor's counter", folder.display()));
        }
        Ok(counters)
    }

    fn open(name: String, zone: &Path) -> Result<Self, String> {
        let path = zone.join("energy_uj");
        Ok(Self {
            name,
            range_uj: number(&zone.join("max_energy_range_uj"))?,
            last_uj: number(&path)?,
            sum_uj: 0,
            path,
        })
    }

    fn read(&mut self) -> Result<(), String> {
        let now = number(&self.path)?;
        let more = if now >= self.last_uj {
            now - self.last_uj
        } else {
            self.range_uj.saturating_sub(self.last_uj) + now
        };
        self.sum_uj += more;
        self.last_uj = now;
        Ok(())
    }
}

fn text(path: &Path) -> Result<String, String> {
    let read = fs::read_to_string(path);
    let text = read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn number(path: &Path) -> Result<u64, String> {
    let text = text(path)?;
    text.parse()
        .map_err(|_| format!("{} holds {text:?} and no number", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as Linux shows them.
    fn zone(folder: &Path, zone: &str, name: &str, energy_uj: u64) -> PathBuf {
        let zone = folder.join(zone);
        fs::create_dir_all(&zone).unwrap();
        fs::write(zone.join("name"), format!("{name}\n")).unwrap();
        fs::write(zone.join("max_energy_range_uj"), "1000000000\n").unwrap();
        let path = zone.join("energy_uj");
        fs::write(&path, format!("{energy_uj}\n")).unwrap();
        path
    }

    #[test]
    fn counters_of_processors_and_memory_add_up_over_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let package = zone(folder.path(), "intel-rapl:0", "package-0", 999_000_000);
        let memory = zone(folder.path(), "intel-rapl:0:1", "dram", 5_000_000);
        let core = zone(folder.path(), "intel-rapl:0:0", "core", 0);
        let mut counters = Counter::all(folder.path()).unwrap();
        let sum = |counters: &[Counter]| counters.iter().map(|one| one.sum_uj).sum::<u64>();
        fs::write(&package, "2000000\n").unwrap();
        fs::write(&memory, "5500000\n").unwrap();
        fs::write(&core, "900000000\n").unwrap();
        counters.iter_mut().try_for_each(Counter::read).unwrap();
        assert_eq!(sum(&counters), 1_000_000 + 2_000_000 + 500_000);
        fs::write(&package, "2000001\n").unwrap();
        counters.iter_mut().try_for_each(Counter::read).unwrap();
        assert_eq!(sum(&counters), 3_500_001);

        let meter = Meter::reading(folder.path().to_owned(), Duration::from_hours(1));
        let energy = meter.end().unwrap();
        assert!(energy.is_measured);
        assert_eq!(energy.source, "RAPL: package-0, dram");
    }

    #[test]
    fn what_is_neither_measured_nor_stated_is_left_out_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Meter::reading(folder.path().join("absent"), EVERY).end();
        let hour = Duration::from_hours(1);
        let usage = Rates::default().usage(hour, absent.clone());
        assert_eq!((usage.energy, usage.cost), (None, None));
        assert!(usage.left_out[0].contains("the system shows no counters at"));
        assert!(usage.left_out[1].starts_with("cost: no --hour-price"));
        let empty = Meter::reading(folder.path().to_owned(), EVERY).end();
        assert!(empty.unwrap_err().contains("no processor's counter"));

        let rates = Rates {
            hour_price: Some("1.5 USD".parse().unwrap()),
            hour_price_source: Some("the provider's list of 2026-03-31".to_owned()),
            watts: Some(100.0),
            watts_source: Some("a meter at the plug".to_owned()),
        };
        let usage = rates.usage(hour * 2, absent);
        let energy = usage.energy.unwrap();
        assert!(!energy.is_measured && (energy.joules - 720_000.0).abs() < 1e-6);
        assert_eq!(energy.source, "100 W stated: a meter at the plug");
        let cost = usage.cost.unwrap();
        assert!((cost.amount - 3.0).abs() < 1e-12);
        assert_eq!(
            cost.source,
            "1.5 USD an hour: the provider's list of 2026-03-31"
        );
        assert!(usage.left_out.is_empty());

        // What is measured counts before what is stated.
        let measured = Energy {
            joules: 7.0,
            is_measured: true,
            source: "RAPL: package-0".to_owned(),
        };
        assert_eq!(
            rates.usage(hour, Ok(measured.clone())).energy,
            Some(measured)
        );
    }

    #[test]
    fn a_price_has_an_amount_and_a_currency() {
        for wrong in [
            "",
            "1.5",
            "USD",
            "1.5 usd",
            "-1 USD",
            "NaN USD",
            "1.5 USD/h",
        ] {
            assert!(wrong.parse::<Price>().is_err(), "{wrong}");
        }
        assert!(watts("0").is_err() && watts("inf").is_err());
        assert_eq!(watts("12.5"), Ok(12.5));
    }
}
