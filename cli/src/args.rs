//! What the command line offers. Owns the words of `--help`; does nothing.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::SignedDuration;

/// Printed below `--help`: scripts decide by these.
const EXIT_CODES: &str = "\
Exit codes:
  0    proved and verified (run: executed, for ExecuteOnly; verify: accepted; validate: valid)
  1    the proof failed (verify: refused)
  2    bad input: command line, manifest, files, program, input, store
  130  interrupted (SIGINT)
  143  terminated (SIGTERM)";

/// Proves what a ProofJob manifest describes on this machine, and verifies proofs.
///
/// Put it on your PATH and it is also a kubectl plugin: `kubectl proof run -f job.yaml`.
#[derive(Debug, Parser)]
#[command(name = "kubectl-proof", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a ProofJob on this machine: coordinator and workers as local processes, no Kubernetes.
    #[command(after_help = EXIT_CODES)]
    Run(Box<RunArguments>),
    /// Verify a proof file from its bytes against the identity of a program.
    #[command(after_help = EXIT_CODES)]
    Verify(VerifyArguments),
    /// Check a manifest of a ProofJob or ProverCluster. The files that it names are not opened.
    #[command(after_help = EXIT_CODES)]
    Validate(ValidateArguments),
    /// Print the version.
    Version,
    /// Runs a program that must not outlive its parent. Used by `run` for its workers.
    #[command(name = "internal-run-child", hide = true)]
    InternalRunChild(ChildArguments),
}

/// How results are printed on standard output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    /// For people.
    #[default]
    Text,
    /// Exactly one JSON object, also on failure.
    Json,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The ProofJob manifest (YAML or JSON); `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: PathBuf,
    /// Worker processes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,
    /// Devices of each worker: prover processes, each with one task at a time.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) devices_per_worker: u16,
    /// Threads of each prover process. Default: one for each processor core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads_per_device: Option<u16>,
    /// Memory that each worker may plan with, in bytes or as 512Mi, 4Gi. Default: what is free, shared equally.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) memory_per_worker: Option<u64>,
    /// Artifact store: a folder, file:///folder, or s3://bucket/prefix. Default: a temporary folder.
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) store: Option<String>,
    /// Where the proof, the public values and the report are written.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) output_directory: PathBuf,
    /// Format of the report on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: OutputFormat,
    /// Keep the run folder: worker logs, intermediate artifacts.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Folder of prover-worker and the prover-backend-* programs. Default: the folder of kubectl-proof.
    #[arg(long, value_name = "DIR", env = "PROVER_BACKENDS_DIRECTORY")]
    pub(crate) backends_directory: Option<PathBuf>,
    /// Give up after this time, such as 90s, 20m or 1h30m.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Option<SignedDuration>,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The proof file.
    #[arg(value_name = "PROOF")]
    pub(crate) proof: PathBuf,
    /// Identity of the program in hexadecimal: RISC Zero's image id, SP1's verifying key hash. Compute it from the program that
    /// you trust.
    #[arg(
        long,
        value_name = "ID",
        visible_alias = "program-id",
        required_unless_present = "program"
    )]
    pub(crate) image_id: Option<String>,
    /// The program that you trust: its identity is computed. SP1's Core proofs can't be verified without it.
    #[arg(long, value_name = "FILE")]
    pub(crate) program: Option<PathBuf>,
    /// Proof system that made the proof.
    #[arg(long, value_name = "NAME", default_value = "risc0")]
    pub(crate) system: String,
    /// Also compare the public values in the proof with this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) public_values: Option<PathBuf>,
    /// Format of the result on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: OutputFormat,
    /// Folder of the prover-backend-* programs. Default: the folder of kubectl-proof.
    #[arg(long, value_name = "DIR", env = "PROVER_BACKENDS_DIRECTORY")]
    pub(crate) backends_directory: Option<PathBuf>,
}

/// Arguments of `validate`.
#[derive(Debug, Args)]
pub(crate) struct ValidateArguments {
    /// The manifest (YAML or JSON); `-` reads standard input.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) filename: PathBuf,
    /// Check a ProofJob as a cluster takes it, which refuses files of this machine.
    #[arg(long)]
    pub(crate) cluster: bool,
    /// Format of the result on standard output.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: OutputFormat,
}

/// Arguments of the hidden subcommand that starts a worker.
#[derive(Debug, Args)]
pub(crate) struct ChildArguments {
    /// The process that it must not outlive.
    #[arg(long)]
    pub(crate) parent: i32,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let duration: SignedDuration = text
        .parse()
        .map_err(|_| "write a time such as 90s, 20m or 1h30m".to_owned())?;
    if duration <= SignedDuration::ZERO {
        return Err("the time must be longer than zero".to_owned());
    }
    Ok(duration)
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
    ];
    let (digits, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, *factor)))
        .unwrap_or((text, 1));
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "write a number of bytes, such as 4294967296 or 4Gi".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn bytes_are_read_as_kubernetes_writes_them() {
        for (text, bytes) in [
            ("1", 1),
            ("4Gi", 4 << 30),
            ("512Mi", 512 << 20),
            ("2G", 2_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "0", "-1", "4 Gi", "4GiB", "99999999Ti"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_timeout_is_a_duration_with_units() {
        assert_eq!(parse_duration("90s"), Ok(SignedDuration::from_secs(90)));
        assert_eq!(parse_duration("1h30m"), Ok(SignedDuration::from_secs(5400)));
        assert!(parse_duration("90").is_err());
        assert!(parse_duration("0s").is_err());
    }

    #[test]
    fn help_names_the_exit_codes() {
        let mut command = Arguments::command();
        assert!(command.render_help().to_string().contains("130  interrupted"));
    }
}
