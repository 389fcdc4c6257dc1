//! What everything is bounded by.

use std::time::Duration;

/// Longest line that the agent is told, in bytes.
pub(crate) const LINE_BYTES: usize = 4096;
/// Longest wait of a line for a place in the queue to the agent; lines are left out from then on until there is one.
pub(crate) const LINE_WITHIN: Duration = Duration::from_secs(1);
/// Messages that wait for the agent.
pub(crate) const QUEUED_EVENTS: usize = 512;
/// Bytes read from the prover's output at once.
pub(crate) const READ_BYTES: usize = 16 * 1024;
/// How often figures are told while the prover runs.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(1);
/// An agent that takes no message for so long is gone.
pub(crate) const SEND_WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for the rest of the output of a prover that has ended.
pub(crate) const OUTPUT_WITHIN: Duration = Duration::from_secs(2);
/// Longest wait for killed processes to be gone: one in the middle of a driver call can take long.
pub(crate) const KILLED_WITHIN: Duration = Duration::from_secs(20);
/// Between looks at what is left of killed processes, should a signal be missed.
pub(crate) const KILL_AGAIN_EVERY: Duration = Duration::from_millis(100);
/// Longest wait for the agent to take the last messages.
pub(crate) const FAREWELL_WITHIN: Duration = Duration::from_secs(2);
/// Shortest pause between attempts to reach the agent.
pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between attempts to reach the agent.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is told that the agent is awaited.
pub(crate) const REMIND_EVERY: Duration = Duration::from_secs(60);
