//! What a bundle asks for, fitted to what this process may give.
//!
//! A process without CAP_SYS_RESOURCE (as root often is in containers and CI) can neither lower an oom score
//! below its own nor raise a hard limit. Runtimes then fail the container; here it runs with the nearest value
//! that is allowed, because a pod that cannot start for its oom score helps nobody.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Error, file};

/// Rewrites `config.json` of the bundle if something in it is out of reach.
pub(crate) fn fit_bundle(bundle: &Path) -> Result<(), Error> {
    if linux::process::has_capability("CAP_SYS_RESOURCE") {
        return Ok(());
    }
    let path = bundle.join("config.json");
    let bytes = fs::read(&path).map_err(file(&path))?;
    let mut spec: Value =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.clone(), source })?;
    let own_score =
        fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    if !fit(&mut spec, own_score.unwrap_or(0)) {
        return Ok(());
    }
    let fitted = bundle.join(".config.json");
    fs::write(&fitted, spec.to_string()).map_err(file(&fitted))?;
    fs::rename(&fitted, &path).map_err(file(&path))
}

/// Returns whether anything changed.
fn fit(spec: &mut Value, own_score: i64) -> bool {
    let mut changed = false;
    let Some(process) = spec.get_mut("process") else { return false };
    if process.get("oomScoreAdj").and_then(Value::as_i64).is_some_and(|score| score < own_score) {
        process["oomScoreAdj"] = json!(own_score);
        changed = true;
    }
    let Some(limits) = process.get_mut("rlimits").and_then(Value::as_array_mut) else { return changed };
    for limit in limits {
        let Some((_, hard)) = limit.get("type").and_then(Value::as_str).and_then(own_limit) else { continue };
        for field in ["hard", "soft"] {
            if limit.get(field).and_then(Value::as_u64).is_some_and(|asked| asked > hard) {
                limit[field] = json!(hard);
                changed = true;
            }
        }
    }
    changed
}

fn own_limit(name: &str) -> Option<(u64, u64)> {
    use rustix::process::{Resource, getrlimit};
    let resource = match name {
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_CPU" => Resource::Cpu,
        _ => return None,
    };
    let limit = getrlimit(resource);
    Some((limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_out_of_reach_changes() {
        for (score, own, fitted) in [(-997, 0, 0), (500, 0, 500), (-10, -20, -10), (100, 200, 200)] {
            let mut spec = json!({ "process": { "oomScoreAdj": score } });
            assert_eq!(fit(&mut spec, own), score != fitted, "{score} under {own}");
            assert_eq!(spec["process"]["oomScoreAdj"], json!(fitted));
        }
    }
}
