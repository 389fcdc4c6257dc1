//! Breaks a copy of the code on purpose, one deliberate bug at a time, and tells which layer of tests notices.
//!
//! Each mutant of `operator/sim/mutants/*.toml` marks a place in one file and what takes its place. The copy, a worktree
//! of the commit that is checked out, gets all of them at once, each behind a switch: so everything is built once, and
//! a bug is switched on by the environment variable `MUTANT`. What is known is kept beside the copy, so that a run may
//! be done in parts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use serde::{Deserialize, Serialize};

/// Around what a mutant replaces.
const MARKS: [char; 2] = ['«', '»'];
/// Says which mutant is switched on; 0: none.
const SWITCH: &str = "MUTANT";
/// Memory that a program of tests may take, in KiB: a mutant may never stop asking for more.
const MEMORY: &str = "8000000";

/// The switch, as every crate with mutants gets it.
const SWITCHES: &str = r#"//! Which deliberate bug is switched on.

use std::sync::LazyLock;

static SWITCHED_ON: LazyLock<u32> = LazyLock::new(|| {
    let number = std::env::var("MUTANT").ok();
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
});

pub(crate) fn on(mutant: u32) -> bool {
    *SWITCHED_ON == mutant
}
"#;

/// Runs the deliberate bugs through the layers of tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only says whether each mutant can still be applied.
    #[arg(long)]
    check: bool,
    /// Only mutants whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Goes on where an earlier run was broken off: mutants that were noticed are not run again.
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
    /// A text that occurs once in the file, with marks around what is replaced.
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

/// A layer of tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    CoreRules,
    CoreHistories,
    Log,
    Coordinator,
    Simulation,
}

impl Layer {
    const ALL: [Layer; 5] = [
        Layer::CoreRules,
        Layer::CoreHistories,
        Layer::Log,
        Layer::Coordinator,
        Layer::Simulation,
    ];

    fn name(self) -> &'static str {
        match self {
            Layer::CoreRules => "core rules",
            Layer::CoreHistories => "core histories",
            Layer::Log => "log tests",
            Layer::Coordinator => "coordinator tests",
            Layer::Simulation => "simulation",
        }
    }

    fn build(self) -> &'static str {
        match self {
            Layer::CoreRules => "test --no-run -p prover-core --lib --test rules",
            Layer::CoreHistories => "test --no-run -p prover-core --test properties",
            Layer::Log => "test --no-run -p prover-log --lib",
            Layer::Coordinator => "test --no-run -p prover-coordinator",
            Layer::Simulation => "build -p prover-sim --bin prover-sim",
        }
    }

    fn arguments(self, seeds: u64) -> Vec<String> {
        match self {
            Layer::Simulation => ["--fail-fast", "--threads", "1", "--seeds", &seeds.to_string()]
                .map(str::to_owned)
                .into(),
            _ => Vec::new(),
        }
    }

    /// The layers that a bug in this file may meet, cheapest first.
    fn of(file: &str) -> &'static [Layer] {
        if file.starts_with("operator/core/") {
            &[
                Layer::CoreRules,
                Layer::CoreHistories,
                Layer::Simulation,
                Layer::Coordinator,
            ]
        } else if file.starts_with("operator/log/") {
            &[Layer::Log, Layer::Simulation]
        } else {
            &[Layer::Coordinator, Layer::Simulation]
        }
    }
}

/// Programs of each layer, with the folders of their packages.
type Programs = BTreeMap<Layer, Vec<(PathBuf, PathBuf)>>;

