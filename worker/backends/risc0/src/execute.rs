//! Executing a program and cutting its trace into segments, each handed over as it is made.
//!
//! Owns: the limits of an execution, its failures in the words of the program's author, and that a program executed
//! again makes the same segments. Does not own: where segments go.
//!
//! RISC Zero's own session (`ExecutorImpl::run`) takes randomness from the operating system, and the standard guest
//! runtime draws some at start, so that no two executions have a segment in common: a planner that runs again after
//! a crash could use nothing of what was proved before. Here the same circuit executor runs with system calls of our
//! own in front of RISC Zero's: randomness comes from a seed that the job keeps, requests for circuits that are not
//! offered are refused at the first one, and panics and missing assumptions arrive as what they are. All other calls
//! go to RISC Zero's handlers.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use risc0_binfmt::{ByteAddr, Digestible as _, ProgramBinary};
use risc0_circuit_rv32im::execute::{
    CycleLimit, Executor, Segment as CircuitSegment, Syscall, SyscallContext,
};
use risc0_circuit_rv32im::{MAX_INSN_CYCLES, MAX_INSN_CYCLES_LOWER_PO2, TerminateState};
use risc0_zkvm::sha::Impl as Sha;
use risc0_zkvm::{
    ALLOWED_CONTROL_ROOT, Assumption, Assumptions, Digest, ExecutorEnv, ExecutorImpl, InnerAssumptionReceipt,
    Output,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::program::Program;

/// Cycles of a job that names no limit.
pub const DEFAULT_MAX_CYCLES: u64 = 100_000_000_000;

/// Largest journal in bytes; RISC Zero's own executor has the same limit.
pub const MAX_JOURNAL_BYTES: usize = 100 << 20;

/// What is kept of a program's standard output and error, to be shown when it fails.
pub const MAX_OUTPUT_BYTES: usize = 16 << 10;

/// Longest panic message that is read from a program, in bytes.
const MAX_PANIC_BYTES: u32 = 4096;

/// Longest name of a system call.
const MAX_NAME_BYTES: u32 = 256;

/// File descriptors of RISC Zero's guests (risc0-zkvm-platform, `fileno`).
const FD_STDOUT: u32 = 1;
const FD_STDERR: u32 = 2;
const FD_JOURNAL: u32 = 3;

/// Registers in which a system call passes its arguments (risc0-zkvm-platform, `reg_abi`).
const REGISTER_A3: usize = 13;
const REGISTER_A4: usize = 14;

/// Halt types (risc0-zkvm-platform, `syscall::halt`).
const HALT_TERMINATE: u16 = 0;

/// What an execution is given.
pub struct Request<'a> {
    /// The program.
    pub program: &'a Program,
    /// What it reads from standard input.
    pub input: Vec<u8>,
    /// Receipts that it may rely on.
    pub assumptions: &'a [InnerAssumptionReceipt],
    /// User cycles after which it is stopped.
    pub max_cycles: u64,
    /// Segments have at most 2 to the power of this many cycles.
    pub segment_po2: u32,
}

/// A segment as its prover reads it.
#[derive(Debug)]
pub struct SegmentBytes {
    /// Number from 0.
    pub index: u32,
    /// Its cycles are 2 to the power of this.
    pub po2: u32,
    /// User cycles in it.
    pub user_cycles: u64,
    /// The bincode encoding of [`risc0_zkvm::Segment`].
    pub bytes: Vec<u8>,
}

/// A program that ran to its end with exit code 0.
#[derive(Clone, Debug)]
pub struct Execution {
    /// Segments that were handed over.
    pub segments: u64,
    /// Cycles of the program itself.
    pub user_cycles: u64,
    /// Cycles that are proved: with paging, and padded to powers of two.
    pub total_cycles: u64,
    /// What the program made public.
    pub journal: Vec<u8>,
    /// Receipts that the program relied on, in the order in which they are resolved: indices into
    /// [`Request::assumptions`].
    pub assumptions: Vec<usize>,
}

