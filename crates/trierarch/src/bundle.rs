//! What the binary carries: the demo's image.

use cri_server::images::{BuildConfig, BuildFile, build};

/// The name of the demo's image.
pub const DEMO_IMAGE: &str = "trierarch.io/demo:latest";
/// The port that its web server listens on.
pub const DEMO_PORT: u16 = 8080;

/// The web server of crate `demo-web`, linked statically by the build script.
const DEMO_WEB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo-web"));

/// The image as an OCI archive.
pub fn demo_image() -> std::io::Result<Vec<u8>> {
    let file = BuildFile { path: "demo-web".into(), mode: 0o755, bytes: DEMO_WEB.to_vec() };
    let config = BuildConfig {
        entrypoint: vec!["/demo-web".into()],
        user: "65532:65532".into(),
        exposed_ports: vec![format!("{DEMO_PORT}/tcp")],
        ..Default::default()
    };
    build(DEMO_IMAGE, &[file], &config)
}
