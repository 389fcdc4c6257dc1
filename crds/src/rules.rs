//! The validation rules of both kinds, each as a CEL expression and what it tells the user.
//!
//! Written once: the API server evaluates them from the CRD, local mode evaluates the same CRD. Each message
//! says what to write instead. No message contains a line break, since the API server refuses that.

/// An expression and its message.
pub type RuleText = (&'static str, &'static str);

// ---- sources ----

/// A program has exactly one source.
pub const ONE_SOURCE_OF_PROGRAM: RuleText = (
    "[has(self.s3), has(self.http), has(self.configMap), has(self.secret), has(self.inline), has(self.file)].filter(x, x).size() == 1",
    "name exactly one source of the program: s3, http, configMap, secret or inline (or file in local mode)",
);
/// An input has at most one source.
pub const ONE_SOURCE_OF_INPUT: RuleText = (
    "[has(self.s3), has(self.http), has(self.configMap), has(self.secret), has(self.inline), has(self.text), has(self.file)].filter(x, x).size() <= 1",
    "name at most one source of the input: s3, http, configMap, secret, inline or text (or file in local mode)",
);
/// An assumption has exactly one source.
pub const ONE_SOURCE_OF_ASSUMPTION: RuleText = (
    "[has(self.s3), has(self.http), has(self.configMap), has(self.secret), has(self.file)].filter(x, x).size() == 1",
    "name exactly one source of the assumed proof: s3, http, configMap or secret (or file in local mode)",
);
/// A cluster can't read a user's files. The only rule that local mode leaves out.
pub const FILE_ONLY_IN_LOCAL_MODE: RuleText = (
    "!has(self.file)",
    "file is for local mode (kubectl-proof run -f): in a cluster put the bytes into s3, http, configMap, secret or inline",
);
/// Without TLS nobody can say which bytes arrive.
pub const PLAIN_HTTP_NEEDS_HASH: RuleText = (
    "!has(self.http) || self.http.url.startsWith('https://') || has(self.sha256)",
    "an http:// source needs sha256, since nothing else protects the bytes: add it, or use https://",
);
/// Line breaks and other alphabets are refused.
pub const INLINE_IS_BASE64: RuleText = (
    "self.size() % 4 == 0 && self.matches('^[A-Za-z0-9+/]*={0,2}$')",
    "inline must be base64 without line breaks: write the output of base64 -w0 FILE",
);
/// A foreign bucket is read with credentials or without, and the user says which.
pub const S3_BUCKET_SAYS_HOW_TO_SIGN_IN: RuleText = (
    "!has(self.bucket) || has(self.credentialsRef) != (has(self.anonymous) && self.anonymous)",
    "a bucket needs either credentialsRef or anonymous: true",
);
/// The cluster's own store has its own address and credentials.
pub const S3_OWN_STORE_NEEDS_NOTHING_ELSE: RuleText = (
    "has(self.bucket) || !(has(self.region) || has(self.endpoint) || has(self.credentialsRef) || (has(self.anonymous) && self.anonymous))",
    "region, endpoint, credentialsRef and anonymous belong to a bucket: add bucket, or leave them out to read from the store of the ProverCluster",
);

// ---- ProofJob ----

