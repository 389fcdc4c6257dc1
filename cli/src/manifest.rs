//! Reads a manifest from a file or standard input and knows where its relative paths begin.

use std::io::Read;
use std::path::{Path, PathBuf};

use prover_crds::ProofJob;

use crate::failure::Failure;
use crate::files;

/// Largest manifest in bytes, as etcd limits an object.
const MANIFEST_BYTES: u64 = 1536 << 10;
/// Longest name: it becomes part of file names.
const NAME_BYTES: usize = 200;

/// A manifest that is well-formed and obeys the rules of its type.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    /// The job.
    pub(crate) job: ProofJob,
    /// Its name, which is safe as a file name.
    pub(crate) name: String,
    /// Where relative paths of `file` sources begin.
    pub(crate) folder: PathBuf,
}

/// Reads and checks the manifest; `-` is standard input, whose paths are relative to the current folder.
pub(crate) fn read(path: &Path) -> Result<Manifest, Failure> {
    let (text, folder) = if path.as_os_str() == "-" {
        (read_standard_input()?, PathBuf::from("."))
    } else {
        let bytes = files::read("manifest", path, MANIFEST_BYTES).map_err(|error| {
            Failure::bad_input(error.reason(), format!("{error}. Check the path after -f"))
        })?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        (into_text(bytes, &path.display().to_string())?, folder)
    };
    parse(&text, path, folder)
}

fn parse(text: &str, path: &Path, folder: PathBuf) -> Result<Manifest, Failure> {
    let invalid =
        |message: String| Failure::bad_input("InvalidManifest", format!("{}: {message}", path.display()));
    let job = prover_crds::parse_proof_job(text).map_err(|error| invalid(error.to_string()))?;
    let name = job.metadata.name.clone().unwrap_or_default();
    if name.is_empty()
        || name.len() > NAME_BYTES
        || !name.chars().all(is_name_character)
        || name.starts_with('.')
    {
        return Err(invalid(
            "metadata.name must be there and have only lower-case letters, digits, `-` and `.`, since files are \
             named after it"
                .to_owned(),
        ));
    }
    Ok(Manifest { job, name, folder })
}

fn is_name_character(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-' || character == '.'
}

fn read_standard_input() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MANIFEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Failure::bad_input(
                "FileNotReadable",
                format!("can't read the manifest from standard input: {error}"),
            )
        })?;
    if bytes.len() as u64 > MANIFEST_BYTES {
        return Err(Failure::bad_input(
            "FileTooLarge",
            format!("the manifest on standard input has more than {MANIFEST_BYTES} bytes"),
        ));
    }
    into_text(bytes, "standard input")
}

fn into_text(bytes: Vec<u8>, label: &str) -> Result<String, Failure> {
    String::from_utf8(bytes).map_err(|error| {
        Failure::bad_input(
            "InvalidManifest",
            format!("{label} is not a text in UTF-8: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: proving.rs/v1alpha1
kind: ProofJob
metadata:
  name: good
spec:
  program:
    file:
      path: a.elf
  proof:
    system: risc0
    kind: Succinct
";

    #[test]
    fn relative_paths_begin_in_the_folder_of_the_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, GOOD).unwrap();
        let manifest = read(&path).unwrap();
        assert_eq!(manifest.folder, folder.path());
        assert_eq!(manifest.name, "good");
    }

    #[test]
    fn an_unknown_field_is_named_with_the_file() {
        let text = GOOD.replace("  proof:\n", "  prooof: 1\n  proof:\n");
        let failure = parse(&text, Path::new("job.yaml"), PathBuf::new()).unwrap_err();
        assert_eq!(failure.exit.code(), 2);
        assert!(
            failure.message.contains("job.yaml") && failure.message.contains("prooof"),
            "{failure}"
        );
    }

    #[test]
    fn a_name_that_could_leave_the_output_folder_is_refused() {
        for name in ["../evil", "a/b", "\"\"", ".hidden"] {
            let text = GOOD.replace("name: good", &format!("name: {name}"));
            assert!(
                parse(&text, Path::new("job.yaml"), PathBuf::new()).is_err(),
                "{name}"
            );
        }
    }

    #[test]
    fn a_manifest_that_is_not_there_is_bad_input() {
        let failure = read(Path::new("/nowhere/job.yaml")).unwrap_err();
        assert_eq!(
            (failure.exit.code(), failure.reason.as_str()),
            (2, "FileNotFound")
        );
    }
}
