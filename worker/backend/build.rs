//! Generates the protocol's types and stubs from `proto/backend.proto`, without a protobuf compiler installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/backend.proto");
    let descriptors = protox::compile(["backend.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
