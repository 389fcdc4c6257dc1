//! An early look at a program: is it what the proof system runs at all?
//!
//! Owns the check of headers, so that a wrong file is told in a second and not by a planner on some worker. Does
//! not own whether the program is a good guest: only executing it tells that.

use std::fmt;

/// Bytes of a program's beginning that the check looks at.
pub const HEAD_BYTES: usize = 64;

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// Magic of RISC Zero's `ProgramBinary`: user program and kernel in one file.
const RISC0_BINARY_MAGIC: &[u8] = b"R0BF";
const ELF_MACHINE_RISCV: u16 = 243;
const ELF_TYPE_EXECUTABLE: u16 = 2;

/// The program is not what the proof system runs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// There are no bytes.
    #[error("spec.program: {origin} is empty; {wanted}")]
    Empty {
        /// Where the program comes from, as the user wrote it.
        origin: String,
        /// What is needed, and how to make it.
        wanted: Wanted,
    },
    /// It is something else.
    #[error("spec.program: {origin} is {found}; {wanted}")]
    WrongFormat {
        /// Where the program comes from, as the user wrote it.
        origin: String,
        /// What it is.
        found: Found,
        /// What is needed, and how to make it.
        wanted: Wanted,
    },
    /// The header tells of more bytes than there are.
    #[error(
        "spec.program: {origin} is cut off: its header tells of {needed} bytes, but it has only {present}; copy or \
         build it again"
    )]
    CutOff {
        /// Where the program comes from, as the user wrote it.
        origin: String,
        /// Bytes up to the end of its program headers.
        needed: u64,
        /// Bytes that there are.
        present: u64,
    },
}

impl ProgramError {
    /// Short name for metrics and events.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            ProgramError::Empty { .. } => "empty_program",
            ProgramError::WrongFormat { .. } => "wrong_program_format",
            ProgramError::CutOff { .. } => "program_cut_off",
        }
    }

    /// Short CamelCase word for the job's condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "InvalidProgram"
    }
}

/// What a proof system runs, and how a user makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// RISC Zero.
    Risc0,
    /// SP1.
    Sp1,
}

impl fmt::Display for Wanted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Wanted::Risc0 => {
                "RISC Zero runs 32-bit RISC-V executables (target riscv32im) and RISC Zero program binaries (R0BF): \
                 build the guest with `cargo risczero build` and give its ELF or .bin file"
            }
            Wanted::Sp1 => {
                "SP1 runs 64-bit RISC-V executables: build the guest with `cargo prove build` and give its ELF file"
            }
        })
    }
}

/// What a file was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An ELF file of this class, byte order, machine and type.
    Elf {
        /// 32 or 64, none where the header is damaged.
        bits: Option<u8>,
        /// False where the byte order is not little-endian.
        little_endian: bool,
        /// Number of the machine in ELF's own list.
        machine: u16,
        /// Number of the type in ELF's own list.
        kind: u16,
    },
    /// An ELF file that ends within its header.
    CutElf,
    /// Something else that is known.
    Known(&'static str),
    /// Unknown bytes.
    Unknown {
        /// The first of them.
        first: Vec<u8>,
    },
}

impl fmt::Display for Found {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Elf {
                bits,
                little_endian,
                machine,
                kind,
            } => {
                let machine = machine_name(*machine, *bits);
                let order = if *little_endian { "" } else { "big-endian " };
                match *kind {
                    ELF_TYPE_EXECUTABLE => {
                        write!(formatter, "{} {order}{machine} ELF", article(order, &machine))
                    }
                    1 => write!(
                        formatter,
                        "a relocatable object file ({order}{machine} ELF), not a linked program"
                    ),
                    3 => write!(
                        formatter,
                        "a shared object or position-independent program ({order}{machine} ELF)"
                    ),
                    other => write!(formatter, "an {order}{machine} ELF of type {other}"),
                }
            }
            Found::CutElf => formatter.write_str("an ELF file that ends within its header"),
            Found::Known(what) => formatter.write_str(what),
            Found::Unknown { first } => {
                write!(
                    formatter,
                    "not an ELF file (its first bytes are {})",
                    hex::encode(first)
                )
            }
        }
    }
}

