//! Figures, the limits that are held against them, and how both are told.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::arguments::Arguments;

/// The checked-in limits, by name of what is measured, in milliseconds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ExpectedRange {
    /// Highest 99th percentile.
    maximum_p99_milliseconds: BTreeMap<String, f64>,
    /// Highest of all.
    maximum_milliseconds: BTreeMap<String, f64>,
}

pub(crate) fn read_range(path: &Path) -> Result<ExpectedRange, Failure> {
    let text = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))?)
}

/// One figure, in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    count: usize,
    p50: f64,
    p99: f64,
    maximum: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_maximum: Option<f64>,
}

/// What was measured.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// When it began, and the machine's load averages then and at the end.
    began: String,
    load_at_begin: String,
    load_at_end: String,
    figures: BTreeMap<String, Figure>,
    pub(crate) within_range: bool,
    #[serde(skip)]
    times: BTreeMap<String, Vec<Duration>>,
}

impl Report {
    pub(crate) fn begin() -> Report {
        Report {
            began: jiff::Timestamp::now().to_string(),
            load_at_begin: load(),
            load_at_end: String::new(),
            figures: BTreeMap::new(),
            within_range: false,
            times: BTreeMap::new(),
        }
    }

    /// Adds one measured time.
    pub(crate) fn add(&mut self, name: &str, time: Duration) {
        if !self.times.contains_key(name) || !name.starts_with("first") {
            eprintln!("{name}: {:.1} ms", milliseconds(time));
        }
        self.times.entry(name.to_owned()).or_default().push(time);
    }

    /// Holds what was measured against the limits.
    pub(crate) fn judge(&mut self, range: &ExpectedRange) {
        self.load_at_end = load();
        for (name, times) in &mut self.times {
            times.sort_unstable();
            let figure = Figure {
                count: times.len(),
                p50: milliseconds(percentile(times, 50)),
                p99: milliseconds(percentile(times, 99)),
                maximum: milliseconds(percentile(times, 100)),
                accepted_p99: range.maximum_p99_milliseconds.get(name).copied(),
                accepted_maximum: range.maximum_milliseconds.get(name).copied(),
            };
            self.figures.insert(name.clone(), figure);
        }
        self.within_range = !self.figures.is_empty() && self.figures.values().all(Figure::is_accepted);
    }

    /// Prints the figures, and writes them where that is wanted.
    pub(crate) fn tell(&self, arguments: &Arguments) -> Result<(), Failure> {
        if let Some(path) = &arguments.results {
            std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        }
        println!(
            "load {} at the begin, {} at the end; milliseconds:",
            self.load_at_begin, self.load_at_end
        );
        for (name, figure) in &self.figures {
            let limit = match (figure.accepted_p99, figure.accepted_maximum) {
                (Some(limit), _) => format!(", p99 at most {limit} is accepted"),
                (None, Some(limit)) => format!(", at most {limit} is accepted"),
                (None, None) => String::new(),
            };
            let verdict = if figure.is_accepted() { "" } else { ": TOO MUCH" };
            println!(
                "{name} ({}): p50 {:.0}, p99 {:.0}, highest {:.0}{limit}{verdict}",
                figure.count, figure.p50, figure.p99, figure.maximum
            );
        }
        Ok(())
    }
}

impl Figure {
    fn is_accepted(&self) -> bool {
        self.accepted_p99.is_none_or(|limit| self.p99 <= limit)
            && self.accepted_maximum.is_none_or(|limit| self.maximum <= limit)
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// The smallest of the sorted times that so many percent of them do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// The machine's load averages, where it tells them.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let words: Vec<&str> = text.split(' ').take(3).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_measured_time() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(100));
        assert_eq!(percentile(&times, 99), Duration::from_millis(198));
        assert_eq!(percentile(&times, 100), Duration::from_millis(200));
        assert_eq!(percentile(&times[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }

    #[test]
    fn what_is_too_slow_is_not_accepted_and_the_checked_in_limits_are_readable() {
        let path = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../bench-cluster-range.json"
        ));
        let range = read_range(path).expect("the limits are there");
        for (time, good) in [(200, true), (300, false)] {
            let mut report = Report::begin();
            report.add("firstTask", Duration::from_millis(time));
            report.judge(&range);
            assert_eq!(report.within_range, good, "{time} ms");
        }
    }
}