const SURVIVES: &str = "nothing";

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
    let switched = switched(Path::new("."), &mutants)?;
    println!("{} mutants, all of them applicable", mutants.len());
    if arguments.check {
        return Ok(true);
    }
    let (copy, commit) = worktree(&arguments.directory)?;
    write_switches(&copy, &switched)?;
    let chosen: Vec<usize> = (0..mutants.len())
        .filter(|index| mutants[*index].name.contains(&arguments.only))
        .collect();
    let mut programs = Programs::new();
    for layer in Layer::ALL {
        if chosen
            .iter()
            .any(|index| Layer::of(&mutants[*index].file).contains(&layer))
        {
            programs.insert(layer, built(&copy, layer)?);
            if let Some(evidence) = failure(&copy, &programs, layer, 0, arguments)? {
                return Err(format!("{} fail without any bug: {evidence}", layer.name()));
            }
            println!("{}: built, and passed without a bug", layer.name());
        }
    }
    let known = copy.with_file_name("outcomes.json");
    let mut outcomes: BTreeMap<String, Outcome> = match std::fs::read(&known) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", known.display()))?,
        Err(_) => BTreeMap::new(),
    };
    outcomes.retain(|name, _| mutants.iter().any(|mutant| mutant.name == *name));
    for index in chosen {
        let mutant = &mutants[index];
        let noticed = |outcome: &Outcome| outcome.layer != SURVIVES;
        if arguments.resume && outcomes.get(&mutant.name).is_some_and(noticed) {
            continue;
        }
        let started = Instant::now();
        // What one bug failed on is not tried first with the next one.
        git(&[
            "-C",
            &copy.to_string_lossy(),
            "clean",
            "--quiet",
            "--force",
            "*proptest-regressions*",
        ])?;
        let mut outcome = Outcome {
            layer: SURVIVES.to_owned(),
            evidence: String::new(),
            seconds: 0,
            commit: commit.clone(),
        };
        for layer in Layer::of(&mutant.file) {
            if let Some(evidence) = failure(&copy, &programs, *layer, index + 1, arguments)? {
                (outcome.layer, outcome.evidence) = (layer.name().to_owned(), evidence);
                break;
            }
        }
        outcome.seconds = started.elapsed().as_secs();
        println!(
            "{}: {} ({} s) {}",
            mutant.name, outcome.layer, outcome.seconds, outcome.evidence
        );
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

/// The texts of all files with mutants, each mutant behind its switch.
fn switched(root: &Path, mutants: &[Mutant]) -> Result<BTreeMap<String, String>, String> {
    let files: BTreeSet<&String> = mutants.iter().map(|mutant| &mutant.file).collect();
    let mut texts = BTreeMap::new();
    for file in files {
        let path = root.join(file);
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        // Where something is inserted; at the same place what closes comes first, and the longer part opens first.
        let mut edits: Vec<(usize, u8, usize, String)> = Vec::new();
        for (index, mutant) in mutants
            .iter()
            .enumerate()
            .filter(|(_, mutant)| mutant.file == *file)
        {
            let (from, to) = place(&text, mutant).map_err(|problem| format!("{}: {problem}", mutant.name))?;
            let statement = [&text[from..to], &mutant.new]
                .iter()
                .any(|part| part.is_empty() || part.ends_with(';'));
            let (open, close) = if statement { ("", "") } else { ("(", ")") };
            let switch = format!(
                "{open}if crate::mutant::on({}) {{ {} }} else {{ ",
                index + 1,
                mutant.new
            );
            edits.push((from, 1, usize::MAX - to, switch));
            edits.push((to, 0, usize::MAX - from, format!(" }}{close}")));
        }
        edits.sort();
        let (mut result, mut at) = (String::new(), 0);
        for (place, _, _, insertion) in edits {
            result.push_str(&text[at..place]);
            result.push_str(&insertion);
            at = place;
        }
        result.push_str(&text[at..]);
        texts.insert(file.clone(), result);
    }
    Ok(texts)
}

/// Where in a file is what a mutant replaces.
fn place(text: &str, mutant: &Mutant) -> Result<(usize, usize), String> {
    let parts: Vec<&str> = mutant.old.split(MARKS).collect();
    let [before, part, after] = parts[..] else {
        return Err("its old text does not mark one part".to_owned());
    };
    let plain = format!("{before}{part}{after}");
    let mut found = text.match_indices(&plain);
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok((at + before.len(), at + before.len() + part.len())),
        (None, _) => Err(format!("its text does not occur in {}", mutant.file)),
        (Some(_), Some(_)) => Err(format!("its text occurs more than once in {}", mutant.file)),
    }
}

/// Writes the files with switches into the copy, where they differ from what is there.
fn write_switches(copy: &Path, switched: &BTreeMap<String, String>) -> Result<(), String> {
    let mut texts = switched.clone();
    for file in switched.keys() {
        let Some((package, _)) = file.split_once("/src/") else {
            return Err(format!("{file} is in no crate"));
        };
        let root = format!("{package}/src/lib.rs");
        let text = match texts.get(&root) {
            Some(text) => text.clone(),
            None => std::fs::read_to_string(copy.join(&root)).map_err(|error| error.to_string())?,
        };
        let module = "\nmod mutant;\n";
        if !text.ends_with(module) {
            texts.insert(root, format!("{text}{module}"));
        }
        texts.insert(format!("{package}/src/mutant.rs"), SWITCHES.to_owned());
    }
    for (file, text) in texts {
        let path = copy.join(file);
        if std::fs::read_to_string(&path).is_ok_and(|before| before == text) {
            continue;
        }
        std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
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

/// What a layer says when it fails; none where it passes.
fn failure(
    copy: &Path,
    programs: &Programs,
    layer: Layer,
    mutant: usize,
    arguments: &Arguments,
) -> Result<Option<String>, String> {
    let within = Duration::from_secs(arguments.within);
    for (program, folder) in programs.get(&layer).into_iter().flatten() {
        let log = copy.with_file_name("layer.log");
        let file = std::fs::File::create(&log).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -v $1; shift; exec \"$@\"", "sh", MEMORY])
            .arg(program)
            .args(layer.arguments(arguments.seeds))
            .current_dir(folder)
            .env("CARGO_MANIFEST_DIR", folder)
            .env(SWITCH, mutant.to_string())
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
                return Ok(Some(format!("hung: no end within {} s", within.as_secs())));
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
fn built(copy: &Path, layer: Layer) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let output = Command::new("cargo")
        .args(layer.build().split(' '))
        .args(["--locked", "--quiet", "--message-format=json"])
        .current_dir(copy)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| error.to_string())?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages: Vec<serde_json::Value> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    if !output.status.success() {
        let errors = messages
            .iter()
            .filter(|message| message["message"]["level"] == "error")
            .filter_map(|message| message["message"]["rendered"].as_str());
        return Err(format!(
            "the mutants do not compile: {}",
            errors.collect::<Vec<_>>().join("\n")
        ));
    }
    let programs = messages.iter().filter_map(|message| {
        let program = message["executable"].as_str()?;
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        Some((PathBuf::from(program), folder.to_owned()))
    });
    Ok(programs.collect())
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
