//! What the prover prints: passed on to the container's own output, and line by line to the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prover_backend::supervisor::OutputLine;
use prover_backend::supervisor::supervisor_event::Event;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::limits::{LINE_BYTES, LINE_WITHIN, READ_BYTES};

/// Where lines go. A prover that prints faster than the agent reads waits for it a little; an agent that does not read
/// at all costs lines, which stay in the container's log.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    events: mpsc::Sender<Event>,
    left_out: Arc<AtomicU64>,
}

impl Lines {
    pub(crate) fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            events,
            left_out: Arc::default(),
        }
    }

    async fn send(&self, line: String) {
        let left_out = self.left_out.load(Ordering::Relaxed);
        let within = if left_out > 0 { Duration::ZERO } else { LINE_WITHIN };
        let Ok(Ok(place)) = timeout(within, self.events.reserve()).await else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let line = if left_out > 0 {
            self.left_out.fetch_sub(left_out, Ordering::Relaxed);
            format!("({left_out} lines were left out) {line}")
        } else {
            line
        };
        place.send(Event::Output(OutputLine { line }));
    }
}

/// Reads an output of the prover until it ends.
pub(crate) async fn follow(
    mut output: impl AsyncRead + Unpin,
    mut own: impl AsyncWrite + Unpin,
    lines: Lines,
) {
    let mut chunk = vec![0; READ_BYTES];
    let mut cutter = Cutter::default();
    loop {
        let bytes = match output.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(count) => &chunk[..count],
        };
        for line in cutter.push(bytes) {
            lines.send(line).await;
        }
        // A closed log is no reason to stop the prover.
        let _ = own.write_all(bytes).await;
        let _ = own.flush().await;
    }
    if let Some(line) = cutter.finish() {
        lines.send(line).await;
    }
}

/// Cuts bytes into lines of bounded length.
#[derive(Debug, Default)]
struct Cutter {
    line: Vec<u8>,
    /// The rest of the line is left out.
    full: bool,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            let room = LINE_BYTES - self.line.len();
            self.full |= text.len() > room;
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if complete {
                lines.push(self.take());
            }
        }
        lines
    }

    /// A last line that has no end.
    fn finish(&mut self) -> Option<String> {
        (!self.line.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        const ELLIPSIS: &str = "…";
        let mut text = String::from_utf8_lossy(&self.line).into_owned();
        while text.ends_with('\r') {
            text.pop();
        }
        // Bytes that are no text are replaced by longer ones.
        if self.full || text.len() > LINE_BYTES {
            let mut end = text.len().min(LINE_BYTES - ELLIPSIS.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push_str(ELLIPSIS);
        }
        self.line.clear();
        self.full = false;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Vec::new();
        let mut cutter = Cutter::default();
        for chunk in chunks {
            lines.extend(cutter.push(chunk));
        }
        lines.extend(cutter.finish());
        lines
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        assert_eq!(cut(&[b"a\nb", b"c\r\n", b"\nlast"]), ["a", "bc", "", "last"]);
    }

    #[test]
    fn a_line_without_end_is_cut_once() {
        let long = vec![b'x'; 3 * LINE_BYTES];
        let lines = cut(&[&long, &long, b"\nnext\n"]);
        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() <= LINE_BYTES && lines[0].ends_with('…'));
        assert_eq!(lines[1], "next");
    }

    #[test]
    fn a_line_of_just_the_longest_length_is_whole() {
        let mut line = vec![b'x'; LINE_BYTES];
        line.push(b'\n');
        assert_eq!(cut(&[&line])[0].len(), LINE_BYTES);
        assert!(!cut(&[&line])[0].ends_with('…'));
    }

    #[test]
    fn bytes_that_are_no_text_never_make_a_line_too_long() {
        let lines = cut(&[&[0xff; 2 * LINE_BYTES], b"\n"]);
        assert_eq!(lines.len(), 1);
        assert!(lines[0].len() <= LINE_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_does_not_read_costs_lines_and_is_told_how_many() {
        let (sender, mut receiver) = mpsc::channel(2);
        let lines = Lines::new(sender);
        let before = tokio::time::Instant::now();
        for index in 0..10 {
            lines.send(index.to_string()).await;
        }
        assert_eq!(before.elapsed(), LINE_WITHIN, "it is waited for once");
        for told in ["0", "1"] {
            let Some(Event::Output(output)) = receiver.recv().await else {
                panic!("nothing was told")
            };
            assert_eq!(output.line, told);
        }
        lines.send("10".to_owned()).await;
        let Some(Event::Output(output)) = receiver.recv().await else {
            panic!("nothing was told")
        };
        assert_eq!(output.line, "(8 lines were left out) 10");
    }
}
