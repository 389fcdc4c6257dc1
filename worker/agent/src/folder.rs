//! Folders that are shared with backends. What a backend names in them is opened so that neither a link nor a rename
//! leads the agent out: else a backend could have it store its token, or overwrite its files.
//!
//! A [`Folder`] is an open directory, so it stays the same one whatever happens to its path.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prover_backend::validate::ValidationError;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, statat,
};
use rustix::io::Errno;

/// How deep folders may lie in each other where read-only ones are removed.
const DEEPEST_FOLDER: usize = 128;

/// Whether it has been said that the kernel lacks `openat2`.
static TOLD: AtomicBool = AtomicBool::new(false);

/// An open directory and the path at which others see it.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    directory: Arc<OwnedFd>,
    path: PathBuf,
}

/// An open file, with a path that leads to it and to nothing else as long as it is open.
#[derive(Debug)]
pub(crate) struct OpenFile(OwnedFd);

impl OpenFile {
    /// For whoever opens files by path.
    pub(crate) fn path(&self) -> PathBuf {
        path_of(self.0.as_fd())
    }
}

fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

impl Folder {
    /// Opens a folder whose path is trusted: nobody else has had it yet.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let directory = openat(
            rustix::fs::CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self {
            directory: Arc::new(directory),
            path: path.to_owned(),
        })
    }

    /// Where others see it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A path that leads here, whatever others have put at [`Folder::path`], as long as this folder is open.
    pub(crate) fn own_path(&self) -> PathBuf {
        path_of(self.directory.as_fd())
    }

    /// Makes a folder in this one, unless it is there, and opens it. A link is no folder.
    pub(crate) fn make(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&*self.directory, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.enter(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a folder in this one. A link is no folder.
    pub(crate) fn enter(&self, name: &str) -> io::Result<Self> {
        let directory = beneath(
            self.directory.as_fd(),
            Path::new(name),
            OFlags::RDONLY | OFlags::DIRECTORY,
        )?;
        Ok(Self {
            directory: Arc::new(directory),
            path: self.path.join(name),
        })
    }

    /// Opens a file that a backend names by the path at which it sees it.
    pub(crate) fn file(&self, name: &str, path: &Path) -> Result<OpenFile, ValidationError> {
        let outside = || ValidationError::OutputOutsideDirectory {
            name: name.to_owned(),
            path: path.display().to_string(),
        };
        let missing = |problem: String| ValidationError::OutputMissing {
            name: name.to_owned(),
            path: path.display().to_string(),
            problem,
        };
        let inside = path.strip_prefix(&self.path).map_err(|_| outside())?;
        // Without waiting for the writer of a named pipe.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            beneath(self.directory.as_fd(), inside, flags).map_err(|error| {
                match Errno::from_io_error(&error) {
                    Some(Errno::LOOP | Errno::XDEV) => outside(),
                    _ => missing(error.to_string()),
                }
            })?;
        let found = fstat(&file).map_err(|error| missing(error.to_string()))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(missing("it is not a plain file".to_owned()));
        }
        Ok(OpenFile(file))
    }

    /// Removes a folder in this one with all that is in it, read-only folders, too.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.own_path().join(name);
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                make_writable(self.directory.as_fd(), OsStr::new(name), DEEPEST_FOLDER)?;
                std::fs::remove_dir_all(&path)
            }
            other => other,
        }
    }
}

/// Opens what lies below a directory; no link is followed and nothing leads out, whatever is swapped meanwhile.
fn beneath(directory: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let plain = |component| matches!(component, Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(plain) {
        return Err(Errno::XDEV.into());
    }
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match openat2(directory, path, flags, Mode::empty(), resolve) {
        // The kernel is older than 5.6, or a filter of system calls does not know it.
        Err(error @ (Errno::NOSYS | Errno::PERM)) => {
            if !TOLD.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %error,
                    "the kernel or the container's seccomp profile has no openat2: files of backends are opened step \
                     by step instead"
                );
            }
            step_by_step(directory, path, flags)
        }
        other => Ok(other?),
    }
}

