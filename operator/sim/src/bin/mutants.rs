//! Breaks a copy of the code on purpose, one deliberate bug at a time, and tells which layer of tests notices.
//!
//! Each mutant of `operator/sim/mutants/*.toml` replaces one text that occurs once in one file. The copy is a
//! worktree of the commit that is checked out, so that nobody's files change. What is known from an earlier run is
//! kept beside the copy, so that a run may be done in parts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};

/// Optimisation that costs less to build than it saves while a mutant is judged.
const OPTIMISATION: [&str; 3] = [
    "profile.dev.package.prover-core.opt-level=1",
    "profile.dev.package.prover-sim.opt-level=1",
    "profile.dev.package.prover-log.opt-level=1",
];

/// Runs the deliberate bugs through the layers of tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only says whether each mutant can still be applied.
    #[arg(long)]
    check: bool,
    /// Only mutants whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Goes on where an earlier run was broken off: mutants that it noticed are not run again.
    #[arg(long)]
    resume: bool,
    /// Seeds of the simulation.
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// Longest time that one program of tests may run, in seconds: a mutant may make a test wait for ever.
    #[arg(long, default_value_t = 300)]
    within: u64,
    /// Where the copy is made.
    #[arg(long, default_value = "target/mutants")]
    directory: PathBuf,
    /// The page that gets the table.
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

/// What became of a mutant.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    layer: String,
    evidence: String,
    seconds: u64,
    commit: String,
}

/// A layer of tests: what is built for it, and what each of its programs is told.
struct Layer {
    name: &'static str,
    build: &'static str,
    arguments: Vec<String>,
}

const SURVIVES: &str = "nothing";

/// The layers that a bug in this file may meet, cheapest first.
fn layers(file: &str, seeds: u64) -> Vec<Layer> {
    let tests = |name, build| Layer {
        name,
        build,
        arguments: Vec::new(),
    };
    let seeds = seeds.to_string();
    let simulation = Layer {
        name: "simulation",
        build: "build -p prover-sim --bin prover-sim",
        arguments: ["--fail-fast", "--threads", "1", "--seeds", &seeds]
            .map(str::to_owned)
            .into(),
    };
    let coordinator = tests("coordinator tests", "test --no-run -p prover-coordinator");
    match file {
        file if file.starts_with("operator/core/") => vec![
            tests("core rules", "test --no-run -p prover-core --lib --test rules"),
            tests("core histories", "test --no-run -p prover-core --test properties"),
            simulation,
            coordinator,
        ],
        file if file.starts_with("operator/log/") => {
            vec![
                tests("log tests", "test --no-run -p prover-log --lib"),
                simulation,
            ]
        }
        _ => vec![coordinator, simulation],
    }
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
    let mut applicable = true;
    for mutant in &mutants {
        if let Err(problem) = applied(Path::new("."), mutant) {
            eprintln!("{}: {problem}", mutant.name);
            applicable = false;
        }
    }
    println!("{} mutants, all of them applicable: {applicable}", mutants.len());
    if arguments.check || !applicable {
        return Ok(applicable);
    }
    let (copy, commit) = worktree(&arguments.directory)?;
    let known = copy.with_file_name("outcomes.json");
    let mut outcomes: BTreeMap<String, Outcome> = match std::fs::read(&known) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", known.display()))?,
        Err(_) => BTreeMap::new(),
    };
    outcomes.retain(|name, _| mutants.iter().any(|mutant| mutant.name == *name));
    for mutant in mutants
        .iter()
        .filter(|mutant| mutant.name.contains(&arguments.only))
    {
        let noticed = |outcome: &Outcome| outcome.layer != SURVIVES;
        if arguments.resume && outcomes.get(&mutant.name).is_some_and(noticed) {
            continue;
        }
        let started = Instant::now();
        let (layer, evidence) = judge(&copy, mutant, arguments)?;
        let seconds = started.elapsed().as_secs();
        println!("{}: {layer} ({seconds} s) {evidence}", mutant.name);
        let outcome = Outcome {
            layer: layer.to_owned(),
            evidence,
            seconds,
            commit: commit.clone(),
        };
        outcomes.insert(mutant.name.clone(), outcome);
        let text = serde_json::to_vec_pretty(&outcomes).map_err(|error| error.to_string())?;
        std::fs::write(&known, text).map_err(|error| error.to_string())?;
        write_report(&arguments.report, &mutants, &outcomes)?;
    }
    Ok(mutants.iter().all(|mutant| {
        let survives = outcomes
            .get(&mutant.name)
            .is_some_and(|outcome| outcome.layer == SURVIVES);
        !survives || !mutant.harmless.is_empty()
    }))
}

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

fn git(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git")
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("git {} failed", arguments.join(" ")))
    }
}

