//! What a benchmark found: named measures, their expected ranges, their targets, and how they are shown.
//!
//! Owns the format of results (`target/bench/*.json`), of `ranges.toml`, and the tables of `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// One number.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Measure {
    /// Unique among all benchmarks, parts joined by slashes, the workload first.
    pub name: String,
    /// As measured.
    pub value: f64,
    /// Unit, for people.
    pub unit: String,
}

/// What one run of a benchmark found.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Report {
    /// Which benchmark: also the name of its file.
    pub benchmark: String,
    /// The command that repeats it.
    pub command: String,
    /// What must be known to read the numbers: sizes, log mode, processes.
    pub conditions: BTreeMap<String, String>,
    /// The numbers.
    pub measures: Vec<Measure>,
}

/// What may be expected of a measure. A change that leaves its range is a change of the algorithm, upwards or
/// downwards.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Name of the measure.
    pub measure: String,
    /// The lowest that is expected, on a busy machine too.
    pub least: Option<f64>,
    /// The highest.
    pub most: Option<f64>,
    /// What must be reached on a quiet machine: shown, and told where it is missed, but no reason to fail.
    pub target: Option<Target>,
}

/// A bound that was promised.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Target {
    /// At least.
    AtLeast(f64),
    /// At most.
    AtMost(f64),
}

impl Target {
    /// Whether a value keeps it.
    #[must_use]
    pub fn kept(self, value: f64) -> bool {
        match self {
            Target::AtLeast(bound) => value >= bound,
            Target::AtMost(bound) => value <= bound,
        }
    }

    fn show(self) -> String {
        match self {
            Target::AtLeast(bound) => format!("at least {}", number(bound)),
            Target::AtMost(bound) => format!("at most {}", number(bound)),
        }
    }
}

/// Why results could not be kept or judged.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file could not be read or written.
    #[error("{path} can't be used: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is malformed: {problem}", path = path.display())]
    Malformed {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(benchmark: &str, command: &str) -> Report {
        Report {
            benchmark: benchmark.to_owned(),
            command: command.to_owned(),
            ..Report::default()
        }
    }

    /// Notes a condition.
    pub fn condition(&mut self, name: &str, value: impl Into<String>) {
        self.conditions.insert(name.to_owned(), value.into());
    }

    /// Notes a number, and prints it.
    pub fn measure(&mut self, name: impl Into<String>, value: f64, unit: &str) {
        let name = name.into();
        println!("{name}: {} {unit}", number(value));
        self.measures.push(Measure {
            name,
            value,
            unit: unit.to_owned(),
        });
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, folder: &Path) -> Result<(), ReportError> {
        let path = folder.join(format!("{}.json", self.benchmark));
        let file = |source| ReportError::File {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(folder).map_err(file)?;
        let text = serde_json::to_string_pretty(self).map_err(|error| file(error.into()))?;
        fs::write(&path, text + "\n").map_err(file)
    }

    /// Reads all reports of a folder, by name.
    ///
    /// # Errors
    /// The folder or a file can't be read.
    pub fn read_all(folder: &Path) -> Result<Vec<Report>, ReportError> {
        let file = |path: &Path, source| ReportError::File {
            path: path.to_owned(),
            source,
        };
        let entries = fs::read_dir(folder).map_err(|source| file(folder, source))?;
        let mut reports: Vec<Report> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| file(folder, source))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = fs::read_to_string(&path).map_err(|source| file(&path, source))?;
                let report = serde_json::from_str(&text).map_err(|error| ReportError::Malformed {
                    path: path.clone(),
                    problem: error.to_string(),
                })?;
                reports.push(report);
            }
        }
        reports.sort_by(|one, other| one.benchmark.cmp(&other.benchmark));
        Ok(reports)
    }
}

