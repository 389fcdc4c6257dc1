//! Reasons: the words in `reason` fields of conditions, status and events. They are part of the interface: scripts
//! compare them, so none is ever renamed. Failures that a backend reports carry its own words, which its
//! documentation lists.

macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$meta])* pub const $name: &str = $text;)*
        /// Every reason of this module.
        pub const ALL: &[&str] = &[$($name),*];
    };
}

reasons! {
    // ---- ProofJob: Accepted ----

    /// The cluster takes the job.
    ACCEPTED = "Accepted";
    /// The ProverCluster of `clusterRef` does not exist.
    CLUSTER_NOT_FOUND = "ClusterNotFound";
    /// The ProverCluster is being deleted.
    CLUSTER_TERMINATING = "ClusterTerminating";
    /// The ProverCluster does not allow the namespace of the job.
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed";
    /// No backend of the ProverCluster makes such a proof.
    PROOF_NOT_OFFERED = "ProofNotOffered";
    /// No worker has the circuits that such a proof needs, whole and readable; the message says what is missing where.
    CIRCUITS_MISSING = "CircuitsMissing";
    /// The namespace or the ProverCluster has as many unfinished jobs as it may.
    TOO_MANY_JOBS = "TooManyJobs";
    /// The job's priority is higher than its namespace may use.
    PRIORITY_TOO_HIGH = "PriorityTooHigh";
    /// The specification can't be carried out, although it passed the rules of the CRD.
    INVALID_SPEC = "InvalidSpec";

    // ---- ProofJob: why it waits ----

    /// Admitted, about to be considered.
    ADMITTED = "Admitted";
    /// Its sources are being fetched into the store.
    FETCHING_SOURCES = "FetchingSources";
    /// No worker with its backend version is connected.
    NO_WORKER_OF_BACKEND = "NoWorkerOfBackend";
    /// No worker is large enough for its largest task.
    NO_WORKER_LARGE_ENOUGH = "NoWorkerLargeEnough";
    /// Workers are busy with other jobs.
    WAITING_FOR_CAPACITY = "WaitingForCapacity";
    /// No worker has the host memory for its planner now.
    WAITING_FOR_HOST_MEMORY = "WaitingForHostMemory";
    /// The namespace or the ProverCluster runs as many jobs as it may, or the namespace uses as many devices.
    WAITING_FOR_QUOTA = "WaitingForQuota";

    // ---- ProofJob: while it lives ----

    /// Its planner was given to a worker.
    STARTED = "Started";
    /// `spec.suspend` is true.
    SUSPENDED = "Suspended";
    /// `spec.suspend` is false again.
    RESUMED = "Resumed";

    // ---- ProofJob: DeadlineFeasible ----

    /// The deadline holds even if everything that other jobs have in the queue goes first.
    ENOUGH_TIME = "EnoughTime";
    /// The work that is left takes too long on all devices that there are.
    TOO_FEW_DEVICES = "TooFewDevices";
    /// Tasks that must follow each other take too long, on however many devices.
    CHAIN_TOO_LONG = "ChainTooLong";
    /// It depends on how the devices are shared with other jobs.
    DEPENDS_ON_OTHER_JOBS = "DependsOnOtherJobs";
    /// No task of some type was measured yet.
    NOTHING_MEASURED = "NothingMeasured";
    /// Not all tasks are known before the program has been executed.
    PLAN_NOT_KNOWN = "PlanNotKnown";
    /// No device takes the tasks now.
    NO_DEVICES = "NoDevices";

    /// A replica of the coordinator leads from now on.
    COORDINATOR_TOOK_OVER = "CoordinatorTookOver";
    /// The coordinator's log knows nothing of a job that had begun: the job begins again.
    COORDINATOR_RESTARTED = "CoordinatorRestarted";
    /// Attempts failed and are tried again.
    ATTEMPTS_FAILED = "AttemptsFailed";
    /// Attempts were lost with their workers and run elsewhere.
    ATTEMPTS_LOST = "AttemptsLost";
    /// What the job left in the store is deleted, but for what its user keeps.
    ARTIFACTS_COLLECTED = "ArtifactsCollected";
    /// `proofRetentionSeconds` of the ProverCluster have passed since the end of the job.
    RETENTION_OVER = "RetentionOver";

    // ---- ProofJob: how it ended ----

    /// The proof is in the store and verified, or the program was executed where only that was asked for.
    SUCCEEDED = "Succeeded";
    /// It ended without a proof; the condition `Failed` says why.
    FAILED = "Failed";
    /// `spec.cancel` is true.
    CANCELLED = "Cancelled";
    /// `deadline` passed.
    DEADLINE_EXCEEDED = "DeadlineExceeded";
    /// The job was active for longer than `activeDeadlineSeconds`.
    ACTIVE_DEADLINE_EXCEEDED = "ActiveDeadlineExceeded";
    /// Its attempts failed more often than `retryLimit` allows.
    RETRY_LIMIT_EXCEEDED = "RetryLimitExceeded";
    /// It lost more workers than any job may.
    INFRASTRUCTURE_RETRY_LIMIT_EXCEEDED = "InfrastructureRetryLimitExceeded";
    /// One of its tasks killed every prover that tried it.
    TASK_QUARANTINED = "TaskQuarantined";
    /// Memory ran out even with the smallest segments.
    OUT_OF_MEMORY = "OutOfMemory";
    /// The program ran longer than `maxCycles`.
    CYCLE_LIMIT_EXCEEDED = "CycleLimitExceeded";
    /// The program ended with an error of its own.
    GUEST_PANICKED = "GuestPanicked";
    /// The program wanted more input than there is.
    INPUT_TOO_SHORT = "InputTooShort";
    /// The program is nothing that its proof system runs; the message says what it is instead.
    INVALID_PROGRAM = "InvalidProgram";
    /// The program is no ELF file.
    NOT_AN_ELF = "NotAnElf";
    /// The program was built for another processor than the proof system's.
    WRONG_ARCHITECTURE = "WrongArchitecture";
    /// The program is another than `programId` says.
    PROGRAM_ID_MISMATCH = "ProgramIdMismatch";
    /// A source does not exist.
    SOURCE_NOT_FOUND = "SourceNotFound";
    /// A source could not be read: permissions, network, credentials.
    SOURCE_UNREADABLE = "SourceUnreadable";
    /// A source may not be used: no label on the Secret, a private address, another namespace's key.
    SOURCE_NOT_ALLOWED = "SourceNotAllowed";
    /// A source is of a kind that this place does not serve.
    SOURCE_NOT_SUPPORTED = "SourceNotSupported";
    /// A source has other bytes than `sha256` says.
    SOURCE_HASH_MISMATCH = "SourceHashMismatch";
    /// A source is larger than the ProverCluster allows.
    SOURCE_TOO_LARGE = "SourceTooLarge";
    /// The backend planned no task that checks the proof: a fault of the backend.
    NOTHING_CONCLUDES = "NothingConcludes";
    /// The backend delivered other outputs than it declared: a fault of the backend.
    OUTPUTS_REFUSED = "OutputsRefused";
    /// The proof that came out did not pass its verification.
    PROOF_REFUSED = "ProofRefused";
    /// The ProverCluster was deleted with `proving.rs/force-delete` before the job ended.
    CLUSTER_DELETED = "ClusterDeleted";
    /// A failure that has no word of its own; the message tells it.
    OTHER_FAILURE = "OtherFailure";

    // ---- the store ----

    /// The store answers and offers what is needed.
    STORE_REACHABLE = "StoreReachable";
    /// The store does not answer.
    STORE_UNREACHABLE = "StoreUnreachable";
    /// The store refused the credentials.
    STORE_ACCESS_DENIED = "StoreAccessDenied";
    /// The store can't create an object only if it is absent, which fencing needs.
    CONDITIONAL_WRITES_UNSUPPORTED = "ConditionalWritesUnsupported";
    /// The store has no space left.
    STORE_FULL = "StoreFull";
    /// The store can't be written.
    STORE_NOT_WRITABLE = "StoreNotWritable";
    /// The store failed otherwise.
    STORE_FAILED = "StoreFailed";

    // ---- ProverCluster ----

    /// Everything is as wanted. Zero workers without work are as wanted.
    READY = "Ready";
    /// Changes are on their way.
    PROGRESSING = "Progressing";
    /// No coordinator leads.
    NO_LEADER = "NoLeader";
    /// A leader runs, but nobody could take over from it.
    NO_STANDBY = "NoStandby";
    /// A coordinator leads and another could take over.
    COORDINATOR_AVAILABLE = "CoordinatorAvailable";
    /// Fewer workers are connected than wanted.
    WORKERS_MISSING = "WorkersMissing";
    /// Pods of a group can't be scheduled, so the group is capped and the next one gets the work.
    GROUP_UNSCHEDULABLE = "GroupUnschedulable";
    /// Devices were taken out because they failed their check.
    DEVICES_FAILED = "DevicesFailed";
    /// An image could not be fetched.
    IMAGE_PULL_FAILED = "ImagePullFailed";
    /// A container can't be made: a Secret or ConfigMap that it names is missing, or a key of it.
    CONTAINER_CONFIG_INVALID = "ContainerConfigInvalid";
    /// A container ends again and again, or can't be started.
    CONTAINER_CRASHING = "ContainerCrashing";
    /// The API server refuses to make pods: a quota, or a rule of admission.
    PODS_REFUSED = "PodsRefused";
    /// Something that the ProverCluster is made of could not be applied.
    APPLY_FAILED = "ApplyFailed";
    /// The annotation `proving.rs/apply` says `paused`.
    PAUSED = "Paused";
    /// The annotation `proving.rs/apply` says `dry-run`.
    DRY_RUN = "DryRun";
    /// More namespaces are allowed than a ProverCluster may serve.
    TOO_MANY_NAMESPACES = "TooManyNamespaces";
    /// The operator may not read labels of namespaces, so none can be selected by them.
    NAMESPACES_UNREADABLE = "NamespacesUnreadable";
    /// The operator serves the external metrics itself.
    METRICS_SERVED = "MetricsServed";
    /// Something else serves external metrics in this cluster, and it is left alone.
    OWNED_BY_OTHER = "OwnedByOther";
    /// The cluster is being deleted and waits for its unfinished jobs.
    UNFINISHED_JOBS = "UnfinishedJobs";

    // ---- certificates ----

    /// A certificate, its key or the bundle of authorities was gone or had been changed, and was made again.
    CERTIFICATE_REPLACED = "CertificateReplaced";
    /// The certificate authority of the cluster is being replaced by its successor.
    AUTHORITY_ROTATED = "AuthorityRotated";

    // ---- lifetime ----

    /// Argo CD or Flux manage the object, so it is not deleted after its time: Git would create it again.
    TTL_HELD_BY_GITOPS = "TTLHeldByGitOps";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn reasons_are_different_camel_case_words() {
        let different: BTreeSet<&str> = ALL.iter().copied().collect();
        assert_eq!(different.len(), ALL.len());
        for reason in ALL {
            assert!(
                reason.starts_with(|letter: char| letter.is_ascii_uppercase()),
                "{reason}"
            );
            assert!(
                reason.bytes().all(|byte| byte.is_ascii_alphanumeric()),
                "{reason}"
            );
        }
    }
}
