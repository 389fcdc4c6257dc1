//! What a coordinator must know of a job after a crash and the scheduling core does not: facts of the shell, beside
//! those of the core in one log.
//!
//! Owns the words of these facts, and what they add up to. Does not own the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prover_backend::protocol as backend;
use prover_core::{Fact, JobId};

use crate::admission::JobRequest;

/// A first byte that says what a record is; a newer version may know more of them.
const CORE: u8 = 1;
const SHELL: u8 = 2;

/// One record of the log.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// What the scheduling core needs.
    Core(Fact),
    /// What the shell needs beside it.
    Shell(ShellFact),
}

/// A fact of the shell.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ShellFact {
    /// The job's unique name.
    #[prost(string, tag = "1")]
    pub uid: String,
    /// What is so.
    #[prost(oneof = "ShellChange", tags = "2, 3, 4, 5, 6")]
    pub change: Option<ShellChange>,
}

/// What is so of a job.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum ShellChange {
    /// It was taken.
    #[prost(message, tag = "2")]
    Taken(JobTaken),
    /// What executing its program told.
    #[prost(message, tag = "3")]
    Executed(backend::ExecutionReport),
    /// What the task that concluded it found.
    #[prost(message, tag = "4")]
    Proved(backend::ProofReport),
    /// What its attempts took, as it stands.
    #[prost(message, tag = "5")]
    Used(JobUsed),
    /// It ended without having been taken. Nothing is remembered of it: who writes this knows by it that nobody else
    /// leads, before it deletes anything.
    #[prost(message, tag = "6")]
    NotTaken(JobNotTaken),
}

/// A job that was not taken.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobNotTaken {}

/// A job as it was taken.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobTaken {
    /// Name of the object.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Namespace of the object.
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// The word under which backends offer the proof.
    #[prost(string, tag = "3")]
    pub system: String,
    /// Kind of proof.
    #[prost(string, tag = "4")]
    pub kind: String,
    /// It ends with the execution.
    #[prost(bool, tag = "5")]
    pub execute_only: bool,
    /// Failures that it survives.
    #[prost(uint32, tag = "6")]
    pub retry_limit: u32,
    /// Of all its artifacts.
    #[prost(string, tag = "7")]
    pub prefix: String,
    /// Program, input, assumptions, in the store.
    #[prost(message, repeated, tag = "8")]
    pub sources: Vec<prover_wire::protocol::Artifact>,
    /// As the backend protocol numbers it.
    #[prost(int32, tag = "9")]
    pub input_format: i32,
    /// Names of the sources that are proofs.
    #[prost(string, repeated, tag = "10")]
    pub assumptions: Vec<String>,
    /// 0: no limit.
    #[prost(uint64, tag = "11")]
    pub max_cycles: u64,
    /// 0: the backend chooses.
    #[prost(uint32, tag = "12")]
    pub segment_po2: u32,
    /// Expected identity of the program; may be empty.
    #[prost(string, tag = "13")]
    pub program_id: String,
    /// What the backend said of itself, encoded.
    #[prost(bytes = "vec", tag = "14")]
    pub backend: Vec<u8>,
    /// The report shall have the gas.
    #[prost(bool, tag = "15")]
    pub report_gas: bool,
}

/// What a job's attempts took.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobUsed {
    /// Milliseconds on devices by worker group.
    #[prost(btree_map = "string, uint64", tag = "1")]
    pub device_milliseconds: BTreeMap<String, u64>,
    /// Attempts that ended without a result.
    #[prost(uint64, tag = "2")]
    pub failed_attempts: u64,
}

/// A record that can't be read. Never worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Of a kind that this version does not know.
    #[error("a record of the log was written by a newer version (kind {kind}): upgrade the coordinator")]
    Newer {
        /// Its first byte; none of an empty one.
        kind: u8,
    },
    /// A fact of the core that can't be read.
    #[error(transparent)]
    Fact(#[from] prover_facts::FactError),
    /// A fact of the shell that can't be read.
    #[error("a record of the log can't be read: {0}")]
    Shell(#[from] prost::DecodeError),
}

impl Record {
    /// Its bytes in the log.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128);
        match self {
            Record::Core(fact) => {
                bytes.push(CORE);
                bytes.extend(prover_facts::encode(fact));
            }
            Record::Shell(fact) => {
                bytes.push(SHELL);
                // A vector takes whatever is put into it.
                let _ = prost::Message::encode(fact, &mut bytes);
            }
        }
        bytes
    }

    /// From its bytes in the log.
    ///
    /// # Errors
    /// A newer version wrote it, or something else did.
    pub fn decode(bytes: &[u8]) -> Result<Record, RecordError> {
        match bytes.split_first() {
            Some((&CORE, fact)) => Ok(Record::Core(prover_facts::decode(fact)?)),
            Some((&SHELL, fact)) => {
                let fact = <ShellFact as prost::Message>::decode(fact)?;
                match fact.change {
                    Some(_) => Ok(Record::Shell(fact)),
                    None => Err(RecordError::Newer { kind: SHELL }),
                }
            }
            other => Err(RecordError::Newer {
                kind: other.map_or(0, |(kind, _)| *kind),
            }),
        }
    }
}

/// What is remembered of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Remembered {
    pub(crate) taken: JobTaken,
    pub(crate) executed: Option<backend::ExecutionReport>,
    pub(crate) proved: Option<backend::ProofReport>,
    pub(crate) used: JobUsed,
}

