//! Makes the messages of the plugins' services from their definitions.

fn main() -> std::io::Result<()> {
    let definitions =
        ["csi", "registration", "deviceplugin", "podresources"].map(|name| format!("proto/{name}.proto"));
    tonic_prost_build::configure().compile_protos(&definitions, &["proto"])
}
