//! A whole job on this machine: the task graph of the backend, N processes that each take the next task that is
//! ready, files in between.
//!
//! The processes are those of a worker group: one proof at a time each, the same number of threads each. The planner
//! runs in this process and hands tasks over while it executes, as the real one does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use prover_backend::protocol::{DeviceClass, TaskSubmission};
use prover_backend_risc0::execute::{self, Execution, Request};
use prover_backend_risc0::graph::{Ending, JOURNAL, TaskGraph, segment_artifact, task_type};
use prover_backend_risc0::program::Program;
use prover_backend_risc0::sizing::ProofKind;
use prover_backend_risc0::{prover, proving_threads};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{Job, Result};

const PROGRAM: &str = "program";
const PROOF: &str = "proof";
const PUBLIC_VALUES: &str = "public-values";

/// What the subcommand is given beside the job.
pub(crate) struct Options {
    pub(crate) workers: usize,
    pub(crate) kind: String,
    pub(crate) folder: PathBuf,
    pub(crate) proof: Option<PathBuf>,
}

/// One task, as a process reads it.
#[derive(Serialize, Deserialize)]
struct Order {
    task_type: String,
    inputs: Vec<PathBuf>,
    outputs: Vec<PathBuf>,
    image_id: String,
}

/// Runs the subcommand.
pub(crate) fn run(job: &Job, options: &Options) -> Result<()> {
    let started = Instant::now();
    let kind = ProofKind::from_name(&options.kind).ok_or("--kind is Composite or Succinct")?;
    let folder = options
        .folder
        .join(format!("prover-risc0-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let proved = prove(job, options, kind, &folder, started);
    std::fs::remove_dir_all(&folder)?;
    proved
}

fn prove(job: &Job, options: &Options, kind: ProofKind, folder: &Path, started: Instant) -> Result<()> {
    let (elf, input) = job.load()?;
    let program = Program::parse(&elf)?;
    std::fs::write(folder.join(PROGRAM), &elf)?;
    let (events, received) = mpsc::channel();
    let mut pool = Pool::start(options.workers, folder, &hex::encode(program.image_id()), &events)?;
    let execution = std::thread::scope(|scope| {
        let planner = scope.spawn(|| plan(&program, input, job.segment_po2, kind, folder, &events));
        let ran = pool.run(&received);
        let planned = planner.join().map_err(|_| "the planner panicked")?;
        ran.and(planned)
    })?;
    let wall = started.elapsed();
    if let Some(path) = &options.proof {
        std::fs::copy(folder.join(PROOF), path)?;
    }
    let line = json!({
        "bench": "local",
        "kind": kind.name(),
        "wallSeconds": wall.as_secs_f64(),
        "busySeconds": pool.busy_seconds,
        "workers": options.workers,
        "threads": proving_threads(),
        "segmentPo2": job.segment_po2,
        "segments": execution.segments,
        "userCycles": execution.user_cycles,
        "totalCycles": execution.total_cycles,
        "tasks": pool.tasks_done,
    });
    println!("{line}");
    Ok(())
}

/// What the pool waits for.
enum Event {
    Submitted(Vec<TaskSubmission>),
    // No more tasks will come.
    Planned,
    Failed(String),
    Answered { worker: usize, answer: String },
}

fn plan(
    program: &Program,
    input: Vec<u8>,
    segment_po2: u32,
    kind: ProofKind,
    folder: &Path,
    events: &mpsc::Sender<Event>,
) -> Result<Execution> {
    let mut graph = TaskGraph::new(kind, DeviceClass::Cpu);
    let request = Request {
        program,
        input,
        assumptions: &[],
        max_cycles: u64::MAX,
        segment_po2,
    };
    let executed = execute::execute(request, &|| Ok::<_, String>([0; 32]), |segment| {
        let path = folder.join(segment_artifact(segment.index.into()));
        std::fs::write(&path, &segment.bytes).map_err(|error| format!("{}: {error}", path.display()))?;
        let tasks = graph.segment(segment.po2, Sha256::digest(&segment.bytes).into());
        events
            .send(Event::Submitted(tasks))
            .map_err(|_| "nobody takes tasks any more".to_owned())
    });
    let execution = match executed {
        Ok(execution) => execution,
        Err(error) => {
            let _ = events.send(Event::Failed(error.to_string()));
            return Err(error.to_string().into());
        }
    };
    std::fs::write(folder.join(JOURNAL), &execution.journal)?;
    let ending = Ending {
        image_id: hex::encode(program.image_id()),
        program: PROGRAM.to_owned(),
        proof: PROOF.to_owned(),
        public_values: PUBLIC_VALUES.to_owned(),
        assumptions: vec![],
    };
    // The receiver is gone only where something failed, which is told there.
    let _ = events.send(Event::Submitted(graph.finish(&ending)));
    let _ = events.send(Event::Planned);
    Ok(execution)
}

struct Worker {
    child: Child,
    orders: ChildStdin,
    // Request id and time at which it was handed over.
    running: Option<(String, Instant)>,
}

/// The processes and the tasks that wait for them.
struct Pool {
    workers: Vec<Worker>,
    folder: PathBuf,
    image_id: String,
    waiting: BTreeMap<String, TaskSubmission>,
    // Ready, first come first served.
    ready: VecDeque<TaskSubmission>,
    done: BTreeSet<String>,
    planned: bool,
    tasks_done: usize,
    busy_seconds: f64,
}

impl Pool {
    fn start(workers: usize, folder: &Path, image_id: &str, events: &mpsc::Sender<Event>) -> Result<Self> {
        let mut started = Vec::new();
        for worker in 0..workers {
            let mut child = Command::new(std::env::current_exe()?)
                .arg("worker")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
                return Err("a process has no pipes".into());
            };
            let events = events.clone();
            std::thread::spawn(move || {
                for answer in BufReader::new(answers).lines().map_while(std::result::Result::ok) {
                    if events.send(Event::Answered { worker, answer }).is_err() {
                        return;
                    }
                }
                let _ = events.send(Event::Failed(format!("process {worker} ended")));
            });
            started.push(Worker {
                child,
                orders,
                running: None,
            });
        }
        Ok(Self {
            workers: started,
            folder: folder.to_owned(),
            image_id: image_id.to_owned(),
            waiting: BTreeMap::new(),
            ready: VecDeque::new(),
            done: BTreeSet::new(),
            planned: false,
            tasks_done: 0,
            busy_seconds: 0.0,
        })
    }

    fn run(&mut self, events: &mpsc::Receiver<Event>) -> Result<()> {
        while !self.finished() {
            match events.recv()? {
                Event::Submitted(tasks) => {
                    self.waiting
                        .extend(tasks.into_iter().map(|task| (task.request_id.clone(), task)));
                    self.promote();
                }
                Event::Planned => self.planned = true,
                Event::Failed(message) => return Err(message.into()),
                Event::Answered { worker, answer } => self.answered(worker, &answer)?,
            }
            self.hand_over()?;
        }
        Ok(())
    }

    fn finished(&self) -> bool {
        let idle = self.workers.iter().all(|worker| worker.running.is_none());
        self.planned && self.waiting.is_empty() && self.ready.is_empty() && idle
    }

    fn answered(&mut self, worker: usize, answer: &str) -> Result<()> {
        if answer != "done" {
            return Err(answer.into());
        }
        if let Some((request_id, since)) = self.workers[worker].running.take() {
            self.busy_seconds += since.elapsed().as_secs_f64();
            self.tasks_done += 1;
            self.done.insert(request_id);
            self.promote();
        }
        Ok(())
    }

    fn promote(&mut self) {
        let done = &self.done;
        let is_ready = |task: &TaskSubmission| task.depends_on.iter().all(|request| done.contains(request));
        let ready: Vec<String> = self
            .waiting
            .values()
            .filter(|task| is_ready(task))
            .map(|task| task.request_id.clone())
            .collect();
        self.ready.extend(
            ready
                .iter()
                .filter_map(|request_id| self.waiting.remove(request_id)),
        );
    }

    fn hand_over(&mut self) -> Result<()> {
        for worker in self.workers.iter_mut().filter(|worker| worker.running.is_none()) {
            let Some(task) = self.ready.pop_front() else { break };
            let path = |name: &String| self.folder.join(name);
            let order = Order {
                inputs: task.inputs.iter().map(path).collect(),
                outputs: task.outputs.iter().map(path).collect(),
                task_type: task.task_type,
                image_id: self.image_id.clone(),
            };
            writeln!(worker.orders, "{}", serde_json::to_string(&order)?)?;
            worker.orders.flush()?;
            worker.running = Some((task.request_id, Instant::now()));
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            // It may have ended already.
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}

/// Runs a process of `local`: orders on standard input, answers on standard output.
pub(crate) fn worker() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let answer = match serde_json::from_str(&line?)
            .map_err(Into::into)
            .and_then(|order| obey(&order))
        {
            Ok(()) => "done".to_owned(),
            Err(error) => error.to_string().replace('\n', " "),
        };
        println!("{answer}");
    }
    Ok(())
}

fn obey(order: &Order) -> Result<()> {
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let inputs = order
        .inputs
        .iter()
        .map(read)
        .collect::<std::result::Result<Vec<_>, _>>()?;
    let outputs = match (order.task_type.as_str(), inputs.as_slice()) {
        (task_type::PROVE, [segment]) => vec![prover::prove_segment(segment)?],
        (task_type::LIFT, [receipt]) => vec![prover::lift(receipt)?],
        (task_type::JOIN, [left, right]) => vec![prover::join(left, right)?],
        (task_type::FINALIZE, [receipts @ .., journal]) => {
            let image_id = prover_backend_risc0::backend::parse_image_id(&order.image_id)?;
            let composite = order.inputs[0].to_string_lossy().contains("segment-receipt-");
            let receipt = if composite {
                prover::finish_composite(receipts, vec![], journal.clone(), image_id)?
            } else {
                prover::finish_succinct(&receipts[0], journal.clone(), image_id)?
            };
            vec![receipt, journal.clone()]
        }
        (task_type::VERIFY, [program, proof, journal]) => {
            let accepted = prover::verify(proof, Program::parse(program)?.image_id())?;
            if accepted.journal != *journal {
                return Err("the receipt has another journal".into());
            }
            vec![]
        }
        (other, _) => return Err(format!("no task is of type {other}").into()),
    };
    for (path, bytes) in order.outputs.iter().zip(outputs) {
        // Renamed when it is whole, so that nothing half-written is ever read.
        let unfinished = path.with_extension("new");
        std::fs::write(&unfinished, bytes)?;
        std::fs::rename(&unfinished, path)?;
    }
    Ok(())
}