/// The same without `openat2`: every folder on the way is opened, and none of them may be a link.
fn step_by_step(directory: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let way = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut opened: Option<OwnedFd> = None;
    let mut components = path.components().peekable();
    while let Some(component) = components.next() {
        let flags = if components.peek().is_some() { way } else { flags };
        let from = opened.as_ref().map_or(directory, AsFd::as_fd);
        opened = Some(openat(from, component.as_os_str(), flags, Mode::empty())?);
    }
    opened.ok_or_else(|| Errno::XDEV.into())
}

/// Lets the owner write into a folder and all folders in it.
fn make_writable(parent: BorrowedFd<'_>, name: &OsStr, deepest: usize) -> io::Result<()> {
    if deepest == 0 {
        return Err(io::Error::other(format!(
            "folders lie in each other more than {DEEPEST_FOLDER} deep"
        )));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat(parent, name, flags, Mode::empty())?;
    // Through the open folder: its name may lead elsewhere by now.
    std::fs::set_permissions(path_of(folder.as_fd()), Permissions::from_mode(0o700))?;
    let readable = openat(
        &folder,
        ".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for entry in Dir::read_from(&readable)? {
        let entry = entry?;
        let name = OsStr::new(std::str::from_utf8(entry.file_name().to_bytes()).map_err(io::Error::other)?);
        if matches!(name.to_str(), Some("." | "..")) {
            continue;
        }
        let found = statat(&readable, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            make_writable(readable.as_fd(), name, deepest - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::process::CommandExt;

    use super::*;

    const SECRET: &str = "the agent's token";

    /// A folder of an attempt, and a secret beside it.
    fn mk() -> (tempfile::TempDir, Folder, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let secret = root.path().join("secrets");
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("out"), SECRET).unwrap();
        let attempt = root.path().join("attempt");
        std::fs::create_dir(&attempt).unwrap();
        let folder = Folder::open(&attempt).unwrap();
        (root, folder, secret)
    }

    fn content(file: &OpenFile) -> String {
        std::fs::read_to_string(file.path()).unwrap()
    }

    #[test]
    fn a_plain_file_is_opened_by_the_path_that_the_backend_sees_and_stays_that_file() {
        let (_root, folder, _) = mk();
        let path = folder.path().join("a/out");
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(&path, "proof").unwrap();
        let file = folder.file("out", &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another").unwrap();
        assert_eq!(content(&file), "proof");
    }

    #[test]
    fn links_ways_out_and_what_is_no_file_are_refused() {
        let (root, folder, secret) = mk();
        let inside = |name: &str| folder.path().join(name);
        symlink(secret.join("out"), inside("link")).unwrap();
        symlink(&secret, inside("linked")).unwrap();
        std::fs::create_dir(inside("empty")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            inside("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for path in [
            inside("link"),
            inside("linked/out"),
            inside("../secrets/out"),
            root.path().join("secrets/out"),
            PathBuf::from("/etc/passwd"),
            PathBuf::from("out"),
        ] {
            let error = folder.file("out", &path).unwrap_err();
            assert!(
                matches!(
                    error,
                    ValidationError::OutputOutsideDirectory { .. } | ValidationError::OutputMissing { .. }
                ),
                "{}: {error}",
                path.display()
            );
        }
        for name in ["empty", "pipe", "nothing"] {
            let error = folder.file("out", &inside(name)).unwrap_err();
            assert!(
                matches!(error, ValidationError::OutputMissing { .. }),
                "{name}: {error}"
            );
        }
    }

    /// Swaps a file with a link, and a folder with a link, as fast as it can.
    fn swap(folder: &Path, secret: &Path, stop: &AtomicBool) {
        std::fs::create_dir(folder.join("mine")).unwrap();
        std::fs::write(folder.join("mine/out"), "proof").unwrap();
        while !stop.load(Ordering::Relaxed) {
            for (name, ours, theirs) in [
                ("out", folder.join("mine/out"), secret.join("out")),
                ("sub", folder.join("mine"), secret.to_owned()),
            ] {
                let _ = std::fs::remove_file(folder.join(name));
                let _ = symlink(theirs, folder.join(name));
                let _ = std::fs::remove_file(folder.join(name));
                if name == "out" {
                    let _ = std::fs::hard_link(ours, folder.join(name));
                } else {
                    let _ = std::fs::rename(ours, folder.join(name));
                    let _ = std::fs::rename(folder.join(name), folder.join("mine"));
                }
            }
        }
    }

    #[test]
    fn whatever_is_swapped_meanwhile_the_secret_is_never_opened() {
        type Opener = fn(BorrowedFd<'_>, &Path, OFlags) -> io::Result<OwnedFd>;
        let openers: [Opener; 2] = [beneath, |directory, path, flags| {
            step_by_step(directory, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC)
        }];
        for open in openers {
            let (_root, folder, secret) = mk();
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| swap(folder.path(), &secret, &stop));
                // Each path was seen as a file and as a link, often.
                let mut seen = [[0_u32; 2]; 2];
                let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
                while seen.as_flattened().iter().any(|times| *times < 50) {
                    if std::time::Instant::now() > until {
                        stop.store(true, Ordering::Relaxed);
                        panic!("{seen:?}");
                    }
                    for (path, [as_file, as_link]) in ["out", "sub/out"].iter().zip(&mut seen) {
                        match open(folder.directory.as_fd(), Path::new(path), OFlags::RDONLY) {
                            Ok(file) => {
                                let text = content(&OpenFile(file));
                                if text != "proof" {
                                    stop.store(true, Ordering::Relaxed);
                                    panic!("{path} led to {text:?}");
                                }
                                *as_file += 1;
                            }
                            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                            Err(_) => *as_link += 1,
                        }
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
    }

    #[test]
    fn a_folder_that_became_a_link_is_neither_entered_nor_written_into() {
        let (_root, folder, secret) = mk();
        symlink(&secret, folder.path().join("got")).unwrap();
        folder.make("got").unwrap_err();
        folder.enter("got").unwrap_err();
        // A folder that was opened before stays what it was.
        let inputs = folder.make("inputs").unwrap();
        std::fs::rename(folder.path().join("inputs"), folder.path().join("moved")).unwrap();
        symlink(&secret, folder.path().join("inputs")).unwrap();
        std::fs::write(inputs.own_path().join("file"), "").unwrap();
        assert!(folder.path().join("moved/file").exists());
        assert!(!secret.join("file").exists());
    }

    const CHILD: &str = "PROVER_TEST_AS_ANOTHER_USER";

    #[test]
    fn read_only_folders_are_removed_and_what_links_lead_to_stays() {
        // Root may write everywhere: only another user can tell.
        if rustix::process::geteuid().is_root() && std::env::var_os(CHILD).is_none() {
            let test = std::thread::current().name().unwrap().to_owned();
            // Where the executable was built, another user may not look.
            let place = tempfile::tempdir_in("/tmp").unwrap();
            std::fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
            let executable = place.path().join("test");
            std::fs::copy(std::env::current_exe().unwrap(), &executable).unwrap();
            let child = std::process::Command::new(executable)
                .args([&test, "--exact", "--nocapture"])
                .env(CHILD, "1")
                .env("TMPDIR", "/tmp")
                .uid(65_532)
                .gid(65_532)
                .output()
                .unwrap();
            let output = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && output.contains("1 passed"), "{child:?}");
            return;
        }
        let (_root, folder, secret) = mk();
        std::fs::set_permissions(&secret, Permissions::from_mode(0o500)).unwrap();
        let deep = folder.path().join("7/a/b");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("file"), "").unwrap();
        symlink(&secret, deep.join("link")).unwrap();
        for path in ["7/a/b", "7/a"] {
            std::fs::set_permissions(folder.path().join(path), Permissions::from_mode(0o500)).unwrap();
        }
        folder.remove("7").unwrap();
        assert!(!folder.path().join("7").exists());
        assert_eq!(secret.metadata().unwrap().permissions().mode() & 0o777, 0o500);
        assert!(secret.join("out").exists());
    }
}
