//! What this build proves on, and what it needs of that.

use sp1_core_executor::ELEMENT_THRESHOLD;

use crate::Settings;

/// Whether this build proves on a GPU: the Cargo feature `cuda`.
pub const ON_GPU: bool = cfg!(feature = "cuda");

/// Elements of a shard that every GPU which SP1 takes has memory for.
pub const ELEMENTS_OF_ANY_GPU: u64 = ELEMENT_THRESHOLD - (1 << 26) - (1 << 25) - (1 << 24);

/// GPUs with less memory panic in SP1. It rounds up: of 24 GiB, drivers keep some for themselves.
const LEAST_GIB: u64 = 20;

/// GPUs with more memory take shards of SP1's own size.
const SMALL_GIB: u64 = 26;

/// Why this process can't prove where it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No driver, no device, or a driver that is too old.
    #[error(
        "there is no GPU that this process could use ({reason}): run it where `nvidia-smi` lists one, with a driver that knows \
         CUDA {cuda} (in a pod: request nvidia.com/gpu, and have the node's NVIDIA container runtime), or use the build \
         of the SP1 backend for processors"
    )]
    NoGpu {
        /// What CUDA says.
        reason: String,
        /// Version of CUDA that this process was built with.
        cuda: &'static str,
    },
    /// SP1 would not start there.
    #[error(
        "{gpu} has {gib} GiB of memory, and SP1 proves on GPUs with at least {LEAST_GIB} GiB: use a larger one (in a \
         ProverCluster, device.gpu.minMemory of the worker group chooses it)"
    )]
    TooLittleMemory {
        /// Its product name.
        gpu: String,
        /// Its memory, rounded up.
        gib: u64,
    },
    /// A proof would run out of memory.
    #[error(
        "shards of this cluster have {elements} elements, and {gpu} with {gib} GiB of memory proves at most {largest}: set \
         SP1_BACKEND_ELEMENT_THRESHOLD={largest} for all SP1 workers, or use GPUs with more than {SMALL_GIB} GiB"
    )]
    ShardsTooLarge {
        /// Elements of a shard by the settings.
        elements: u64,
        /// Its product name.
        gpu: String,
        /// Its memory, rounded up.
        gib: u64,
        /// Elements that it could prove.
        largest: u64,
    },
}

/// Whether a GPU can prove what these settings make. The limits are those of SP1's `local_gpu_opts`, which panics.
pub fn check_gpu(gpu: &str, memory_bytes: u64, settings: &Settings) -> Result<(), DeviceError> {
    let (gpu, gib) = (gpu.to_owned(), memory_bytes.div_ceil(1 << 30));
    if gib < LEAST_GIB {
        return Err(DeviceError::TooLittleMemory { gpu, gib });
    }
    let largest = if gib <= SMALL_GIB {
        ELEMENTS_OF_ANY_GPU
    } else {
        ELEMENT_THRESHOLD
    };
    let elements = settings.element_threshold;
    if elements > largest {
        return Err(DeviceError::ShardsTooLarge {
            elements,
            gpu,
            gib,
            largest,
        });
    }
    Ok(())
}

/// Whether this process could prove here. A build for processors always can.
pub fn check_device(settings: &Settings) -> Result<(), DeviceError> {
    #[cfg(feature = "cuda")]
    crate::cuda::check(settings)?;
    let _ = settings;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(element_threshold: u64) -> Settings {
        Settings {
            element_threshold,
            height_threshold: 1 << 22,
            executor_memory_bytes: 2 << 30,
            gpu: true,
        }
    }

    #[test]
    fn a_gpu_with_less_than_20_gib_is_refused_with_its_name_and_its_memory() {
        let error = check_gpu("NVIDIA T4", (15 << 30) + 1, &settings(1 << 27)).expect_err("too small");
        assert!(
            error.to_string().starts_with("NVIDIA T4 has 16 GiB of memory"),
            "{error}"
        );
        assert!(check_gpu("L", 19 << 30, &settings(1 << 27)).is_err());
        // A card of 20 GiB has a little less for programs.
        check_gpu("L", (19 << 30) + 1, &settings(1 << 27)).expect("SP1 rounds up");
    }

    #[test]
    fn a_gpu_of_24_gib_takes_smaller_shards_than_sp1s_own_and_says_how_large_they_may_be() {
        for gib in [20, 24, 26] {
            check_gpu("L4", gib << 30, &settings(ELEMENTS_OF_ANY_GPU)).expect("fits");
            let error = check_gpu("L4", gib << 30, &settings(ELEMENT_THRESHOLD)).expect_err("too large");
            let asked = format!("SP1_BACKEND_ELEMENT_THRESHOLD={ELEMENTS_OF_ANY_GPU}");
            assert!(error.to_string().contains(&asked), "{error}");
        }
        check_gpu("H100", (26 << 30) + 1, &settings(ELEMENT_THRESHOLD)).expect("large enough");
        assert!(check_gpu("H100", 80 << 30, &settings(ELEMENT_THRESHOLD + 1)).is_err());
    }
}
