//! Which claims are prepared on this node, for which pods: kept over a restart in upstream's own form.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

/// Upstream: pkg/kubelet/cm/dra/manager.go draManagerStateFileName
const FILE: &str = "dra_manager_state";
/// Upstream: pkg/kubelet/cm/dra/state/checkpoint.go
const KIND: &str = "DRACheckpoint";
const API_VERSION: &str = "checkpoint.dra.kubelet.k8s.io/v1";

/// A device that a driver gave to a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub pool: String,
    pub name: String,
    pub share_id: Option<String>,
    /// The requests of the claim that it is for; all, if none is named.
    pub requests: Vec<String>,
    pub cdi_ids: Vec<String>,
}

impl Device {
    /// Whether it is for a request, of which the empty one means every.
    pub fn is_for(&self, request: &str) -> bool {
        request.is_empty() || self.requests.is_empty() || self.requests.iter().any(|own| own == request)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    pub uid: String,
    /// UIDs of those who use it here.
    pub pods: BTreeSet<String>,
    /// The drivers whose devices were allocated to it, with what they gave.
    pub drivers: BTreeMap<String, Vec<Device>>,
    /// Whether all drivers have prepared it since the kubelet's start.
    pub prepared: bool,
}

/// By namespace and name.
pub type Claims = BTreeMap<(String, String), Claim>;

fn written(((namespace, name), claim): (&(String, String), &Claim)) -> Value {
    let device = |device: &Device| {
        json!({
            "PoolName": device.pool,
            "DeviceName": device.name,
            "ShareID": device.share_id,
            "RequestNames": device.requests,
            "CDIDeviceIDs": device.cdi_ids,
        })
    };
    let drivers = claim.drivers.iter().map(|(driver, devices)| {
        (driver.clone(), json!({ "Devices": devices.iter().map(device).collect::<Vec<_>>() }))
    });
    json!({
        "ClaimUID": claim.uid,
        "ClaimName": name,
        "Namespace": namespace,
        "PodUIDs": claim.pods.iter().map(|uid| (uid.clone(), json!({}))).collect::<serde_json::Map<_, _>>(),
        "DriverState": drivers.collect::<serde_json::Map<_, _>>(),
    })
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn read_claim(value: &Value) -> ((String, String), Claim) {
    let device = |device: &Value| Device {
        pool: text(device, "PoolName"),
        name: text(device, "DeviceName"),
        share_id: device["ShareID"].as_str().map(str::to_owned),
        requests: texts(&device["RequestNames"]),
        cdi_ids: texts(&device["CDIDeviceIDs"]),
    };
    let drivers = value["DriverState"].as_object().into_iter().flatten().map(|(driver, state)| {
        let devices = state["Devices"].as_array().into_iter().flatten();
        (driver.clone(), devices.map(device).collect())
    });
    let claim = Claim {
        uid: text(value, "ClaimUID"),
        pods: value["PodUIDs"].as_object().into_iter().flatten().map(|(uid, _)| uid.clone()).collect(),
        drivers: drivers.collect(),
        prepared: false,
    };
    ((text(value, "Namespace"), text(value, "ClaimName")), claim)
}

/// Writes it, whole or not at all.
pub fn write(root: &Path, claims: &Claims) -> io::Result<()> {
    let list: Vec<Value> = claims.iter().map(written).collect();
    let data = json!({"kind": KIND, "apiVersion": API_VERSION, "ClaimInfoStateList": list}).to_string();
    let checksum = crc32fast::hash(data.as_bytes());
    let temporary = root.join(format!(".{FILE}"));
    let mut file = File::create(&temporary)?;
    file.write_all(json!({"Data": data, "Checksum": checksum}).to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, root.join(FILE))
}

/// Reads what a former kubelet wrote.
pub fn read(root: &Path) -> Result<Claims, String> {
    let bytes = match fs::read(root.join(FILE)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Claims::new()),
        Err(error) => return Err(error.to_string()),
    };
    let outer: Value = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
    let data = outer["Data"].as_str().ok_or("no data")?;
    if outer["Checksum"].as_u64() != Some(u64::from(crc32fast::hash(data.as_bytes()))) {
        return Err("checkpoint is corrupted".to_owned());
    }
    let data: Value = serde_json::from_str(data).map_err(|e| e.to_string())?;
    Ok(data["ClaimInfoStateList"].as_array().into_iter().flatten().map(read_claim).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_come_back_and_must_be_prepared_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), Ok(Claims::new()));
        let device = Device {
            pool: "p".into(),
            name: "d".into(),
            share_id: Some("s".into()),
            requests: vec!["r".into()],
            cdi_ids: vec!["v/c=d".into()],
        };
        let claim = Claim {
            uid: "u".into(),
            pods: ["pod".to_owned()].into(),
            drivers: [("driver".to_owned(), vec![device, Device::default()])].into(),
            prepared: true,
        };
        let key = ("n".to_owned(), "claim".to_owned());
        write(dir.path(), &[(key.clone(), claim.clone())].into()).unwrap();
        assert_eq!(read(dir.path()).unwrap()[&key], Claim { prepared: false, ..claim });
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(FILE), text.replace("driver", "Driver")).unwrap();
        assert_eq!(read(dir.path()), Err("checkpoint is corrupted".to_owned()));
    }
}
