//! Runs `kubectl-proof run` as a user would, watches it, and reads its report.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::{bin_directory, binary};
use crate::processes::{Process, await_until, processes_of};

/// How long processes may take to disappear after the command has ended.
const NOTHING_LEFT_LIMIT: Duration = Duration::from_secs(5);

/// A job to be run, in a folder of its own.
#[derive(Debug)]
pub struct Job {
    folder: TempDir,
    manifest: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    workers: u16,
}

impl Job {
    /// A job whose manifest is this text.
    ///
    /// # Panics
    /// The folder can't be written.
    #[must_use]
    pub fn new(manifest: impl AsRef<str>) -> Self {
        let folder = mk_folder();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, manifest.as_ref()).expect("the manifest can be written");
        Job {
            folder,
            manifest: path,
            arguments: Vec::new(),
            environment: Vec::new(),
            workers: 2,
        }
    }

    /// A job of a manifest that lies elsewhere.
    #[must_use]
    pub fn of_file(manifest: impl Into<PathBuf>) -> Self {
        Job {
            folder: mk_folder(),
            manifest: manifest.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            workers: 2,
        }
    }

    /// Folder of this job, for files that its manifest names: paths are relative to it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the job's folder.
    ///
    /// # Panics
    /// The folder can't be written.
    #[must_use]
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        std::fs::write(self.folder.path().join(name), content).expect("the file can be written");
        self
    }

    /// More arguments of `run`.
    #[must_use]
    pub fn arguments<const N: usize>(mut self, arguments: [&str; N]) -> Self {
        self.arguments.extend(arguments.map(str::to_owned));
        self
    }

    /// An environment variable of the whole process tree.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Number of workers, 2 unless set.
    #[must_use]
    pub fn workers(mut self, workers: u16) -> Self {
        self.workers = workers;
        self
    }

    /// Starts the command with `--output json`.
    ///
    /// # Panics
    /// The binaries are missing or can't be started.
    #[must_use]
    pub fn start(self) -> Running {
        let temporary = self.folder.path().join("tmp");
        std::fs::create_dir_all(&temporary).expect("a folder can be created");
        let mut command = Command::new(binary("kubectl-proof"));
        command
            .args(["run", "--output", "json", "--filename"])
            .arg(&self.manifest)
            .args(["--workers", &self.workers.to_string(), "--output-directory"])
            .arg(self.folder.path().join("out"))
            .args(&self.arguments)
            .env("TMPDIR", &temporary)
            .env("PROVER_BACKENDS_DIRECTORY", bin_directory())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl-proof can be started");
        let stderr = Arc::new(Mutex::new(String::new()));
        let reader = child.stderr.take().map(|pipe| {
            let lines = stderr.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let mut text = lines.lock().unwrap_or_else(PoisonError::into_inner);
                    text.push_str(&line);
                    text.push('\n');
                }
            })
        });
        let stdout = child.stdout.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut text = String::new();
                // What is no text is no report: the assertion on it will show what came.
                let _ = pipe.read_to_string(&mut text);
                text
            })
        });
        Running {
            folder: self.folder,
            temporary,
            child,
            stderr,
            reader,
            stdout,
        }
    }

    /// Runs the command to its end.
    #[must_use]
    pub fn run(self) -> Finished {
        self.start().wait()
    }
}

fn mk_folder() -> TempDir {
    tempfile::Builder::new()
        .prefix("prover-e2e-")
        .tempdir()
        .expect("a temporary folder can be created")
}

/// A command that runs.
#[derive(Debug)]
pub struct Running {
    folder: TempDir,
    temporary: PathBuf,
    child: Child,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    stdout: Option<JoinHandle<String>>,
}

