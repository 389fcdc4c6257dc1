//! Real proofs, as few and small as they can be: they take minutes.

mod common;

use common::{Options, PO2, Run, elf, program, run_with};
use prover_backend::{Backend, VerifyFailure, VerifyRequest};
use prover_backend_risc0::program::Program;
use prover_backend_risc0::{Risc0, prover};
use risc0_zkvm::{Digest, InnerReceipt, Receipt};
use sha2::{Digest as _, Sha256};

/// What any tool of RISC Zero's would do with the file: decode it and call the verifier.
fn verify_with_risc_zero(proof: &[u8], image_id: Digest) -> Receipt {
    let receipt: Receipt = bincode::deserialize(proof).expect("a receipt");
    receipt.verify(image_id).expect("verifies");
    receipt
}

fn refused(proof: &[u8], image_id: Digest) -> VerifyFailure {
    let request = VerifyRequest {
        proof: proof.to_vec(),
        program_id: hex::encode(image_id),
        program: None,
    };
    Risc0.verify_file(&request).expect_err("must be refused")
}

fn assert_only_this_is_accepted(proof: &[u8], program: &Program, kind: &str, journal: &[u8]) {
    let image_id = program.image_id();
    let request = VerifyRequest {
        proof: proof.to_vec(),
        program_id: format!("0x{}", hex::encode(image_id)),
    };
    let verified = Risc0.verify_file(&request).expect("accepted");
    assert_eq!(
        (verified.kind.as_str(), verified.public_values.as_slice()),
        (kind, journal)
    );
    let receipt = verify_with_risc_zero(proof, image_id);
    assert_eq!(receipt.journal.bytes, journal);

    for place in [proof.len() / 3, proof.len() / 2] {
        let mut flipped = proof.to_vec();
        flipped[place] ^= 1;
        assert!(
            matches!(refused(&flipped, image_id), VerifyFailure::Refused(_)),
            "byte {place} flipped"
        );
    }
    assert!(
        matches!(
            refused(proof, Digest::from([1_u8; 32])),
            VerifyFailure::Refused(_)
        ),
        "another program"
    );
    let mut other_journal = receipt;
    other_journal.journal.bytes[0] ^= 1;
    let other_journal = bincode::serialize(&other_journal).expect("encodes");
    assert!(
        matches!(refused(&other_journal, image_id), VerifyFailure::Refused(_)),
        "another journal"
    );
    assert!(
        matches!(
            refused(&proof[..proof.len() - 1], image_id),
            VerifyFailure::Refused(_)
        ),
        "cut off"
    );
    let longer = [proof, &[0]].concat();
    assert!(
        matches!(refused(&longer, image_id), VerifyFailure::Refused(_)),
        "a byte too many"
    );
}

fn prove_segments(run: &Run) -> Vec<Vec<u8>> {
    run.segments
        .iter()
        .map(|segment| prover::prove_segment(&segment.bytes).expect("proves"))
        .collect()
}

fn lift_and_join(receipts: &[Vec<u8>]) -> Vec<u8> {
    let lifted = receipts
        .iter()
        .map(|receipt| prover::lift(receipt).expect("lifts"));
    lifted
        .reduce(|left, right| prover::join(&left, &right).expect("joins"))
        .expect("there is a segment")
}

/// One job through all that proving does: two segments to a Composite and to a Succinct receipt, and then a program
/// that relies on that receipt. In one test, because each step needs what the one before took a minute to make.
#[test]
fn receipts_hold_for_their_program_and_journal_and_for_nothing_else() {
    let fibonacci = program("fibonacci");
    let run = run_with(&fibonacci, &10_u32.to_le_bytes(), &Options::default()).expect("runs");
    assert_eq!(run.segments.len(), 2, "the fewest that can be joined at 2^{PO2}");
    let (journal, image_id) = (run.execution.journal.clone(), fibonacci.image_id());
    let receipts = prove_segments(&run);

    let composite =
        prover::finish_composite(&receipts, vec![], journal.clone(), image_id).expect("assembles");
    assert_only_this_is_accepted(&composite, &fibonacci, "Composite", &journal);
    let swapped = [receipts[1].clone(), receipts[0].clone()];
    assert!(
        prover::finish_composite(&swapped, vec![], journal.clone(), image_id).is_err(),
        "segments swapped"
    );

    let succinct =
        prover::finish_succinct(&lift_and_join(&receipts), journal.clone(), image_id).expect("assembles");
    assert_only_this_is_accepted(&succinct, &fibonacci, "Succinct", &journal);

    let composes = program("composes");
    let assumptions = [prover::read_assumption(&succinct).expect("an assumption")];
    let options = Options {
        assumptions: &assumptions,
        po2: 16,
        ..Options::default()
    };
    let input = [image_id.as_bytes(), &journal].concat();
    let run = run_with(&composes, &input, &options).expect("runs");
    assert_eq!(run.execution.assumptions, [0]);
    assert_eq!(
        run.execution.journal,
        [image_id.as_bytes(), &Sha256::digest(&journal)].concat()
    );
    let receipts = prove_segments(&run);
    let (journal, image_id) = (run.execution.journal, composes.image_id());

    let composite = prover::finish_composite(&receipts, assumptions.to_vec(), journal.clone(), image_id);
    verify_with_risc_zero(&composite.expect("assembles"), image_id);
    let without = prover::finish_composite(&receipts, vec![], journal.clone(), image_id);
    assert!(without.is_err(), "a receipt without what it relies on");

    let conditional = lift_and_join(&receipts);
    let unresolved = prover::finish_succinct(&conditional, journal.clone(), image_id);
    assert!(unresolved.is_err(), "a receipt that still relies on another");
    let resolved = prover::resolve(&conditional, &assumptions[0]).expect("resolves");
    let succinct = prover::finish_succinct(&resolved, journal, image_id).expect("assembles");
    verify_with_risc_zero(&succinct, image_id);
}

#[test]
fn a_fake_receipt_is_refused_and_development_mode_makes_none() {
    let program = program("fibonacci");
    let claim = risc0_zkvm::ReceiptClaim::ok(program.image_id(), b"made up".to_vec());
    let fake = InnerReceipt::Fake(risc0_zkvm::FakeReceipt::new(claim));
    let fake = bincode::serialize(&Receipt::new(fake, b"made up".to_vec())).expect("encodes");
    let failure = refused(&fake, program.image_id());
    assert!(failure.to_string().contains("fake receipt"), "{failure}");

    // RISC Zero's switch for fake receipts must end the process, not decide what a proof is.
    let folder = tempfile::tempdir().expect("a folder");
    let (elf_path, input_path) = (folder.path().join("program"), folder.path().join("input"));
    std::fs::write(&elf_path, elf("fibonacci")).expect("written");
    std::fs::write(&input_path, 10_u32.to_le_bytes()).expect("written");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_prover-risc0-bench"))
        .env("RISC0_DEV_MODE", "1")
        .args([
            "tasks",
            "--segment-po2",
            "14",
            "--proves",
            "1",
            "--recursions",
            "0",
            "--program",
        ])
        .arg(&elf_path)
        .arg("--input")
        .arg(&input_path)
        .output()
        .expect("starts");
    assert!(!output.status.success());
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("RISC0_DEV_MODE"),
        "it says why"
    );
}