fn article(order: &str, machine: &str) -> &'static str {
    // "x86-64", "ARM" and "AArch64" are spoken with a vowel.
    let vowel = order.is_empty()
        && ["x86", "ARM", "AArch64"]
            .iter()
            .any(|name| machine.starts_with(name));
    if vowel { "an" } else { "a" }
}

fn machine_name(machine: u16, bits: Option<u8>) -> String {
    let bits = bits.map_or_else(String::new, |bits| format!("{bits}-bit "));
    match machine {
        3 => "x86 (32-bit)".into(),
        8 => format!("{bits}MIPS"),
        21 => "PowerPC64".into(),
        40 => "ARM (32-bit)".into(),
        62 => "x86-64".into(),
        183 => "AArch64".into(),
        ELF_MACHINE_RISCV => format!("{bits}RISC-V"),
        247 => "eBPF".into(),
        258 => "LoongArch".into(),
        other => format!("{bits}machine-{other}"),
    }
}

/// Looks at the beginning of a program, of `size` bytes in all, for the proof system that is to run it. Systems
/// whose programs have no header of their own pass.
///
/// # Errors
/// The program is not what the system runs.
pub fn check(system: &str, origin: &str, head: &[u8], size: u64) -> Result<(), ProgramError> {
    let wanted = match system {
        "risc0" => Wanted::Risc0,
        "sp1" => Wanted::Sp1,
        _ => return Ok(()),
    };
    if size == 0 {
        return Err(ProgramError::Empty {
            origin: origin.to_owned(),
            wanted,
        });
    }
    if wanted == Wanted::Risc0 && head.starts_with(RISC0_BINARY_MAGIC) {
        return Ok(());
    }
    let found = identify(head);
    let bits = match wanted {
        Wanted::Risc0 => 32,
        Wanted::Sp1 => 64,
    };
    let fits = Found::Elf {
        bits: Some(bits),
        little_endian: true,
        machine: ELF_MACHINE_RISCV,
        kind: ELF_TYPE_EXECUTABLE,
    };
    if found != fits {
        return Err(ProgramError::WrongFormat {
            origin: origin.to_owned(),
            found,
            wanted,
        });
    }
    let needed = end_of_program_headers(head, bits);
    if needed > size {
        return Err(ProgramError::CutOff {
            origin: origin.to_owned(),
            needed,
            present: size,
        });
    }
    Ok(())
}