/// What is remembered of all jobs that are not forgotten.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    jobs: BTreeMap<Arc<str>, Remembered>,
    uids: BTreeMap<JobId, Arc<str>>,
}

impl Memory {
    /// The next fact of the core; only those that begin and end jobs matter.
    pub(crate) fn core(&mut self, fact: &Fact) {
        match fact {
            Fact::JobAdmitted { job, spec, .. } => {
                self.uids.insert(*job, spec.uid.clone());
            }
            Fact::JobForgotten { job } => {
                if let Some(uid) = self.uids.remove(job) {
                    self.jobs.remove(&uid);
                }
            }
            _ => {}
        }
    }

    /// The next fact of the shell.
    pub(crate) fn shell(&mut self, fact: ShellFact) {
        let ShellFact { uid, change } = fact;
        if let Some(ShellChange::Taken(taken)) = change {
            let remembered = Remembered {
                taken,
                ..Remembered::default()
            };
            self.jobs.insert(uid.into(), remembered);
            return;
        }
        let Some(job) = self.jobs.get_mut(uid.as_str()) else {
            return;
        };
        match change {
            Some(ShellChange::Executed(report)) => job.executed = Some(report),
            Some(ShellChange::Proved(report)) => job.proved = Some(report),
            Some(ShellChange::Used(used)) => job.used = used,
            Some(ShellChange::Taken(_) | ShellChange::NotTaken(_)) | None => {}
        }
    }

    /// What is remembered of a job.
    pub(crate) fn job(&self, uid: &str) -> Option<&Remembered> {
        self.jobs.get(uid)
    }

    /// Facts that add up to the same.
    pub(crate) fn checkpoint(&self) -> Vec<Record> {
        let mut facts = Vec::new();
        for (uid, job) in &self.jobs {
            let changes = [
                Some(ShellChange::Taken(job.taken.clone())),
                job.executed.clone().map(ShellChange::Executed),
                job.proved.clone().map(ShellChange::Proved),
                (job.used != JobUsed::default()).then(|| ShellChange::Used(job.used.clone())),
            ];
            facts.extend(
                changes
                    .into_iter()
                    .flatten()
                    .map(|change| Record::Shell(shell_fact(uid, change))),
            );
        }
        facts
    }
}

/// A fact about a job.
pub(crate) fn shell_fact(uid: &str, change: ShellChange) -> ShellFact {
    ShellFact {
        uid: uid.to_owned(),
        change: Some(change),
    }
}

/// What the attempts of a job took.
pub(crate) fn used(times: &BTreeMap<Arc<str>, Duration>, failed_attempts: u64) -> JobUsed {
    let milliseconds = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    JobUsed {
        device_milliseconds: times
            .iter()
            .map(|(group, time)| (group.to_string(), milliseconds(time)))
            .collect(),
        failed_attempts,
    }
}

impl JobUsed {
    pub(crate) fn times(&self) -> BTreeMap<Arc<str>, Duration> {
        self.device_milliseconds
            .iter()
            .map(|(group, time)| (group.as_str().into(), Duration::from_millis(*time)))
            .collect()
    }
}

impl JobRequest {
    /// As it is remembered.
    pub(crate) fn taken(&self, backend: Vec<u8>) -> JobTaken {
        JobTaken {
            name: self.name.to_string(),
            tenant: self.tenant.to_string(),
            system: self.system.to_string(),
            kind: self.kind.to_string(),
            execute_only: self.execute_only,
            retry_limit: self.retry_limit,
            prefix: self.prefix.as_str().to_owned(),
            sources: self
                .sources
                .iter()
                .map(|(name, binding)| crate::convert::artifact(name, binding))
                .collect(),
            input_format: self.input_format.into(),
            assumptions: self.assumptions.clone(),
            max_cycles: self.max_cycles,
            segment_po2: self.segment_po2,
            program_id: self.program_id.clone(),
            backend,
            report_gas: self.report_gas,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_fact() -> ShellFact {
        let used = used(&[("gpu".into(), Duration::from_millis(7))].into(), 3);
        shell_fact("uid", ShellChange::Used(used))
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let forgotten = Record::Core(Fact::JobForgotten { job: JobId(7) });
        for record in [forgotten, Record::Shell(mk_fact())] {
            assert_eq!(Record::decode(&record.encode()).unwrap(), record);
        }
    }

    #[test]
    fn a_record_of_a_newer_version_is_refused_in_words() {
        let unknown_change = prost::Message::encode_to_vec(&ShellFact {
            uid: "uid".to_owned(),
            change: None,
        });
        for bytes in [vec![9, 1], Vec::new(), [vec![SHELL], unknown_change].concat()] {
            let told = Record::decode(&bytes).unwrap_err().to_string();
            assert!(told.contains("newer version"), "{told}");
        }
    }

    #[test]
    fn a_checkpoint_adds_up_to_the_same_and_a_forgotten_job_leaves_nothing() {
        let mut memory = Memory::default();
        memory.shell(shell_fact("uid", ShellChange::Taken(JobTaken::default())));
        memory.shell(mk_fact());
        let mut again = Memory::default();
        for record in memory.checkpoint() {
            if let Record::Shell(fact) = record {
                again.shell(fact);
            }
        }
        assert_eq!(again, memory);
        again.uids.insert(JobId(7), "uid".into());
        again.core(&Fact::JobForgotten { job: JobId(7) });
        assert_eq!(again, Memory::default());
    }
}
