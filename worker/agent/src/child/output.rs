//! What a child prints: passed on to the log line by line, and the last lines kept for failure messages.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

use crate::limits::{KEPT_LINE_BYTES, KEPT_LINES};

/// The last lines of a child's output.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: String) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }

    /// The lines, oldest first.
    pub(crate) fn text(&self) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Reads an output until it ends. Lines without end are cut, so that a child can't fill the agent's memory.
    pub(crate) async fn follow(self, output: impl AsyncRead + Unpin, device: String) {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            let available = match reader.fill_buf().await {
                Ok([]) | Err(_) => break,
                Ok(available) => available,
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let room = KEPT_LINE_BYTES.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            let consumed = part.len() + usize::from(end.is_some());
            reader.consume(consumed);
            if end.is_some() {
                self.take(&mut line, &device);
            }
        }
        if !line.is_empty() {
            self.take(&mut line, &device);
        }
    }

    fn take(&self, line: &mut Vec<u8>, device: &str) {
        let text = self.push_line(&String::from_utf8_lossy(line));
        line.clear();
        tracing::info!(target: "prover_agent::backend", device, "{text}");
    }

    /// Takes a line that somebody else has read, and answers with what is kept of it.
    pub(crate) fn push_line(&self, line: &str) -> String {
        let mut text = without_colours(line);
        let mut kept = KEPT_LINE_BYTES.min(text.len());
        while !text.is_char_boundary(kept) {
            kept -= 1;
        }
        text.truncate(kept);
        self.push(text.clone());
        text
    }

    /// Forgets all lines: a new process begins.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// Drops terminal colours and other control characters, which have no place in messages.
fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // An escape sequence ends with a letter.
            for skipped in characters.by_ref() {
                if skipped.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if !character.is_control() || character == '\t' {
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(output: &[u8]) -> String {
        let lines = LastLines::default();
        lines.clone().follow(output, "cpu-0".to_owned()).await;
        lines.text()
    }

    #[tokio::test]
    async fn only_the_last_lines_are_kept() {
        let output: String = (0..100).map(|number| format!("line {number}\n")).collect();
        let text = read(output.as_bytes()).await;
        assert_eq!(text.lines().count(), KEPT_LINES);
        assert_eq!(text.lines().next(), Some("line 80"));
        assert!(text.ends_with("line 99"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_cut_and_an_unfinished_one_is_kept() {
        let mut output = vec![b'x'; 1 << 20];
        output.extend_from_slice(b"\nlast words");
        let text = read(&output).await;
        assert_eq!(text.lines().next().unwrap().len(), KEPT_LINE_BYTES);
        assert!(text.ends_with("last words"));
    }

    #[tokio::test]
    async fn terminal_colours_are_dropped() {
        assert_eq!(read(b"\x1b[31mred\x1b[0m alert\n").await, "red alert");
    }
}
