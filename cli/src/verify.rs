//! `verify`: has the backend of a proof system verify a proof file from its bytes.

use std::path::Path;
use std::process::{Output, Stdio};

use serde::Serialize;
use tokio::process::Command;

use crate::args::{OutputFormat, VerifyArguments};
use crate::binaries::Binaries;
use crate::console;
use crate::failure::{Exit, Failure};
use crate::files;
use crate::report::{API_VERSION, WrittenFile};

/// Hexadecimal digits of a program's identity, in RISC Zero and SP1 alike: 32 bytes.
const PROGRAM_ID_DIGITS: usize = 64;
/// Largest public values that are compared.
const PUBLIC_VALUES_BYTES: u64 = 1 << 30;

/// The result, as `--output json` prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VerificationReport {
    api_version: &'static str,
    kind: &'static str,
    accepted: bool,
    exit_code: u8,
    reason: String,
    message: String,
    system: String,
    program_id: String,
    proof: Option<WrittenFile>,
    /// Whether the public values in the proof are those of the file; none where no file was given.
    public_values_match: Option<bool>,
    /// What the backend's verifier told, as it told it.
    verifier: Option<serde_json::Value>,
}

/// Verifies and prints the result.
pub(crate) async fn verify(arguments: &VerifyArguments) -> Exit {
    let mut report = VerificationReport {
        api_version: API_VERSION,
        kind: "ProofVerification",
        accepted: false,
        exit_code: 0,
        reason: String::new(),
        message: String::new(),
        system: arguments.system.clone(),
        program_id: arguments
            .image_id
            .as_deref()
            .unwrap_or_default()
            .to_ascii_lowercase(),
        proof: None,
        public_values_match: None,
        verifier: None,
    };
    let outcome = check(arguments, &mut report).await;
    let exit = match &outcome {
        Ok(()) => Exit::Success,
        Err(failure) => {
            report.reason.clone_from(&failure.reason);
            report.message.clone_from(&failure.message);
            failure.tell();
            failure.exit
        }
    };
    report.accepted = exit == Exit::Success;
    report.exit_code = exit.code();
    match arguments.output {
        // The type holds nothing that JSON can't express.
        OutputFormat::Json => {
            let json = serde_json::to_string_pretty(&report).unwrap_or_default();
            console::print(&(json + "\n"));
        }
        OutputFormat::Text if report.accepted => {
            let same = match report.public_values_match {
                Some(_) => "its public values are those of the file\n",
                None => "",
            };
            let proof = arguments.proof.display();
            console::print(&format!(
                "accepted: {proof} proves a run of program {}\n{same}",
                report.program_id
            ));
        }
        OutputFormat::Text => {}
    }
    exit
}

async fn check(arguments: &VerifyArguments, report: &mut VerificationReport) -> Result<(), Failure> {
    if let Some(id) = &arguments.image_id {
        check_program_id(id)?;
    }
    if !arguments
        .system
        .chars()
        .all(|character| character.is_ascii_lowercase() || character.is_ascii_digit())
    {
        return Err(Failure::bad_input(
            "UnknownSystem",
            format!("{} is no proof system: use risc0 or sp1", arguments.system),
        ));
    }
    let bad_file = |error: files::FileError| Failure::bad_input(error.reason(), error.to_string());
    report.proof = Some(files::describe(&arguments.proof).map_err(bad_file)?);
    let expected = match &arguments.public_values {
        Some(path) => Some(files::read("public values", path, PUBLIC_VALUES_BYTES).map_err(bad_file)?),
        None => None,
    };
    let backend = Binaries::locate(arguments.backends_directory.as_deref())
        .and_then(|binaries| binaries.backend(&arguments.system))
        .map_err(|error| Failure::bad_input(error.reason(), error.to_string()))?;
    let scratch = tempfile::tempdir().map_err(|error| {
        Failure::bad_input(
            "FileNotWritable",
            format!("can't create a temporary folder: {error}"),
        )
    })?;
    let found = scratch.path().join("public-values");
    let output = run_backend(&backend, arguments, &found).await?;
    report.verifier = serde_json::from_slice(&output.stdout).ok();
    let computed = report
        .verifier
        .as_ref()
        .and_then(|told| told["programId"].as_str());
    if arguments.image_id.is_none() {
        report.program_id = computed.unwrap_or_default().to_owned();
    }
    judge(&output, report.verifier.as_ref())?;
    if let Some(expected) = expected {
        let found =
            files::read("public values of the proof", &found, PUBLIC_VALUES_BYTES).map_err(bad_file)?;
        report.public_values_match = Some(found == expected);
        if found != expected {
            return Err(Failure::proof_failed(
                "PublicValuesDiffer",
                format!(
                    "the proof is valid, but its public values ({} bytes) are not those of the file ({} bytes)",
                    found.len(),
                    expected.len()
                ),
            ));
        }
    }
    Ok(())
}

