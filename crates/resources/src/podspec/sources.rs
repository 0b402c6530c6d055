//! Where volumes come from: what each source needs to be told. Pods and PersistentVolumes know much the same
//! sources, and look at them in orders of their own: only the first is checked, the others are too many.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateVolumeSource, ValidatePersistentVolumeSpec

use apimachinery::field::{Error, Path};
use apimachinery::names;
use serde_json::Value;

use super::volumes::{no_backsteps, validate_relative_path};
use crate::get::{self, Errors, at, has, int, is_true, list, number, text};
use crate::validate::{csi_driver_name, dns_label, each, one_of};

/// Fields that must say something, and what else is wrong.
struct Source {
    field: &'static str,
    required: &'static [&'static str],
    check: fn(&Value, &Path) -> Errors,
}

const fn source(
    field: &'static str,
    required: &'static [&'static str],
    check: fn(&Value, &Path) -> Errors,
) -> Source {
    Source { field, required, check }
}

const SOURCES: &[Source] = &[
    source("hostPath", &[], host_path),
    source("gitRepo", &["repository"], |s, p| {
        validate_relative_path(text(s, "directory"), &p.child("directory"))
    }),
    source("gcePersistentDisk", &["pdName"], partition),
    source("awsElasticBlockStore", &["volumeID"], partition),
    source("nfs", &["server", "path"], nfs),
    source("iscsi", &["targetPortal", "iqn"], iscsi),
    source("glusterfs", &["endpoints", "path"], glusterfs),
    source("flocker", &[], flocker),
    source("persistentVolumeClaim", &["claimName"], nothing),
    source("rbd", &["monitors", "image"], nothing),
    source("cinder", &["volumeID"], named_secret),
    source("cephfs", &["monitors"], nothing),
    source("quobyte", &[], quobyte),
    source("fc", &[], fibre_channel),
    source("flexVolume", &["driver"], flex_options),
    source("azureFile", &["secretName", "shareName"], |s, p| match at(s, "secretNamespace") {
        Some(namespace) if namespace == "" => vec![Error::required(&p.child("secretNamespace"), "")],
        _ => Errors::new(),
    }),
    source("vsphereVolume", &["volumePath"], nothing),
    source("photonPersistentDisk", &["pdID"], nothing),
    source("portworxVolume", &["volumeID"], nothing),
    source("azureDisk", &["diskName", "diskURI"], azure_disk),
    source("storageos", &["volumeName"], storage_os),
    source("scaleIO", &["gateway", "system", "volumeName"], nothing),
    source("local", &["path"], |s, p| no_backsteps(text(s, "path"), &p.child("path"))),
    source("csi", &[], csi),
];

