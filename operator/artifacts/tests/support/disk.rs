//! A small disk for one test: a tmpfs in a mount namespace of its own, reached through the helper's root.
//! Needs no privileges, and goes away with the helper, however the test ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Ends its helper when dropped: the helper waits for the end of its input.
pub(crate) struct SmallDisk {
    helper: Child,
    path: PathBuf,
    _mount_point: TempDir,
}

impl SmallDisk {
    pub(crate) fn new(kibibytes: u32) -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        // A line `ro` on the input makes the disk read-only, as a kernel does after a fault.
        let script = format!(
            "mount -t tmpfs -o size={kibibytes}k tmpfs \"$0\" && echo ready && read word && \
             [ \"$word\" = ro ] && mount -o remount,ro \"$0\" && echo ready && read word"
        );
        let mut helper = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .arg(mount_point.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program unshare (Debian: util-linux) is missing");
        expect_ready(&mut helper);
        let inside = mount_point.path().strip_prefix("/").unwrap();
        let path = Path::new("/proc")
            .join(helper.id().to_string())
            .join("root")
            .join(inside);
        Self {
            helper,
            path,
            _mount_point: mount_point,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn make_read_only(&mut self) {
        use std::io::Write;
        self.helper.stdin.as_mut().unwrap().write_all(b"ro\n").unwrap();
        expect_ready(&mut self.helper);
    }
}

fn expect_ready(helper: &mut Child) {
    let mut byte_by_byte = BufReader::with_capacity(1, helper.stdout.as_mut().unwrap());
    let mut line = String::new();
    byte_by_byte.read_line(&mut line).unwrap();
    assert_eq!(
        line, "ready\n",
        "a tmpfs could not be mounted in a user namespace; allow it, as with sysctl kernel.unprivileged_userns_clone=1"
    );
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.helper.stdin.take());
        let _ = self.helper.wait();
    }
}
