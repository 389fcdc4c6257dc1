//! Whether proofs for contracts can be made here.
//!
//! SP1 downloads the circuits of Groth16 and PLONK when they are missing, tens of gigabytes, in the middle of a job. Here
//! what is missing is told before: such proofs are offered only where the circuits are complete and their prover can run.

use std::fmt;
use std::path::{Path, PathBuf};

use sp1_prover::build::{groth16_circuit_artifacts_dir, plonk_circuit_artifacts_dir};

/// File that SP1's installer writes after everything else.
const COMPLETE: &str = ".complete";

/// A kind of proof that needs circuits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Groth16 over BN254.
    Groth16,
    /// PLONK over BN254.
    Plonk,
}

impl Circuit {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Groth16, Self::Plonk];

    /// As in `ProofJob.spec.proof.kind`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Groth16 => "Groth16",
            Self::Plonk => "Plonk",
        }
    }

    /// The circuit of that kind of proof.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|circuit| circuit.name() == kind)
    }

    fn directory(self) -> Option<PathBuf> {
        match self {
            Self::Groth16 => groth16_circuit_artifacts_dir().ok(),
            Self::Plonk => plonk_circuit_artifacts_dir().ok(),
        }
    }
}

/// Why a kind of proof can't be made here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No folder.
    Absent(PathBuf),
    /// A folder without the file that says that all is there.
    Incomplete(PathBuf),
    /// A folder that can't be read.
    Unreadable(PathBuf, String),
    /// The prover of the last step runs in a container engine, and there is none.
    NoProver,
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(path) => write!(formatter, "there are no circuits at {}", path.display()),
            Self::Incomplete(path) => write!(
                formatter,
                "the circuits at {} are incomplete: {COMPLETE} is missing, which is written last. Install them again",
                path.display()
            ),
            Self::Unreadable(path, error) => {
                write!(
                    formatter,
                    "the circuits at {} can't be read: {error}",
                    path.display()
                )
            }
            Self::NoProver => formatter.write_str(
                "this build makes the last step in a container of Docker, and there is no Docker here",
            ),
        }
    }
}

/// What keeps this process from making such proofs, if anything.
#[must_use]
pub fn missing(circuit: Circuit) -> Option<Missing> {
    let Some(directory) = circuit.directory() else {
        return Some(Missing::Absent(PathBuf::from("~/.sp1/circuits")));
    };
    in_directory(&directory).or_else(|| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&paths).any(|folder| folder.join("docker").is_file());
        (!found).then_some(Missing::NoProver)
    })
}

fn in_directory(directory: &Path) -> Option<Missing> {
    match std::fs::read_dir(directory) {
        Ok(_) if directory.join(COMPLETE).is_file() => None,
        Ok(_) => Some(Missing::Incomplete(directory.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(Missing::Absent(directory.to_owned()))
        }
        Err(error) => Some(Missing::Unreadable(directory.to_owned(), error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circuits_are_there_only_when_the_file_that_is_written_last_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let directory = folder.path().join("v1");
        assert_eq!(in_directory(&directory), Some(Missing::Absent(directory.clone())));
        std::fs::create_dir(&directory).expect("creates");
        std::fs::write(directory.join("groth16_pk.bin"), b"half").expect("writes");
        assert_eq!(
            in_directory(&directory),
            Some(Missing::Incomplete(directory.clone()))
        );
        std::fs::write(directory.join(COMPLETE), []).expect("writes");
        assert_eq!(in_directory(&directory), None);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("v1");
        std::fs::write(&file, []).expect("writes");
        assert!(matches!(in_directory(&file), Some(Missing::Unreadable(..))));
    }
}
