//! What outlives the kubelet: who has which devices, and which resources there were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri::deviceplugin as dp;
use prost::Message;
use serde_json::{Value, json};

use super::book::{Allocation, Book};

/// Upstream: pkg/kubelet/cm/devicemanager/types.go kubeletDeviceManagerCheckpoint
pub const FILE: &str = "kubelet_internal_checkpoint";

/// Writes it, whole or not at all.
pub fn write(dir: &Path, book: &Book) -> io::Result<()> {
    let entries = book.allocations.iter().flat_map(|((pod, container), of)| {
        of.iter().map(move |(resource, allocation)| {
            json!({
                "PodUID": pod,
                "ContainerName": container,
                "ResourceName": resource,
                "DeviceIDs": allocation.devices,
                "AllocResp": STANDARD.encode(allocation.response.encode_to_vec()),
            })
        })
    });
    let registered: BTreeMap<&String, Vec<&String>> =
        book.pools.iter().map(|(resource, pool)| (resource, pool.keys().collect())).collect();
    let data = json!({
        "PodDeviceEntries": entries.collect::<Vec<_>>(),
        "RegisteredDevices": registered,
    });
    let temporary = dir.join(format!(".{FILE}"));
    let mut file = File::create(&temporary)?;
    file.write_all(json!({ "Data": data }).to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, dir.join(FILE))
}

/// Reads it. The resources that were there have no devices until their plugins come back.
pub fn read(dir: &Path) -> Result<Book, String> {
    let text = match fs::read(dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Book::default()),
        Err(error) => return Err(error.to_string()),
    };
    let content: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let data = &content["Data"];
    let mut book = Book::default();
    for resource in data["RegisteredDevices"].as_object().into_iter().flatten().map(|(resource, _)| resource)
    {
        book.pools.insert(resource.clone(), BTreeMap::new());
    }
    for entry in data["PodDeviceEntries"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().map(str::to_owned).ok_or_else(|| format!("no {key}"));
        let response = STANDARD.decode(text("AllocResp")?).map_err(|e| e.to_string())?;
        let response = dp::ContainerAllocateResponse::decode(&response[..]).map_err(|e| e.to_string())?;
        let ids = entry["DeviceIDs"].as_array().into_iter().flatten();
        let devices = ids.filter_map(|id| id.as_str().map(str::to_owned)).collect();
        let container = (text("PodUID")?, text("ContainerName")?);
        let of = book.allocations.entry(container).or_default();
        of.insert(text("ResourceName")?, Allocation { devices, response });
    }
    Ok(book)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_come_back_and_devices_wait_for_their_plugin() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().allocations.is_empty());
        let response = dp::ContainerAllocateResponse {
            envs: [("A".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        };
        let allocation = Allocation { devices: ["d".to_owned()].into(), response };
        let key = ("u".to_owned(), "c".to_owned());
        let book = Book {
            pools: [("v/x".to_owned(), BTreeMap::new())].into(),
            allocations: [(key.clone(), [("v/x".to_owned(), allocation.clone())].into())].into(),
        };
        write(dir.path(), &book).unwrap();
        let back = read(dir.path()).unwrap();
        assert_eq!(back.allocations[&key]["v/x"], allocation);
        assert_eq!(back.counts()["v/x"], (0, 0));
        fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(read(dir.path()).is_err());
    }
}
