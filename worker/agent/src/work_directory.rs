//! The folder in which attempts have their files, and the sockets of children. Used by one agent at a time;
//! emptied at its start and at its end.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statvfs};
use tempfile::TempDir;

use crate::error::AgentError;
use crate::folder::Folder;
use crate::limits::SOCKET_PATH_BYTES;
use crate::transfer::AttemptFolder;

/// Name of the folder for attempts.
const ATTEMPTS: &str = "attempts";

/// Longest name of a socket in its folder, with the slash before it.
const SOCKET_NAME_BYTES: usize = "/65535.sock".len();

/// The work directory of this agent.
#[derive(Debug)]
pub(crate) struct WorkDirectory {
    /// Held open: what a backend does to its path changes nothing here.
    attempts: Folder,
    root: Folder,
    sockets: TempDir,
    bytes: u64,
    /// Held as long as the agent lives; the kernel lets go of it when the process ends in any way.
    _lock: File,
}

impl WorkDirectory {
    /// Takes the folder, and removes what an agent before has left.
    pub(crate) fn take(path: &Path, bytes: Option<u64>) -> Result<Self, AgentError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source: std::io::Error| AgentError::UseWorkDirectory { action, path, source }
        };
        std::fs::create_dir_all(path).map_err(failed("make the work directory", path))?;
        // Children get absolute paths.
        let path = &path
            .canonicalize()
            .map_err(failed("find the work directory", path))?;
        let lock_file = path.join("agent.lock");
        let lock = File::create(&lock_file).map_err(failed("make the lock file", &lock_file))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(AgentError::WorkDirectoryTaken { path: path.clone() });
            }
            Err(error) => return Err(failed("lock the work directory", path)(error.into())),
        }
        let root = Folder::open(path).map_err(failed("open the work directory", path))?;
        match root.remove(ATTEMPTS) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("empty the folder for attempts", &path.join(ATTEMPTS))(
                    error,
                ));
            }
            Ok(()) | Err(_) => {}
        }
        let attempts = root
            .make(ATTEMPTS)
            .map_err(failed("make the folder for attempts", &path.join(ATTEMPTS)))?;
        let sockets = Self::sockets_below(path).map_err(failed("make the folder for sockets", path))?;
        let space = statvfs(path).map(|space| space.f_bavail.saturating_mul(space.f_frsize));
        let free = space.map_err(|error| failed("measure the work directory", path)(error.into()))?;
        Ok(Self {
            attempts,
            root,
            sockets,
            bytes: bytes.unwrap_or(free),
            _lock: lock,
        })
    }

    /// In the work directory where the path is short enough for a socket, else where temporary files go.
    fn sockets_below(path: &Path) -> std::io::Result<TempDir> {
        const PREFIX: &str = "sockets-";
        for left in std::fs::read_dir(path)?.flatten() {
            if left.file_name().to_string_lossy().starts_with(PREFIX) {
                let _ = std::fs::remove_dir_all(left.path());
            }
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).permissions(Permissions::from_mode(0o700));
        let folder = builder.tempdir_in(path)?;
        if folder.path().as_os_str().len() + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES {
            return Ok(folder);
        }
        builder.tempdir()
    }

    /// Where the socket of a slot is.
    pub(crate) fn socket(&self, slot: usize) -> PathBuf {
        self.sockets.path().join(format!("{slot}.sock"))
    }

    /// Where an attempt has its files.
    pub(crate) fn attempt(&self, attempt: u64) -> AttemptFolder {
        AttemptFolder::new(self.attempts.clone(), attempt)
    }

    /// Bytes that inputs may take.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next agent.
        let _ = self.root.remove(ATTEMPTS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_refused_and_free_again_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let first = WorkDirectory::take(folder.path(), None).unwrap();
        let error = WorkDirectory::take(folder.path(), None).unwrap_err();
        assert!(matches!(error, AgentError::WorkDirectoryTaken { .. }), "{error}");
        drop(first);
        WorkDirectory::take(folder.path(), None).unwrap();
    }

    #[test]
    fn what_an_agent_before_has_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("attempts/7/inputs");
        std::fs::create_dir_all(&left).unwrap();
        let old_sockets = folder.path().join("sockets-old");
        std::fs::create_dir_all(&old_sockets).unwrap();
        let _taken = WorkDirectory::take(folder.path(), None).unwrap();
        assert!(!left.exists());
        assert!(!old_sockets.exists());
    }

    #[test]
    fn sockets_of_a_long_path_lie_elsewhere_and_only_their_owner_may_enter() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(120));
        let taken = WorkDirectory::take(&long, None).unwrap();
        let socket = taken.socket(3);
        assert!(
            socket.as_os_str().len() <= SOCKET_PATH_BYTES,
            "{}",
            socket.display()
        );
        let mode = socket.parent().unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = WorkDirectory::take(&file.path().join("work"), None).unwrap_err();
        assert!(
            error.to_string().contains(&file.path().display().to_string()),
            "{error}"
        );
        assert!(error.to_string().contains("--work-directory"), "{error}");
    }
}
