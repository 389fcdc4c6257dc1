//! The program that a user submits: what it must be, and its identity.
//!
//! Owns: telling a RISC-V program from anything else in the words of somebody who sent the wrong file, adding the
//! kernel to a plain ELF, and the image id. Does not own: executing it.

use risc0_binfmt::ProgramBinary;
use risc0_zkvm::Digest;

/// Largest program that is accepted, in bytes. The zkVM's address space for programs is larger, but loading makes
/// one map entry for each word.
pub const MAX_PROGRAM_BYTES: usize = 64 << 20;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const BINARY_MAGIC: &[u8] = b"R0BF";
const ELF_CLASS_32: u8 = 1;
const ELF_CLASS_64: u8 = 2;
const ELF_LITTLE_ENDIAN: u8 = 1;
const ELF_MACHINE_RISCV: u16 = 243;
const ELF_TYPE_EXECUTABLE: u16 = 2;
const ELF_HEADER_BYTES: usize = 52;

/// How to get a program that the zkVM runs.
const HOW_TO_BUILD: &str = "Build it for RISC Zero's zkVM (riscv32im), for instance with `cargo risczero build`, \
                            or take its combined `.bin` file";

/// A program that is no program for the zkVM.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// Neither an ELF file nor RISC Zero's combined binary.
    #[error("the program is not an ELF file: it begins with {begins}. {HOW_TO_BUILD}")]
    NotElf {
        /// The first bytes, as text where they are text.
        begins: String,
    },
    /// An ELF file for something else.
    #[error(
        "the program is an ELF file for {found}, but the zkVM runs 32-bit little-endian RISC-V. {HOW_TO_BUILD}"
    )]
    WrongMachine {
        /// Such as `64-bit x86-64`.
        found: String,
    },
    /// Not linked into an executable.
    #[error(
        "the program is an ELF file of type {found}, but the zkVM runs executables (type 2). {HOW_TO_BUILD}"
    )]
    NotExecutable {
        /// The number in the ELF header.
        found: u16,
    },
    /// Damaged, cut off, or placed where the zkVM can't load it.
    #[error("the program can't be loaded: {detail}. {HOW_TO_BUILD}")]
    Unloadable {
        /// In the loader's words.
        detail: String,
    },
    /// Larger than [`MAX_PROGRAM_BYTES`].
    #[error(
        "the program has {bytes} bytes, more than the limit of {MAX_PROGRAM_BYTES}. Strip its debug information"
    )]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl ProgramError {
    /// Label for metrics, and the reason that users see.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotElf { .. } => "NotAnElf",
            Self::WrongMachine { .. } => "WrongArchitecture",
            Self::NotExecutable { .. } => "NotExecutable",
            Self::Unloadable { .. } => "ProgramUnloadable",
            Self::TooLarge { .. } => "ProgramTooLarge",
        }
    }

    /// The program stays what it is.
    #[must_use]
    pub fn retry(&self) -> bool {
        false
    }
}

/// A program that the zkVM can load, with the kernel it runs on.
#[derive(Clone, Debug)]
pub struct Program {
    blob: Vec<u8>,
    image_id: Digest,
}

impl Program {
    /// Accepts a plain ELF, to which the v1compat kernel is added, or a combined `R0BF` binary.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProgramError> {
        if bytes.len() > MAX_PROGRAM_BYTES {
            return Err(ProgramError::TooLarge { bytes: bytes.len() });
        }
        let unloadable = |error: anyhow::Error| ProgramError::Unloadable {
            detail: format!("{error:#}"),
        };
        let blob = if bytes.starts_with(BINARY_MAGIC) {
            check_elf(ProgramBinary::decode(bytes).map_err(unloadable)?.user_elf)?;
            bytes.to_vec()
        } else {
            check_elf(bytes)?;
            ProgramBinary::new(bytes, risc0_zkos_v1compat::V1COMPAT_ELF).encode()
        };
        let image_id = ProgramBinary::decode(&blob)
            .and_then(|binary| binary.compute_image_id())
            .map_err(unloadable)?;
        Ok(Self { blob, image_id })
    }

    /// The combined binary.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// Identity of program and kernel together, against which a receipt is verified.
    #[must_use]
    pub fn image_id(&self) -> Digest {
        self.image_id
    }
}

