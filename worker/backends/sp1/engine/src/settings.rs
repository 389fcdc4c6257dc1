//! What must be the same in all processes that work on a job.

use sp1_core_executor::{SP1CoreOpts, ShardingThreshold};

/// Cycles of the largest shard: SP1's own default.
const SHARD_SIZE: usize = 1 << 24;

/// Cycles that the native executor hands over at once, and chunks that may wait: SP1's own defaults.
const TRACE_CHUNK_THRESHOLD: u64 = 1 << 24;
const TRACE_CHUNK_SLOTS: usize = 5;

/// What decides about the shape of shards, and how much memory an execution may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Elements of the traces of one shard. Memory of a shard's proof grows with it.
    pub element_threshold: u64,
    /// Rows of the largest table of a shard.
    pub height_threshold: u64,
    /// Resident memory of the executor's child process in bytes, beyond which SP1 kills it.
    pub executor_memory_bytes: u64,
    /// Whether the traces leave out what only a GPU prover makes itself.
    pub gpu: bool,
}

impl Settings {
    /// As SP1 takes them. Variables of SP1's own that would change them are not heard.
    #[must_use]
    pub fn core_opts(&self) -> SP1CoreOpts {
        SP1CoreOpts {
            minimal_trace_chunk_threshold: TRACE_CHUNK_THRESHOLD,
            trace_chunk_slots: TRACE_CHUNK_SLOTS,
            memory_limit: self.executor_memory_bytes,
            shard_size: SHARD_SIZE,
            sharding_threshold: ShardingThreshold {
                element_threshold: self.element_threshold,
                height_threshold: self.height_threshold,
            },
            global_dependencies_opt: self.gpu,
            ..SP1CoreOpts::default()
        }
    }
}
