//! Reads a manifest from a file or standard input and knows where its relative paths begin.

use std::io::Read;
use std::path::{Path, PathBuf};

use prover_crds::{ManifestError, ProofJob};

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

/// A manifest that was checked and is not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    /// `ProofJob` or `ProverCluster`.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
}

/// Reads and checks the manifest; `-` is standard input, whose paths are relative to the current folder.
pub(crate) fn read(path: &Path) -> Result<Manifest, Failure> {
    parse(&read_text(path)?, path)
}

/// Reads and checks a manifest of either kind.
pub(crate) fn check(path: &Path, for_cluster: bool) -> Result<Checked, Failure> {
    check_text(&read_text(path)?, path, for_cluster)
}

fn check_text(text: &str, path: &Path, for_cluster: bool) -> Result<Checked, Failure> {
    let job = if for_cluster {
        prover_crds::parse_proof_job_for_cluster(text)
    } else {
        prover_crds::parse_proof_job(text)
    };
    let error = match job {
        Ok(job) => {
            return Ok(Checked {
                kind: "ProofJob",
                name: job.metadata.name.unwrap_or_default(),
            });
        }
        Err(error) => error,
    };
    match prover_crds::parse_prover_cluster(text) {
        Ok(cluster) => Ok(Checked {
            kind: "ProverCluster",
            name: cluster.metadata.name.unwrap_or_default(),
        }),
        // Each parser refuses the other kind: the words of the one that knows the kind are the helpful ones.
        Err(ManifestError::WrongKind { .. }) => Err(invalid(path, &error)),
        Err(cluster_error) if matches!(error, ManifestError::WrongKind { .. }) => {
            Err(invalid(path, &cluster_error))
        }
        Err(_) => Err(invalid(path, &error)),
    }
}

fn read_text(path: &Path) -> Result<String, Failure> {
    if is_standard_input(path) {
        return read_standard_input();
    }
    let bytes = files::read("manifest", path, MANIFEST_BYTES)
        .map_err(|error| Failure::bad_input(error.reason(), format!("{error}. Check the path after -f")))?;
    into_text(bytes, &path.display().to_string())
}

fn invalid(path: &Path, problem: &dyn std::fmt::Display) -> Failure {
    let label = if is_standard_input(path) {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    Failure::bad_input("InvalidManifest", format!("{label}: {problem}"))
}

fn parse(text: &str, path: &Path) -> Result<Manifest, Failure> {
    let job = prover_crds::parse_proof_job(text).map_err(|error| invalid(path, &error))?;
    let name = job.metadata.name.clone().unwrap_or_default();
    if name.is_empty()
        || name.len() > NAME_BYTES
        || !name.chars().all(is_name_character)
        || name.starts_with('.')
    {
        let rule = "metadata.name must be there and have only lower-case letters, digits, `-` and `.`, since files \
                    are named after it";
        return Err(invalid(path, &rule));
    }
    let folder = if is_standard_input(path) {
        PathBuf::from(".")
    } else {
        path.parent().map(Path::to_owned).unwrap_or_default()
    };
    Ok(Manifest { job, name, folder })
}

fn is_standard_input(path: &Path) -> bool {
    path.as_os_str() == "-"
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
        let failure = parse(&text, Path::new("job.yaml")).unwrap_err();
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
            assert!(parse(&text, Path::new("job.yaml")).is_err(), "{name}");
        }
    }

    #[test]
    fn either_kind_is_checked_and_told_in_its_own_words() {
        let path = Path::new("job.yaml");
        let checked = check_text(GOOD, path, false).unwrap();
        assert_eq!((checked.kind, checked.name.as_str()), ("ProofJob", "good"));
        let failure = check_text(GOOD, path, true).unwrap_err();
        assert!(failure.message.contains("file is for local mode"), "{failure}");
        let cluster = "apiVersion: proving.rs/v1alpha1\nkind: ProverCluster\nmetadata: {name: a}\nspec: {}";
        let failure = check_text(cluster, path, false).unwrap_err();
        assert!(failure.message.contains("artifactStore"), "{failure}");
        let other = check_text("apiVersion: v1\nkind: Pod", path, false).unwrap_err();
        assert!(other.message.contains("ProofJob"), "{other}");
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
