//! Subcommand `crds`: the generated YAML of the resource types.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{fs, io};

use prover_crds::{GeneratedFile, generated_files};

/// Where the files are kept in the repository.
const DIRECTORIES: [&str; 2] = ["crds", "charts/prover-operator/files/crds"];

/// What to do with the generated files.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the files, several times for several; by default that of the types and that of the Helm chart
    #[arg(long = "directory", default_values = DIRECTORIES)]
    directories: Vec<PathBuf>,
    /// Change nothing; fail if a file differs from the types
    #[arg(long, conflicts_with = "print")]
    check: bool,
    /// Print all as one YAML stream instead, ready for kubectl apply -f -
    #[arg(long)]
    print: bool,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let files = generated_files();
    let mut directories = arguments.directories.iter();
    let outcome = if arguments.print {
        print(&files)
    } else if arguments.check {
        directories.try_for_each(|directory| check(directory, &files))
    } else {
        directories.try_for_each(|directory| write(directory, &files))
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn print(files: &[GeneratedFile]) -> Result<(), String> {
    let documents: Vec<&str> = files.iter().map(|file| file.contents.as_str()).collect();
    match io::stdout().lock().write_all(documents.join("---\n").as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.map_err(|error| format!("could not print the definitions: {error}")),
    }
}

fn check(directory: &Path, files: &[GeneratedFile]) -> Result<(), String> {
    for file in files {
        let path = directory.join(file.name);
        let present = fs::read_to_string(&path)
            .map_err(|error| format!("could not read {}: {error}", path.display()))?;
        if present != file.contents {
            return Err(format!(
                "{} is not what the Rust types say: run `make crds` and commit the result",
                path.display()
            ));
        }
    }
    Ok(())
}

fn write(directory: &Path, files: &[GeneratedFile]) -> Result<(), String> {
    for file in files {
        let path = directory.join(file.name);
        fs::write(&path, &file.contents)
            .map_err(|error| format!("could not write {}: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_what_the_types_say() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for directory in DIRECTORIES {
            assert_eq!(check(&root.join(directory), &generated_files()), Ok(()));
        }
    }

    #[test]
    fn written_files_pass_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let files = generated_files();
        write(folder.path(), &files).unwrap();
        assert_eq!(check(folder.path(), &files), Ok(()));
    }

    #[test]
    fn a_stale_file_is_told_with_the_command_that_renews_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = generated_files();
        write(folder.path(), &files).unwrap();
        fs::write(folder.path().join("proofjob.yaml"), "kind: Other\n").unwrap();
        let message = check(folder.path(), &files).unwrap_err();
        assert!(
            message.contains("proofjob.yaml") && message.contains("run `make crds`"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let message = check(folder.path(), &generated_files()).unwrap_err();
        assert!(
            message.starts_with("could not read") && message.contains("provercluster.yaml"),
            "{message}"
        );
    }
}