/// Why an execution came to nothing. `E` is what the caller's own functions fail with.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<E> {
    /// The program runs longer than the job allows.
    #[error(
        "the program was stopped at the limit of {max_cycles} cycles, after {segments} whole segments. If it is meant \
         to run that long, raise spec.maxCycles; else look for a loop that does not end"
    )]
    CycleLimitExceeded {
        /// The limit.
        max_cycles: u64,
        /// Segments that were full by then.
        segments: u64,
    },
    /// The program panicked.
    #[error("the program panicked: {message}")]
    GuestPanicked {
        /// In its own words.
        message: String,
    },
    /// The program ended itself with another exit code than 0.
    #[error("the program ended with exit code {code}. Only a program that ends with 0 can be proved{output}")]
    GuestFailed {
        /// Its exit code.
        code: u16,
        /// The end of what it wrote, introduced.
        output: String,
    },
    /// The program paused.
    #[error("the program paused (env::pause) and expects to go on later, which jobs do not offer")]
    GuestPaused,
    /// The program did what no program may, such as jumping to nowhere.
    #[error("the program failed: {detail}{output}")]
    GuestFaulted {
        /// In the executor's words.
        detail: String,
        /// The end of what it wrote, introduced.
        output: String,
    },
    /// The program asks for the keccak accelerator.
    #[error(
        "the program uses RISC Zero's keccak accelerator (after {cycles} cycles), which this backend does not prove. \
         Build the program with a keccak that runs in software: leave out the patched tiny-keccak or keccak crate"
    )]
    KeccakNotSupported {
        /// When it asked for it.
        cycles: u64,
    },
    /// The program verifies a receipt that the job does not name.
    #[error(
        "the program verifies a receipt with the claim {claim}, but none of the job's {given} assumptions has it. Add \
         the receipt to spec.assumptions"
    )]
    AssumptionMissing {
        /// Digest of the claim.
        claim: Digest,
        /// How many assumptions the job names.
        given: usize,
    },
    /// What the program ended with is not the digest of its journal.
    #[error(
        "the program ended with an output digest that is not that of its journal ({journal_bytes} bytes): it must end \
         with the digest of what it wrote to the journal and of the receipts it verified, as env::exit does"
    )]
    JournalMismatch {
        /// Size of the journal.
        journal_bytes: usize,
    },
    /// The caller could not take a segment or give randomness.
    #[error("the segment could not be handed over")]
    Caller(E),
}

impl<E> ExecuteError<E> {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::CycleLimitExceeded { .. } => "CycleLimitExceeded",
            Self::GuestPanicked { .. } => "GuestPanicked",
            Self::GuestFailed { .. } => "GuestFailed",
            Self::GuestPaused => "GuestPaused",
            Self::GuestFaulted { .. } => "GuestFaulted",
            Self::KeccakNotSupported { .. } => "KeccakNotSupported",
            Self::AssumptionMissing { .. } => "AssumptionMissing",
            Self::JournalMismatch { .. } => "JournalMismatch",
            Self::Caller(_) => "Caller",
        }
    }

    /// Only the caller's own failures may go away.
    #[must_use]
    pub fn retry(&self) -> bool {
        matches!(self, Self::Caller(_))
    }
}

/// The fields of [`risc0_zkvm::Segment`] in their order: its constructor is private, its encoding is not.
#[derive(Serialize)]
struct SegmentParts<'a> {
    index: u32,
    inner: &'a CircuitSegment,
    output: Option<Output>,
}

/// What the thread that cuts segments must know of the system calls.
#[derive(Default)]
struct Shared {
    journal: Vec<u8>,
    written: Vec<u8>,
    // The last one used comes first, as RISC Zero orders them.
    assumptions_used: Vec<(Assumption, usize)>,
}

