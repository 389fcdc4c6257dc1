//! The simulated devices: their names, which of them are unhealthy, and what a container is told of those that it gets.
//!
//! Owns decisions only; does not talk to a kubelet or read files.

use crate::api::{ContainerAllocateResponse, Device};
use std::collections::BTreeSet;

/// Environment variable that every container with simulated devices gets: their ids, separated by commas.
pub const SIMULATED_VARIABLE: &str = "SIMULATED_DEVICES";

/// Most devices of one plugin: more than any machine has, so that a wrong argument is noticed.
const MOST_DEVICES: usize = 1_024;

/// The devices of one node, numbered from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    count: usize,
    unhealthy: BTreeSet<String>,
}

impl Devices {
    /// `count` healthy devices.
    ///
    /// # Errors
    /// If there are more than 1,024, in words for the user.
    pub fn new(count: usize) -> Result<Self, String> {
        if count > MOST_DEVICES {
            return Err(format!(
                "{count} devices are too many: at most {MOST_DEVICES} can be simulated"
            ));
        }
        Ok(Self {
            count,
            unhealthy: BTreeSet::new(),
        })
    }

    /// The same devices, of which those named in `text` (one id a line) are unhealthy.
    #[must_use]
    pub fn with_unhealthy(&self, text: &str) -> Self {
        let known: BTreeSet<String> = (0..self.count).map(id).collect();
        let unhealthy = text
            .lines()
            .map(str::trim)
            .filter(|line| known.contains(*line))
            .map(str::to_owned)
            .collect();
        Self {
            count: self.count,
            unhealthy,
        }
    }

    /// What the kubelet is told.
    #[must_use]
    pub fn list(&self) -> Vec<Device> {
        (0..self.count)
            .map(id)
            .map(|id| {
                let health = if self.unhealthy.contains(&id) {
                    "Unhealthy"
                } else {
                    "Healthy"
                };
                Device {
                    id,
                    health: health.to_owned(),
                }
            })
            .collect()
    }

    /// What a container is told that gets the devices `ids`.
    ///
    /// # Errors
    /// If one of them is not ours: then the kubelet asks the wrong plugin.
    pub fn allocate(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        for wanted in ids {
            if !(0..self.count).any(|index| id(index) == *wanted) {
                return Err(format!("there is no simulated device {wanted}"));
            }
        }
        Ok(ContainerAllocateResponse {
            envs: [(SIMULATED_VARIABLE.to_owned(), ids.join(","))].into(),
        })
    }
}

fn id(index: usize) -> String {
    format!("SIMULATED-{index}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(devices: &Devices) -> Vec<(String, String)> {
        devices
            .list()
            .into_iter()
            .map(|device| (device.id, device.health))
            .collect()
    }

    #[test]
    fn devices_are_named_as_simulated_and_healthy_at_first() {
        let devices = Devices::new(2).unwrap();
        assert_eq!(
            health(&devices),
            [
                ("SIMULATED-0".into(), "Healthy".into()),
                ("SIMULATED-1".into(), "Healthy".into())
            ]
        );
    }

    #[test]
    fn a_device_that_the_file_names_is_unhealthy_until_it_is_named_no_more() {
        let devices = Devices::new(2).unwrap();
        let failed = devices.with_unhealthy(" SIMULATED-1 \nSIMULATED-7\n\n");
        assert_eq!(health(&failed)[0].1, "Healthy");
        assert_eq!(health(&failed)[1].1, "Unhealthy");
        assert_eq!(failed.with_unhealthy(""), devices);
    }

    #[test]
    fn a_container_is_told_that_its_devices_are_simulated() {
        let given = Devices::new(3)
            .unwrap()
            .allocate(&["SIMULATED-0".into(), "SIMULATED-2".into()])
            .unwrap();
        assert_eq!(given.envs[SIMULATED_VARIABLE], "SIMULATED-0,SIMULATED-2");
    }

    #[test]
    fn a_device_of_another_plugin_is_refused() {
        let refusal = Devices::new(1)
            .unwrap()
            .allocate(&["SIMULATED-1".into()])
            .unwrap_err();
        assert_eq!(refusal, "there is no simulated device SIMULATED-1");
    }

    #[test]
    fn more_devices_than_a_machine_can_have_are_refused() {
        assert!(Devices::new(1_024).is_ok());
        assert!(Devices::new(1_025).unwrap_err().contains("at most 1024"));
    }
}
