//! Verification of what users get, as `sp1-sdk` does it.

use std::borrow::Borrow as _;

use anyhow::{Context as _, Result, anyhow, bail};
use slop_algebra::PrimeField as _;
use sp1_hypercube::{PROOF_MAX_NUM_PVS, koalabears_to_bn254};
use sp1_primitives::{Elf, SP1Field};
use sp1_prover::{HashableKey, SP1VerifyingKey};
use sp1_recursion_executor::RecursionPublicValues;
use sp1_sdk::{LightProver, Prover as _, ProvingKey as _, SP1Proof, SP1ProofWithPublicValues};
use sp1_verifier::compressed::SP1CompressedVerifier;
use sp1_verifier::{GROTH16_VK_BYTES, Groth16Verifier, PLONK_VK_BYTES, PlonkVerifier, ProofFromNetwork};

use crate::{Boxed, Settings};

/// Verifies, and computes verifying keys. Cheap to make compared with a prover.
#[derive(Clone)]
pub struct Verifier {
    light: LightProver,
}

/// A proof that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// As in `ProofJob.spec.proof.kind`.
    pub kind: &'static str,
    /// What the program made public.
    pub public_values: Vec<u8>,
    /// Identity of the program that was proved: the hash of its verifying key, hexadecimal.
    pub program_id: String,
}

impl Verifier {
    /// A verifier of what provers with these settings make.
    pub fn new(settings: Settings) -> Boxed<'static, Self> {
        Box::pin(async move {
            Self {
                light: LightProver::new_with_opts(settings.core_opts()).await,
            }
        })
    }

    /// The verifying key of a program, serialized: tens of seconds on a CPU.
    pub fn verifying_key(&self, elf: Vec<u8>) -> Boxed<'_, Result<Vec<u8>>> {
        Box::pin(async move {
            let key = self.light.setup(Elf::from(elf)).await?;
            Ok(bincode::serialize(key.verifying_key())?)
        })
    }

    /// Checks a proof as a user gets it against a verifying key.
    pub fn verify(&self, proof: &[u8], verifying_key: &[u8]) -> Result<Checked> {
        let key: SP1VerifyingKey =
            bincode::deserialize(verifying_key).context("the verifying key can't be read")?;
        let proof: SP1ProofWithPublicValues =
            bincode::deserialize(proof).context("the bytes are not a proof of SP1")?;
        self.light
            .verify(&proof, &key, None)
            .map_err(|error| anyhow!("{error}"))?;
        Ok(Checked {
            kind: kind_of(&proof),
            public_values: proof.public_values.to_vec(),
            program_id: id_of(&key),
        })
    }
}

fn kind_of(proof: &SP1ProofWithPublicValues) -> &'static str {
    match proof.proof {
        SP1Proof::Core(_) => "Core",
        SP1Proof::Compressed(_) => "Compressed",
        SP1Proof::Plonk(_) => "Plonk",
        SP1Proof::Groth16(_) => "Groth16",
    }
}

/// Checks a proof against the hash of a program's verifying key (64 hexadecimal digits), without the key itself. A Core
/// proof can't be judged so.
pub fn verify_by_id(proof: &[u8], program_id: &str) -> Result<Checked> {
    let proof: SP1ProofWithPublicValues =
        bincode::deserialize(proof).context("the bytes are not a proof of SP1")?;
    let public_values = proof.public_values.to_vec();
    let id = format!("0x{program_id}");
    match &proof.proof {
        SP1Proof::Core(_) => {
            bail!("a Core proof is verified with the program's verifying key, not with its hash")
        }
        SP1Proof::Compressed(compressed) => {
            let words = compressed.proof.public_values.as_slice();
            if words.len() != PROOF_MAX_NUM_PVS {
                bail!(
                    "the proof has {} public values where it needs {PROOF_MAX_NUM_PVS}",
                    words.len()
                );
            }
            let words: &RecursionPublicValues<SP1Field> = words.borrow();
            let digest = words.sp1_vk_digest;
            let hash = koalabears_to_bn254(&digest).as_canonical_biguint();
            let proved = format!("{:0>64}", hash.to_str_radix(16));
            if proved != program_id {
                bail!("it proves the program {proved}");
            }
            SP1CompressedVerifier::new()
                .verify_compressed_with_public_values(compressed, &public_values, &digest)
                .map_err(|error| anyhow!("{error}"))?;
        }
        SP1Proof::Groth16(_) => {
            Groth16Verifier::verify(&proof.bytes(), &public_values, &id, &GROTH16_VK_BYTES)
                .map_err(|error| anyhow!("{error}"))?;
        }
        SP1Proof::Plonk(_) => {
            PlonkVerifier::verify(&proof.bytes(), &public_values, &id, &PLONK_VK_BYTES)
                .map_err(|error| anyhow!("{error}"))?;
        }
    }
    Ok(Checked {
        kind: kind_of(&proof),
        public_values,
        program_id: program_id.to_owned(),
    })
}

fn id_of(key: &SP1VerifyingKey) -> String {
    key.bytes32().trim_start_matches("0x").to_owned()
}

/// The identity of the program that a serialized verifying key belongs to: the key's hash, hexadecimal.
pub fn program_id(verifying_key: &[u8]) -> Result<String> {
    let key: SP1VerifyingKey =
        bincode::deserialize(verifying_key).context("the verifying key can't be read")?;
    Ok(id_of(&key))
}

/// What the controller leaves, as `sp1-sdk` loads it, and what the program made public.
pub fn user_proof(from_controller: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    let proof: ProofFromNetwork =
        bincode::deserialize(from_controller).context("the controller's proof can't be read")?;
    let proof = SP1ProofWithPublicValues::from(proof);
    let public_values = proof.public_values.to_vec();
    Ok((bincode::serialize(&proof)?, public_values))
}