type SharedState = Arc<Mutex<Shared>>;

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    // A panic of another thread leaves nothing half-done here: every change is one push.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Executes a program. `on_segment` is called from another thread and stops the execution while it takes its time;
/// `seed` is called at most once, when the program first asks for randomness, and must answer the same for every
/// execution of one job.
pub fn execute<E: Send>(
    request: Request<'_>,
    seed: &dyn Fn() -> Result<[u8; 32], E>,
    mut on_segment: impl FnMut(SegmentBytes) -> Result<(), E> + Send,
) -> Result<Execution, ExecuteError<E>> {
    let shared: SharedState = Arc::default();
    let image = ProgramBinary::decode(request.program.blob())
        .and_then(|binary| binary.to_image())
        .map_err(|error| faulted(&error, &shared))?;
    let calls = SystemCalls {
        handlers: handlers(request.program, request.input, &shared)
            .map_err(|error| faulted(&error, &shared))?,
        seed,
        stream: RefCell::new(None),
        assumptions: request.assumptions,
        shared: Arc::clone(&shared),
        answer: Cell::new(None),
        failure: RefCell::new(None),
    };

    let segments = Mutex::new((0_u64, None));
    let result = Executor::new(image, &calls, None, vec![], None).run(
        request.segment_po2 as usize,
        largest_instruction(request.segment_po2),
        CycleLimit::Hard(request.max_cycles),
        |segment| {
            let handed = encode_segment(&segment, &shared).and_then(|bytes| {
                let (index, po2) = (segment.index as u32, segment.po2);
                let user_cycles = u64::from(segment.suspend_cycle);
                on_segment(SegmentBytes {
                    index,
                    po2,
                    user_cycles,
                    bytes,
                })
                .map_err(ExecuteError::Caller)
            });
            let mut segments = segments.lock().unwrap_or_else(PoisonError::into_inner);
            segments.0 += 1;
            handed.map_err(|error| {
                segments.1 = Some(error);
                anyhow::anyhow!("the segment was not taken")
            })
        },
    );
    let (segments, refused) = segments.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = refused.or(calls.failure.take()) {
        return Err(error);
    }
    let result = result.map_err(|error| match error.chain().any(is_cycle_limit) {
        true => ExecuteError::CycleLimitExceeded {
            max_cycles: request.max_cycles,
            segments,
        },
        false => faulted(&error, &shared),
    })?;
    let mut shared = lock(&shared);
    Ok(Execution {
        segments,
        user_cycles: result.user_cycles,
        total_cycles: result.total_cycles,
        journal: std::mem::take(&mut shared.journal),
        assumptions: shared.assumptions_used.iter().map(|(_, index)| *index).collect(),
    })
}

/// RISC Zero's own system calls, with the program's input and outputs connected.
fn handlers<'a>(program: &Program, input: Vec<u8>, shared: &SharedState) -> anyhow::Result<ExecutorImpl<'a>> {
    let env = ExecutorEnv::builder()
        .stdin(std::io::Cursor::new(input))
        .write_fd(FD_STDOUT, Tail(Arc::clone(shared)))
        .write_fd(FD_STDERR, Tail(Arc::clone(shared)))
        .write_fd(FD_JOURNAL, Journal(Arc::clone(shared)))
        .build()?;
    ExecutorImpl::from_elf(env, program.blob())
}

/// The executor's limit has no type of its own.
fn is_cycle_limit(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.to_string().starts_with("Session limit exceeded")
}

fn faulted<E>(error: &anyhow::Error, shared: &Mutex<Shared>) -> ExecuteError<E> {
    ExecuteError::GuestFaulted {
        detail: format!("{error:#}"),
        output: introduce_output(&lock(shared).written),
    }
}

/// Cycles that one instruction may take, for which a segment must keep room.
fn largest_instruction(segment_po2: u32) -> usize {
    // The smallest segments can't hold a large instruction, so they allow for small ones only.
    if segment_po2 >= 15 {
        MAX_INSN_CYCLES
    } else {
        MAX_INSN_CYCLES_LOWER_PO2
    }
}

fn encode_segment<E>(segment: &CircuitSegment, shared: &Mutex<Shared>) -> Result<Vec<u8>, ExecuteError<E>> {
    let output = match &segment.claim.terminate_state {
        None => None,
        Some(state) => Some(final_output(state, segment.claim.output, &lock(shared))?),
    };
    let parts = SegmentParts {
        index: segment.index as u32,
        inner: segment,
        output,
    };
    bincode::serialize(&parts).map_err(|error| ExecuteError::GuestFaulted {
        detail: error.to_string(),
        output: String::new(),
    })
}

