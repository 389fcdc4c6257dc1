//! Becomes a program that dies with its parent.
//!
//! `run` starts its workers through this command, since asking the kernel for a signal at the parent's death
//! has to be done in the new process, before the program starts.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Pid, Signal};

use crate::args::ChildArguments;
use crate::failure::Failure;

/// Replaces this process by the program; returns only if that failed.
pub(crate) fn become_program(arguments: &ChildArguments) -> Failure {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure::bad_input("WorkerNotStarted", format!("can't {what}: {error}"))
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed("ask for a signal at the parent's death", &error);
    }
    // The parent may have died before the request above: then nobody would ever send the signal.
    if rustix::process::getppid() != Pid::from_raw(arguments.parent) {
        return failed("start the worker", &"the process that started it is gone");
    }
    let Some((program, rest)) = arguments.command.split_first() else {
        return failed("start the worker", &"no program is named");
    };
    let error = Command::new(program).args(rest).exec();
    failed(&format!("start {}", program.display()), &error)
}