impl Running {
    /// Folder of the job.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has printed on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All its living processes.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        processes_of(&self.temporary)
    }

    /// Its living worker processes.
    #[must_use]
    pub fn agents(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| process.program == "prover-worker")
            .collect()
    }

    /// Its living backend processes.
    #[must_use]
    pub fn backends(&self) -> Vec<Process> {
        self.processes()
            .into_iter()
            .filter(|process| process.program.starts_with("prover-backend-"))
            .collect()
    }

    /// Its living backend processes of this device; the device `control` is the lane of planners.
    #[must_use]
    pub fn backends_of(&self, device: &str) -> Vec<Process> {
        self.backends()
            .into_iter()
            .filter(|process| process.variable("PROVER_DEVICE").as_deref() == Some(device))
            .collect()
    }

    /// Waits until some task of a stage runs, as the progress on standard error tells.
    ///
    /// # Panics
    /// It is not so within `limit`, or the command has ended.
    pub fn await_running(&mut self, stage: &str, done: u64, limit: Duration) {
        let what = format!("a task of {stage} runs after {done}");
        await_until(&what, limit, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the command ended early with {status}: {}", self.stderr());
            }
            runs_of_stage(&self.stderr(), stage, done).then_some(())
        });
    }

    /// Waits until at least `count` tasks of a stage are done, as the progress on standard error tells.
    ///
    /// # Panics
    /// It is not so within `limit`, or the command has ended.
    pub fn await_done(&mut self, stage: &str, count: u64, limit: Duration) {
        await_until(&format!("{count} tasks of {stage} are done"), limit, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the command ended early with {status}: {}", self.stderr());
            }
            (done_of_stage(&self.stderr(), stage)? >= count).then_some(())
        });
    }

    /// How many tasks of all stages are done, as the newest line of progress tells.
    #[must_use]
    pub fn tasks_done(&self) -> u64 {
        tasks_done(&self.stderr())
    }

    /// Whether the command has ended.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the command alone.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap_or_default();
        Process {
            pid,
            parent: 0,
            program: String::new(),
            arguments: Vec::new(),
        }
        .signal(signal);
    }

    /// Waits until it ends, and proves that no process of it is left.
    ///
    /// # Panics
    /// It can't be waited for, or a process is left.
    #[must_use]
    pub fn wait(mut self) -> Finished {
        let status = self.child.wait().expect("the command can be waited for");
        let stdout = self
            .stdout
            .take()
            .and_then(|reader| reader.join().ok())
            .unwrap_or_default();
        if let Some(reader) = self.reader.take() {
            reader.join().expect("standard error can be read");
        }
        await_until(
            &format!("nothing is left running of {}", self.temporary.display()),
            NOTHING_LEFT_LIMIT,
            || processes_of(&self.temporary).is_empty().then_some(()),
        );
        Finished {
            status,
            stdout,
            stderr: self.stderr(),
            folder: self.folder,
        }
    }
}

/// The newest `done` of a stage in lines such as `[   2.0 s] Execute 1/1, Prove 3/8 (2 running)`.
fn done_of_stage(stderr: &str, stage: &str) -> Option<u64> {
    stderr.lines().rev().find_map(|line| {
        let (_, stages) = line.split_once("s] ")?;
        stages.split(", ").find_map(|entry| {
            let counts = entry.strip_prefix(stage)?.strip_prefix(' ')?;
            counts.split_once('/')?.0.parse().ok()
        })
    })
}

/// Whether the newest line of progress says that a task of the stage runs while `done` of it are done.
fn runs_of_stage(stderr: &str, stage: &str, done: u64) -> bool {
    let newest = stderr.lines().rev().find_map(|line| line.split_once("s] "));
    newest.is_some_and(|(_, stages)| {
        stages.split(", ").any(|entry| {
            let counts = entry.strip_prefix(stage).and_then(|rest| rest.strip_prefix(' '));
            counts
                .is_some_and(|counts| counts.starts_with(&format!("{done}/")) && counts.ends_with("running)"))
        })
    })
}

/// All that is done in the newest line of progress.
fn tasks_done(stderr: &str) -> u64 {
    let newest = stderr.lines().rev().find_map(|line| {
        let (_, stages) = line.split_once("s] ")?;
        let done = |entry: &str| -> Option<u64> {
            let (before, _) = entry.split_once('/')?;
            before.rsplit_once(' ')?.1.parse().ok()
        };
        stages.split(", ").map(done).sum()
    });
    newest.unwrap_or(0)
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything on standard output.
    pub stdout: String,
    /// Everything on standard error.
    pub stderr: String,
    folder: TempDir,
}

impl Finished {
    /// The exit code.
    ///
    /// # Panics
    /// It was ended by a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| panic!("ended by a signal: {}\n{}", self.status, self.stderr))
    }

    /// The report: exactly one JSON object on standard output.
    ///
    /// # Panics
    /// It is something else.
    #[must_use]
    pub fn report(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!(
                "standard output is not one JSON object ({error}): {:?}\n{}",
                self.stdout, self.stderr
            )
        })
    }

    /// Fails with everything that is known unless the exit code is `code`.
    ///
    /// # Panics
    /// The exit code is another.
    #[must_use]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "stderr:\n{}\nstdout:\n{}",
            self.stderr,
            self.stdout
        );
        self
    }

    /// Folder of the job.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the output folder.
    #[must_use]
    pub fn output(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_count_of_a_stage_is_read() {
        let stderr = "[   0.1 s] waiting: x\n[   1.0 s] Execute 0/1 (1 running), Prove 1/3\n[   2.0 s] Execute 1/1, Prove 3/8 (2 running)\nworker 1 ended\n";
        assert_eq!(done_of_stage(stderr, "Prove"), Some(3));
        assert_eq!(done_of_stage(stderr, "Execute"), Some(1));
        assert_eq!(done_of_stage(stderr, "Join"), None);
        assert!(runs_of_stage(stderr, "Prove", 3) && !runs_of_stage(stderr, "Prove", 2));
        assert!(!runs_of_stage(stderr, "Execute", 1), "it is done");
        assert_eq!(tasks_done(stderr), 4);
        assert_eq!(tasks_done(""), 0);
    }
}
