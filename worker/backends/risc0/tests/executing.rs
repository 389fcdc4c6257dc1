//! Sample programs run to their ends, good and bad. Nothing is proved here.

mod common;

use common::{Options, PO2, program, run, run_with};
use prover_backend_risc0::execute::ExecuteError;
use risc0_zkvm::{ExecutorEnv, ExecutorImpl, Segment};
use sha2::{Digest as _, Sha256};

fn failure(name: &str, input: &[u8]) -> ExecuteError<String> {
    match run(name, input) {
        Ok(_) => panic!("{name} must fail"),
        Err(error) => error,
    }
}

#[test]
fn fibonacci_commits_n_and_its_number() {
    for (n, expected) in [
        (0_u64, 0_u64),
        (1, 1),
        (2, 1),
        (10, 55),
        (93, 12_200_160_415_121_876_738),
    ] {
        let run = run("fibonacci", &n.to_le_bytes()).expect("runs");
        assert_eq!(
            run.execution.journal,
            [n.to_le_bytes(), expected.to_le_bytes()].concat()
        );
    }
    let short = run("fibonacci", &10_u32.to_le_bytes()).expect("runs");
    assert_eq!(short.execution.journal[8..], 55_u64.to_le_bytes());
}

#[test]
fn fibonacci_costs_more_for_more() {
    let run = run_with(
        &program("fibonacci"),
        &20_000_u64.to_le_bytes(),
        &Options {
            po2: 16,
            ..Options::default()
        },
    )
    .expect("runs");
    assert!(run.segments.len() >= 4, "{} segments", run.segments.len());
    assert_eq!(run.execution.segments, run.segments.len() as u64);
    let cycles: u64 = run.segments.iter().map(|segment| 1_u64 << segment.po2).sum();
    assert_eq!(run.execution.total_cycles, cycles);
}

#[test]
fn sha256_hashes_inputs_of_all_lengths() {
    for length in [0, 1, 55, 56, 63, 64, 65, 4095, 4096, 4097, 20_000] {
        let input: Vec<u8> = (0..length).map(|i| (i * 7) as u8).collect();
        let run = run("sha256", &input).expect("runs");
        let expected = [&(length as u64).to_le_bytes()[..], &Sha256::digest(&input)].concat();
        assert_eq!(run.execution.journal, expected, "{length} bytes");
    }
}

/// A Merkle tree as the program `merkle` sees it.
struct Tree {
    key: [u8; 32],
    levels: Vec<Vec<[u8; 32]>>,
    leaves: Vec<[u8; 32]>,
}

impl Tree {
    fn new(depth: usize) -> Self {
        let leaves = (0..1 << depth).map(|i| [i as u8; 32]).collect();
        let mut tree = Self {
            key: [9; 32],
            levels: vec![],
            leaves,
        };
        tree.rebuild();
        tree
    }

    fn hash(&self, kind: u8, parts: &[[u8; 32]]) -> [u8; 32] {
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.key);
        block[32] = kind;
        Sha256::new()
            .chain_update(block)
            .chain_update(parts.concat())
            .finalize()
            .into()
    }

    fn rebuild(&mut self) {
        self.levels = vec![self.leaves.iter().map(|leaf| self.hash(0, &[*leaf])).collect()];
        while let Some(last) = self.levels.last().filter(|level| level.len() > 1) {
            let next = last.chunks(2).map(|pair| self.hash(1, pair)).collect();
            self.levels.push(next);
        }
    }

    fn root(&self) -> [u8; 32] {
        self.levels[self.levels.len() - 1][0]
    }

    /// Input for an update, which is also made here.
    fn update(&mut self, index: usize, value: [u8; 32]) -> Vec<u8> {
        let mut bytes = (index as u32).to_le_bytes().to_vec();
        bytes.extend(self.leaves[index]);
        bytes.extend(value);
        let mut position = index;
        for level in &self.levels[..self.levels.len() - 1] {
            bytes.extend(level[position ^ 1]);
            position /= 2;
        }
        self.leaves[index] = value;
        self.rebuild();
        bytes
    }
}

fn merkle_input(tree: &mut Tree, updates: &[(usize, [u8; 32])]) -> Vec<u8> {
    let depth = tree.levels.len() as u32 - 1;
    let mut input = [depth.to_le_bytes(), (updates.len() as u32).to_le_bytes()].concat();
    input.extend(tree.key);
    input.extend(tree.root());
    for (index, value) in updates {
        input.extend(tree.update(*index, *value));
    }
    input
}

#[test]
fn merkle_proves_the_new_root_from_the_old_one() {
    let mut tree = Tree::new(4);
    let old_root = tree.root();
    let input = merkle_input(&mut tree, &[(3, [100; 32]), (12, [101; 32]), (3, [102; 32])]);
    let journal = run("merkle", &input).expect("runs").execution.journal;
    let expected = [
        &Sha256::digest(tree.key)[..],
        &old_root,
        &tree.root(),
        &3_u32.to_le_bytes(),
    ]
    .concat();
    assert_eq!(journal, expected);
}

