//! The command line of a backend binary: `serve` (the default), `verify` and `program-id`.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::backend::{Backend, Verified, VerifyFailure, VerifyRequest};
use crate::limits::MAX_PROOF_FILE_BYTES;
use crate::serve::{ServeEnd, serve};

/// Environment variable in which an agent hands over the path of its socket.
pub const AGENT_SOCKET_VARIABLE: &str = "PROVER_AGENT_SOCKET";

/// Environment variable in which an agent says what its devices are: `cpu` or `gpu`. Also set for planners, which take
/// none, so that all processes of a worker describe themselves alike. Not the name of one of the worker's own variables,
/// which its launcher would read as an argument.
pub const DEVICE_CLASS_VARIABLE: &str = "PROVER_DEVICE_KIND";

/// The class of the worker's devices as its agent says it; processor cores where it does not.
#[must_use]
pub fn device_class() -> crate::protocol::DeviceClass {
    class_named(std::env::var(DEVICE_CLASS_VARIABLE).ok().as_deref())
}

fn class_named(name: Option<&str>) -> crate::protocol::DeviceClass {
    match name {
        Some("gpu") => crate::protocol::DeviceClass::Gpu,
        _ => crate::protocol::DeviceClass::Cpu,
    }
}

/// Threads for waiting on sockets and timers; work that keeps cores busy has threads of its own.
const RUNTIME_THREADS: usize = 4;
/// Stack of all threads in bytes, as large as that of a main thread: provers recurse deeply.
const STACK_BYTES: usize = 8 * 1024 * 1024;

const EXIT_ACCEPTED: u8 = 0;
const EXIT_REFUSED: u8 = 1;
const EXIT_BAD_INPUT: u8 = 2;
const EXIT_SESSION_FAILED: u8 = 3;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serves the agent whose socket is in PROVER_AGENT_SOCKET. This is the default.
    Serve,
    /// Verifies a proof file from bytes alone: exit code 0 accepted, 1 refused, 2 could not be judged.
    Verify(VerifyArguments),
    /// Prints the identity that proofs of a program are verified against: RISC Zero's image id.
    #[command(visible_alias = "image-id")]
    ProgramId {
        /// The program file.
        #[arg(long)]
        program: PathBuf,
    },
}

#[derive(clap::Args)]
struct VerifyArguments {
    /// The proof file.
    #[arg(long)]
    proof: PathBuf,
    /// Identity of the program in hexadecimal: RISC Zero's image id, SP1's verifying key hash.
    #[arg(long, required_unless_present = "program")]
    program_id: Option<String>,
    /// The program file, whose identity is computed.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Where to write the public values of an accepted proof.
    #[arg(long)]
    public_values_out: Option<PathBuf>,
    /// Form of the answer on standard output.
    #[arg(long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum OutputFormat {
    Text,
    Json,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VerifyAnswer<'a> {
    accepted: bool,
    backend: &'a str,
    backend_version: &'a str,
    emulated: bool,
    program_id: &'a str,
    proof_bytes: Option<usize>,
    kind: Option<&'a str>,
    verifier: Option<&'a str>,
    public_values_bytes: Option<usize>,
    public_values: Option<String>,
    /// Why it was not accepted: `Refused` or `BadInput`.
    reason: Option<&'a str>,
    message: Option<String>,
}

/// Runs a backend's command line. The whole `main` of a backend binary.
pub fn main<B: Backend>(backend: B) -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("PROVER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Standard error: standard output carries answers only.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter)
        .init();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve_agent(backend),
        Command::Verify(arguments) => ExitCode::from(verify(&backend, &arguments)),
        Command::ProgramId { program } => ExitCode::from(program_id(&backend, &program)),
    }
}

fn serve_agent<B: Backend>(backend: B) -> ExitCode {
    let Some(socket) = std::env::var_os(AGENT_SOCKET_VARIABLE) else {
        eprintln!(
            "{AGENT_SOCKET_VARIABLE} is not set: this is a backend, and its agent (prover-worker) starts it"
        );
        return ExitCode::from(EXIT_BAD_INPUT);
    };
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(RUNTIME_THREADS)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("could not start threads: {error}");
            return ExitCode::from(EXIT_SESSION_FAILED);
        }
    };
    let end = runtime.block_on(serve(Arc::new(backend), Path::new(&socket)));
    // Work under way is nobody's any more, so it is not waited for.
    runtime.shutdown_background();
    match end {
        Ok(ServeEnd::Shutdown) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(EXIT_SESSION_FAILED)
        }
    }
}

