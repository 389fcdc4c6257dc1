//! The input of a job as SP1's standard input.

use prover_backend::protocol::InputFormat;
use sp1_core_machine::io::SP1Stdin;

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// An input that is not what its format says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// A frame that is longer than what is left, or less than a length is left.
    #[error(
        "the input is not in the format `Frames`: at byte {offset} {problem}. Each frame is its length as 4 bytes \
         little-endian, then its bytes"
    )]
    Frames {
        /// Where the frame begins.
        offset: usize,
        /// What is wrong there.
        problem: String,
    },
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
        InputFormat::Frames => stdin.buffer = frames(&bytes)?,
        InputFormat::Stdin => {
            return bincode::deserialize(&bytes).map_err(|error| InputError::Stdin(error.to_string()));
        }
    }
    Ok(stdin)
}

fn frames(bytes: &[u8]) -> Result<Vec<Vec<u8>>, InputError> {
    let (mut offset, mut frames) = (0, Vec::new());
    while offset < bytes.len() {
        let wrong = |problem: String| InputError::Frames { offset, problem };
        let Some((length, rest)) = bytes[offset..].split_first_chunk::<LENGTH_BYTES>() else {
            return Err(wrong("less than a length is left".to_owned()));
        };
        let length = u32::from_le_bytes(*length) as usize;
        let Some(frame) = rest.get(..length) else {
            return Err(wrong(format!(
                "a frame says {length} bytes and {} are left",
                rest.len()
            )));
        };
        frames.push(frame.to_vec());
        offset += LENGTH_BYTES + length;
    }
    Ok(frames)
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
