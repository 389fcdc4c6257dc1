//! Breaks a copy of the code on purpose, one deliberate bug at a time, and tells which layer of tests notices.
//!
//! Each mutant of `operator/sim/mutants/*.toml` replaces one text that occurs once in one file. The copy is a
//! worktree of the commit that is checked out, so that nobody's files change.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::Deserialize;

/// Longest time that one layer may take: a mutant may make a test wait for ever.
const LAYER_WITHIN: Duration = Duration::from_secs(600);

/// Runs the deliberate bugs through the layers of tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only says whether each mutant can still be applied.
    #[arg(long)]
    check: bool,
    /// Only mutants whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Seeds of the simulation.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// Where the copy is made.
    #[arg(long, default_value = "target/mutants")]
    directory: PathBuf,
    /// The table that is written.
    #[arg(long, default_value = "docs/scheduler-mutants.md")]
    report: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// One deliberate bug.
#[derive(Clone, Debug, Deserialize)]
struct Mutant {
    name: String,
    /// What is broken, as a sentence.
    description: String,
    file: String,
    old: String,
    new: String,
    /// Why nothing notices it, where that is right so.
    #[serde(default)]
    harmless: String,
}

/// A layer of tests, cheapest first.
struct Layer {
    name: &'static str,
    arguments: Vec<String>,
}

fn layers(seeds: u64) -> Vec<Layer> {
    let layer = |name, words: &str| Layer {
        name,
        arguments: words.split(' ').map(str::to_owned).collect(),
    };
    vec![
        layer("core tests", "test --locked --quiet -p prover-core"),
        layer("log tests", "test --locked --quiet -p prover-log --lib"),
        layer(
            "simulation",
            &format!("run --locked --quiet -p prover-sim --bin prover-sim -- --fail-fast --seeds {seeds}"),
        ),
        layer("coordinator tests", "test --locked --quiet -p prover-coordinator"),
    ]
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match work(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> Result<bool, String> {
    let mutants = read()?;
    let chosen: Vec<Mutant> = mutants
        .into_iter()
        .filter(|mutant| mutant.name.contains(&arguments.only))
        .collect();
    let mut applicable = true;
    for mutant in &chosen {
        if let Err(problem) = applied(Path::new("."), mutant) {
            eprintln!("{}: {problem}", mutant.name);
            applicable = false;
        }
    }
    println!("{} mutants, all of them applicable: {applicable}", chosen.len());
    if arguments.check || !applicable {
        return Ok(applicable);
    }
    let copy = worktree(&arguments.directory)?;
    let mut rows = BTreeMap::new();
    for mutant in &chosen {
        let started = Instant::now();
        let (layer, evidence) = judge(&copy, mutant, arguments.seeds)?;
        println!(
            "{}: {layer} ({:.0} s) {evidence}",
            mutant.name,
            started.elapsed().as_secs_f64()
        );
        rows.insert(mutant.name.clone(), (mutant.clone(), layer, evidence));
        let report = report(&rows, arguments.seeds);
        std::fs::write(&arguments.report, report).map_err(|error| error.to_string())?;
    }
    Ok(rows
        .values()
        .all(|(mutant, layer, _)| *layer != SURVIVES || !mutant.harmless.is_empty()))
}

const SURVIVES: &str = "survives";

fn read() -> Result<Vec<Mutant>, String> {
    let folder = Path::new("operator/sim/mutants");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|error| {
            format!(
                "{}: {error}: run this in the root of the repository",
                folder.display()
            )
        })?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    let mut mutants = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let read: Mutants = toml::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        mutants.extend(read.mutant);
    }
    Ok(mutants)
}

/// The mutated file's text.
fn applied(root: &Path, mutant: &Mutant) -> Result<String, String> {
    let path = root.join(&mutant.file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    match text.matches(&mutant.old).count() {
        1 => Ok(text.replacen(&mutant.old, &mutant.new, 1)),
        count => Err(format!("its text occurs {count} times in {}", mutant.file)),
    }
}

fn git(arguments: &[&str]) -> Result<(), String> {
    let status = Command::new("git")
        .args(arguments)
        .status()
        .map_err(|error| error.to_string())?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("git {} failed", arguments.join(" ")))
    }
}