/// Checks how the program ended, before its last segment is handed over.
fn final_output<E>(
    state: &TerminateState,
    claimed: Option<Digest>,
    shared: &Shared,
) -> Result<Output, ExecuteError<E>> {
    let (code, halt) = (state.a0.0, state.a0.1);
    if halt != HALT_TERMINATE {
        return Err(ExecuteError::GuestPaused);
    }
    if code != 0 {
        return Err(ExecuteError::GuestFailed {
            code,
            output: introduce_output(&shared.written),
        });
    }
    let assumptions: Vec<_> = shared
        .assumptions_used
        .iter()
        .map(|(used, _)| used.clone().into())
        .collect();
    let output = Output {
        journal: shared.journal.clone().into(),
        assumptions: Assumptions(assumptions).into(),
    };
    if claimed != Some(output.digest::<Sha>()) {
        return Err(ExecuteError::JournalMismatch {
            journal_bytes: shared.journal.len(),
        });
    }
    Ok(output)
}

fn introduce_output(written: &[u8]) -> String {
    if written.is_empty() {
        return String::new();
    }
    format!(
        ". The end of what it wrote: {}",
        String::from_utf8_lossy(written).trim_end()
    )
}

/// Keeps the last [`MAX_OUTPUT_BYTES`] of what a program writes.
struct Tail(SharedState);

impl Write for Tail {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = &mut lock(&self.0).written;
        written.extend_from_slice(bytes);
        let surplus = written.len().saturating_sub(MAX_OUTPUT_BYTES);
        written.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Journal(SharedState);

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let journal = &mut lock(&self.0).journal;
        if journal.len() + bytes.len() > MAX_JOURNAL_BYTES {
            return Err(std::io::Error::other(format!(
                "the journal is larger than {MAX_JOURNAL_BYTES} bytes"
            )));
        }
        journal.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Our system calls in front of RISC Zero's.
struct SystemCalls<'a, E> {
    handlers: ExecutorImpl<'a>,
    seed: &'a dyn Fn() -> Result<[u8; 32], E>,
    stream: RefCell<Option<RandomStream>>,
    assumptions: &'a [InnerAssumptionReceipt],
    shared: SharedState,
    // What the call of ours returned in a0 and a1; the kernel fetches it with a read of its own.
    answer: Cell<Option<(u32, u32)>>,
    failure: RefCell<Option<ExecuteError<E>>>,
}

impl<E> SystemCalls<'_, E> {
    fn fail<T>(&self, error: ExecuteError<E>) -> anyhow::Result<T> {
        self.failure.replace(Some(error));
        anyhow::bail!("the program was stopped")
    }

    fn random(&self, buffer: &mut [u8]) -> anyhow::Result<(u32, u32)> {
        let mut stream = self.stream.borrow_mut();
        if stream.is_none() {
            match (self.seed)() {
                Ok(seed) => *stream = Some(RandomStream { seed, next: 0 }),
                Err(error) => return self.fail(ExecuteError::Caller(error)),
            }
        }
        if let Some(stream) = stream.as_mut() {
            stream.fill(buffer);
        }
        Ok((buffer.len() as u32, 0))
    }

    fn verify(&self, context: &mut impl SyscallContext) -> anyhow::Result<(u32, u32)> {
        let address = ByteAddr(context.peek_register(REGISTER_A3)?);
        let bytes = context.peek_region(address, 64)?;
        let digest =
            |half: &[u8]| Digest::try_from(half).map_err(|_| anyhow::anyhow!("a digest has 32 bytes"));
        let wanted = Assumption {
            claim: digest(&bytes[..32])?,
            control_root: digest(&bytes[32..])?,
        };
        for (index, receipt) in self.assumptions.iter().enumerate() {
            if receipt.claim_digest()? == wanted.claim && control_root_fits(receipt, &wanted) {
                lock(&self.shared).assumptions_used.insert(0, (wanted, index));
                return Ok((0, 0));
            }
        }
        self.fail(ExecuteError::AssumptionMissing {
            claim: wanted.claim,
            given: self.assumptions.len(),
        })
    }

    fn panicked(&self, context: &mut impl SyscallContext) -> anyhow::Result<(u32, u32)> {
        let address = ByteAddr(context.peek_register(REGISTER_A3)?);
        let length = context.peek_register(REGISTER_A4)?.min(MAX_PANIC_BYTES);
        let message = context.peek_region(address, length as usize)?;
        self.fail(ExecuteError::GuestPanicked {
            message: String::from_utf8_lossy(&message).into_owned(),
        })
    }
}

