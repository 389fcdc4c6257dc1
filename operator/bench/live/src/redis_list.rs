//! The baseline of queues in memory: a list in Redis, workers that block on it.
//!
//! Written to be fast where that changes nothing of what it is: a connection per worker, completion (a script that
//! counts down what dependents wait for) and the next blocking pop in one round trip, nothing written to disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;

use crate::error::LiveError;
use crate::postgres::Baseline;
use crate::tracker::Tracker;

/// What a worker takes from the list when there is nothing more.
const END: i64 = -1;
const COMPLETE: &str = "for dependent in string.gmatch(ARGV[1], '%d+') do \
                        if redis.call('HINCRBY', 'missing', dependent, -1) == 0 then \
                        redis.call('RPUSH', 'ready', dependent) end end";

async fn connect(client: &redis::Client) -> Result<MultiplexedConnection, LiveError> {
    // A blocking pop may take as long as it takes.
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(None);
    Ok(client
        .get_multiplexed_async_connection_with_config(&config)
        .await?)
}

/// Runs jobs of 2^`exponent` segments one after the other with so many connections for at least so long. The time to
/// fill the list is not counted.
pub(crate) async fn baseline(
    address: &str,
    exponent: u32,
    connections: usize,
    least: Duration,
) -> Result<Baseline, LiveError> {
    let client = redis::Client::open(address)?;
    let mut owner = connect(&client).await?;
    let script: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(COMPLETE)
        .query_async(&mut owner)
        .await?;
    let mut workers = Vec::new();
    for _ in 0..connections {
        workers.push(connect(&client).await?);
    }
    let tracker = Arc::new(Tracker::new(exponent));
    let count = tracker.nodes.len();
    let (mut spent, mut tasks) = (Duration::ZERO, 0);
    while spent < least {
        tracker.begin(connections);
        let ready = fill(&mut owner, &tracker).await?;
        let begun = Instant::now();
        tracker.submitted(0..count);
        let _: () = redis::cmd("RPUSH")
            .arg("ready")
            .arg(&ready)
            .query_async(&mut owner)
            .await?;
        let running = workers.iter().map(|worker| {
            let (worker, tracker, script) = (worker.clone(), Arc::clone(&tracker), script.clone());
            tokio::spawn(async move { work(worker, &tracker, &script, connections).await })
        });
        for worker in running.collect::<Vec<_>>() {
            worker.await.map_err(|_| LiveError::Silence {
                what: "a worker's end",
            })??;
        }
        spent += begun.elapsed();
        tracker.end();
        tasks += count;
    }
    let (delays, _) = tracker.percentiles();
    Ok(Baseline {
        tasks_per_second: tasks as f64 / spent.as_secs_f64(),
        delays,
    })
}

/// Writes what tasks wait for, and answers those that wait for nothing.
async fn fill(owner: &mut MultiplexedConnection, tracker: &Tracker) -> Result<Vec<usize>, LiveError> {
    let mut pipe = redis::pipe();
    pipe.cmd("FLUSHDB").ignore();
    let mut ready = Vec::new();
    for (place, node) in tracker.nodes.iter().enumerate() {
        if node.depends_on.is_empty() {
            ready.push(place);
        } else {
            pipe.cmd("HSET")
                .arg("missing")
                .arg(place)
                .arg(node.depends_on.len())
                .ignore();
        }
    }
    let _: () = pipe.query_async(owner).await?;
    Ok(ready)
}

async fn work(
    mut connection: MultiplexedConnection,
    tracker: &Tracker,
    script: &str,
    connections: usize,
) -> Result<(), LiveError> {
    let pop = |pipe: &mut redis::Pipeline| {
        pipe.cmd("BLPOP").arg("ready").arg(0);
    };
    let mut first = redis::pipe();
    pop(&mut first);
    let (popped,): ((String, i64),) = first.query_async(&mut connection).await?;
    let mut task = popped.1;
    while task != END {
        let place = task as usize;
        tracker.started(place);
        tracker.ended(place);
        let dependents: Vec<String> = tracker.dependents[place].iter().map(u32::to_string).collect();
        let mut pipe = redis::pipe();
        if dependents.is_empty() {
            // The last one: everybody may go.
            pipe.cmd("RPUSH")
                .arg("ready")
                .arg(vec![END; connections])
                .ignore();
        } else {
            pipe.cmd("EVALSHA")
                .arg(script)
                .arg(0)
                .arg(dependents.join(" "))
                .ignore();
        }
        pop(&mut pipe);
        let (popped,): ((String, i64),) = pipe.query_async(&mut connection).await?;
        task = popped.1;
    }
    Ok(())
}
