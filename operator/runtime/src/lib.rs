//! What every long-running binary of the project shares: logging, metrics, probes and the clock.
//!
//! Owns how a process is observed and what time it is. Does not own what is measured: each crate registers its
//! own metrics in the [`prometheus::Registry`] that it is given.

pub mod clock;
pub mod listener;
pub mod logging;
pub mod signals;

pub use clock::{Clock, ManualClock, SystemClock};
pub use listener::{ListenerError, Observation, ObservationHandle};
pub use logging::{LogFormat, LoggingArguments, LoggingError};
pub use prometheus;
pub use signals::stop_on_signal;