/// Each proof system makes its own kinds of proof.
pub const KIND_FITS_SYSTEM: RuleText = (
    "(self.system == 'risc0' && self.kind in ['Composite', 'Succinct', 'Groth16', 'ExecuteOnly']) || (self.system == 'sp1' && self.kind in ['Core', 'Compressed', 'Groth16', 'Plonk', 'ExecuteOnly']) || (self.system == 'command' && self.kind == 'Proof') || (self.system == 'emulated' && self.kind == 'Emulated')",
    "kind does not fit system: risc0 makes Composite, Succinct, Groth16 and ExecuteOnly, sp1 makes Core, Compressed, Groth16, Plonk and ExecuteOnly, command makes Proof, emulated makes Emulated",
);
/// Only the user's own provers need a name to be told apart.
pub const BACKEND_EXACTLY_FOR_COMMAND: RuleText = (
    "has(self.backend) == (self.system == 'command')",
    "backend and system: command belong together: name one of the backends of the ProverCluster for command, leave backend out for the other systems",
);
/// SP1 sizes its shards itself, and other provers have no segments.
pub const SEGMENT_PO2_FOR_SEGMENTS: RuleText = (
    "!has(self.segmentPo2) || !(self.proof.system in ['sp1', 'command'])",
    "segmentPo2 is not for sp1, which sizes its shards itself, nor for command: leave it out",
);
/// Nobody counts the cycles of the user's own provers.
pub const MAX_CYCLES_NOT_FOR_COMMAND: RuleText = (
    "!has(self.maxCycles) || self.proof.system != 'command'",
    "maxCycles is not for command, whose cycles nobody counts: use activeDeadlineSeconds, or timeoutSeconds of the backend",
);
/// Only RISC Zero resolves assumptions.
pub const ASSUMPTIONS_ONLY_FOR_RISC0: RuleText = (
    "!has(self.assumptions) || self.assumptions.size() == 0 || self.proof.system == 'risc0'",
    "assumptions are for risc0 only: leave them out, or hand the proofs over as input",
);
/// SP1's own serialized standard input.
pub const STDIN_ONLY_FOR_SP1: RuleText = (
    "!has(self.input) || !has(self.input.format) || self.input.format != 'Stdin' || self.proof.system == 'sp1'",
    "input.format Stdin is SP1's own format: use Raw or Frames",
);
/// Gas is SP1's measure.
pub const GAS_ONLY_FOR_SP1: RuleText = (
    "!has(self.reportGas) || !self.reportGas || self.proof.system == 'sp1'",
    "reportGas is for sp1, whose measure gas is: leave it out",
);
/// A cancelled job stays cancelled.
pub const CANCEL_IS_FINAL: RuleText = (
    "!(has(oldSelf.cancel) && oldSelf.cancel) || (has(self.cancel) && self.cancel)",
    "cancel can't be taken back: create another ProofJob",
);
/// The execution that tells it belongs to the plan.
pub const REPORT_GAS_IS_IMMUTABLE: RuleText = (
    "(has(self.reportGas) && self.reportGas) == (has(oldSelf.reportGas) && oldSelf.reportGas)",
    "reportGas is immutable: create another ProofJob to have the gas reported",
);
/// The program belongs to what is proved.
pub const PROGRAM_IS_IMMUTABLE: RuleText = (
    "self.program == oldSelf.program",
    "program is immutable: create another ProofJob for another program",
);
/// The proof's kind belongs to what is proved.
pub const PROOF_IS_IMMUTABLE: RuleText = (
    "self.proof == oldSelf.proof",
    "proof is immutable: create another ProofJob for another kind of proof",
);

