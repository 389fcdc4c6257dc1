//! Every fact comes back as it was written, and what a newer version wrote is refused.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing fails")]

use std::sync::Arc;

use proptest::prelude::*;
use prover_core::*;
use prover_facts::{FactError, decode, encode};

/// Draws parts of facts from random numbers, zeros when they are used up.
struct Draw(std::vec::IntoIter<u64>);

impl Draw {
    fn number(&mut self) -> u64 {
        self.0.next().unwrap_or(0)
    }

    /// Small, large or zero, so that every length of a number is met.
    fn long(&mut self) -> u64 {
        let shift = self.number() % 65;
        self.number().checked_shr(shift as u32).unwrap_or(0)
    }

    fn int(&mut self) -> u32 {
        self.long() as u32
    }

    fn flag(&mut self) -> bool {
        self.number() % 2 == 1
    }

    fn text(&mut self) -> Arc<str> {
        let length = self.number() % 40;
        (0..length)
            .map(|at| ['a', 'é', '/', '\0', '9'][(at % 5) as usize])
            .collect::<String>()
            .into()
    }

    fn bytes(&mut self) -> Arc<[u8]> {
        let length = self.number() % 70;
        (0..length).map(|at| at as u8).collect()
    }

    fn list<T>(&mut self, mut one: impl FnMut(&mut Draw) -> T) -> Vec<T> {
        let length = self.number() % 4;
        (0..length).map(|_| one(self)).collect()
    }

    fn option<T>(&mut self, one: impl FnOnce(&mut Draw) -> T) -> Option<T> {
        self.flag().then(|| one(self))
    }

    fn at(&mut self) -> Timestamp {
        Timestamp(self.long())
    }

    fn job(&mut self) -> JobId {
        JobId(self.long())
    }

    fn task(&mut self) -> TaskId {
        TaskId(self.long())
    }

    fn binding(&mut self) -> Binding {
        Binding {
            key: self.text(),
            sha256: [self.number() as u8; 32],
            size_bytes: self.long(),
        }
    }

    fn named(&mut self) -> (ArtifactName, Binding) {
        (self.text(), self.binding())
    }

    fn requirements(&mut self) -> Requirements {
        Requirements {
            lane: if self.flag() { Lane::Control } else { Lane::Device },
            device_class: if self.flag() {
                DeviceClass::Gpu
            } else {
                DeviceClass::Cpu
            },
            host_memory_bytes: self.long(),
            vram_bytes: self.long(),
            backend: BackendVersion {
                name: self.text(),
                version: self.text(),
            },
        }
    }

    fn task_spec(&mut self) -> TaskSpec {
        TaskSpec {
            request_id: self.text(),
            task_type: self.text(),
            requirements: self.requirements(),
            depends_on: self.list(Draw::text),
            inputs: self.list(Draw::text),
            outputs: self.list(Draw::text),
            parameters: self.bytes(),
            cache_key: self.option(Draw::text),
            estimated_device_time: self.option(|draw| Milliseconds(draw.long())),
            completes: self.list(Draw::text),
            concludes_job: self.flag(),
            marker: self.flag(),
        }
    }

    fn policy(&mut self) -> JobPolicy {
        JobPolicy {
            priority: self.int() as i32,
            deadline: self.option(Draw::at),
            active_deadline: self.option(|draw| Milliseconds(draw.long())),
            max_workers: self.option(Draw::int),
            suspended: self.flag(),
        }
    }

    fn job_spec(&mut self) -> JobSpec {
        JobSpec {
            uid: self.text(),
            tenant: self.text(),
            policy: self.policy(),
            retry_limit: self.int(),
            root: self.task_spec(),
            root_concludes: self.flag(),
            parent_chain: self.list(Draw::requirements),
            largest_leaf: self.requirements(),
            sources: self.list(Draw::named),
            retained: self.list(Draw::text),
        }
    }

    fn phase(&mut self) -> JobPhase {
        const CLASSES: [FailureClass; 9] = [
            FailureClass::Retryable,
            FailureClass::OutOfMemory,
            FailureClass::Fatal,
            FailureClass::InvalidInput,
            FailureClass::Artifact,
            FailureClass::ChildCrashed,
            FailureClass::ChildHung,
            FailureClass::ChildOutOfMemory,
            FailureClass::WorkerLost,
        ];
        match self.number() % 3 {
            0 => JobPhase::Succeeded,
            1 => JobPhase::Cancelled,
            _ => JobPhase::Failed {
                reason: self.text(),
                message: self.text(),
                class: self.option(|draw| CLASSES[draw.number() as usize % CLASSES.len()]),
            },
        }
    }

