//! `simulated-device-plugin`: offers GPUs that are none to a kubelet, for tests on machines without GPUs.

fn main() {}
