//! W6: from the end of a task on one worker to the start of its dependent on another, with its inputs fetched.
//!
//! Pairs of tasks: the first on a worker of one device class, the second, which needs what the first made, on one of
//! the other class, so that it never runs where the first did. Small results travel with the completion, large ones
//! through the store, as agents do it: uploaded and hashed before the completion is reported, fetched and checked
//! before the dependent starts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prover_artifacts::{ArtifactStore, Condition, Key, ObjectInfo, Prefix, Sha256};
use prover_backend::protocol as backend;
use prover_bench::statistics::Percentiles;
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol as wire;
use tokio::sync::Notify;

use crate::error::LiveError;
use crate::service::{Service, finish};
use crate::session::{Behaviour, Link, connect, dial, started, succeeded};

/// Largest result that travels with the completion.
const INLINE_BYTES: usize = 64 << 10;
/// How long the planner waits for the last pair.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Workers of each of the two classes.
    pub(crate) workers: usize,
    /// Bytes that the first task of a pair hands to the second.
    pub(crate) bytes: usize,
    /// Tasks per second: twice the pairs.
    pub(crate) rate: f64,
    /// How long pairs are submitted.
    pub(crate) span: Duration,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overhead {
    /// From the end of the first to the start of the second, in milliseconds.
    pub(crate) overhead: Percentiles,
    /// Of that, what upload and download took, in milliseconds.
    pub(crate) transfer: Percentiles,
    /// Tasks that ended per second, by the clock.
    pub(crate) tasks_per_second: f64,
}

struct Pairs {
    shape: Shape,
    store: Arc<dyn ArtifactStore>,
    content: Bytes,
    begun: Instant,
    /// When the first of each pair ended and how long its upload took, in nanoseconds.
    ended: Mutex<Vec<(u64, u64)>>,
    spans: Mutex<(Vec<f64>, Vec<f64>)>,
    done: AtomicU64,
    changed: Notify,
    failure: Mutex<Option<LiveError>>,
}

impl Pairs {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn count(&self) -> usize {
        (self.shape.rate / 2.0 * self.shape.span.as_secs_f64()) as usize
    }

