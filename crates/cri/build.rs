//! Makes the messages of the services of a node's sockets from their definitions.

/// What `cri_streams` shares with the rest of CRI, which a dependency has.
const SHARED: [&str; 10] = [
    "PodSandboxFilter",
    "PodSandbox",
    "ContainerFilter",
    "Container",
    "ContainerStatsFilter",
    "ContainerStats",
    "PodSandboxStatsFilter",
    "PodSandboxStats",
    "ImageFilter",
    "Image",
];

fn main() -> std::io::Result<()> {
    let services =
        ["csi", "registration", "deviceplugin", "podresources", "dra_v1", "dra_v1beta1", "cri_streams"];
    let definitions = services.map(|service| std::path::PathBuf::from(format!("proto/{service}.proto")));
    SHARED
        .iter()
        .fold(tonic_prost_build::configure(), |configuration, message| {
            configuration.extern_path(format!(".runtime.v1.{message}"), format!("::k8s_cri::v1::{message}"))
        })
        .compile_protos(&definitions, &["proto".into()])
}