fn verify<B: Backend>(backend: &B, arguments: &VerifyArguments) -> u8 {
    let description = backend.describe();
    let which = which(backend, arguments);
    let mut answer = VerifyAnswer {
        accepted: false,
        backend: &description.name,
        backend_version: &description.version,
        emulated: description.emulated,
        program_id: which.as_ref().map_or("", |(program_id, _)| program_id.as_str()),
        proof_bytes: None,
        kind: None,
        verifier: None,
        public_values_bytes: None,
        public_values: None,
        reason: None,
        message: None,
    };
    let (judged, proof_bytes) = match &which {
        Ok((program_id, program)) => judge(backend, arguments, program_id, program.clone()),
        Err(failure) => (Err(failure.clone()), None),
    };
    answer.proof_bytes = proof_bytes;
    match judged {
        Ok(verified) => {
            answer.accepted = true;
            answer.kind = Some(&verified.kind);
            answer.verifier = Some(&verified.verifier);
            answer.public_values_bytes = Some(verified.public_values.len());
            answer.public_values = Some(hex::encode(&verified.public_values));
            print_answer(arguments.output, &answer);
            EXIT_ACCEPTED
        }
        Err(failure) => {
            let (reason, code) = match failure {
                VerifyFailure::Refused(_) => ("Refused", EXIT_REFUSED),
                VerifyFailure::BadInput(_) => ("BadInput", EXIT_BAD_INPUT),
            };
            answer.reason = Some(reason);
            answer.message = Some(failure.to_string());
            print_answer(arguments.output, &answer);
            code
        }
    }
}

fn program_id<B: Backend>(backend: &B, path: &Path) -> u8 {
    let identified = read_bounded("program", path).and_then(|program| backend.program_id(&program));
    match identified {
        Ok(program_id) => {
            println!("{program_id}");
            EXIT_ACCEPTED
        }
        Err(failure) => {
            eprintln!("{}: {failure}", path.display());
            EXIT_BAD_INPUT
        }
    }
}

/// Identity of the program that the proof shall be of, and its bytes where they were given.
fn which<B: Backend>(
    backend: &B,
    arguments: &VerifyArguments,
) -> Result<(String, Option<Vec<u8>>), VerifyFailure> {
    let told = arguments.program_id.as_deref().map(str::to_ascii_lowercase);
    let told = told.as_deref().map(|id| id.trim_start_matches("0x"));
    if let Some(id) = told.filter(|id| id.is_empty() || hex::decode(id).is_err()) {
        let message = format!("--program-id {id:?} is not hexadecimal");
        return Err(VerifyFailure::BadInput(message));
    }
    let Some(path) = &arguments.program else {
        return Ok((told.unwrap_or_default().to_owned(), None));
    };
    let program = read_bounded("program", path)?;
    let program_id = backend.program_id(&program)?;
    match told.filter(|told| *told != program_id) {
        Some(told) => Err(VerifyFailure::BadInput(format!(
            "{} is program {program_id}, not {told}",
            path.display()
        ))),
        None => Ok((program_id, Some(program))),
    }
}

fn judge<B: Backend>(
    backend: &B,
    arguments: &VerifyArguments,
    program_id: &str,
    program: Option<Vec<u8>>,
) -> (Result<Verified, VerifyFailure>, Option<usize>) {
    let proof = match read_bounded("proof", &arguments.proof) {
        Ok(proof) => proof,
        Err(failure) => return (Err(failure), None),
    };
    let proof_bytes = Some(proof.len());
    let request = VerifyRequest {
        proof,
        program_id: program_id.to_owned(),
        program,
    };
    let judged = backend.verify_file(&request).and_then(|verified| {
        if let Some(path) = &arguments.public_values_out {
            std::fs::write(path, &verified.public_values).map_err(|error| {
                VerifyFailure::BadInput(format!(
                    "the proof is accepted, but its public values could not be written to {}: {error}",
                    path.display()
                ))
            })?;
        }
        Ok(verified)
    });
    (judged, proof_bytes)
}

fn read_bounded(what: &str, path: &Path) -> Result<Vec<u8>, VerifyFailure> {
    let unreadable = |error: std::io::Error| {
        VerifyFailure::BadInput(format!(
            "could not read the {what} file {}: {error}",
            path.display()
        ))
    };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_PROOF_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_PROOF_FILE_BYTES {
        let message = format!(
            "{} is larger than {MAX_PROOF_FILE_BYTES} bytes: it is no {what}",
            path.display()
        );
        return Err(VerifyFailure::BadInput(message));
    }
    Ok(bytes)
}

fn print_answer(format: OutputFormat, answer: &VerifyAnswer<'_>) {
    match format {
        OutputFormat::Json => match serde_json::to_string(answer) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("could not write the answer: {error}"),
        },
        OutputFormat::Text => match (answer.accepted, &answer.message) {
            (true, _) => println!(
                "accepted: {} proof of program {} ({} bytes, verifier {})",
                answer.kind.unwrap_or_default(),
                answer.program_id,
                answer.proof_bytes.unwrap_or_default(),
                answer.verifier.unwrap_or_default()
            ),
            (false, message) => println!("not accepted: {}", message.as_deref().unwrap_or_default()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::class_named;
    use crate::protocol::DeviceClass;

    #[test]
    fn devices_are_processor_cores_unless_the_agent_says_otherwise() {
        assert_eq!(class_named(Some("gpu")), DeviceClass::Gpu);
        assert_eq!(class_named(Some("cpu")), DeviceClass::Cpu);
        assert_eq!(class_named(None), DeviceClass::Cpu);
    }
}