    /// The planner: a pair at a time, then, when all are done, what concludes the job.
    async fn plan(&self, link: &Link, attempt_id: u64) -> Result<(), LiveError> {
        link.send(started(attempt_id));
        let begun = Instant::now();
        for pair in 0..self.count() {
            let due = Duration::from_secs_f64(pair as f64 * 2.0 / self.shape.rate);
            tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
            link.submit(attempt_id, self.pair(pair)).await?;
        }
        let all = async {
            loop {
                let changed = self.changed.notified();
                if self.done.load(Ordering::Acquire) == self.count() as u64 {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .map_err(|_| LiveError::Silence {
                what: "the last pair",
            })?;
        let mut verify = task("verify", "verify", wire::DeviceClass::Cpu);
        verify.concludes_job = true;
        link.submit(attempt_id, vec![verify]).await?;
        link.send(succeeded(attempt_id, Vec::new(), Vec::new()));
        Ok(())
    }

    fn pair(&self, pair: usize) -> Vec<backend::TaskSubmission> {
        let mut first = task(&format!("first-{pair}"), "prove", wire::DeviceClass::Gpu);
        let mut second = task(&format!("second-{pair}"), "join", wire::DeviceClass::Cpu);
        for task in [&mut first, &mut second] {
            task.parameters = (pair as u32).to_le_bytes().to_vec();
        }
        second.depends_on = vec![first.request_id.clone()];
        if self.shape.bytes > INLINE_BYTES {
            first.outputs = vec![format!("made-{pair}")];
            second.inputs = first.outputs.clone();
        }
        vec![first, second]
    }

    async fn run(&self, link: &Link, assign: &wire::Assign) -> Result<(), LiveError> {
        let pair = assign
            .parameters
            .first_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
        match assign.task_type.as_str() {
            "prove" => {
                link.send(started(assign.attempt_id));
                let ended = self.now();
                let (mut result, mut outputs) = (self.content.to_vec(), Vec::new());
                if let Some(name) = assign.outputs.first() {
                    let prefix = Prefix::new(format!("{}/", assign.artifact_prefix))?;
                    let key = prefix.attempt_prefix(assign.attempt_id)?.key("out")?;
                    let put = self
                        .store
                        .put_bytes(&key, self.content.clone(), Condition::CreateOnly);
                    let info = put.await?;
                    let (hash, size) = (*info.sha256.as_bytes(), info.size_bytes);
                    let artifact = prover_wire::artifact(name, key.as_str(), hash, size);
                    (result, outputs) = (Vec::new(), vec![artifact]);
                }
                let uploaded = self.now() - ended;
                self.ended.lock().unwrap_or_else(PoisonError::into_inner)[pair] = (ended, uploaded);
                link.send(succeeded(assign.attempt_id, result, outputs));
            }
            "join" => {
                let given = self.now();
                if let Some(input) = assign.inputs.first() {
                    let key = Key::new(input.key.as_str())?;
                    let sha256 = input
                        .sha256_bytes()
                        .map_err(|_| LiveError::Silence { what: "a hash" })?;
                    let expected = ObjectInfo {
                        size_bytes: input.size_bytes,
                        sha256: Sha256::from_bytes(sha256),
                    };
                    self.store
                        .get_bytes(&key, Some(&expected), input.size_bytes)
                        .await?;
                } else {
                    let bytes = assign.dependency_results.first().map_or(0, Vec::len);
                    assert_eq!(
                        bytes, self.shape.bytes,
                        "the result of the first came with the second"
                    );
                }
                let begun = self.now();
                link.send(started(assign.attempt_id));
                let (ended, uploaded) = self.ended.lock().unwrap_or_else(PoisonError::into_inner)[pair];
                let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
                spans.0.push((begun - ended) as f64);
                spans.1.push((begun - given + uploaded) as f64);
                drop(spans);
                link.send(succeeded(assign.attempt_id, Vec::new(), Vec::new()));
                self.done.fetch_add(1, Ordering::Release);
                self.changed.notify_waiters();
            }
            _ => {
                link.send(started(assign.attempt_id));
                link.send(succeeded(assign.attempt_id, Vec::new(), Vec::new()));
            }
        }
        Ok(())
    }
}

impl Behaviour for Pairs {
    fn assigned(self: Arc<Self>, link: Arc<Link>, assign: wire::Assign) {
        tokio::spawn(async move {
            let done = if assign.task_type == "plan" {
                self.plan(&link, assign.attempt_id).await
            } else {
                self.run(&link, &assign).await
            };
            if let Err(error) = done {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                link.send(wire::AttemptFailed {
                    attempt_id: assign.attempt_id,
                    class: wire::FailureClass::Fatal.into(),
                    reason: "Benchmark".to_owned(),
                    message: "the benchmark failed".to_owned(),
                    ..wire::AttemptFailed::default()
                });
            }
        });
    }
}

fn task(request_id: &str, task_type: &str, class: wire::DeviceClass) -> backend::TaskSubmission {
    let device_class = match class {
        wire::DeviceClass::Gpu => backend::DeviceClass::Gpu,
        _ => backend::DeviceClass::Cpu,
    };
    backend::TaskSubmission {
        request_id: request_id.to_owned(),
        task_type: task_type.to_owned(),
        resources: Some(backend::Resources {
            device_class: device_class.into(),
            host_memory_bytes: 1 << 30,
            vram_bytes: 0,
        }),
        depends_on: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        parameters: Vec::new(),
        cache_key: String::new(),
        estimated_device_seconds: 0.001,
        concludes_job: false,
        marker: false,
    }
}

/// Runs pairs at a rate.
pub(crate) async fn overhead(service: &Service, shape: Shape) -> Result<Overhead, LiveError> {
    let mut random = prover_bench::statistics::Random::new(6);
    let content: Vec<u8> = (0..shape.bytes).map(|_| random.number() as u8).collect();
    let pairs = Arc::new(Pairs {
        shape,
        store: Arc::clone(&service.store),
        content: content.into(),
        begun: Instant::now(),
        ended: Mutex::default(),
        spans: Mutex::default(),
        done: AtomicU64::new(0),
        changed: Notify::new(),
        failure: Mutex::default(),
    });
    *pairs.ended.lock().unwrap_or_else(PoisonError::into_inner) = vec![(0, 0); pairs.count()];
    for number in 0..shape.workers * 2 {
        let class = if number % 2 == 0 {
            wire::DeviceClass::Gpu
        } else {
            wire::DeviceClass::Cpu
        };
        let behaviour: Arc<dyn Behaviour> = pairs.clone();
        let connection = dial(service.coordinator.address()).await?;
        connect(connection, number, MESSAGES_PER_BATCH, class, behaviour).await?;
    }
    let begun = Instant::now();
    let job = service
        .submit(&format!("pairs-{}-{}", shape.bytes, shape.rate))
        .await?;
    let finished = finish(job).await;
    if let Some(failure) = pairs
        .failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        return Err(failure);
    }
    finished?;
    let elapsed = begun.elapsed();
    let (overhead, transfer) =
        std::mem::take(&mut *pairs.spans.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Overhead {
        tasks_per_second: overhead.len() as f64 * 2.0 / elapsed.as_secs_f64(),
        overhead: Percentiles::of(overhead).scaled(1e-6),
        transfer: Percentiles::of(transfer).scaled(1e-6),
    })
}
