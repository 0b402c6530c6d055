//! Makes the messages of the plugins' services from their definitions.

fn main() -> std::io::Result<()> {
    let services = ["csi", "registration", "deviceplugin", "podresources", "dra_v1", "dra_v1beta1"];
    let definitions = services.map(|service| std::path::PathBuf::from(format!("proto/{service}.proto")));
    tonic_prost_build::configure().compile_protos(&definitions, &["proto".into()])
}