fn check_program_id(id: &str) -> Result<(), Failure> {
    if id.len() == PROGRAM_ID_DIGITS && id.chars().all(|character| character.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Failure::bad_input(
        "InvalidImageId",
        format!("--image-id must have {PROGRAM_ID_DIGITS} hexadecimal digits, but `{id}` has not"),
    ))
}

async fn run_backend(
    backend: &Path,
    arguments: &VerifyArguments,
    public_values_out: &Path,
) -> Result<Output, Failure> {
    let mut command = Command::new(backend);
    command.arg("verify").arg("--proof").arg(&arguments.proof);
    if let Some(id) = &arguments.image_id {
        command.args(["--program-id", id]);
    }
    if let Some(program) = &arguments.program {
        command.arg("--program").arg(program);
    }
    command
        .arg("--public-values-out")
        .arg(public_values_out)
        .args(["--output", "json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| {
            Failure::bad_input(
                "BackendNotStarted",
                format!("can't start {}: {error}", backend.display()),
            )
        })
}

/// Exit code of the backend: 0 accepted, 1 refused, 2 bad input; anything else means that it broke.
fn judge(output: &Output, verifier: Option<&serde_json::Value>) -> Result<(), Failure> {
    let told = verifier
        .and_then(|value| value.get("message"))
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .filter(|message| !message.is_empty())
        .unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned());
    match output.status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::proof_failed("Refused", format!("refused: {told}"))),
        Some(2) => Err(Failure::bad_input("NotAProof", told)),
        _ => Err(Failure::proof_failed(
            "VerifierBroke",
            format!("the verifier ended with {}: {told}", output.status),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn mk_output(code: i32, stderr: &str) -> Output {
        Output {
            status: ExitStatus::from_raw(code << 8),
            stdout: Vec::new(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn an_id_is_64_hexadecimal_digits() {
        assert!(check_program_id(&"0aF9".repeat(16)).is_ok());
        for id in ["", "abc", &"g".repeat(64), &"a".repeat(63)] {
            assert_eq!(check_program_id(id).unwrap_err().exit, Exit::BadInput, "{id}");
        }
    }

    #[test]
    fn the_backends_exit_code_decides() {
        assert!(judge(&mk_output(0, ""), None).is_ok());
        assert_eq!(
            judge(&mk_output(1, "seal"), None).unwrap_err().exit,
            Exit::ProofFailed
        );
        assert_eq!(
            judge(&mk_output(2, "not a receipt"), None).unwrap_err().exit,
            Exit::BadInput
        );
        assert_eq!(
            judge(&mk_output(101, "panicked"), None).unwrap_err().reason,
            "VerifierBroke"
        );
    }

    #[test]
    fn the_backends_own_words_are_passed_on() {
        let failure = judge(
            &mk_output(1, "noise"),
            Some(&serde_json::json!({"message": "wrong image id"})),
        );
        assert_eq!(failure.unwrap_err().message, "refused: wrong image id");
    }
}