/// A copy of what is checked out, kept between runs so that only what differs is built again, and its commit.
fn worktree(directory: &Path) -> Result<(PathBuf, String), String> {
    let commit = git(&["rev-parse", "HEAD"])?;
    let copy = directory.join("copy");
    let place = copy.to_string_lossy();
    if copy.exists() {
        git(&[
            "-C", &place, "checkout", "--quiet", "--force", "--detach", &commit,
        ])?;
    } else {
        git(&["worktree", "add", "--quiet", "--detach", &place, &commit])?;
    }
    let copy = copy.canonicalize().map_err(|error| error.to_string())?;
    let short = commit.chars().take(9).collect();
    Ok((copy, short))
}

/// Which layer notices the mutant, and how it says so.
fn judge(copy: &Path, mutant: &Mutant, arguments: &Arguments) -> Result<(&'static str, String), String> {
    let path = copy.join(&mutant.file);
    let original = std::fs::read_to_string(&path).map_err(|error| error.to_string())?;
    std::fs::write(&path, applied(copy, mutant)?).map_err(|error| error.to_string())?;
    let mut found = Ok((SURVIVES, String::new()));
    for layer in layers(&mutant.file, arguments.seeds) {
        match failure(copy, &layer, Duration::from_secs(arguments.within)) {
            Ok(None) => continue,
            Ok(Some(evidence)) => found = Ok((layer.name, evidence)),
            Err(problem) => found = Err(format!("{}: {problem}", mutant.name)),
        }
        break;
    }
    std::fs::write(&path, original).map_err(|error| error.to_string())?;
    found
}

/// What a layer says when it fails; none where it passes.
fn failure(copy: &Path, layer: &Layer, within: Duration) -> Result<Option<String>, String> {
    for (program, folder) in programs(copy, layer.build)? {
        let log = copy.with_file_name("layer.log");
        let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new(&program)
            .args(&layer.arguments)
            .current_dir(&folder)
            .env("CARGO_MANIFEST_DIR", &folder)
            // A history that fails is not made shorter: that it fails is enough.
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .stdout(Stdio::from(file))
            .stderr(Stdio::from(errors))
            .spawn()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if started.elapsed() > within {
                child.kill().map_err(|error| error.to_string())?;
                child.wait().map_err(|error| error.to_string())?;
                return Ok(Some(format!("no end within {} s", within.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if !status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            return Ok(Some(evidence(&text)));
        }
    }
    Ok(None)
}

/// Builds a layer's programs: each with the folder of its package.
fn programs(copy: &Path, build: &str) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let mut command = Command::new("cargo");
    command
        .args(build.split(' '))
        .args(["--locked", "--quiet", "--message-format=json"]);
    for setting in OPTIMISATION {
        command.args(["--config", setting]);
    }
    let output = command
        .current_dir(copy)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err("it does not compile".to_owned());
    }
    let mut programs = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        if let (Some(program), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        {
            let folder = Path::new(manifest).parent().unwrap_or(copy);
            programs.push((PathBuf::from(program), folder.to_owned()));
        }
    }
    Ok(programs)
}

/// The first words that say what failed.
fn evidence(text: &str) -> String {
    let telling = text
        .lines()
        .find(|line| line.contains(" breaks ") || line.ends_with("... FAILED"));
    let words = telling
        .unwrap_or("its process died")
        .trim()
        .trim_start_matches("test ")
        .trim_end_matches(" ... FAILED");
    words.chars().take(160).collect::<String>().replace('|', "/")
}

/// Above it the page is written by people.
const TABLE: &str = "<!-- written by `make mutants` from here on -->";

fn write_report(page: &Path, mutants: &[Mutant], outcomes: &BTreeMap<String, Outcome>) -> Result<(), String> {
    let before = std::fs::read_to_string(page).unwrap_or_default();
    let words = before.split(TABLE).next().unwrap_or_default();
    let text = format!("{words}{TABLE}\n{}", table(mutants, outcomes));
    std::fs::write(page, text).map_err(|error| format!("{}: {error}", page.display()))
}

fn table(mutants: &[Mutant], outcomes: &BTreeMap<String, Outcome>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in outcomes.values() {
        *counts.entry(&outcome.layer).or_insert(0) += 1;
    }
    let mut text = format!(
        "\nOf {} bugs {} ran. Noticed by:\n\n",
        mutants.len(),
        outcomes.len()
    );
    for (layer, count) in &counts {
        let _ = writeln!(text, "- {layer}: {count}");
    }
    text.push_str("\n| bug | what is broken | noticed by | how | commit |\n|---|---|---|---|---|\n");
    for mutant in mutants {
        let (layer, evidence, commit) = match outcomes.get(&mutant.name) {
            Some(outcome) if outcome.evidence.is_empty() => {
                (&*outcome.layer, &*mutant.harmless, &*outcome.commit)
            }
            Some(outcome) => (&*outcome.layer, &*outcome.evidence, &*outcome.commit),
            None => ("not run yet", "", ""),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {layer} | {evidence} | {commit} |",
            mutant.name, mutant.description
        );
    }
    text
}
