//! The ways in which an attempt goes wrong on purpose.

use std::time::Duration;

use prover_backend::TaskError;
use tokio::task::JoinSet;

use crate::model::{Effect, Failure};

/// Size of one piece of memory that is taken.
const PIECE_BYTES: u64 = 16 * 1024 * 1024;
/// Smallest page of any machine that this runs on: touching one byte of each makes the memory real.
const PAGE_BYTES: usize = 4096;
/// Pause between two signals to the own process.
const SIGNAL_PAUSE: Duration = Duration::from_millis(10);

/// Does what the failure says. Returns only where the process lives on.
pub(crate) async fn strike(failure: &Failure, what: &str, hold: Duration) -> TaskError {
    tracing::info!(?failure, what, "failing on purpose");
    let message = format!("{what} fails, as its model says");
    match failure.effect {
        Effect::Retryable => TaskError::retryable("Emulated", message),
        Effect::OutOfMemory => TaskError::out_of_memory("Emulated", message),
        Effect::Fatal => TaskError::fatal("Emulated", message),
        Effect::InvalidInput => TaskError::invalid_input("Emulated", message),
        Effect::Artifact => TaskError::artifact("Emulated", message),
        Effect::Panic => panic!("{message}"),
        Effect::Abort => std::process::abort(),
        Effect::SegmentationFault => signal_itself(rustix::process::Signal::SEGV).await,
        Effect::Kill => signal_itself(rustix::process::Signal::KILL).await,
        Effect::Exit(code) => std::process::exit(i32::from(code)),
        Effect::Hang => hang().await,
        Effect::Allocate(bytes) => {
            allocate(bytes, hold).await;
            TaskError::out_of_memory(
                "Emulated",
                format!("{what} took {bytes} bytes, as its model says"),
            )
        }
    }
}

// The handler of the standard library for stack overflows takes the first SIGSEGV and gives up its place.
async fn signal_itself(signal: rustix::process::Signal) -> ! {
    loop {
        if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), signal) {
            tracing::error!(%error, "could not signal this process");
        }
        tokio::time::sleep(SIGNAL_PAUSE).await;
    }
}

// Parks every thread of the runtime, as a driver call that never returns would: pulses stop by themselves.
async fn hang() -> ! {
    let threads = tokio::runtime::Handle::current().metrics().num_workers();
    let mut parked = JoinSet::new();
    // More than there are threads, since a thread may be waiting inside the runtime and takes the next one.
    for _ in 0..threads * 8 {
        parked.spawn(async { park_for_ever() });
    }
    park_for_ever()
}

fn park_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

async fn allocate(bytes: u64, hold: Duration) {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let piece = usize::try_from(left.min(PIECE_BYTES)).unwrap_or(PAGE_BYTES);
        let mut memory = vec![0_u8; piece];
        memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        left -= piece as u64;
        taken.push(memory);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(hold).await;
    drop(std::hint::black_box(taken));
}
