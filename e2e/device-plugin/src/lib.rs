//! Offers GPUs that are none to a kubelet, so that scheduling by `nvidia.com/gpu` is tested on machines without GPUs.
//!
//! Owns the simulated devices, their health and the registration with the kubelet. Does not own any hardware: nothing
//! that runs on these devices is accelerated, and every container that gets one is told so by [`SIMULATED_VARIABLE`].

pub mod api;
mod devices;
mod serve;

pub use devices::{Devices, SIMULATED_VARIABLE};
pub use serve::{Plugin, PluginError, serve};
