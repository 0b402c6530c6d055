//! Which files a volume made from API objects holds.

use std::collections::BTreeMap;

use api::Object;
use api::core::v1::{ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};

use crate::container::downward::{self, Surroundings};

/// One file: its content and permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Who owns it, if not root.
    pub owner: Option<u32>,
}

impl FileContent {
    pub fn new(data: impl Into<Vec<u8>>, mode: i32) -> Self {
        FileContent { data: data.into(), mode: mode as u32, owner: None }
    }
}

/// Files by their path in the volume.
pub type Payload = BTreeMap<String, FileContent>;

/// The keys of an object as files: all of them, or those of `items` under other names.
// Upstream: pkg/volume/configmap/configmap.go MakePayload
fn select(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        return Ok(data
            .iter()
            .map(|(k, v)| (k.clone(), FileContent::new(v.clone(), default_mode)))
            .collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(content) => {
                let file = FileContent::new(content.clone(), item.mode.unwrap_or(default_mode));
                payload.insert(item.path.clone(), file);
            }
            None if optional => {}
            None => return Err("references non-existent config key".to_owned()),
        }
    }
    Ok(payload)
}

pub fn of_config_map(
    name: &str,
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(map) = map else {
        return if optional { Ok(Payload::new()) } else { Err(format!("configmap {name:?} not found")) };
    };
    let text = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    let refused = |why: String| format!("{why}: configmap {name:?}");
    select(&text.chain(binary).collect(), items, mode, optional).map_err(refused)
}

pub fn of_secret(
    name: &str,
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let Some(secret) = secret else {
        return if optional { Ok(Payload::new()) } else { Err(format!("secret {name:?} not found")) };
    };
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect();
    let refused = |_| format!("references non-existent secret key: secret {name:?}");
    select(&data, items, mode, optional).map_err(refused)
}

// Upstream: pkg/volume/downwardapi/downwardapi.go CollectData
pub fn of_downward(
    items: &[DownwardAPIVolumeFile],
    pod: &Pod,
    mode: i32,
    around: &Surroundings,
) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for item in items {
        let value = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(field, pod, around),
            (_, Some(resource)) => downward::resource(resource, pod, &Container::default(), around),
            _ => Ok(String::new()),
        };
        let value = value.map_err(|why| format!("{why} (pod {})", pod.name()))?;
        payload.insert(item.path.clone(), FileContent::new(value, item.mode.unwrap_or(mode)));
    }
    Ok(payload)
}

/// Refuses paths that would leave the volume; validation in the API does so too, but manifests come from disk as
/// well.
// Upstream: pkg/volume/util/atomic_writer.go validatePath
pub fn check_path(path: &str) -> Result<(), String> {
    let bad = path.is_empty()
        || path.starts_with('/')
        || path.len() > 255
        || path.split('/').any(|part| part == ".." || part.len() > 255)
        || path.starts_with("..");
    if bad { Err(format!("invalid path: {path:?}")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(payload: Result<Payload, String>) -> Result<String, String> {
        let line = |(path, file): (&String, &FileContent)| {
            format!("{path}={} {:o}", String::from_utf8_lossy(&file.data), file.mode)
        };
        payload.map(|p| p.iter().map(line).collect::<Vec<_>>().join("; "))
    }

    #[test]
    fn config_maps() {
        let map: ConfigMap =
            serde_json::from_value(json!({"data": {"a": "1", "b": "2"}, "binaryData": {"c": "Mw=="}}))
                .unwrap();
        let items = |items| serde_json::from_value::<Vec<KeyToPath>>(items).unwrap();
        let some = items(json!([{"key": "a", "path": "x/y", "mode": 0o400}]));
        let missing = items(json!([{"key": "z", "path": "z"}]));
        let cases = [
            (Some(&map), None, false, Ok("a=1 644; b=2 644; c=3 644")),
            (Some(&map), Some(&some), false, Ok("x/y=1 400")),
            (Some(&map), Some(&missing), false, Err("references non-existent config key: configmap \"m\"")),
            (Some(&map), Some(&missing), true, Ok("")),
            (None, None, false, Err("configmap \"m\" not found")),
            (None, None, true, Ok("")),
        ];
        for (map, items, optional, want) in cases {
            let got = words(of_config_map("m", map, items.map(Vec::as_slice), 0o644, optional));
            assert_eq!(got.as_deref().map_err(String::as_str), want);
        }
    }

    #[test]
    fn paths() {
        for (path, fine) in
            [("a", true), ("a/b", true), ("", false), ("/a", false), ("a/../b", false), ("..a", false)]
        {
            assert_eq!(check_path(path).is_ok(), fine, "{path}");
        }
    }
}
