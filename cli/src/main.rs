//! `kubectl-proof`: proves on this machine what a ProofJob manifest describes, and verifies proofs.
//!
//! Owns the command line, the processes of local mode, progress, reports and exit codes. Does not own any
//! decision about tasks (the coordinator's) nor anything of a proof system (the backends').

mod args;
mod binaries;
mod child;
mod console;
mod failure;
mod files;
mod logging;
mod manifest;
mod memory;
mod processes;
mod progress;
mod report;
mod run;
mod run_directory;
mod text;
mod verify;
mod workers;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Arguments, Command, OutputFormat, ValidateArguments};
use crate::failure::{Exit, Failure};

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(error) => return refuse_arguments(&error, &words),
    };
    let exit = match arguments.command {
        Command::Run(arguments) => Box::pin(run::run(&arguments)).await,
        Command::Verify(arguments) => verify::verify(&arguments).await,
        Command::Validate(arguments) => validate(&arguments),
        Command::Version => {
            console::print(concat!("kubectl-proof ", env!("CARGO_PKG_VERSION"), "\n"));
            Exit::Success
        }
        Command::InternalRunChild(arguments) => {
            let failure = child::become_program(&arguments);
            failure.tell();
            failure.exit
        }
    };
    ExitCode::from(exit.code())
}

/// Help and version are answers; everything else is bad input, told to scripts too.
fn refuse_arguments(error: &clap::Error, words: &[OsString]) -> ExitCode {
    // A closed standard error is no reason to end otherwise.
    let _ = error.print();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return ExitCode::from(Exit::Success.code());
    }
    if asks_for_json(words) {
        let mut report = report::JobReport::new(std::path::Path::new(""));
        let failure = Failure::bad_input("InvalidArguments", error.render().to_string().trim());
        report.conclude(&Err(failure), std::time::Duration::ZERO);
        console::print(&report.to_json());
    }
    ExitCode::from(Exit::BadInput.code())
}

fn asks_for_json(words: &[OsString]) -> bool {
    let is_run = words.get(1).is_some_and(|word| word == "run");
    let names_json = words
        .windows(2)
        .any(|pair| (pair[0] == "-o" || pair[0] == "--output") && pair[1] == "json")
        || words
            .iter()
            .any(|word| word == "--output=json" || word == "-ojson");
    is_run && names_json
}

fn validate(arguments: &ValidateArguments) -> Exit {
    let result = manifest::check(&arguments.filename, arguments.cluster);
    if arguments.output == OutputFormat::Json {
        let (kind, name, failure) = match &result {
            Ok(manifest) => (manifest.kind, manifest.name.as_str(), None),
            Err(failure) => ("", "", Some(failure)),
        };
        let json = serde_json::json!({
            "apiVersion": report::API_VERSION,
            "kind": "ManifestValidation",
            "manifest": arguments.filename.display().to_string(),
            "objectKind": kind,
            "name": name,
            "valid": failure.is_none(),
            "exitCode": failure.map_or(0, |failure| failure.exit.code()),
            "reason": failure.map_or("", |failure| failure.reason.as_str()),
            "message": failure.map_or("", |failure| failure.message.as_str()),
        });
        console::print(&format!("{json:#}\n"));
    }
    match result {
        Ok(manifest) => {
            if arguments.output == OutputFormat::Text {
                println!(
                    "{}: {} {} is valid",
                    arguments.filename.display(),
                    manifest.kind,
                    manifest.name
                );
            }
            Exit::Success
        }
        Err(failure) => {
            failure.tell();
            failure.exit
        }
    }
}