/// A copy of what is checked out, kept between runs.
fn worktree(directory: &Path) -> Result<PathBuf, String> {
    let copy = directory.join("copy");
    if copy.exists() {
        git(&["worktree", "remove", "--force", &copy.to_string_lossy()])?;
    }
    git(&[
        "worktree",
        "add",
        "--quiet",
        "--detach",
        &copy.to_string_lossy(),
        "HEAD",
    ])?;
    copy.canonicalize().map_err(|error| error.to_string())
}

/// Which layer notices the mutant, and how it says so.
fn judge(copy: &Path, mutant: &Mutant, seeds: u64) -> Result<(&'static str, String), String> {
    let path = copy.join(&mutant.file);
    let original = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    std::fs::write(&path, applied(copy, mutant)?).map_err(|error| error.to_string())?;
    let mut found = (SURVIVES, String::new());
    for layer in layers(seeds) {
        if let Some(evidence) = failure(copy, &layer)? {
            found = (layer.name, evidence);
            break;
        }
    }
    std::fs::write(&path, original).map_err(|error| error.to_string())?;
    Ok(found)
}

/// What a layer says when it fails; none where it passes.
fn failure(copy: &Path, layer: &Layer) -> Result<Option<String>, String> {
    let log = copy.join("layer.log");
    let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
    let errors = file.try_clone().map_err(|error| error.to_string())?;
    let mut child = Command::new("cargo")
        .args(&layer.arguments)
        .current_dir(copy)
        .stdout(Stdio::from(file))
        .stderr(Stdio::from(errors))
        .spawn()
        .map_err(|error| error.to_string())?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            if status.success() {
                return Ok(None);
            }
            break;
        }
        if started.elapsed() > LAYER_WITHIN {
            child.kill().map_err(|error| error.to_string())?;
            child.wait().map_err(|error| error.to_string())?;
            return Ok(Some(format!("no end within {} s", LAYER_WITHIN.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    if text.contains("error: could not compile") || text.contains("error[E") {
        let first = text.lines().find(|line| line.starts_with("error"));
        return Err(format!(
            "a mutant does not compile: {}",
            first.unwrap_or_default()
        ));
    }
    Ok(Some(evidence(&text)))
}

/// The first words that say what failed.
fn evidence(text: &str) -> String {
    let telling = text
        .lines()
        .find(|line| line.contains(" breaks ") || line.ends_with("... FAILED"));
    let telling = telling.or_else(|| {
        let mut lines = text.lines().skip_while(|line| !line.starts_with("failures:"));
        lines
            .by_ref()
            .nth(1)
            .and(lines.find(|line| !line.trim().is_empty()))
    });
    let words = telling
        .unwrap_or("failed")
        .trim()
        .trim_start_matches("---- ")
        .trim_end_matches(" stdout ----");
    words.chars().take(160).collect::<String>().replace('|', "/")
}

fn report(rows: &BTreeMap<String, (Mutant, &'static str, String)>, seeds: u64) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, layer, _) in rows.values() {
        *counts.entry(layer).or_insert(0) += 1;
    }
    let mut text = String::from(
        "# Deliberate bugs and what notices them\n\nWritten by `make mutants`. Each row is one bug that was put into \
         a copy of the code (`operator/sim/mutants`).\nThe layers run in this order until one fails: core tests, log \
         tests, simulation, coordinator tests.\n",
    );
    let _ = writeln!(text, "The simulation ran up to {seeds} seeds per bug.\n");
    for (layer, count) in &counts {
        let _ = writeln!(text, "- {layer}: {count} of {}", rows.len());
    }
    text.push_str("\n| bug | what is broken | noticed by | how |\n|---|---|---|---|\n");
    for (name, (mutant, layer, evidence)) in rows {
        let how = if evidence.is_empty() {
            &mutant.harmless
        } else {
            evidence
        };
        let _ = writeln!(text, "| {name} | {} | {layer} | {how} |", mutant.description);
    }
    text
}
