//! Generates the messages and services of `proto/`; no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["orders.proto"], ["proto"])?;
    // The client serves the tests; how it connects is theirs to choose.
    tonic_prost_build::configure().build_transport(false).compile_fds(files)?;
    Ok(())
}