/// Reads expected ranges.
///
/// # Errors
/// The file can't be read or is malformed.
pub fn read_ranges(path: &Path) -> Result<Vec<Range>, ReportError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Ranges {
        range: Vec<Range>,
    }
    let text = fs::read_to_string(path).map_err(|source| ReportError::File {
        path: path.to_owned(),
        source,
    })?;
    let ranges: Ranges = toml::from_str(&text).map_err(|error| ReportError::Malformed {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(ranges.range)
}

/// What is wrong with the measures of reports: those that left their range. Ranges of measures that no report has are
/// of no interest: each benchmark may run alone.
#[must_use]
pub fn outside(reports: &[Report], ranges: &[Range]) -> Vec<String> {
    let mut problems = Vec::new();
    for measure in reports.iter().flat_map(|report| &report.measures) {
        for range in ranges.iter().filter(|range| range.measure == measure.name) {
            let value = measure.value;
            let low = range.least.is_some_and(|least| value < least);
            let high = range.most.is_some_and(|most| value > most);
            if low || high || value.is_nan() {
                let side = if low { "below" } else { "above" };
                let bound = if low { range.least } else { range.most };
                problems.push(format!(
                    "{} is {} {}, {side} the expected {}",
                    measure.name,
                    number(value),
                    measure.unit,
                    number(bound.unwrap_or(f64::NAN)),
                ));
            }
        }
    }
    problems
}

/// The reports as tables.
#[must_use]
pub fn table(reports: &[Report], ranges: &[Range]) -> String {
    let mut text = String::new();
    for report in reports {
        // Writing to a text can't fail.
        let _ = writeln!(text, "\n**{}**: `{}`", report.benchmark, report.command);
        for (name, value) in &report.conditions {
            let _ = write!(text, "\n- {name}: {value}");
        }
        let _ = writeln!(
            text,
            "\n\n| measure | value | unit | target | kept |\n|---|---|---|---|---|"
        );
        for measure in &report.measures {
            let range = ranges.iter().find(|range| range.measure == measure.name);
            let target = range.and_then(|range| range.target);
            let (shown, kept) = match target {
                None => (String::new(), ""),
                Some(target) if target.kept(measure.value) => (target.show(), "yes"),
                Some(target) => (target.show(), "**no**"),
            };
            let (name, value, unit) = (&measure.name, number(measure.value), &measure.unit);
            let _ = writeln!(text, "| {name} | {value} | {unit} | {shown} | {kept} |");
        }
    }
    text
}

/// A number as people read it: three digits that count, thousands separated.
#[must_use]
pub fn number(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = match magnitude {
        _ if magnitude >= 100.0 || magnitude == 0.0 => 0,
        _ if magnitude >= 10.0 => 1,
        _ if magnitude >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{magnitude:.decimals$}");
    let (whole, rest) = text.split_once('.').unwrap_or((&text, ""));
    let mut shown = if value < 0.0 {
        "-".to_owned()
    } else {
        String::new()
    };
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    if !rest.is_empty() {
        shown.push('.');
        shown.push_str(rest);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_report(value: f64) -> Vec<Report> {
        let mut report = Report::new("w0", "make bench-w0");
        report.measure("w0/speed", value, "tasks/s");
        vec![report]
    }

    fn mk_ranges() -> Vec<Range> {
        vec![Range {
            measure: "w0/speed".to_owned(),
            least: Some(50.0),
            most: Some(150.0),
            target: Some(Target::AtLeast(100.0)),
        }]
    }

    #[test]
    fn a_measure_that_leaves_its_range_is_told() {
        assert_eq!(outside(&mk_report(100.0), &mk_ranges()), Vec::<String>::new());
        let below = outside(&mk_report(49.0), &mk_ranges());
        assert_eq!(below, ["w0/speed is 49.0 tasks/s, below the expected 50.0"]);
        let above = outside(&mk_report(151.0), &mk_ranges());
        assert_eq!(above, ["w0/speed is 151 tasks/s, above the expected 150"]);
    }

    #[test]
    fn the_table_tells_whether_the_target_is_kept() {
        assert!(table(&mk_report(120.0), &mk_ranges()).contains("| at least 100 | yes |"));
        assert!(table(&mk_report(90.0), &mk_ranges()).contains("| at least 100 | **no** |"));
    }

    #[test]
    fn numbers_are_shown_with_the_digits_that_count() {
        let shown = [0.0, 0.5, 4.321, 43.21, 4_321.2, 1_234_567.0, -12_345.0].map(number);
        assert_eq!(
            shown,
            ["0", "0.500", "4.32", "43.2", "4,321", "1,234,567", "-12,345"]
        );
    }
}
