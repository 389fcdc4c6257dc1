//! What happened, as a hash that two runs can be compared by and as text for people.

use std::fmt::Write as _;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The course of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    /// Lines are kept only where somebody wants to read them.
    pub(crate) text: Option<String>,
}

impl Trace {
    pub(crate) fn new(keep_text: bool) -> Trace {
        Trace {
            hash: OFFSET,
            text: keep_text.then(String::new),
        }
    }

    pub(crate) fn mix(&mut self, words: [u64; 4]) {
        for word in words {
            self.hash = (self.hash ^ word).wrapping_mul(PRIME).rotate_left(23);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn line(&mut self, now: u64, text: std::fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.text {
            // Writing to memory can't fail.
            let _ = writeln!(lines, "{:>9.3} {text}", now as f64 / 1_000.0);
        }
    }
}

/// Notes that something happened: numbers that decide whether two runs are the same, and words.
macro_rules! note {
    ($world:expr, $first:expr, $second:expr, $($words:tt)*) => {{
        let now = $world.now;
        $world.trace.mix([now, u64::from(line!()), $first as u64, $second as u64]);
        if $world.trace.text.is_some() {
            $world.trace.line(now, format_args!($($words)*));
        }
    }};
}
pub(crate) use note;