    /// A fact of this kind; all kinds come by.
    fn fact(&mut self, kind: usize) -> Fact {
        match kind % 29 {
            0 => Fact::JobAdmitted {
                job: self.job(),
                root: self.task(),
                spec: Arc::new(self.job_spec()),
                at: self.at(),
            },
            1 => Fact::JobPolicyChanged {
                job: self.job(),
                policy: self.policy(),
                at: self.at(),
            },
            2 => Fact::JobActive {
                job: self.job(),
                at: self.at(),
            },
            3 => Fact::JobCounted {
                job: self.job(),
                failures: self.int(),
                infrastructure_failures: self.int(),
            },
            4 => Fact::JobReplanned {
                job: self.job(),
                at: self.at(),
            },
            5 => Fact::JobFinished {
                job: self.job(),
                phase: self.phase(),
                at: self.at(),
            },
            6 => Fact::JobForgotten { job: self.job() },
            7 => Fact::JobStands {
                job: self.job(),
                epoch: self.int(),
                root_epoch: self.int(),
                replans: self.int(),
                started_at: self.option(Draw::at),
                active_since: self.option(Draw::at),
                active_before: Milliseconds(self.long()),
            },
            8 => Fact::TaskSubmitted {
                job: self.job(),
                task: self.task(),
                parent: self.option(|draw| TaskId(draw.long().max(1))),
                epoch: self.int(),
                spec: Arc::new(self.task_spec()),
                at: self.at(),
            },
            9 => Fact::ParentRestarted {
                task: self.task(),
                at: self.at(),
            },
            10 => Fact::TaskCounted(Box::new(TaskCounts {
                task: self.task(),
                attempts: self.int(),
                fence: self.int(),
                failures: self.int(),
                crashes: self.int(),
                suspected: self.int(),
                alone: self.flag(),
                sent: self.flag(),
                minimum_host_bytes: self.long(),
                minimum_vram_bytes: self.long(),
                device_microseconds: self.long(),
                energy_millijoules: self.long(),
                last_failure: self.option(Draw::text),
            })),
            11 => Fact::TaskSucceeded(Box::new(TaskSuccess {
                task: self.task(),
                attempt: self.option(|draw| AttemptId(draw.long().max(1))),
                attempts: self.int(),
                outputs: self.list(Draw::named),
                result: self.bytes(),
                device_microseconds: self.long(),
                energy_millijoules: self.long(),
                started_at: self.option(Draw::at),
                from_cache: self.flag(),
                at: self.at(),
            })),
            12 => Fact::TaskCached { task: self.task() },
            13 => Fact::MarkerCompleted {
                task: self.task(),
                at: self.at(),
            },
            14 => Fact::TaskFailed {
                task: self.task(),
                message: self.text(),
                at: self.at(),
            },
            15 => Fact::TaskDropped {
                task: self.task(),
                at: self.at(),
            },
            16 => Fact::TaskLeftPlan { task: self.task() },
            17 => Fact::ArtifactBound {
                job: self.job(),
                name: self.text(),
                binding: self.binding(),
            },
            18 => Fact::ArtifactDropped {
                job: self.job(),
                name: self.text(),
            },
            19 => Fact::ArtifactReleased {
                job: self.job(),
                name: self.text(),
            },
            20 => Fact::ArtifactStands(Box::new(ArtifactFacts {
                job: self.job(),
                name: self.text(),
                binding: self.option(Draw::binding),
                shared: self.flag(),
                gone: self.flag(),
                consumed: self.flag(),
                references: self.list(Draw::text),
            })),
            21 => Fact::ReferenceAdded {
                job: self.job(),
                name: self.text(),
                reference: self.text(),
            },
            22 => Fact::ReferenceRemoved {
                job: self.job(),
                name: self.text(),
                reference: self.text(),
            },
            23 => Fact::ChannelMessageSent {
                task: self.task(),
                sender: self.option(|draw| TaskId(draw.long().max(1))),
                attempt: AttemptId(self.long()),
                number: self.long(),
                payload: self.bytes(),
            },
            24 => Fact::CacheEntryStands {
                job: self.job(),
                key: self.text(),
                outputs: self.list(Draw::named),
                result: self.bytes(),
            },
            25 => Fact::CacheEntryDropped { key: self.text() },
            26 => Fact::TenantPolicyChanged {
                tenant: self.text(),
                policy: TenantPolicy {
                    weight: self.int(),
                    max_devices: self.option(Draw::int),
                },
            },
            27 => Fact::WorkerJoined { name: self.text() },
            _ => Fact::WorkerGone { name: self.text() },
        }
    }
}

