//! Streams between workers and coordinators, as gRPC has them: in order, whole or broken. What was sent before a
//! stream broke may arrive or not; after a reconnect the older stream may still deliver what was on its way.

use std::sync::Arc;

use prover_wire::protocol::coordinator_message::Message as Down;
use prover_wire::protocol::worker_message::Message as Up;

use crate::trace::note;
use crate::world::{Happening, World};

/// How long a coordinator takes to notice that the other end is gone without a word (keepalive).
const KEEPALIVE: u64 = 20_000;

/// One stream.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) place: usize,
    /// Agent process that opened it.
    pub(crate) process: u64,
    /// Name and UID of its pod: what its token says.
    pub(crate) pod: (Arc<str>, Arc<str>),
    pub(crate) replica: usize,
    /// Coordinator process that it reached; 0: none yet.
    pub(crate) incarnation: u64,
    pub(crate) worker_open: bool,
    pub(crate) replica_open: bool,
    /// When what was sent last arrives, so that nothing overtakes it.
    up_ready: u64,
    down_ready: u64,
    /// Nothing that arrives later than this arrives at all.
    pub(crate) cut: u64,
}

impl World {
    pub(crate) fn connect(&mut self, place: usize, replica: usize) -> u64 {
        self.last_connection += 1;
        let worker = &self.workers[place];
        let connection = Connection {
            place,
            process: worker.process,
            pod: (worker.pod.as_str().into(), worker.pod_uid.as_str().into()),
            replica,
            incarnation: 0,
            worker_open: true,
            replica_open: true,
            up_ready: self.now,
            down_ready: self.now,
            cut: u64::MAX,
        };
        self.connections.insert(self.last_connection, connection);
        self.last_connection
    }

    /// When a message that is sent now gets through.
    fn passage(&mut self, place: usize, replica: usize) -> u64 {
        let latency = self.random.between(1, self.faults.latency.max(1));
        let open = self.partitions.get(&(place, replica)).copied().unwrap_or(0);
        self.now.max(open) + latency
    }

    pub(crate) fn send_up(&mut self, id: u64, message: Up) {
        let Some(connection) = self
            .connections
            .get(&id)
            .filter(|connection| connection.worker_open)
        else {
            return;
        };
        let (place, replica) = (connection.place, connection.replica);
        let at = self.passage(place, replica);
        if let Some(connection) = self.connections.get_mut(&id) {
            let at = at.max(connection.up_ready);
            connection.up_ready = at;
            let message = Box::new(message);
            self.at(
                at,
                Happening::Up {
                    connection: id,
                    message,
                },
            );
        }
    }

    pub(crate) fn send_down(&mut self, id: u64, message: Down) {
        let Some(connection) = self
            .connections
            .get(&id)
            .filter(|connection| connection.replica_open)
        else {
            return;
        };
        let (place, replica) = (connection.place, connection.replica);
        let at = self.passage(place, replica);
        if let Some(connection) = self.connections.get_mut(&id) {
            let at = at.max(connection.down_ready);
            connection.down_ready = at;
            let message = Box::new(message);
            self.at(
                at,
                Happening::Down {
                    connection: id,
                    message,
                },
            );
        }
    }

    /// The worker has closed its side. The coordinator hears of it after everything that was sent before.
    pub(crate) fn worker_side_ends(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.worker_open = false;
        let (place, replica, ready) = (connection.place, connection.replica, connection.up_ready);
        let heard = self.passage(place, replica).max(ready);
        let at = heard.min(self.now + KEEPALIVE);
        self.at(at, Happening::ReplicaSideEnds { connection: id });
        self.forget_connection(id);
    }

    /// The coordinator has closed its side.
    pub(crate) fn replica_side_ends(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.replica_open = false;
        let (place, replica, ready) = (connection.place, connection.replica, connection.down_ready);
        let at = self.passage(place, replica).max(ready);
        self.at(at, Happening::WorkerSideEnds { connection: id });
        self.forget_connection(id);
    }

    pub(crate) fn forget_connection(&mut self, id: u64) {
        let closed = self
            .connections
            .get(&id)
            .is_some_and(|connection| !connection.worker_open && !connection.replica_open);
        if closed {
            self.connections.remove(&id);
        }
    }

    /// The stream breaks somewhere between its ends: what is on its way may be lost, and each end notices it in its
    /// own time.
    pub(crate) fn break_connection(&mut self, id: u64) {
        let latency = self.faults.latency.max(1);
        let (now, worker, half_open) = (
            self.now,
            self.random.between(0, 2 * latency),
            self.random.chance(300),
        );
        let replica = if half_open {
            self.random.between(0, KEEPALIVE)
        } else {
            self.random.between(0, 2 * latency)
        };
        let cut = now + self.random.between(0, latency);
        note!(self, id, cut, "stream {id} breaks");
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.cut = connection.cut.min(cut);
        self.at(now + worker, Happening::WorkerSideEnds { connection: id });
        self.at(now + replica, Happening::ReplicaSideEnds { connection: id });
    }
}
