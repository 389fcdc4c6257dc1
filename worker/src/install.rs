//! `prover-worker install-tools`: puts the programs that run in backends' containers where those containers see them.
//!
//! An init container of the worker's image runs it, so that any image with a prover can be a backend without having
//! our programs in it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The programs: the supervisor of each backend's container, and the backend for provers that are programs.
const TOOLS: [&str; 2] = ["prover-supervisor", "prover-backend-command"];

/// Everybody may run them: the user of a backend's image may be another one.
const MODE: u32 = 0o755;

/// Why the tools are not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstallError {
    #[error("could not find the worker's own program: {source}. Name the tools' folder with --from")]
    FindOwnProgram { source: io::Error },
    #[error("could not read {}: {source}. --from must be the folder with prover-supervisor and prover-backend-command", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("could not write {}: {source}. --to must be a folder that this user may write", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Copies the tools. Each appears whole or not at all, and one that runs is replaced, never written into.
pub(crate) fn install_tools(from: Option<PathBuf>, to: &Path) -> Result<(), InstallError> {
    let from = match from {
        Some(from) => from,
        None => {
            let own = std::env::current_exe().map_err(|source| InstallError::FindOwnProgram { source })?;
            own.parent().unwrap_or(Path::new("/")).to_owned()
        }
    };
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| InstallError::Write { path, source }
    };
    std::fs::create_dir_all(to).map_err(write(to))?;
    for tool in TOOLS {
        let (source, target) = (from.join(tool), to.join(tool));
        let mut original = File::open(&source).map_err(|error| InstallError::Read {
            path: source.clone(),
            source: error,
        })?;
        let mut copy = tempfile::Builder::new()
            .prefix(".installing-")
            .permissions(Permissions::from_mode(MODE))
            .tempfile_in(to)
            .map_err(write(to))?;
        io::copy(&mut original, &mut copy).map_err(write(&target))?;
        // The mode above is subject to the umask.
        let made = copy.as_file().set_permissions(Permissions::from_mode(MODE));
        made.map_err(write(&target))?;
        copy.persist(&target)
            .map_err(|error| write(&target)(error.error))?;
        println!("installed {}", target.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_tools(content: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for tool in TOOLS {
            std::fs::write(folder.path().join(tool), format!("{content} {tool}")).unwrap();
        }
        folder
    }

    #[test]
    fn tools_are_copied_with_their_mode_and_a_second_time_replaces_them_whole() {
        let to = tempfile::tempdir().unwrap();
        let to = to.path().join("bin");
        for content in ["old", "new, and longer than before"] {
            let from = mk_tools(content);
            install_tools(Some(from.path().to_owned()), &to).unwrap();
            for tool in TOOLS {
                let path = to.join(tool);
                assert_eq!(
                    std::fs::read_to_string(&path).unwrap(),
                    format!("{content} {tool}")
                );
                assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
            }
        }
        let left: Vec<_> = std::fs::read_dir(&to).unwrap().collect();
        assert_eq!(left.len(), TOOLS.len(), "{left:?}");
    }

    #[test]
    fn a_missing_tool_is_told_with_its_path_and_the_argument() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let error = install_tools(Some(from.path().to_owned()), to.path()).unwrap_err();
        assert!(error.to_string().contains("prover-supervisor"), "{error}");
        assert!(error.to_string().contains("--from"), "{error}");
    }
}
