//! The check that the processor has what this program was compiled for.
//!
//! Proving is mostly arithmetic that runs faster with newer instructions, so releases are compiled for x86-64-v3. On
//! an older processor such a program would end with an illegal instruction somewhere in a proof; here it says so at
//! start instead.

/// Exit code where the processor is too old.
pub const EXIT_UNSUPPORTED: u8 = 4;

/// Instruction sets that this program was compiled with and the processor lacks.
#[must_use]
pub fn missing_features() -> Vec<&'static str> {
    let mut missing: Vec<&'static str> = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! check {
            ($($feature:tt),*) => {
                $(if cfg!(target_feature = $feature) && !std::is_x86_feature_detected!($feature) {
                    missing.push($feature);
                })*
            };
        }
        // Everything that x86-64-v2, v3 and v4 add (x86-64 psABI, table 3.1), as far as the compiler names it.
        check!(
            "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma",
            "lzcnt", "movbe", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"
        );
    }
    missing
}

/// What to tell where features are missing.
#[must_use]
pub fn complaint(missing: &[&str]) -> String {
    format!(
        "this program was compiled for processors with {}, which this one does not have. Build it for all: \
         PROVER_CPU=x86-64 make backend-risc0",
        missing.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_runs_misses_nothing() {
        assert_eq!(missing_features(), Vec::<&str>::new());
    }

    #[test]
    fn the_complaint_names_what_is_missing_and_what_to_do() {
        let text = complaint(&["avx2", "bmi2"]);
        assert!(
            text.contains("avx2, bmi2") && text.contains("make backend-risc0"),
            "{text}"
        );
    }
}