/// The order in which PersistentVolumes are looked at.
const OF_VOLUMES: &[&str] = &[
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

/// The order in which volumes of pods are looked at.
const OF_PODS: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

/// The volume of a pod; sources that only pods have are left to `own`.
pub fn of_pod(volume: &Value, path: &Path, own: impl Fn(&Value, &str, &Path) -> Errors) -> Errors {
    let mut errors = pick(volume, OF_PODS, &[], path, &own);
    let portal = [text(volume, "name"), text(volume, "iscsi.targetPortal")].join(":");
    if has(volume, "iscsi.initiatorName") && portal.len() > MAX_PORTAL {
        errors.push(Error::invalid(&path.child("name"), text(volume, "name"), LONG_PORTAL));
    }
    errors
}

/// The source of a PersistentVolume.
pub fn of_volume(spec: &Value, name: &str, path: &Path) -> Errors {
    pick(spec, OF_VOLUMES, UNCOUNTED, path, &|source, field, at_source| {
        let mut errors = validate(source, field, at_source);
        errors.extend(of_volumes_only(source, field, name, at_source));
        if field == "local" && !has(spec, "nodeAffinity") {
            let detail = "Local volume requires node affinity";
            errors.push(Error::required(&path.child("nodeAffinity"), detail));
        }
        errors
    })
}

/// What upstream takes beside another source of a PersistentVolume.
const UNCOUNTED: &[&str] = &["flexVolume"];

fn pick(
    volume: &Value,
    order: &[&str],
    uncounted: &[&str],
    path: &Path,
    check: &dyn Fn(&Value, &str, &Path) -> Errors,
) -> Errors {
    let mut given = order.iter().filter_map(|field| Some((*field, at(volume, field)?)));
    let Some((first, value)) = given.next() else {
        return vec![Error::required(path, "must specify a volume type")];
    };
    // Upstream's own name for it.
    let named = if first == "gcePersistentDisk" { "persistentDisk" } else { first };
    let mut errors = check(value, first, &path.child(named));
    for (field, value) in given {
        if uncounted.contains(&field) {
            errors.extend(check(value, field, &path.child(field)));
            continue;
        }
        // Upstream's own spellings.
        let shown = match field {
            "cephfs" => "cephFS",
            "downwardAPI" => "downwarAPI",
            other => other,
        };
        errors.push(Error::forbidden(&path.child(shown), "may not specify more than 1 volume type"));
    }
    errors
}

/// A source that pods and PersistentVolumes have.
pub fn validate(value: &Value, field: &str, path: &Path) -> Errors {
    let Some(source) = SOURCES.iter().find(|source| source.field == field) else { return Errors::new() };
    let mut errors = Errors::new();
    for name in source.required {
        if text(value, name).is_empty() && list(value, name).is_empty() {
            errors.push(Error::required(&path.child(name), ""));
        }
    }
    errors.extend((source.check)(value, path));
    errors
}

/// PersistentVolumes name secrets by namespace too.
fn of_volumes_only(source: &Value, field: &str, name: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match field {
        "csi" => {
            if text(source, "volumeHandle").is_empty() {
                errors.push(Error::required(&path.child("volumeHandle"), ""));
            }
            for field in [
                "controllerPublishSecretRef",
                "controllerExpandSecretRef",
                "nodePublishSecretRef",
                "nodeExpandSecretRef",
            ] {
                if let Some(secret) = at(source, field) {
                    errors.extend(secret_reference(secret, &path.child(field)));
                }
            }
        }
        "cinder" | "storageos"
            if has(source, "secretRef") && text(source, "secretRef.namespace").is_empty() =>
        {
            errors.push(Error::required(&path.child("secretRef").child("namespace"), ""));
        }
        "iscsi" => {
            let portal = text(source, "targetPortal");
            if has(source, "initiatorName") && name.len() + 1 + portal.len() > MAX_PORTAL {
                errors.push(Error::invalid(&path.child("targetportal"), portal, LONG_PORTAL));
            }
            errors.extend(named_secret(source, path));
        }
        _ => {}
    }
    errors
}

const MAX_PORTAL: usize = 64;
const LONG_PORTAL: &str = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
                           iscsi.initiatorName is specified.";

fn nothing(_: &Value, _: &Path) -> Errors {
    Errors::new()
}

fn host_path(source: &Value, path: &Path) -> Errors {
    const TYPES: &[&str] = &[
        "",
        "BlockDevice",
        "CharDevice",
        "Directory",
        "DirectoryOrCreate",
        "File",
        "FileOrCreate",
        "Socket",
    ];
    let value = text(source, "path");
    if value.is_empty() {
        return vec![Error::required(&path.child("path"), "")];
    }
    let mut errors = no_backsteps(value, &path.child("path"));
    errors.extend(one_of(text(source, "type"), &path.child("type"), TYPES));
    errors
}

fn partition(source: &Value, path: &Path) -> Errors {
    let number = number(source, "partition");
    if (0..=255).contains(&number) {
        return Errors::new();
    }
    vec![Error::invalid(&path.child("partition"), number, "must be between 1 and 255, inclusive")]
}

fn nfs(source: &Value, path: &Path) -> Errors {
    let value = text(source, "path");
    if value.starts_with('/') {
        return Errors::new();
    }
    vec![Error::invalid(&path.child("path"), value, "must be an absolute path")]
}

/// A name of an iSCSI target or initiator.
fn qualified_iscsi_name(name: &str, path: &Path) -> Errors {
    let alphanumeric = |rest: &str, length: usize| {
        rest.len() == length + 1 && rest[1..].bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let good = match name.get(..3) {
        Some("iqn") => is_iqn(&name[3..]),
        Some("eui") => name.is_ascii() && alphanumeric(&name[3..], 16),
        Some("naa") => name.is_ascii() && alphanumeric(&name[3..], 32),
        _ => {
            let detail = "must be valid format starting with iqn, eui, or naa";
            return vec![Error::invalid(path, name, detail)];
        }
    };
    if good { Errors::new() } else { vec![Error::invalid(path, name, "must be valid format")] }
}

/// `.2001-04.com.example:storage`
fn is_iqn(rest: &str) -> bool {
    let Some((authority, own)) = rest.split_once(':') else { return false };
    let bytes = authority.as_bytes();
    let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
    bytes.len() > 9
        && bytes[0] == b'.'
        && digits(1..5)
        && bytes[5] == b'-'
        && digits(6..8)
        && bytes[8] == b'.'
        && bytes[9..].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
        && !own.is_empty()
        && !own.contains(|c: char| ",;*&$|".contains(c) || c.is_ascii_whitespace())
}

fn iscsi(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if !text(source, "iqn").is_empty() {
        errors.extend(qualified_iscsi_name(text(source, "iqn"), &path.child("iqn")));
    }
    errors.extend(unit_number(number(source, "lun"), path));
    let authenticates = is_true(source, "chapAuthDiscovery") || is_true(source, "chapAuthSession");
    if authenticates && !has(source, "secretRef") {
        errors.push(Error::required(&path.child("secretRef"), ""));
    }
    if let Some(initiator) = at(source, "initiatorName").and_then(Value::as_str) {
        errors.extend(qualified_iscsi_name(initiator, &path.child("initiatorname")));
    }
    errors
}

fn unit_number(lun: i64, path: &Path) -> Errors {
    if (0..=255).contains(&lun) {
        return Errors::new();
    }
    vec![Error::invalid(&path.child("lun"), lun, "must be between 0 and 255, inclusive")]
}

fn glusterfs(source: &Value, path: &Path) -> Errors {
    let at_namespace = path.child("endpointsNamespace");
    match at(source, "endpointsNamespace").and_then(Value::as_str) {
        None => Errors::new(),
        Some("") => {
            let detail = "if the endpointnamespace is set, it must be a valid namespace name";
            vec![Error::invalid(&at_namespace, "", detail)]
        }
        Some(namespace) => dns_label(namespace, &at_namespace),
    }
}

fn flocker(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (name, uuid) = (text(source, "datasetName"), text(source, "datasetUUID"));
    if name.is_empty() && uuid.is_empty() {
        errors.push(Error::required(path, "one of datasetName and datasetUUID is required"));
    }
    if !name.is_empty() && !uuid.is_empty() {
        let detail = "datasetName and datasetUUID can not be specified simultaneously";
        errors.push(Error::invalid(path, "resource", detail));
    }
    if name.contains('/') {
        errors.push(Error::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errors
}

fn named_secret(source: &Value, path: &Path) -> Errors {
    if has(source, "secretRef") && text(source, "secretRef.name").is_empty() {
        return vec![Error::required(&path.child("secretRef").child("name"), "")];
    }
    Errors::new()
}

fn quobyte(source: &Value, path: &Path) -> Errors {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    const MAX_TENANT: usize = 64;
    let mut errors = Errors::new();
    let registry = text(source, "registry");
    if registry.is_empty() {
        errors.push(Error::required(&path.child("registry"), PAIRS));
    } else if text(source, "tenant").len() > MAX_TENANT {
        let detail = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(Error::required(&path.child("tenant"), detail));
    } else {
        for _ in registry.split(',').filter(|pair| !is_host_and_port(pair)) {
            errors.push(Error::invalid(&path.child("registry"), registry, PAIRS));
        }
    }
    if text(source, "volume").is_empty() {
        errors.push(Error::required(&path.child("volume"), ""));
    }
    errors
}

/// As Go's `net.SplitHostPort` sees it: one colon, or an address in brackets before it.
fn is_host_and_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else { return false };
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_good = match inside {
        Some(address) => !address.contains(['[', ']']),
        None => !host.contains([':', '[', ']']),
    };
    host_is_good && !port.contains(['[', ']'])
}

fn fibre_channel(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (names, wide) = (list(source, "targetWWNs"), list(source, "wwids"));
    let at_names = path.child("targetWWNs");
    if names.is_empty() && wide.is_empty() {
        errors.push(Error::required(&at_names, "must specify either targetWWNs or wwids, but not both"));
    }
    if !names.is_empty() && !wide.is_empty() {
        let detail = "targetWWNs and wwids can not be specified simultaneously";
        errors.push(Error::invalid(&at_names, Value::from(names), detail));
    }
    if !names.is_empty() {
        match int(source, "lun") {
            None => {
                let detail = "lun is required if targetWWNs is specified";
                errors.push(Error::required(&path.child("lun"), detail));
            }
            Some(lun) => errors.extend(unit_number(lun, path)),
        }
    }
    errors
}

fn flex_options(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, _) in get::entries(source, "options") {
        let namespace = key.split_once('/').map_or(key, |(namespace, _)| namespace);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            let detail = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(Error::invalid(&path.child("options").key(key), key, detail));
        }
    }
    errors
}

fn azure_disk(source: &Value, path: &Path) -> Errors {
    const MANAGED: &str = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/\
                           {disk-id}";
    const BLOB: &str = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    let mut errors = Errors::new();
    for (field, supported) in
        [("cachingMode", &["None", "ReadOnly", "ReadWrite"]), ("kind", &["Dedicated", "Managed", "Shared"])]
    {
        if let Some(value) = at(source, field).and_then(Value::as_str) {
            errors.extend(one_of(value, &path.child(field), supported));
        }
    }
    let uri = text(source, "diskURI");
    let (prefix, shown) = match at(source, "kind").and_then(Value::as_str) {
        None => return errors,
        Some("Managed") => ("/subscriptions/", MANAGED),
        Some(_) => ("https://", BLOB),
    };
    if !uri.starts_with(prefix) {
        errors.push(Error::not_supported(&path.child("diskURI"), uri, &[shown]));
    }
    errors
}

fn storage_os(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["volumeName", "volumeNamespace"] {
        let value = text(source, field);
        if !value.is_empty() {
            errors.extend(dns_label(value, &path.child(field)));
        }
    }
    errors.extend(named_secret(source, path));
    errors
}

fn csi(source: &Value, path: &Path) -> Errors {
    let mut errors = csi_driver_name(text(source, "driver"), &path.child("driver"));
    // Those of PersistentVolumes have a namespace, and their names are checked with it.
    if has(source, "volumeHandle") || !has(source, "nodePublishSecretRef") {
        return errors;
    }
    match text(source, "nodePublishSecretRef.name") {
        "" => errors.push(Error::required(&path.child("nodePublishSecretRef").child("name"), "")),
        name => errors.extend(each(names::dns1123_subdomain(name), &path.child("name"), name)),
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePVSecretReference
fn secret_reference(secret: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let rules: [(&str, fn(&str) -> Vec<String>); 2] =
        [("name", names::dns1123_subdomain), ("namespace", names::dns1123_label)];
    for (field, rule) in rules {
        let at_field = path.child(field);
        match text(secret, field) {
            "" => errors.push(Error::required(&at_field, "")),
            value => errors.extend(each(rule(value), &at_field, value)),
        }
    }
    errors
}