/// A program may insist on a set of recursion programs; zero stands for those of its own zkVM. Assumptions are
/// verified before they get here, which only receipts of RISC Zero's own set pass.
fn control_root_fits(receipt: &InnerAssumptionReceipt, wanted: &Assumption) -> bool {
    let own_set = is_succinct(receipt) && wanted.control_root == ALLOWED_CONTROL_ROOT;
    wanted.control_root == Digest::ZERO || own_set
}

fn name_at(context: &mut impl SyscallContext, address: u32) -> anyhow::Result<String> {
    let mut name = Vec::new();
    for offset in 0..MAX_NAME_BYTES {
        match context.peek_u8(ByteAddr(address.wrapping_add(offset)))? {
            0 => return Ok(String::from_utf8_lossy(&name).into_owned()),
            byte => name.push(byte),
        }
    }
    anyhow::bail!("the name of a system call is longer than {MAX_NAME_BYTES} bytes")
}

impl<E> Syscall for SystemCalls<'_, E> {
    fn host_read(
        &self,
        context: &mut impl SyscallContext,
        fd: u32,
        buffer: &mut [u8],
    ) -> anyhow::Result<u32> {
        // Descriptor 0 asks for the two return values of the call before; any other one is a call's name.
        if fd == 0 {
            let Some((a0, a1)) = self.answer.get() else {
                return self.handlers.host_read(context, fd, buffer);
            };
            let words = [a0.to_le_bytes(), a1.to_le_bytes()].concat();
            anyhow::ensure!(
                buffer.len() >= words.len(),
                "no room for the return values of a system call"
            );
            buffer[..words.len()].copy_from_slice(&words);
            return Ok(words.len() as u32);
        }
        let name = name_at(context, fd)?;
        let answer = match name.strip_prefix("risc0_zkvm_platform::syscall::nr::") {
            Some("SYS_RANDOM") => self.random(buffer)?,
            Some("SYS_VERIFY_INTEGRITY") => self.verify(context)?,
            Some("SYS_PANIC") => self.panicked(context)?,
            // SYS_VERIFY_INTEGRITY2 exists for unions of keccak proofs alone.
            Some("SYS_KECCAK" | "SYS_VERIFY_INTEGRITY2") => {
                return self.fail(ExecuteError::KeccakNotSupported {
                    cycles: context.get_cycle(),
                });
            }
            _ => {
                self.answer.set(None);
                return self.handlers.host_read(context, fd, buffer);
            }
        };
        self.answer.set(Some(answer));
        Ok(buffer.len() as u32)
    }

    fn host_write(&self, context: &mut impl SyscallContext, fd: u32, buffer: &[u8]) -> anyhow::Result<u32> {
        self.handlers.host_write(context, fd, buffer)
    }
}

/// SHA-256 in counter mode: as unpredictable as its seed, and the same for each execution.
struct RandomStream {
    seed: [u8; 32],
    next: u64,
}

impl RandomStream {
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(32) {
            let block = Sha256::new()
                .chain_update(self.seed)
                .chain_update(self.next.to_le_bytes())
                .finalize();
            piece.copy_from_slice(&block[..piece.len()]);
            self.next += 1;
        }
    }
}

/// Whether a receipt can be an assumption of a Succinct proof.
#[must_use]
pub fn is_succinct(receipt: &InnerAssumptionReceipt) -> bool {
    matches!(receipt, InnerAssumptionReceipt::Succinct(_))
}