macro_rules! immutable_option {
    ($($(#[$meta:meta])* $name:ident = $field:literal, $message:literal;)*) => {
        $($(#[$meta])*
        pub const $name: RuleText = (
            concat!("has(self.", $field, ") == has(oldSelf.", $field, ") && (!has(self.", $field, ") || self.", $field, " == oldSelf.", $field, ")"),
            $message,
        );)*
    };
}

immutable_option! {
    /// A job never moves.
    CLUSTER_REF_IS_IMMUTABLE = "clusterRef", "clusterRef is immutable: create another ProofJob for another ProverCluster";
    /// The input belongs to what is proved.
    INPUT_IS_IMMUTABLE = "input", "input is immutable: create another ProofJob for another input";
    /// The assumed proofs belong to what is proved.
    ASSUMPTIONS_ARE_IMMUTABLE = "assumptions", "assumptions are immutable: create another ProofJob for other assumptions";
    /// Execution has already been held to it.
    MAX_CYCLES_IS_IMMUTABLE = "maxCycles", "maxCycles is immutable: create another ProofJob for another limit";
    /// The execution has already been cut.
    SEGMENT_PO2_IS_IMMUTABLE = "segmentPo2", "segmentPo2 is immutable: create another ProofJob for another segment size";
    /// Attempts have already been counted against it.
    RETRY_LIMIT_IS_IMMUTABLE = "retryLimit", "retryLimit is immutable: create another ProofJob for another limit";
    /// Two controllers must never take turns.
    MANAGED_BY_IS_IMMUTABLE = "managedBy", "managedBy is immutable, setting it later too: create another ProofJob with it";
}

// ---- ProverCluster ----

/// Names of Services are made from it. The number is [`crate::names::LONGEST_CLUSTER_NAME`].
pub const CLUSTER_NAME_IS_SHORT: RuleText = (
    "!has(self.metadata.name) || self.metadata.name.size() <= 40",
    "the name of a ProverCluster has at most 40 characters, since names of Services are made from it: choose a shorter one",
);
/// Only the user's own provers are run as commands.
pub const COMMAND_EXACTLY_FOR_COMMAND: RuleText = (
    "has(self.command) == (self.system == 'command')",
    "command and system: command belong together: write both, or neither",
);
/// The commands are all that is run.
pub const ARGS_NOT_FOR_COMMAND: RuleText = (
    "!has(self.args) || self.args.size() == 0 || self.system != 'command'",
    "args are not for system command: write them into command.prove and command.verify",
);
/// Without it nobody would know where the proof is.
pub const PROVE_NAMES_PROOF: RuleText = (
    "self.prove.exists(word, word.contains('{proof}'))",
    "command.prove must contain {proof}, the path at which it shall write the proof",
);
/// A proof is worth something only for the program that was submitted.
pub const VERIFY_NAMES_PROGRAM_AND_PROOF: RuleText = (
    "self.verify.exists(word, word.contains('{program}')) && self.verify.exists(word, word.contains('{proof}'))",
    "command.verify must contain {program} and {proof}: it shall accept the proof for this program only",
);
/// Nobody should be told public values that no verifier has seen.
pub const VERIFY_NAMES_PUBLIC_VALUES: RuleText = (
    "!self.prove.exists(word, word.contains('{publicValues}')) || self.verify.exists(word, word.contains('{publicValues}'))",
    "command.prove writes {publicValues}, so command.verify must contain {publicValues} too: it shall accept the proof for them only",
);
/// A relative path would depend on where it is run.
pub const COMMANDS_ARE_ABSOLUTE: RuleText = (
    "self.prove[0].startsWith('/') && self.verify[0].startsWith('/')",
    "the first words of command.prove and command.verify are programs in the image: write their absolute paths",
);

/// A group without a backend could never prove.
pub const GROUPS_NAME_A_BACKEND: RuleText = (
    "self.workerGroups.all(group, self.backends.exists(backend, backend.name == group.backend))",
    "each worker group's backend must be the name of one of backends: correct it, or add the backend",
);
/// Artifacts of running jobs and the log lie in the bucket.
pub const BUCKET_IS_IMMUTABLE: RuleText = (
    "self.bucket == oldSelf.bucket",
    "bucket is immutable, since running jobs have their artifacts there: create another ProverCluster",
);
/// The same for the prefix.
pub const PREFIX_IS_IMMUTABLE: RuleText = (
    "has(self.prefix) == has(oldSelf.prefix) && (!has(self.prefix) || self.prefix == oldSelf.prefix)",
    "prefix is immutable, since running jobs have their artifacts there: create another ProverCluster",
);
/// Two owners of one number would fight.
pub const REPLICAS_OR_SCALING: RuleText = (
    "!(has(self.replicas) && has(self.scaling))",
    "replicas and scaling exclude each other: leave replicas out, or leave scaling out for a fixed number of workers",
);
/// A device is one or the other.
pub const CPU_OR_GPU: RuleText = (
    "has(self.cpu) != has(self.gpu)",
    "name exactly one kind of device: cpu: {} or gpu: {}",
);
/// A claim already says what is asked for.
pub const CLAIM_INSTEAD_OF_RESOURCE: RuleText = (
    "!has(self.resourceClaimTemplateName) || !(has(self.resourceName) || has(self.migProfile))",
    "resourceClaimTemplateName takes the place of resourceName and migProfile: leave them out and ask for them in the claim",
);
/// Bounds must have something between them.
pub const MIN_AT_MOST_MAX: RuleText = (
    "!has(self.minReplicas) || self.minReplicas <= self.maxReplicas",
    "minReplicas must not be greater than maxReplicas",
);
/// The other modes read no external metric.
pub const METRICS_SOURCE_ONLY_FOR_HPA: RuleText = (
    "!has(self.metricsSource) || self.mode == 'HPA'",
    "metricsSource is for mode HPA only: leave it out",
);
/// A selector that nobody reads, or one that is missing, is a mistake.
pub const SELECTOR_WITH_FROM_SELECTOR: RuleText = (
    "has(self.selector) == (has(self.from) && self.from == 'Selector')",
    "selector and from: Selector belong together: write both, or neither",
);
/// As the scheduler wants it.
pub const VALUES_FIT_OPERATOR: RuleText = (
    "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || self.values.size() == 0 : (self.operator in ['Gt', 'Lt'] ? has(self.values) && self.values.size() == 1 : has(self.values) && self.values.size() > 0)",
    "values must fit operator: one or more for In and NotIn, exactly one for Gt and Lt, none for Exists and DoesNotExist",
);
/// As the scheduler wants it.
pub const TOLERATION_VALUE_FITS_OPERATOR: RuleText = (
    "has(self.operator) && self.operator == 'Exists' ? !has(self.value) : has(self.key)",
    "a toleration with operator Exists has no value, and one with Equal needs a key",
);
/// A variable has one value.
pub const VALUE_OR_SECRET: RuleText = (
    "has(self.value) != has(self.secretRef)",
    "give an environment variable either value or secretRef",
);
/// The operator sets them.
pub const OWN_VARIABLES_ARE_RESERVED: RuleText = (
    "!self.name.startsWith('PROVER_')",
    "names that begin with PROVER_ are the operator's: choose another name",
);
