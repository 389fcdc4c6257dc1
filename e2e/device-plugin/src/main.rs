//! `simulated-device-plugin`: offers GPUs that are none to a kubelet, for tests on machines without GPUs.

use clap::Parser;
use simulated_device_plugin::{Devices, Plugin, serve};
use std::path::PathBuf;
use std::process::ExitCode;

/// Offers SIMULATED devices to the kubelet of this node: for tests only, they compute nothing.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Resource under which the devices are offered.
    #[arg(long, env = "SIMULATED_RESOURCE", default_value = "nvidia.com/gpu")]
    resource: String,
    /// How many devices.
    #[arg(long, env = "SIMULATED_COUNT", default_value_t = 8)]
    count: usize,
    /// Folder of the kubelet's socket.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    directory: PathBuf,
    /// File that names unhealthy devices, one id a line [default: simulated-unhealthy in the folder].
    #[arg(long)]
    unhealthy_file: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let devices = match Devices::new(arguments.count) {
        Ok(devices) => devices,
        Err(message) => {
            eprintln!("simulated-device-plugin: {message}");
            return ExitCode::from(2);
        }
    };
    let plugin = Plugin {
        endpoint: format!("simulated-{}.sock", arguments.resource.replace('/', "_")),
        unhealthy_file: arguments
            .unhealthy_file
            .unwrap_or_else(|| arguments.directory.join("simulated-unhealthy")),
        directory: arguments.directory,
        resource: arguments.resource,
        devices,
    };
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    // As first process of its container it gets no default handling of signals.
    tokio::select! {
        () = serve(plugin) => {}
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    ExitCode::SUCCESS
}
