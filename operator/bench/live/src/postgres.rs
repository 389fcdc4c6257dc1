//! The baseline that most job queues are: a table in Postgres, `FOR UPDATE SKIP LOCKED`, polling.
//!
//! Written to be fast where that changes nothing of what it is: prepared statements, a partial index of what is ready,
//! one statement to claim and one to complete, dependents as an array of the row, a connection per worker. What a job
//! queue of a prover does and this leaves out (attempts, leases, retries, fairness) would only cost more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prover_bench::statistics::Percentiles;
use tokio_postgres::{Client, NoTls, Statement};

use crate::error::LiveError;
use crate::tracker::Tracker;

/// Wait of a worker that found nothing: a tenth of what is usual, so that polling does not decide the result.
const POLL: Duration = Duration::from_millis(10);
const CLAIM: &str = "UPDATE tasks SET state = 2 WHERE id = (SELECT id FROM tasks WHERE state = 1 ORDER BY id \
                     LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id";
const COMPLETE: &str = "WITH done AS (UPDATE tasks SET state = 3 WHERE id = $1 RETURNING dependents) \
                        UPDATE tasks SET missing = missing - 1, state = CASE WHEN missing = 1 THEN 1 ELSE state END \
                        FROM done WHERE id = ANY (done.dependents)";

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Baseline {
    pub(crate) tasks_per_second: f64,
    /// From (ready and a worker free) to running, in milliseconds.
    pub(crate) delays: Percentiles,
}

/// A worker's connection, with its statements prepared.
struct Worker {
    client: Client,
    claim: Statement,
    complete: Statement,
}

impl Worker {
    async fn connect(address: &str, durable: bool) -> Result<Worker, LiveError> {
        let client = connect(address).await?;
        if !durable {
            client.batch_execute("SET synchronous_commit = off").await?;
        }
        let (claim, complete) = (client.prepare(CLAIM).await?, client.prepare(COMPLETE).await?);
        Ok(Worker {
            client,
            claim,
            complete,
        })
    }
}

async fn connect(address: &str) -> Result<Client, LiveError> {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await?;
    // It ends with its client; what it says then, the client has said.
    tokio::spawn(connection);
    Ok(client)
}

/// Runs jobs of 2^`exponent` segments one after the other with so many connections for at least so long. The time to
/// fill the table is not counted.
pub(crate) async fn baseline(
    address: &str,
    exponent: u32,
    connections: usize,
    least: Duration,
    durable: bool,
) -> Result<Baseline, LiveError> {
    let owner = connect(address).await?;
    owner
        .batch_execute(
            "DROP TABLE IF EXISTS tasks; \
             CREATE TABLE tasks (id bigint PRIMARY KEY, state smallint NOT NULL, missing smallint NOT NULL, \
             dependents bigint[] NOT NULL); CREATE INDEX ready ON tasks (id) WHERE state = 1;",
        )
        .await?;
    let mut workers = Vec::new();
    for _ in 0..connections {
        workers.push(Arc::new(Worker::connect(address, durable).await?));
    }
    let tracker = Arc::new(Tracker::new(exponent));
    let count = tracker.nodes.len();
    let (mut spent, mut tasks, mut first) = (Duration::ZERO, 0, 0_i64);
    while spent < least {
        fill(&owner, &tracker, first).await?;
        tracker.begin(connections);
        tracker.submitted(0..count);
        let begun = Instant::now();
        let left = Arc::new(AtomicU64::new(count as u64));
        let working = workers.iter().map(|worker| {
            let (worker, tracker, left) = (Arc::clone(worker), Arc::clone(&tracker), Arc::clone(&left));
            tokio::spawn(async move { work(&worker, &tracker, &left, first).await })
        });
        for worker in working.collect::<Vec<_>>() {
            worker.await.map_err(|_| LiveError::Silence {
                what: "a worker's end",
            })??;
        }
        spent += begun.elapsed();
        tracker.end();
        tasks += count;
        first += count as i64;
    }
    let (delays, _) = tracker.percentiles();
    Ok(Baseline {
        tasks_per_second: tasks as f64 / spent.as_secs_f64(),
        delays,
    })
}

async fn fill(owner: &Client, tracker: &Tracker, first: i64) -> Result<(), LiveError> {
    owner.batch_execute("TRUNCATE tasks").await?;
    let statement = owner
        .prepare("INSERT INTO tasks (id, state, missing, dependents) VALUES ($1, $2, $3, $4)")
        .await?;
    owner.batch_execute("BEGIN").await?;
    for (place, node) in tracker.nodes.iter().enumerate() {
        let dependents: Vec<i64> = tracker.dependents[place]
            .iter()
            .map(|other| first + i64::from(*other))
            .collect();
        let missing = node.depends_on.len() as i16;
        let state = i16::from(missing == 0);
        owner
            .execute(
                &statement,
                &[&(first + place as i64), &state, &missing, &dependents],
            )
            .await?;
    }
    owner.batch_execute("COMMIT; ANALYZE tasks").await?;
    Ok(())
}

async fn work(worker: &Worker, tracker: &Tracker, left: &AtomicU64, first: i64) -> Result<(), LiveError> {
    let Worker {
        client,
        claim,
        complete,
    } = worker;
    while left.load(Ordering::Relaxed) > 0 {
        let Some(row) = client.query_opt(claim, &[]).await? else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let id: i64 = row.get(0);
        let place = (id - first) as usize;
        tracker.started(place);
        tracker.ended(place);
        client.execute(complete, &[&id]).await?;
        left.fetch_sub(1, Ordering::Relaxed);
    }
    Ok(())
}