#[test]
fn merkle_refuses_a_value_that_is_not_in_the_tree() {
    let mut tree = Tree::new(4);
    let mut input = merkle_input(&mut tree, &[(3, [100; 32])]);
    input[4 + 4 + 64 + 4] ^= 1;
    let error = failure("merkle", &input);
    assert_eq!(error.category(), "GuestPanicked");
    assert!(
        error
            .to_string()
            .contains("update 0: old value and siblings do not lead to the root"),
        "{error}"
    );
}

#[test]
fn an_input_that_is_too_short_is_told_with_both_lengths() {
    let error = failure("fibonacci", &[1, 2, 3]);
    assert_eq!(error.category(), "GuestPanicked");
    assert_eq!(
        error.to_string(),
        "the program panicked: input too short: need 4 bytes, got 3"
    );
    let error = failure("merkle", &[4, 0, 0, 0, 1, 0, 0, 0, 5]);
    assert!(
        error
            .to_string()
            .ends_with("input too short: need 40 bytes, got 9"),
        "{error}"
    );
    assert!(
        failure("fibonacci", &[0; 9])
            .to_string()
            .contains("input too long")
    );
}

#[test]
fn a_panic_arrives_in_the_words_of_the_program() {
    assert_eq!(
        failure("panics", b"").to_string(),
        "the program panicked: this program always panics"
    );
    assert!(
        failure("panics", b"out of cheese")
            .to_string()
            .ends_with("out of cheese")
    );
}

#[test]
fn a_program_that_never_ends_is_stopped_at_its_limit() {
    let options = Options {
        max_cycles: 50_000,
        ..Options::default()
    };
    let Err(error) = run_with(&program("spins"), b"", &options) else {
        panic!("it never ends")
    };
    let ExecuteError::CycleLimitExceeded { max_cycles, segments } = error else {
        panic!("{error}")
    };
    assert_eq!(max_cycles, 50_000);
    assert!(segments > 1);
}

#[test]
fn segments_are_those_of_risc_zeros_own_executor() {
    let program = program("sha256");
    let input = vec![3; 50_000];
    let ours = run_with(&program, &input, &Options::default()).expect("runs");
    let env = ExecutorEnv::builder()
        .write_slice(&input)
        .segment_limit_po2(PO2)
        .build()
        .expect("environment");
    let mut theirs = Vec::new();
    let session = ExecutorImpl::from_elf(env, program.blob())
        .expect("loads")
        .run_with_callback(|segment: Segment| {
            theirs.push(bincode::serialize(&segment).expect("encodes"));
            Ok(Box::new(risc0_zkvm::NullSegmentRef))
        })
        .expect("runs");
    assert!(theirs.len() > 2);
    assert!(ours.segments.iter().map(|segment| &segment.bytes).eq(&theirs));
    assert_eq!(
        session.journal.map(|journal| journal.bytes),
        Some(ours.execution.journal)
    );
    assert_eq!(
        (session.user_cycles, session.total_cycles),
        (ours.execution.user_cycles, ours.execution.total_cycles)
    );
}

#[test]
fn a_caller_that_takes_no_segment_ends_the_execution_with_its_own_error() {
    let program = program("spins");
    let request = prover_backend_risc0::execute::Request {
        program: &program,
        input: vec![],
        assumptions: &[],
        max_cycles: u64::MAX,
        segment_po2: PO2,
    };
    let seed = || Ok([0; 32]);
    let taken = prover_backend_risc0::execute::execute(request, &seed, |segment| {
        if segment.index < 3 {
            Ok(())
        } else {
            Err("the store is full".to_owned())
        }
    });
    assert!(matches!(taken, Err(ExecuteError::Caller(error)) if error == "the store is full"));
}

#[test]
fn a_request_for_the_keccak_circuit_is_refused_at_the_first_one() {
    let error = failure("keccak", b"");
    assert_eq!(error.category(), "KeccakNotSupported");
    assert!(error.to_string().contains("runs in software"), "{error}");
}

#[test]
fn randomness_is_that_of_the_seed() {
    let drawn = |seed| {
        let options = Options {
            seed: [seed; 32],
            ..Options::default()
        };
        run_with(&program("draws"), b"", &options).expect("runs")
    };
    let (one, same, other) = (drawn(1), drawn(1), drawn(2));
    assert_eq!(one.execution.journal, same.execution.journal);
    assert!(
        one.segments
            .iter()
            .map(|s| &s.bytes)
            .eq(same.segments.iter().map(|s| &s.bytes))
    );
    assert_ne!(one.execution.journal, other.execution.journal);
    assert_ne!(one.execution.journal[..16], one.execution.journal[16..]);
}

#[test]
fn a_receipt_that_the_job_does_not_name_is_missing() {
    let error = failure("composes", &[5; 40]);
    assert_eq!(error.category(), "AssumptionMissing");
    assert!(error.to_string().contains("spec.assumptions"), "{error}");
}

#[test]
fn a_size_that_is_never_chosen_would_make_many_times_as_many_segments() {
    let segments = |po2| {
        let options = Options {
            po2,
            ..Options::default()
        };
        run_with(&program("fibonacci"), &10_u64.to_le_bytes(), &options)
            .expect("runs")
            .segments
            .len()
    };
    assert!(segments(16) == 1 && segments(14) < 4 && segments(15) > 10);
}
