//! What all processes of a cluster must have in common, from the environment or from this machine.

use std::fs;
use std::path::PathBuf;

use prover_sp1_engine::{ELEMENTS_OF_ANY_GPU, Settings};

use crate::graph::MemoryScale;

/// Elements of a shard's traces: in a cluster the same everywhere.
pub const ELEMENTS_VARIABLE: &str = "SP1_BACKEND_ELEMENT_THRESHOLD";

/// Resident memory of an executor's child process, in bytes: in a cluster the same everywhere.
pub const EXECUTOR_MEMORY_VARIABLE: &str = "SP1_BACKEND_EXECUTOR_MEMORY";

/// Folder for what is known of recursion keys: may be shared between processes and kept between starts.
pub const KEYS_VARIABLE: &str = "SP1_BACKEND_KEYS";

/// The folder below the user's cache where the variable is not set.
const KEYS_FOLDER: &str = ".cache/prover-operator/sp1-keys";

/// Rows of the largest table: SP1's own limit.
const HEIGHT_THRESHOLD: u64 = 1 << 22;

/// Elements below which SP1's fixed tables would not fit.
const SMALLEST_ELEMENTS: u64 = 1 << 26;

/// Machines with less memory than this get smaller shards.
const LARGE_MACHINE_BYTES: u64 = 40 << 30;

/// Elements of their shards.
const SMALL_ELEMENTS: u64 = 1 << 27;

/// Largest and smallest limit for an executor that is taken by itself.
const MOST_EXECUTOR_BYTES: u64 = 24 << 30;
const LEAST_EXECUTOR_BYTES: u64 = 2 << 30;

/// A variable that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value:?}: it must be a number of at least {least}")]
pub struct SettingsError {
    name: &'static str,
    value: String,
    least: u64,
}

/// The settings of this process.
pub fn settings(gpu: bool) -> Result<Settings, SettingsError> {
    from(|name| std::env::var(name).ok(), memory_bytes(), gpu)
}

fn from(
    variable: impl Fn(&str) -> Option<String>,
    machine_bytes: u64,
    gpu: bool,
) -> Result<Settings, SettingsError> {
    let number = |name: &'static str, least: u64, otherwise: u64| match variable(name) {
        None => Ok(otherwise),
        Some(value) => match value.parse() {
            Ok(number) if number >= least => Ok(number),
            _ => Err(SettingsError { name, value, least }),
        },
    };
    let elements = match machine_bytes >= LARGE_MACHINE_BYTES {
        // The child of the control lane cuts the shards, and sees no GPU.
        true if gpu => ELEMENTS_OF_ANY_GPU,
        true => MemoryScale::REFERENCE_ELEMENTS,
        false => SMALL_ELEMENTS,
    };
    let executor = (machine_bytes / 10).clamp(LEAST_EXECUTOR_BYTES, MOST_EXECUTOR_BYTES);
    Ok(Settings {
        element_threshold: number(ELEMENTS_VARIABLE, SMALLEST_ELEMENTS, elements)?,
        height_threshold: HEIGHT_THRESHOLD,
        executor_memory_bytes: number(EXECUTOR_MEMORY_VARIABLE, LEAST_EXECUTOR_BYTES, executor)?,
        gpu,
    })
}

/// Where to keep what is known of recursion keys; none where nothing can be kept.
#[must_use]
pub fn keys_folder() -> Option<PathBuf> {
    let folder = match std::env::var_os(KEYS_VARIABLE) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME")?).join(KEYS_FOLDER),
    };
    Some(folder.join(crate::SP1_VERSION))
}

/// Memory that this process may take: the smallest limit of its control groups, else the machine's.
fn memory_bytes() -> u64 {
    let limits = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    limits
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok())
        .chain(machine)
        .min()
        .unwrap_or(LARGE_MACHINE_BYTES)
}

/// The part of the backend's version that says how shards are cut.
#[must_use]
pub fn version_suffix(settings: &Settings) -> String {
    format!(
        "e{}.h{}.x{}{}",
        settings.element_threshold,
        settings.height_threshold,
        settings.executor_memory_bytes,
        if settings.gpu { ".gpu" } else { "" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_gets_smaller_shards_and_another_version() {
        let small = from(|_| None, 24 << 30, false).expect("settings");
        let large = from(|_| None, 96 << 30, false).expect("settings");
        assert_eq!(small.element_threshold, SMALL_ELEMENTS);
        assert_eq!(large.element_threshold, MemoryScale::REFERENCE_ELEMENTS);
        assert_eq!(large.executor_memory_bytes, (96 << 30) / 10);
        assert_ne!(version_suffix(&small), version_suffix(&large));
    }

    #[test]
    fn a_build_for_gpus_cuts_shards_that_every_gpu_can_prove_and_shares_no_job_with_one_for_processors() {
        let gpu = from(|_| None, 96 << 30, true).expect("settings");
        assert_eq!(gpu.element_threshold, ELEMENTS_OF_ANY_GPU);
        for gib in [20, 24, 80] {
            prover_sp1_engine::check_gpu("a GPU", gib << 30, &gpu).expect("fits");
        }
        let asked = |name: &str| (name == ELEMENTS_VARIABLE).then(|| ELEMENTS_OF_ANY_GPU.to_string());
        let cpu = from(asked, 96 << 30, false).expect("settings");
        assert_eq!(version_suffix(&gpu), version_suffix(&cpu) + ".gpu");
        assert!(gpu.core_opts().global_dependencies_opt && !cpu.core_opts().global_dependencies_opt);
    }

    #[test]
    fn variables_win_and_nonsense_is_refused() {
        let with = |value: &str| {
            let value = value.to_owned();
            from(
                move |name| (name == ELEMENTS_VARIABLE).then(|| value.clone()),
                24 << 30,
                false,
            )
        };
        assert_eq!(with("268435456").expect("settings").element_threshold, 1 << 28);
        assert!(with("many").is_err());
        assert!(
            with("5")
                .expect_err("too small")
                .to_string()
                .contains(ELEMENTS_VARIABLE)
        );
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_bytes() > 1 << 28);
    }
}
