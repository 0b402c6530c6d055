//! Images for tests, made of what the machine has: no registry is asked.

use cri_server::images::{BuildConfig, BuildFile, build};

/// Debian's statically linked busybox.
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "env", "hostname", "httpd", "id", "kill", "ls", "mkdir", "nc", "nslookup", "sleep",
    "wget",
];
/// The mode of a symbolic link.
const LINK: u32 = 0o120_777;

/// Serves the pod's name and its version, and ends at SIGTERM.
const START: &str = "#!/bin/sh
mkdir -p /tmp/www
echo \"$VERSION from $HOSTNAME\" > /tmp/www/index.html
echo \"$VERSION serves\"
exec httpd -f -v -p 8080 -h /tmp/www
";

/// An image that does nothing for ever, for engines that hold a pod by a container.
pub fn pause(name: &str) -> Vec<u8> {
    let busybox = std::fs::read(BUSYBOX).expect("busybox-static is installed");
    let files = [BuildFile { path: "sleep".into(), mode: 0o755, bytes: busybox }];
    let config =
        BuildConfig { entrypoint: ["/sleep", "1000000"].map(str::to_owned).to_vec(), ..Default::default() };
    build(name, &files, &config).expect("an image can be made of small files")
}

/// An image that serves its pod's name and its version on port 8080, and has a shell.
pub fn web(name: &str, version: &str) -> Vec<u8> {
    let busybox = std::fs::read(BUSYBOX).expect("busybox-static is installed");
    let mut files = vec![
        BuildFile { path: "bin/busybox".into(), mode: 0o755, bytes: busybox },
        BuildFile { path: "start".into(), mode: 0o755, bytes: START.into() },
    ];
    let link =
        |applet: &&str| BuildFile { path: format!("bin/{applet}"), mode: LINK, bytes: "busybox".into() };
    files.extend(APPLETS.iter().map(link));
    let config = BuildConfig {
        entrypoint: vec!["/start".into()],
        env: vec!["PATH=/bin".into(), format!("VERSION={version}")],
        ..Default::default()
    };
    build(name, &files, &config).expect("an image can be made of small files")
}