fn check_elf(bytes: &[u8]) -> Result<(), ProgramError> {
    if !bytes.starts_with(ELF_MAGIC) {
        return Err(ProgramError::NotElf {
            begins: first_bytes(bytes),
        });
    }
    if bytes.len() < ELF_HEADER_BYTES {
        return Err(ProgramError::Unloadable {
            detail: format!("it ends after {} bytes", bytes.len()),
        });
    }
    let (class, endianness) = (bytes[4], bytes[5]);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (kind, machine) = (half(16), half(18));
    if class != ELF_CLASS_32 || endianness != ELF_LITTLE_ENDIAN || machine != ELF_MACHINE_RISCV {
        return Err(ProgramError::WrongMachine {
            found: describe_machine(class, endianness, machine),
        });
    }
    if kind != ELF_TYPE_EXECUTABLE {
        return Err(ProgramError::NotExecutable { found: kind });
    }
    Ok(())
}

fn describe_machine(class: u8, endianness: u8, machine: u16) -> String {
    let width = match class {
        ELF_CLASS_32 => "32-bit",
        ELF_CLASS_64 => "64-bit",
        _ => "unknown-width",
    };
    if endianness != ELF_LITTLE_ENDIAN {
        return format!("a {width} big-endian machine");
    }
    // Numbers of the ELF specification's e_machine.
    match machine {
        3 => format!("{width} x86"),
        40 => format!("{width} Arm"),
        62 => format!("{width} x86-64"),
        183 => format!("{width} AArch64"),
        ELF_MACHINE_RISCV => format!("{width} RISC-V"),
        other => format!("{width} machine number {other}"),
    }
}

fn first_bytes(bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(8)];
    match std::str::from_utf8(start) {
        _ if start.is_empty() => "nothing: it is empty".to_owned(),
        Ok(text) if text.chars().all(|c| !c.is_control()) => format!("{text:?}"),
        _ => format!("the bytes {}", hex::encode(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header that passes, with no segments.
    fn header() -> Vec<u8> {
        let mut header = vec![0; ELF_HEADER_BYTES];
        header[..4].copy_from_slice(ELF_MAGIC);
        header[4] = ELF_CLASS_32;
        header[5] = ELF_LITTLE_ENDIAN;
        header[6] = 1;
        header[16..18].copy_from_slice(&ELF_TYPE_EXECUTABLE.to_le_bytes());
        header[18..20].copy_from_slice(&ELF_MACHINE_RISCV.to_le_bytes());
        header
    }

    fn refusal(bytes: &[u8]) -> ProgramError {
        Program::parse(bytes).expect_err("must be refused")
    }

    #[test]
    fn a_script_is_told_from_a_program_by_its_first_bytes() {
        let error = refusal(b"#!/bin/sh\n");
        assert_eq!(
            error,
            ProgramError::NotElf {
                begins: "\"#!/bin/s\"".to_owned()
            }
        );
        assert!(error.to_string().contains("cargo risczero build"), "{error}");
        assert_eq!(refusal(b"").category(), "NotAnElf");
        assert!(refusal(&[0, 1, 2]).to_string().contains("000102"));
    }

    #[test]
    fn a_program_for_another_machine_is_named() {
        let mut elf = header();
        elf[4] = ELF_CLASS_64;
        elf[18..20].copy_from_slice(&62_u16.to_le_bytes());
        assert_eq!(
            refusal(&elf),
            ProgramError::WrongMachine {
                found: "64-bit x86-64".to_owned()
            }
        );
        let mut elf = header();
        elf[4] = ELF_CLASS_64;
        assert_eq!(
            refusal(&elf),
            ProgramError::WrongMachine {
                found: "64-bit RISC-V".to_owned()
            }
        );
    }

    #[test]
    fn an_object_file_is_no_executable() {
        let mut elf = header();
        elf[16] = 1;
        assert_eq!(refusal(&elf), ProgramError::NotExecutable { found: 1 });
    }

    #[test]
    fn a_cut_off_file_is_unloadable() {
        assert_eq!(refusal(&header()[..20]).category(), "ProgramUnloadable");
        assert_eq!(refusal(b"R0BF\x01\0\0\0").category(), "ProgramUnloadable");
    }

    #[test]
    fn a_combined_binary_with_a_wrong_program_inside_is_refused_like_the_program() {
        let blob = ProgramBinary::new(b"not an elf", risc0_zkos_v1compat::V1COMPAT_ELF).encode();
        assert_eq!(refusal(&blob).category(), "NotAnElf");
    }

    #[test]
    fn a_program_too_large_is_refused_before_it_is_read() {
        assert_eq!(
            refusal(&vec![0; MAX_PROGRAM_BYTES + 1]).category(),
            "ProgramTooLarge"
        );
    }
}
