//! Makes the messages of the plugins' services from their definitions.

fn main() -> std::io::Result<()> {
    let definitions = ["proto/csi.proto", "proto/registration.proto"];
    tonic_prost_build::configure().compile_protos(&definitions, &["proto"])
}
