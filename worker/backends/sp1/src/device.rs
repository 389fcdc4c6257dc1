//! Whether this process can do what the agent has started it for.

use prover_backend::protocol::DeviceClass;
use prover_sp1_engine::{DeviceError, ON_GPU, Settings};

use crate::backend::CONTROL_DEVICE;

/// Variable with the name of the device that this process serves. The agent sets it.
const DEVICE_VARIABLE: &str = "PROVER_DEVICE";

/// Why a process can't serve its device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The device is not what this build proves on.
    #[error(
        "this build of the SP1 backend proves on GPUs, and its worker serves processor cores: give the worker group \
         device.gpu (prover-worker: --device-kind gpu), or use the build for processors"
    )]
    NotAGpu,
    /// The GPU is not there or not enough.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Checks what this process was started for. Only the agent starts one for a device; planners need none, and neither do
/// the commands of users.
pub fn check(settings: &Settings) -> Result<(), Unusable> {
    let variable = |name: &str| std::env::var(name).ok();
    if !needs_gpu(variable, prover_backend::device_class(), ON_GPU)? {
        return Ok(());
    }
    Ok(prover_sp1_engine::check_device(settings)?)
}

fn needs_gpu(
    variable: impl Fn(&str) -> Option<String>,
    class: DeviceClass,
    on_gpu: bool,
) -> Result<bool, Unusable> {
    let served = variable(prover_backend::AGENT_SOCKET_VARIABLE).is_some();
    let planner = variable(DEVICE_VARIABLE).as_deref() == Some(CONTROL_DEVICE);
    match (on_gpu && served && !planner, class) {
        (false, _) => Ok(false),
        (true, DeviceClass::Gpu) => Ok(true),
        (true, _) => Err(Unusable::NotAGpu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVED: (&str, &str) = (prover_backend::AGENT_SOCKET_VARIABLE, "/run/agent.sock");

    fn asked(variables: &[(&str, &str)], class: DeviceClass, on_gpu: bool) -> Result<bool, Unusable> {
        let value = |name: &str| {
            let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
            Some((*value).to_owned())
        };
        needs_gpu(value, class, on_gpu)
    }

    #[test]
    fn only_the_process_of_a_device_in_a_build_for_gpus_needs_one() {
        let device = [SERVED, (DEVICE_VARIABLE, "gpu-0")];
        let planner = [SERVED, (DEVICE_VARIABLE, CONTROL_DEVICE)];
        assert_eq!(asked(&device, DeviceClass::Gpu, true), Ok(true));
        assert_eq!(asked(&planner, DeviceClass::Gpu, true), Ok(false));
        assert_eq!(
            asked(&[], DeviceClass::Cpu, true),
            Ok(false),
            "a command of a user"
        );
        assert_eq!(asked(&device, DeviceClass::Cpu, false), Ok(false));
    }

    #[test]
    fn a_build_for_gpus_on_a_worker_of_processor_cores_is_told_what_to_change() {
        let device = [SERVED, (DEVICE_VARIABLE, "cpu-0")];
        let refused = asked(&device, DeviceClass::Cpu, true).expect_err("no GPU is meant");
        assert!(refused.to_string().contains("device.gpu"), "{refused}");
    }
}
