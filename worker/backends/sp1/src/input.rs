//! The input of a job as SP1's standard input.

use prover_backend::protocol::InputFormat;
use prover_backend::{FramesError, frames};
use sp1_core_machine::io::SP1Stdin;

/// An input that is not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// Not whole frames.
    #[error(transparent)]
    Frames(#[from] FramesError),
    /// Not what SP1 writes.
    #[error("the input is not in the format `Stdin` (SP1Stdin in bincode): {0}")]
    Stdin(String),
}

impl InputError {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        "InputMalformed"
    }

    /// The input stays what it is.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// What the program reads. With `Raw` one `io::read_vec` answers with all bytes; with `Frames` each read with one frame.
pub fn standard_input(format: InputFormat, bytes: Vec<u8>) -> Result<SP1Stdin, InputError> {
    let mut stdin = SP1Stdin::new();
    match format {
        InputFormat::Raw | InputFormat::Unspecified => {
            if !bytes.is_empty() {
                stdin.buffer.push(bytes);
            }
        }
        InputFormat::Frames => {
            stdin.buffer = frames(&bytes)?.into_iter().map(<[u8]>::to_vec).collect();
        }
        InputFormat::Stdin => {
            return bincode::deserialize(&bytes).map_err(|error| InputError::Stdin(error.to_string()));
        }
    }
    Ok(stdin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_reads_of_the_program() {
        let bytes = [&[2, 0, 0, 0, 7, 8][..], &[0, 0, 0, 0], &[1, 0, 0, 0, 9]].concat();
        let stdin = standard_input(InputFormat::Frames, bytes).expect("frames");
        assert_eq!(stdin.buffer, [vec![7, 8], vec![], vec![9]]);
    }

    #[test]
    fn a_frame_that_is_cut_off_is_told_with_its_place() {
        let bytes = [&[1, 0, 0, 0, 7][..], &[9, 0, 0, 0, 1]].concat();
        let error = standard_input(InputFormat::Frames, bytes).expect_err("cut off");
        assert!(error.to_string().contains("at byte 5"), "{error}");
        assert!(standard_input(InputFormat::Frames, vec![1, 2]).is_err());
    }

    #[test]
    fn what_sp1_writes_is_read_and_anything_else_is_not() {
        let mut stdin = SP1Stdin::new();
        stdin.buffer.push(vec![1, 2, 3]);
        let bytes = bincode::serialize(&stdin).expect("encodes");
        let read = standard_input(InputFormat::Stdin, bytes).expect("stdin");
        assert_eq!(read.buffer, stdin.buffer);
        assert!(standard_input(InputFormat::Stdin, vec![255; 20]).is_err());
    }

    #[test]
    fn raw_bytes_are_one_read_and_no_input_is_none() {
        assert_eq!(
            standard_input(InputFormat::Raw, vec![5]).expect("raw").buffer,
            [vec![5]]
        );
        assert!(
            standard_input(InputFormat::Raw, vec![])
                .expect("raw")
                .buffer
                .is_empty()
        );
    }
}