fn identify(head: &[u8]) -> Found {
    if head.starts_with(ELF_MAGIC) {
        return identify_elf(head);
    }
    let known: [(&[u8], &'static str); 12] = [
        (b"R0BF", "a RISC Zero program binary (R0BF)"),
        (b"MZ", "a Windows program (PE)"),
        (b"\xcf\xfa\xed\xfe", "a macOS program (Mach-O)"),
        (b"\xca\xfe\xba\xbe", "a macOS universal program or a Java class"),
        (b"\0asm", "a WebAssembly module"),
        (b"!<arch>\n", "an archive of object files"),
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip file"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"#!", "a script"),
        (b"{", "a JSON or text file"),
        (b"apiVersion:", "a Kubernetes manifest"),
    ];
    if let Some((_, what)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Found::Known(what);
    }
    if head
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    {
        return Found::Known("a text file");
    }
    Found::Unknown {
        first: head.iter().take(4).copied().collect(),
    }
}

fn identify_elf(head: &[u8]) -> Found {
    let (Some(class), Some(order), Some(kind), Some(machine)) =
        (head.get(4), head.get(5), head.get(16..18), head.get(18..20))
    else {
        return Found::CutElf;
    };
    let little_endian = *order == 1;
    let number = |bytes: &[u8]| {
        let value = u16::from(bytes[0]) | (u16::from(bytes[1]) << 8);
        if little_endian { value } else { value.swap_bytes() }
    };
    let bits = match class {
        1 => Some(32),
        2 => Some(64),
        _ => None,
    };
    Found::Elf {
        bits,
        little_endian,
        machine: number(machine),
        kind: number(kind),
    }
}

/// End of the program headers in the file, 0 where the head is too short to tell.
fn end_of_program_headers(head: &[u8], bits: u8) -> u64 {
    let read = |offset: usize, width: usize| {
        let bytes = head.get(offset..offset + width)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0_u64, |value, byte| (value << 8) | u64::from(*byte)),
        )
    };
    let fields = if bits == 32 {
        (read(0x1c, 4), read(0x2a, 2), read(0x2c, 2))
    } else {
        (read(0x20, 8), read(0x36, 2), read(0x38, 2))
    };
    match fields {
        (Some(offset), Some(size), Some(count)) => offset.saturating_add(size * count),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_elf(class: u8, machine: u16, kind: u16) -> Vec<u8> {
        let mut head = vec![0_u8; HEAD_BYTES];
        head[..4].copy_from_slice(ELF_MAGIC);
        head[4] = class;
        head[5] = 1;
        head[16..18].copy_from_slice(&kind.to_le_bytes());
        head[18..20].copy_from_slice(&machine.to_le_bytes());
        head
    }

    fn message(system: &str, head: &[u8]) -> String {
        check(system, "file \"guest.elf\"", head, head.len() as u64)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_right_executables_pass() {
        assert_eq!(check("risc0", "p", &mk_elf(1, 243, 2), 64), Ok(()));
        assert_eq!(check("sp1", "p", &mk_elf(2, 243, 2), 64), Ok(()));
        assert_eq!(check("risc0", "p", b"R0BF\x01\0\0\0", 8), Ok(()));
        assert_eq!(check("emulated", "p", b"{}", 2), Ok(()));
    }

    #[test]
    fn each_wrong_program_is_named_with_what_it_is_and_what_to_do() {
        let cases: [(&str, Vec<u8>, &str); 10] = [
            (
                "risc0",
                mk_elf(2, 62, 2),
                "file \"guest.elf\" is an x86-64 ELF; RISC Zero runs 32-bit RISC-V",
            ),
            ("risc0", mk_elf(2, 183, 2), "is an AArch64 ELF"),
            (
                "risc0",
                mk_elf(2, 243, 2),
                "is a 64-bit RISC-V ELF; RISC Zero runs 32-bit",
            ),
            (
                "sp1",
                mk_elf(1, 243, 2),
                "is a 32-bit RISC-V ELF; SP1 runs 64-bit",
            ),
            (
                "sp1",
                b"R0BF\x01\0\0\0".to_vec(),
                "is a RISC Zero program binary (R0BF); SP1 runs",
            ),
            (
                "risc0",
                mk_elf(1, 243, 1),
                "is a relocatable object file (32-bit RISC-V ELF), not a linked program",
            ),
            (
                "risc0",
                mk_elf(1, 243, 3),
                "is a shared object or position-independent program",
            ),
            (
                "risc0",
                b"\x7fELF\x01".to_vec(),
                "is an ELF file that ends within its header",
            ),
            ("risc0", b"fn main() {}\n".to_vec(), "is a text file"),
            (
                "risc0",
                vec![0xde, 0xad, 0xbe, 0xef, 1],
                "is not an ELF file (its first bytes are deadbeef)",
            ),
        ];
        for (system, head, expected) in cases {
            let message = message(system, &head);
            assert!(message.contains(expected), "expected {expected:?} in {message:?}");
            assert!(message.contains("build the guest with"), "{message}");
        }
    }

    #[test]
    fn an_empty_program_is_told() {
        let message = message("risc0", b"");
        assert!(message.contains("is empty"), "{message}");
    }

    #[test]
    fn a_program_that_ends_before_its_own_headers_is_told_as_cut_off() {
        let mut head = mk_elf(1, 243, 2);
        head[0x1c..0x20].copy_from_slice(&52_u32.to_le_bytes());
        head[0x2a..0x2c].copy_from_slice(&32_u16.to_le_bytes());
        head[0x2c..0x2e].copy_from_slice(&3_u16.to_le_bytes());
        assert_eq!(check("risc0", "p", &head, 148), Ok(()));
        let message = check("risc0", "p", &head, 147).unwrap_err().to_string();
        assert!(
            message.contains("tells of 148 bytes, but it has only 147"),
            "{message}"
        );
    }
}
