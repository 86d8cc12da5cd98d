//! What a run takes: time, memory, bytes and tokens, and with them energy and cost, each from a source that is named.
//!
//! Energy is read from the processor's own counters where the system shows them (RAPL); else it is stated power times
//! time. What is neither measured nor stated is left out, and the record says so.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use wmtp_records::{Cost, Energy, Usage, UsedDevice};

use crate::Run;

/// Where Linux shows the counters.
const COUNTERS: &str = "/sys/class/powercap";
/// Counters begin anew after minutes at full power (262 kJ on many processors); they are read well before.
const EVERY: Duration = Duration::from_secs(30);

/// What the machine costs and draws, as its user states it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "What the run takes")]
pub(crate) struct Rates {
    /// Price of an hour of this machine with its currency, such as "1.55 USD": the run's record then has its cost
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
    /// Power of this machine at work in watts, used where the processor's energy counters (RAPL) cannot be read, and where a
    /// GPU computes, which they do not count
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
    /// Adds energy and cost to what is known of a run.
    fn complete(&self, mut usage: Usage, measured: Result<Energy, String>) -> Usage {
        let device = usage.device.as_ref();
        let is_on_gpu = device.is_some_and(|device| device.place != CPU);
        let stated = self.stated_energy(usage.wall_secs);
        usage.energy = match (measured, stated) {
            (Ok(measured), None) => {
                if is_on_gpu {
                    let what = "energy of the GPU: the counters are the processor's, and no --watts were stated";
                    usage.left_out.push(what.to_owned());
                }
                Some(measured)
            }
            (Ok(measured), Some(_)) if !is_on_gpu => Some(measured),
            (_, Some(stated)) => Some(stated),
            (Err(reason), None) => {
                let what = format!("energy: {reason}, and no --watts were stated");
                usage.left_out.push(what);
                None
            }
        };
        usage.cost = self.cost(usage.wall_secs);
        if usage.cost.is_none() {
            usage
                .left_out
                .push("cost: no --hour-price was stated".to_owned());
        }
        usage
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

/// Reads energy counters from its start on, as long as it is there.
#[derive(Debug)]
struct Meter {
    counters: Arc<Mutex<Counters>>,
    /// What the thread that reads them now and then waits for.
    _stop: Sender<()>,
}

/// The counters, or why there are none.
type Counters = Result<Vec<Counter>, String>;

impl Meter {
    /// Begins.
    fn start() -> Self {
        Self::reading(Path::new(COUNTERS), EVERY)
    }

    fn reading(folder: &Path, every: Duration) -> Self {
        let (stop, stopped) = mpsc::channel();
        let counters = Arc::new(Mutex::new(Counter::all(folder)));
        let meter = Self {
            counters,
            _stop: stop,
        };
        if meter.with(|counters| counters.is_err()) {
            return meter;
        }
        let read = Arc::clone(&meter.counters);
        let work = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(every) {
                advance(&mut read.lock().unwrap_or_else(PoisonError::into_inner));
            }
        };
        let reader = std::thread::Builder::new().name("meter".to_owned());
        if let Err(error) = reader.spawn(work) {
            // Unread they may begin anew unseen.
            let reason = format!("no thread reads the counters: {error}");
            meter.with(|counters| *counters = Err(reason));
        }
        meter
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counters) -> T) -> T {
        work(&mut self.counters.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the machine has used since the beginning.
    fn energy(&self) -> Result<Energy, String> {
        self.with(|counters| {
            advance(counters);
            let counters = counters.as_ref().map_err(Clone::clone)?;
            let names: Vec<&str> = counters.iter().map(|one| one.name.as_str()).collect();
            Ok(Energy {
                joules: counters.iter().map(|one| one.sum_uj as f64 / 1e6).sum(),
                is_measured: true,
                source: format!("RAPL: {}", names.join(", ")),
            })
        })
    }
}

/// Adds what the counters say; one that cannot be read spoils the sum.
fn advance(counters: &mut Counters) {
    let Ok(open) = counters else { return };
    if let Err(reason) = open.iter_mut().try_for_each(Counter::read) {
        *counters = Err(reason);
    }
}

/// What one attempt has taken.
#[derive(Debug)]
pub(crate) struct Account {
    rates: Rates,
    meter: Meter,
    device: RefCell<Option<UsedDevice>>,
    ranks: Cell<usize>,
    tokens: Cell<u64>,
    output_bytes: Cell<u64>,
    told: OnceCell<Usage>,
}

impl Account {
    /// Begins to count.
    pub(crate) fn open(rates: Rates) -> Self {
        Self {
            rates,
            meter: Meter::start(),
            device: RefCell::default(),
            ranks: Cell::new(1),
            tokens: Cell::new(0),
            output_bytes: Cell::new(0),
            told: OnceCell::new(),
        }
    }

    pub(crate) fn has_ranks(&self, ranks: usize) {
        self.ranks.set(ranks);
    }

    pub(crate) fn has_written(&self, bytes: u64) {
        self.output_bytes.set(self.output_bytes.get() + bytes);
    }
}

impl Run {
    /// Says which device this run computes on, as it is asked for, with the names of its model and of its driver's version
    /// where they are known. Who does not say computes on the processor.
    pub fn computes_on(&self, place: &str, model: Option<String>, driver: Option<String>) {
        self.event(
            "device",
            &json!({"device": place, "name": model, "driver": driver}),
        );
        let device = UsedDevice {
            place: place.to_owned(),
            name: model,
            driver,
            ranks: 1,
        };
        *self.account.device.borrow_mut() = Some(device);
    }

    /// So many tokens more went through the model.
    pub fn count_tokens(&self, tokens: u64) {
        let counter = &self.account.tokens;
        counter.set(counter.get() + tokens);
    }

    /// What this attempt has taken so far.
    pub fn usage(&self) -> Usage {
        let account = &self.account;
        let some = |count: u64| Some(count).filter(|count| *count > 0);
        let read = self.fetched.borrow();
        let read = read.keys().filter_map(|role| self.inputs.get(role));
        let device = account.device.borrow().clone();
        let device = device.filter(|device| device.place != CPU);
        let usage = Usage {
            wall_secs: self.elapsed().as_secs_f64(),
            cpu_secs: cpu_secs(),
            device: Some(UsedDevice {
                ranks: account.ranks.get(),
                ..device.unwrap_or_else(processor)
            }),
            peak_memory_bytes: peak_memory_bytes(),
            input_bytes: some(read.map(wmtp_artifacts::Manifest::size).sum()),
            output_bytes: some(account.output_bytes.get()),
            tokens: some(account.tokens.get()),
            energy: None,
            cost: None,
            left_out: Vec::new(),
        };
        account.rates.complete(usage, account.meter.energy())
    }

    /// What this attempt took, told once.
    pub(crate) fn tell_usage(&self) -> &Usage {
        self.account.told.get_or_init(|| {
            let usage = self.usage();
            self.event("usage", &json!(usage));
            if let Some(told) = told(&usage) {
                self.log(told);
            }
            usage
        })
    }
}

/// The place of whatever computes on no device.
const CPU: &str = "cpu";

fn processor() -> UsedDevice {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .and_then(|rest| Some(rest.split_once(':')?.1.trim().to_owned()));
    UsedDevice {
        place: CPU.to_owned(),
        name,
        driver: None,
        ranks: 1,
    }
}

/// The most memory that this process has had resident, where the system says so.
pub fn peak_memory_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let mut lines = status.lines();
    let line = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Processor time of this process, and of those that it started and has seen end.
fn cpu_secs() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some(clock_ticks(&stat)? as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// User and system time, its own and its children's: fields 14 to 17. A program's name may hold blanks and brackets, so the
/// fields are counted from behind its last one.
fn clock_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    (ticks.len() == 4).then(|| ticks.iter().sum())
}

/// Energy and cost, as far as there are any.
fn told(usage: &Usage) -> Option<String> {
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
    let told: Vec<String> = energy.into_iter().chain(cost).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// One counter of microjoules.
#[derive(Debug)]
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

        let meter = Meter::reading(folder.path(), Duration::from_hours(1));
        let energy = meter.energy().unwrap();
        assert!(energy.is_measured && energy.joules.abs() < 1e-9);
        assert_eq!(energy.source, "RAPL: package-0, dram");
        fs::write(&package, "5000001\n").unwrap();
        assert!((meter.energy().unwrap().joules - 3.0).abs() < 1e-9);
        fs::remove_file(&package).unwrap();
        let reason = meter.energy().unwrap_err();
        assert!(reason.contains("energy_uj cannot be read"), "{reason}");
        assert_eq!(meter.energy().unwrap_err(), reason);
    }

    /// What is known of a run of so many hours.
    fn hours(hours: u64, place: &str) -> Usage {
        Usage {
            wall_secs: Duration::from_hours(hours).as_secs_f64(),
            device: Some(UsedDevice {
                place: place.to_owned(),
                ..processor()
            }),
            ..Usage::default()
        }
    }

    fn stated() -> Rates {
        Rates {
            hour_price: Some("1.5 USD".parse().unwrap()),
            hour_price_source: Some("the provider's list of 2026-03-31".to_owned()),
            watts: Some(100.0),
            watts_source: Some("a meter at the plug".to_owned()),
        }
    }

    #[test]
    fn what_is_neither_measured_nor_stated_is_left_out_and_said() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Meter::reading(&folder.path().join("absent"), EVERY).energy();
        let usage = Rates::default().complete(hours(1, CPU), absent.clone());
        assert_eq!((&usage.energy, &usage.cost), (&None, &None));
        assert!(usage.left_out[0].contains("the system shows no counters at"));
        assert!(usage.left_out[1].starts_with("cost: no --hour-price"));
        assert_eq!(told(&usage), None);
        let empty = Meter::reading(folder.path(), EVERY).energy();
        assert!(empty.unwrap_err().contains("no processor's counter"));

        let usage = stated().complete(hours(2, CPU), absent);
        let energy = usage.energy.as_ref().unwrap();
        assert!(!energy.is_measured && (energy.joules - 720_000.0).abs() < 1e-6);
        assert_eq!(energy.source, "100 W stated: a meter at the plug");
        let cost = usage.cost.as_ref().unwrap();
        assert!((cost.amount - 3.0).abs() < 1e-12);
        assert_eq!(
            cost.source,
            "1.5 USD an hour: the provider's list of 2026-03-31"
        );
        assert!(usage.left_out.is_empty());
        assert!(told(&usage).unwrap().starts_with("720000 J stated (100 W"));
    }

    #[test]
    fn what_is_measured_counts_before_what_is_stated_but_not_for_a_gpu() {
        let measured = Energy {
            joules: 7.0,
            is_measured: true,
            source: "RAPL: package-0".to_owned(),
        };
        let energy = |rates: Rates, place: &str| {
            let usage = rates.complete(hours(1, place), Ok(measured.clone()));
            (usage.energy.unwrap().is_measured, usage.left_out)
        };
        assert_eq!(energy(stated(), CPU), (true, Vec::new()));
        assert_eq!(energy(stated(), "cuda:0"), (false, Vec::new()));
        let (is_measured, left_out) = energy(Rates::default(), "cuda:0");
        assert!(is_measured && left_out[0].starts_with("energy of the GPU: "));
    }

    #[test]
    fn processor_time_is_that_of_the_process_and_of_its_ended_children() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 9 8 7 6 250 50 1000 200 20 0 3 0 99";
        assert_eq!(clock_ticks(stat), Some(1500));
        assert_eq!(clock_ticks("7 (a) S 1"), None);
        assert!(cpu_secs().is_some_and(|secs| secs >= 0.0));
        assert!(peak_memory_bytes().is_some_and(|bytes| bytes > 1 << 20));
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
