//! How each part is configured, whether it runs with the others or alone.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use storage::embedded::Embedded;

use crate::host;

/// Makes a folder for what only its owner may read: the store holds every Secret.
pub fn make_private(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("cannot restrict {}", folder.display()))
}

/// Where the store of a server is.
pub fn store_dir(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("state")
}

pub fn open_store(data_dir: &Path) -> Result<Embedded, storage::Error> {
    Embedded::open(&store_dir(data_dir))
}

/// Where a node's container engine and its agent of network policies meet.
pub fn policy_dir(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("netpol")
}

/// The built-in container engine of a data directory. Pods of the built-in network start when the agent of network
/// policies that listens in `policy_dir` has their rules in force; without one, at once.
pub fn engine_config(
    data_dir: &Path,
    cgroup_root: &str,
    service_cidrs: &[String],
    policy_dir: Option<&Path>,
) -> anyhow::Result<cri_server::Config> {
    let clock = host::clock();
    let nanoseconds = move || i64::try_from(clock.now().as_nanosecond()).unwrap_or(i64::MAX);
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut config = cri_server::Config::new(data_dir, program, cri_server::Clock::new(nanoseconds));
    // The kubelet names its pods' parent; those of other CRI clients are beside it.
    config.cgroup_root = Path::new(cgroup_root).join("trierarch");
    if let cri_server::CniConfig::Plugins { builtin, .. } = &mut config.cni {
        builtin.service_cidrs = service_cidrs.to_vec();
        builtin
            .extra
            .extend(policy_dir.map(|dir| ("policyDir".to_owned(), dir.display().to_string().into())));
    }
    Ok(config)
}
