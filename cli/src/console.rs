//! Writes to standard output and standard error. A reader that has gone away (a closed pipe) is no error: the exit
//! code and the written files still tell everything.

use std::io::Write;

/// Results: standard output carries nothing else.
pub(crate) fn print(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// A line for people on standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