proptest! {
    #[test]
    fn every_fact_comes_back_as_it_was_written(
        kind in 0usize..29,
        numbers in prop::collection::vec(any::<u64>(), 0..120),
    ) {
        let fact = Draw(numbers.into_iter()).fact(kind);
        prop_assert_eq!(decode(&encode(&fact)), Ok(fact));
    }

    /// A field that is not known here, at the end of any fact: number 1,000, length-delimited.
    #[test]
    fn a_field_of_a_newer_version_is_refused(
        kind in 0usize..29,
        numbers in prop::collection::vec(any::<u64>(), 0..120),
    ) {
        let mut record = encode(&Draw(numbers.into_iter()).fact(kind));
        record.extend([0xc2, 0x3e, 0x01, 0x07]);
        prop_assert_eq!(decode(&record), Err(FactError::WrittenByNewerVersion));
    }

    #[test]
    fn damaged_bytes_never_panic(record in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&record);
    }
}

#[test]
fn a_kind_of_a_newer_version_is_refused() {
    // Kind 500, length-delimited, empty; and nothing at all, as a kind that was skipped reads.
    assert_eq!(decode(&[0xa2, 0x1f, 0x00]), Err(FactError::WrittenByNewerVersion));
    assert_eq!(decode(&[]), Err(FactError::WrittenByNewerVersion));
}

#[test]
fn an_end_of_a_job_that_is_not_known_is_refused() {
    let mut record = encode(&Fact::JobFinished {
        job: JobId(1),
        phase: JobPhase::Succeeded,
        at: Timestamp(1),
    });
    let at = record.iter().rposition(|byte| *byte == 1).unwrap();
    record[at] = 9;
    assert_eq!(decode(&record), Err(FactError::WrittenByNewerVersion));
}

/// The sizes in docs/architecture.md.
#[test]
fn sizes_of_a_submitted_and_a_finished_task_stay_small() {
    let spec = TaskSpec {
        request_id: "prove/00001234".into(),
        task_type: "prove".into(),
        requirements: Requirements {
            lane: Lane::Device,
            device_class: DeviceClass::Gpu,
            host_memory_bytes: 4 << 30,
            vram_bytes: 10 << 30,
            backend: BackendVersion {
                name: "risc0".into(),
                version: "3.0.3".into(),
            },
        },
        depends_on: Vec::new(),
        inputs: vec!["segment/00001234".into()],
        outputs: vec!["receipt/00001234".into()],
        parameters: Arc::from([7; 16]),
        cache_key: None,
        estimated_device_time: Some(Milliseconds(800)),
        completes: Vec::new(),
        concludes_job: false,
        marker: false,
    };
    let now = Timestamp(1_795_276_800_000);
    let submitted = encode(&Fact::TaskSubmitted {
        job: JobId(1),
        task: TaskId(1 << 44 | 1234),
        parent: Some(TaskId(1 << 44 | 1)),
        epoch: 0,
        spec: Arc::new(spec),
        at: now,
    });
    let binding = Binding {
        key: "jobs/0b9a7a52-6d5c-4b57-8d38-0f6a1b2c3d4e/attempts/17592186045650/receipt".into(),
        sha256: [200; 32],
        size_bytes: 250_000,
    };
    let succeeded = encode(&Fact::TaskSucceeded(Box::new(TaskSuccess {
        task: TaskId(1 << 44 | 1234),
        attempt: Some(AttemptId(1 << 44 | 1234)),
        attempts: 1,
        outputs: vec![("receipt/00001234".into(), binding)],
        result: Arc::from([7; 200]),
        device_microseconds: 812_345,
        energy_millijoules: 250_000,
        started_at: Some(now),
        from_cache: false,
        at: now,
    })));
    let dropped = encode(&Fact::ArtifactDropped {
        job: JobId(1),
        name: "segment/00001234".into(),
    });
    println!(
        "submitted {} B, succeeded {} B, dropped {} B",
        submitted.len(),
        succeeded.len(),
        dropped.len()
    );
    assert!(submitted.len() <= 160 && succeeded.len() <= 420 && dropped.len() <= 30);
}
